"""The float64 oracle: the transform by its definition, independent of the package's.

Only the base matrix of a size that is no power of two is the package's; ``test_matrices.py`` checks those by themselves.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hadacore.matrices import factor
from hadacore.matrices.orders import base_matrix


@functools.cache
def sylvester(n: int) -> Tensor:
    """H[i, j] = (-1)^popcount(i & j), from the definition."""
    index = torch.arange(n)
    common = index[:, None] & index[None, :]
    parity = torch.zeros_like(common)
    while bool(common.any()):
        parity ^= common & 1
        common = common >> 1
    return (1 - 2 * parity).double()


@functools.cache
def known_base(size: int) -> Tensor:
    """The base matrix that the package says this size has, (1, 1) for a power of two; the tests of matrices check it."""
    return torch.from_numpy(base_matrix(factor(size)).astype("float64"))


def _along(matrix: Tensor, blocks: Tensor) -> Tensor:
    """``matrix`` times the second last index."""
    return torch.einsum("ij,bjk->bik", matrix.to(blocks.device), blocks)


def transform(x: Tensor, scale: float | None = None, *, block_size: int | None = None, signs: Tensor | None = None,
              inverse: bool = False, base: Tensor | None = None) -> Tensor:  # fmt: skip
    """``scale H (signs x)``, or with ``inverse`` ``signs (scale H^T x)``, in float64, on x's device.

    H is the Kronecker product of the base matrix, :func:`known_base` if there is none given, and Sylvester's, which is itself
    applied as one of factors up to 128, H_mn = H_m (x) H_n, to keep the tests quick.
    """
    n = x.shape[-1]
    size = block_size or n
    has_base = base is not None or size & (size - 1) != 0
    base = known_base(size) if base is None else base.detach().double()
    if inverse:
        base = base.T
    order = base.shape[0]
    columns = size // order
    values = x.double()
    if signs is not None and not inverse:
        values = values * signs.double()
    count, blocks, inner = x.numel() // size, values, 1
    while inner < columns:
        small = min(columns // inner, 128)
        blocks = _along(sylvester(small), blocks.reshape(x.numel() // (small * inner), small, inner))
        inner *= small
    if has_base:
        blocks = _along(base, blocks.reshape(count, order, columns))
    result = blocks.reshape(x.shape) * (size**-0.5 if scale is None else scale)
    if signs is not None and inverse:
        result = result * signs.double()
    return result
