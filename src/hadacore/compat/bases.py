"""The base matrices of ``fast-hadamard-transform`` 1.1, of orders 12, 20, 28 and 40, rebuilt by their constructions.

They are not those that :func:`hadacore.hadamard_matrix` uses for these orders. 20, 28 and 40 are had.20.will, had.28.will and
had.40.tpal of N. J. A. Sloane's library of Hadamard matrices. Each is given by what its construction leaves open:

- 12: Paley II over GF(5), symmetric;
- 20, 28: Williamson, from four symmetric circulants;
- 40: ``[[T, T], [T, -T]]`` of Paley's skew matrix T over GF(19).

The tests hold the digests of that package's tables.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hadacore.matrices.constructions import Matrix, paley2, sylvester, williamson
from hadacore.matrices.finite_fields import quadratic_character

__all__ = ["ORDERS", "base_matrix"]

#: The orders that there is a base matrix for.
ORDERS = (12, 20, 28, 40)

# First rows of the circulant matrices A, B, C, D.
_WILLIAMSON = {
    20: ("+----", "+----", "++--+", "+-++-"),
    28: ("+------", "++----+", "+-+--+-", "+--++--"),
}


def _signs(row: str) -> Matrix:
    return np.array([1 if sign == "+" else -1 for sign in row], dtype=np.int8)


def _paley_skew(q: int) -> Matrix:
    """Order q + 1 for a prime q = 3 mod 4: ``chi(x - y) + [x = y]`` for x, y in GF(q), bordered by -1 above and +1 before."""
    elements = np.arange(q)
    core = quadratic_character(q)[(elements[:, None] - elements[None, :]) % q]
    matrix = np.ones((q + 1, q + 1), dtype=np.int8)
    matrix[0, 1:] = -1
    matrix[1:, 1:] = core + np.eye(q, dtype=np.int8)
    return matrix


def _build(order: int) -> Matrix:
    if order == 12:
        return paley2(5)
    if order == 40:
        return np.kron(sylvester(1), _paley_skew(19))
    a, b, c, d = (_signs(row) for row in _WILLIAMSON[order])
    return williamson((a, b, c, d))


def base_matrix(order: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Tensor:
    r"""The ``base=`` that makes :func:`hadacore.hadamard_transform` compute what ``hadamard_transform_<order>N`` does.

    Args:
        order: 12, 20, 28 or 40.
        dtype: Type of the entries, +1 and -1: x's, or float32 beside 16-bit x.
        device: Where to put it.

    Returns:
        A tensor of shape ``(order, order)`` with :math:`B B^T = \mathrm{order} \cdot I`; symmetric for 12 only.

    Raises:
        ValueError: ``order`` is not one of these.

    >>> import hadacore
    >>> x, base = torch.randn(2, 28 * 64), base_matrix(28)
    >>> y = hadacore.hadamard_transform(x, base=base)
    >>> torch.allclose(hadacore.hadamard_transform(y, base=base, inverse=True), x, atol=1e-5)
    True
    """
    if order not in ORDERS:
        raise ValueError(
            f"fast-hadamard-transform has base matrices of orders {', '.join(map(str, ORDERS))}, got {order!r}; "
            "hadacore.hadamard_matrix has every other order that is known"
        )
    return torch.tensor(_build(order).tolist(), dtype=dtype, device=device)
