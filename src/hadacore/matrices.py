"""Hadamard matrices: which one a size uses, as a tensor and in words."""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.kernels.configurations import MAXIMUM_LOG2_SIZE

MAXIMUM_SIZE = 1 << MAXIMUM_LOG2_SIZE


def check_size(size: int) -> int:
    """Return ``size`` if this release has a transform of that size.

    Raises:
        TypeError: ``size`` is not an integer.
        ValueError: ``size`` is not a power of two from 1 to 32768.
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"a transform size must be an integer, got {size!r} of type {type(size).__name__}")
    if size < 1:
        raise ValueError(f"a transform size must be a power of two from 1 to {MAXIMUM_SIZE}, got {size}")
    if size & (size - 1):
        block = min(size & -size, MAXIMUM_SIZE)
        raise ValueError(
            f"got size {size}, which is not a power of two. Other orders come in a later release; this one has "
            f"1, 2, 4, ... {MAXIMUM_SIZE}. Use a block-diagonal transform, block_size={block} (the largest power of two that "
            f"divides {size}), or pad the dimension yourself."
        )
    if size > MAXIMUM_SIZE:
        raise ValueError(
            f"got size {size}; this release transforms powers of two up to {MAXIMUM_SIZE}, larger ones come in a later "
            f"release. Use a block-diagonal transform, block_size={MAXIMUM_SIZE} or less."
        )
    return size


def hadamard_matrix(n: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Tensor:
    r"""The Hadamard matrix that :func:`hadacore.hadamard_transform` applies for size ``n``, entries +1 and -1.

    For a power of two it is Sylvester's, in natural order:
    :math:`H_{ij} = (-1)^{\mathrm{popcount}(i \wedge j)}`, which is symmetric and satisfies :math:`H H^T = n I`.
    The matrix of a size never changes between releases.

    Args:
        n: Order, a power of two from 1 to 32768.
        dtype: Type of the entries.
        device: Where to put it.

    Returns:
        A tensor of shape ``(n, n)``. The orthonormal matrix is this times ``n ** -0.5``.

    Raises:
        TypeError: ``n`` is not an integer.
        ValueError: There is no transform of size ``n`` in this release.

    Source: J. J. Sylvester, "Thoughts on inverse orthogonal matrices", Phil. Mag. 34 (1867).

    >>> hadamard_matrix(4, dtype=torch.int8).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    check_size(n)
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    while matrix.shape[0] < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def describe(n: int) -> str:
    """One line that says which matrix size ``n`` uses.

    Raises:
        TypeError: ``n`` is not an integer.
        ValueError: There is no transform of size ``n`` in this release.

    >>> describe(4096)
    'H_4096 = Sylvester(2^12), natural order, symmetric; construction version 1'
    """
    check_size(n)
    return f"H_{n} = Sylvester(2^{n.bit_length() - 1}), natural order, symmetric; construction version 1"
