"""``from hadacore.compat.fast_hadamard_transform import hadamard_transform``.

The signature and semantics of ``fast_hadamard_transform.hadamard_transform`` 1.0 and 1.1: not normalised, and a
dimension that is no power of two is padded with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.checks import check_input
from hadacore.functional import hadamard_transform as _hadamard_transform
from hadacore.matrices import MAXIMUM_SIZE

__all__ = ["hadamard_transform"]


def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    r"""Multiply each row of ``x`` by the Hadamard matrix of the next power of two, and by ``scale``.

    .. math:: y = \mathrm{scale} \cdot (H_N \, \mathrm{pad}_N(x))_{0 \ldots n-1}, \qquad N = 2^{\lceil \log_2 n \rceil}

    A padded transform is not orthogonal: it cannot be undone, and does not preserve norms.
    :func:`hadacore.hadamard_transform` raises an error there instead.

    Args:
        x: ``(..., n)``, float16, bfloat16, float32 (float64 on the CPU), ``n`` at most 2^30 (32768 in the original).
        scale: Factor of the result; 1.0, not orthonormal, by default.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        TypeError: ``x`` is no tensor of such a type.
        ValueError: ``x`` has no dimension, or one that is empty or larger than 2^30.

    >>> hadamard_transform(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [6.0, 2.0, 0.0]
    """
    check_input(x)
    n = x.shape[-1]
    if n > MAXIMUM_SIZE:
        raise ValueError(f"the last dimension of x may have at most {MAXIMUM_SIZE} elements, got {n}")
    size = 1 << (n - 1).bit_length()
    if size == n:
        return _hadamard_transform(x, scale)
    padded = torch.nn.functional.pad(x, (0, size - n))
    return _hadamard_transform(padded, scale)[..., :n]
