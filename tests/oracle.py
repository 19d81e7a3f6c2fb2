"""The float64 oracle: the transform by its definition, independent of the package."""

from __future__ import annotations

import torch
from torch import Tensor


def sylvester(n: int) -> Tensor:
    """H[i, j] = (-1)^popcount(i & j), from the definition."""
    index = torch.arange(n)
    common = index[:, None] & index[None, :]
    parity = torch.zeros_like(common)
    while bool(common.any()):
        parity ^= common & 1
        common = common >> 1
    return (1 - 2 * parity).double()


def transform(x: Tensor, scale: float | None = None, *, block_size: int | None = None, signs: Tensor | None = None,
              inverse: bool = False) -> Tensor:  # fmt: skip
    """``scale H (signs x)``, or with ``inverse`` ``signs (scale H^T x)``, in float64, on x's device.

    The matrix is applied as a Kronecker product of factors up to 128, H_mn = H_m (x) H_n, to keep the tests quick.
    """
    n = x.shape[-1]
    size = block_size or n
    values = x.double()
    if signs is not None and not inverse:
        values = values * signs.double()
    blocks, inner = values, 1
    while inner < size:
        small = min(size // inner, 128)
        blocks = blocks.reshape(x.numel() // (small * inner), small, inner)
        blocks = torch.einsum("ij,bjk->bik", sylvester(small).to(x.device), blocks)
        inner *= small
    result = blocks.reshape(x.shape) * (size**-0.5 if scale is None else scale)
    if signs is not None and inverse:
        result = result * signs.double()
    return result
