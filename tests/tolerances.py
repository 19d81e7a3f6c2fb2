"""Every tolerance of the test suite, derived.

Notation: u is the unit roundoff of the output type (2^-11 float16, 2^-8 bfloat16, 2^-24 float32), n = m 2^k the size, B its
base matrix of order m, 1 for a power of two. Error means the relative L2 error against the float64 oracle.

16-bit types. Results are computed in fp32 and rounded once, so the error is that of rounding the float64 result, up
to the fp32 work before it. The contract is a ratio of at most 1.002 (issue: "correctly rounded").

float32. A butterfly network rounds k times, each error independent: about sqrt(k) u / sqrt(3) in L2. The contract is
1.2 times the error of a plain fp32 butterfly, computed in the test itself. With a base, the yardstick is fp32 butterflies
and one fp32 matrix product, whose sums of m terms a BLAS may order better than one after another, by which the
error grows as sqrt(m / 2) instead of sqrt(log2 m): so 1.2 times that of sums taken one after another.

Absolute bound of one element. Every intermediate is at most max|B| ||x||_1, so each of the k fp32 roundings of an element,
and of the 2 m of its products and sums with B, adds at most u_fp32 max|B| ||x||_1:
|error| <= scale (k + 2 m + 2) u_fp32 max|B| ||x||_1 + u |y|, plus the smallest subnormal.

Rotated values that a kernel quantizes. They are fp32 and not rounded to 16 bits, but a Tensor Core kernel of 16-bit inputs
splits what one product gives into two bfloat16 before the next: hi is off by at most 2^-9 of it, lo rounds that to 2^-9
again, so 2^-18 in all. An element is a signed sum of such values, whose magnitudes sum to at most s_i = sum_j |B_ij| ||x_j||_1,
x_j being the part of x that column j of B multiplies. At most two products take split values. Tensor Cores cut off where they
where they should round, which at most doubles each rounding, and a scale rounds once more:
|error| <= scale s_i (2 2^-18 + 2 (k + 2 m + 3) u_fp32), without the first term for float32.

With Tensor Cores such a kernel gives the second product 11 bits of significand (tf32), of a value that it has raised by
0.72 of 2^-11: cutting off leaves an error between -0.64 and 0.36 of 2^-10. Over a mantissa m between 1 and 2 whose logarithm
is evenly distributed it is 0 on average and 0.224 of 2^-10 = 2.19e-4 in root mean square: with u even in 0 to 1, the mean
square of u / m is 0.1803, the square of its mean 0.1301. An element is a signed sum of such values, independent of each other
for random x, whose squares sum to sum_j B_ij^2 ||x_j||^2: it is off by a normal error, of which 8 standard deviations are
allowed, since a sum of 16 squares may be twice its mean. Below 256 there is one product, which is exact; after a prologue the
first takes such values as well.

Codes and scales of them. Finding a scale, multiplying by it and rounding to a code are monotonic, so a scale lies between
those of magnitudes smaller and larger by that bound, and a code between those of the values at both ends: the same, but
where a boundary between codes lies between.

Norms and inverses in fp32. Rounding errors are independent, each u_fp32 / sqrt(3) of a partial sum that is on the average no
larger than the result, so r of them change a norm by about sqrt(r / 3) u_fp32. The bound is r u_fp32, and twice that there
and back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.attention import AttentionRecipe
from hadacore.formats import BY_NAME
from hadacore.matrices import factor

CORRECT_ROUNDING_RATIO = 1.002
FLOAT32_BUTTERFLY_RATIO = 1.2
FLOAT32_ROUNDOFF = 2.0**-24
TF32_ERROR = 2.19e-4
_DEVIATIONS = 8


def base_product_float32(order: int, log2_columns: int) -> float:
    """Relative L2 error of float32 after a product with a base of ``order`` and ``log2_columns`` butterflies.

    Each of the ``order / 16`` steps is a sum by Tensor Cores, which cut off rather than round (one unit in the last place, 2u,
    for each of three products), and then an addition that rounds, to partial sums that are on average sqrt(1/2) of the last.
    Steps are 1 / sqrt(steps) of the whole, their errors independent but for the cut, which is towards zero.
    """
    steps = -(-order // 16)
    return float((steps / 6 + 36 / steps + log2_columns / 3 + 1) ** 0.5 * FLOAT32_ROUNDOFF)


def relative_error(y: Tensor, exact: Tensor) -> float:
    """Relative L2 error."""
    norm = exact.norm().item()
    return (y.double() - exact).norm().item() / norm if norm else float(y.double().norm())


def rounding_error(exact: Tensor, dtype: torch.dtype) -> float:
    """The error of the best possible result of this dtype."""
    return relative_error(exact.to(dtype), exact)


def roundings(size: int, base: Tensor | None = None) -> int:
    """Roundings of one element in the working type, the scale and the type of the output included."""
    order = factor(size).base_order if base is None else base.shape[0]
    products = 2 * order if order > 1 else 0
    return products + (size // order).bit_length() + 1


def element_bound(
    x: Tensor, exact: Tensor, size: int, scale: float, dtype: torch.dtype, base: Tensor | None = None
) -> Tensor:
    """Largest allowed error of each element, see above."""
    largest = 1.0 if base is None else base.detach().abs().max().item()
    blocks = x.double().abs().reshape(*x.shape[:-1], x.shape[-1] // size, size)
    mass = largest * blocks.sum(-1, keepdim=True).expand_as(blocks).reshape(x.shape)
    information = torch.finfo(dtype)
    work = max(information.eps / 2 if dtype == torch.float64 else FLOAT32_ROUNDOFF, information.eps / 2**30)
    tiny = information.smallest_normal * information.eps
    return abs(scale) * roundings(size, base) * work * mass + information.eps / 2 * 1.01 * exact.abs() + tiny


def rotated_bound(
    x: Tensor, size: int, scale: float, dtype: torch.dtype, prologue: bool = False, base: Tensor | None = None,
    inverse: bool = False, tensor_cores: bool | None = None,
) -> Tensor:  # fmt: skip
    """Largest allowed error of each rotated value before it is quantized, see above; in float64, of x's shape.

    With a prologue, x is its result: fp32, so that the first product takes split values too, and four roundings off.
    ``tensor_cores``: whether they compute it; those of a GPU that has x, unless it is said.
    """
    matrix = x.new_ones((1, 1), dtype=torch.float64) if base is None else base.double().abs()
    matrix = matrix.T if inverse else matrix
    parts = x.double().abs().reshape(*x.shape[:-1], x.shape[-1] // size, matrix.shape[0], size // matrix.shape[0])

    def spread(of_parts: Tensor) -> Tensor:
        return of_parts.expand_as(parts).reshape(x.shape)

    mass = spread(matrix @ parts.sum(-1, keepdim=True))
    split = 0.0 if dtype == torch.float32 else (2 + prologue) * 2.0**-18
    bound = mass * (split + 2 * (roundings(size, base) + 1 + 2 * prologue) * FLOAT32_ROUNDOFF)
    if dtype != torch.float32 and (x.is_cuda if tensor_cores is None else tensor_cores):
        norm = spread(matrix.square() @ parts.square().sum(-1, keepdim=True)).sqrt()
        products = int(size >= 256 or base is not None or factor(size).base_order > 1) + prologue
        bound = bound + _DEVIATIONS * TF32_ERROR * products**0.5 * norm
    return abs(scale) * bound


def norm_bound(size: int, base: Tensor | None = None) -> float:
    """Largest relative change of a row's norm by an orthonormal float32 transform and its inverse."""
    return 2 * (roundings(size, base) + 1) * FLOAT32_ROUNDOFF


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


def base_float32(x: Tensor, base: Tensor, size: int, scale: float, inverse: bool = False) -> Tensor:
    """The same with a base matrix: fp32 butterflies, then fp32 sums of products, term after term."""
    order = base.shape[0]
    base = base.float().to(x.device)
    y = butterfly_float32(x.reshape(-1, size // order), size // order, 1.0).view(-1, order, size // order)
    columns = (base.T if inverse else base).unbind(1)
    total = torch.zeros_like(y)
    for column, values in zip(columns, y.unbind(1), strict=True):
        total = total + column[:, None] * values[:, None]
    return (total * scale).reshape(x.shape)


def attention_float32(head_dim: int, keys: int) -> float:
    """Relative L2 error of attention in fp32 whose scores are about 1: a score is a sum of ``head_dim`` products and changes
    its probability by as much, the output a sum over keys; rounding errors are independent, and four times their size is
    allowed."""
    return float(4 * (head_dim**0.5 + keys**0.5 + 4) * FLOAT32_ROUNDOFF)


def attention_error(recipe: AttentionRecipe, head_dim: int, keys: int) -> float:
    """Relative L2 error of attention of normal queries, keys and values by a recipe, whose scores have variance 1.

    An independent relative error e of each element of queries and keys is one of e sqrt(2) in a score, as much in its
    probability, and as much in the output; e in the probabilities themselves and e in the values add, all in squares. E4M3
    rounds to half of 2^-3 of a power of two at most, uniformly: u / sqrt(3) with u = 2^-4. An integer step is amax / maximum,
    its error 1 / sqrt(12) of it, and amax of a head of up to 256 normal numbers at most 4.5. A third is allowed on top, since
    the errors of few numbers are not their expectation.
    """
    if recipe.format is None:
        return attention_float32(head_dim, keys)
    if recipe.format == "fp8_e4m3":
        element, probability = 2.0**-4 / 3**0.5, 2.0**-4 / 3**0.5
    else:
        element, probability = 4.5 / BY_NAME[recipe.format].encoding.maximum / 12**0.5, 0.0
    sides = 1 + recipe.quantize_query
    return float(1.33 * ((sides + 1) * element**2 + probability**2) ** 0.5)


def attention_flips(head_dim: int, keys: int) -> float:
    """How far two computations of FP8 attention with the same codes may be apart, one of them in fp32.

    A score that differs by e moves a probability over a boundary between two codes with likelihood 2 e / 2^-4, and by then
    2^-3 of it at most; independent, they add in squares. e is a sum of ``head_dim`` fp32 roundings.
    """
    score = head_dim * FLOAT32_ROUNDOFF
    return float(2.0**-3 * (2 * score / 2.0**-4) ** 0.5 + attention_float32(head_dim, keys))
