"""Hadamard matrices: which one an order uses, as a tensor and in words.

Orders are built by Sylvester's, Paley's, Williamson's, Goethals and Seidel's and Miyamoto's constructions and by tensor
products; :mod:`hadacore.matrices.orders` says which one an order uses. Nothing is built when this is imported.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.matrices.orders import VERSION, Factorization, base_matrix, factor, known_orders

__all__ = ["Factorization", "MAXIMUM_SIZE", "check_size", "describe", "factor", "hadamard_matrix", "known_orders"]

#: The largest power of two that is transformed.
MAXIMUM_SIZE = 1 << 30

_LARGEST_DENSE = 1 << 15  # a float32 matrix of this order takes 4 GiB


def check_size(size: int) -> int:
    """Return ``size`` if there is a transform of that size.

    Raises:
        TypeError: ``size`` is not an integer.
        ValueError: No Hadamard matrix of that order is known here, or the size is too large.
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"a transform size must be an integer, got {size!r} of type {type(size).__name__}")
    if size & (size - 1) and size > 0:
        # torch.compile cannot follow how a matrix is found; the operator looks again when it runs.
        return size if torch.compiler.is_compiling() else factor(size).n
    if size < 1:
        raise ValueError(f"a transform size must be 1 or more, got {size}")
    if size > MAXIMUM_SIZE:
        raise ValueError(
            f"got size {size}; powers of two are transformed up to {MAXIMUM_SIZE}. Use a block-diagonal transform, "
            f"block_size={MAXIMUM_SIZE} or less."
        )
    return size


def hadamard_matrix(n: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Tensor:
    r"""The Hadamard matrix of order ``n``, entries +1 and -1, :math:`H H^T = n I`.

    For a power of two it is Sylvester's, in natural order:
    :math:`H_{ij} = (-1)^{\mathrm{popcount}(i \wedge j)}`, which is symmetric. Another :math:`n = m \cdot 2^k` has
    :math:`H_n = H_m \otimes H_{2^k}`; :func:`factor` says which :math:`H_m`. The matrix of an order never changes
    between releases.

    Args:
        n: Order, one of :func:`known_orders`, at most 32768.
        dtype: Type of the entries.
        device: Where to put it.

    Returns:
        A tensor of shape ``(n, n)``. The orthonormal matrix is this times ``n ** -0.5``.

    Raises:
        TypeError: ``n`` is not an integer.
        ValueError: No matrix of order ``n`` is known here, or it would be larger than order 32768.

    >>> hadamard_matrix(4, dtype=torch.int8).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    >>> h = hadamard_matrix(12)
    >>> torch.equal(h @ h.T, 12 * torch.eye(12))
    True
    """
    found = factor(n)
    if n > _LARGEST_DENSE:
        raise ValueError(
            f"a dense Hadamard matrix may have order {_LARGEST_DENSE} at most, got {n}; factor({n}) gives it as a tensor "
            "product, whose parts are smaller"
        )
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    for _ in range(found.log2):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    if found.construction is None:
        return matrix
    return torch.kron(torch.tensor(base_matrix(found), dtype=dtype, device=device), matrix)


def describe(n: int) -> str:
    """One line that says which matrix order ``n`` uses.

    Raises:
        TypeError: ``n`` is not an integer.
        ValueError: No matrix of order ``n`` is known here.

    >>> describe(4096)
    'H_4096 = Sylvester(2^12), natural order, symmetric; construction version 1'
    >>> describe(11008)
    'H_11008 = Williamson(43) (x) Sylvester(2^6), natural order, not symmetric; construction version 1'
    """
    found = factor(n)
    symmetry = "symmetric" if found.symmetric else "not symmetric"
    return f"H_{n} = {found}, natural order, {symmetry}; construction version {VERSION}"
