"""Every tolerance of the test suite, derived.

Notation: u is the unit roundoff of the output type (2^-11 float16, 2^-8 bfloat16, 2^-24 float32), n = 2^k the size.
Error means the relative L2 error against the float64 oracle.

16-bit types. Results are computed in fp32 and rounded once, so the error is that of rounding the float64 result, up
to the fp32 work before it. The contract is a ratio of at most 1.002 (issue: "correctly rounded").

float32. A butterfly network rounds k times, each error independent: about sqrt(k) u / sqrt(3) in L2. The contract is
1.2 times the error of a plain fp32 butterfly, computed in the test itself.

Absolute bound of one element. Every intermediate is at most ||x||_1, so each of the k fp32 roundings of an element
adds at most u_fp32 ||x||_1: |error| <= scale (k + 2) u_fp32 ||x||_1 + u |y|, plus the smallest subnormal.
"""

from __future__ import annotations

import torch
from torch import Tensor

CORRECT_ROUNDING_RATIO = 1.002
FLOAT32_BUTTERFLY_RATIO = 1.2
FLOAT32_ROUNDOFF = 2.0**-24


def relative_error(y: Tensor, exact: Tensor) -> float:
    """Relative L2 error."""
    norm = exact.norm().item()
    return (y.double() - exact).norm().item() / norm if norm else float(y.double().norm())


def rounding_error(exact: Tensor, dtype: torch.dtype) -> float:
    """The error of the best possible result of this dtype."""
    return relative_error(exact.to(dtype), exact)


def element_bound(x: Tensor, exact: Tensor, size: int, scale: float, dtype: torch.dtype) -> Tensor:
    """Largest allowed error of each element, see above."""
    stages = size.bit_length() + 1
    blocks = x.double().abs().reshape(*x.shape[:-1], x.shape[-1] // size, size)
    mass = blocks.sum(-1, keepdim=True).expand_as(blocks).reshape(x.shape)
    information = torch.finfo(dtype)
    work = max(information.eps / 2 if dtype == torch.float64 else FLOAT32_ROUNDOFF, information.eps / 2**30)
    tiny = information.smallest_normal * information.eps
    return abs(scale) * stages * work * mass + information.eps / 2 * 1.01 * exact.abs() + tiny


def base_bound(x: Tensor, exact: Tensor, base: Tensor, log2: int, scale: float, dtype: torch.dtype) -> Tensor:
    """Largest allowed error of each element of a product with a base matrix after ``log2`` butterflies.

    The butterflies add log2 roundings, the product at most one for each of its terms and one more for each
    multiplication, all of them at most u times the sum of magnitudes, which the largest entry of ``base`` multiplies.
    """
    order = base.shape[0]
    blocks = x.double().abs().reshape(-1, order << log2)
    mass = blocks.sum(-1, keepdim=True).expand_as(blocks).reshape(x.shape) * base.double().abs().max()
    information = torch.finfo(dtype)
    work = information.eps / 2 if dtype == torch.float64 else FLOAT32_ROUNDOFF
    tiny = information.smallest_normal * information.eps
    roundings = log2 + order + 3
    return abs(scale) * roundings * work * mass + information.eps / 2 * 1.01 * exact.abs() + tiny


def butterfly_float32(x: Tensor, size: int, scale: float) -> Tensor:
    """A plain fp32 butterfly transform of blocks of ``size``: the yardstick of float32."""
    y = x.clone().reshape(-1, size)
    distance = 1
    while distance < size:
        pairs = y.view(-1, size // (2 * distance), 2, distance)
        a, b = pairs[:, :, 0].clone(), pairs[:, :, 1].clone()
        y = torch.stack((a + b, a - b), 2).reshape(-1, size)
        distance *= 2
    return (y * scale).reshape(x.shape)
