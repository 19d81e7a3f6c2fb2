"""Whether codes and scales are those of rotated values that are known to within a bound. The bounds are in ``tolerances.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore import QuantizedTensor
from hadacore.formats import BY_NAME, Encoding, Format, Quantizer
from hadacore.quantization import reference, rounding

_ROUNDOFF = 2.0**-22  # of the reciprocal of a scale and the product with it, twice as much as they can be off


def exact_rows(rows: int, n: int, dtype: torch.dtype) -> Tensor:
    """Rows whose transforms are exact, whatever the order of the sums: small integers, many of them 0, and a power of two for
    each row."""
    integers = torch.randint(-7, 8, (rows, n)) * (torch.rand(rows, n) < 0.3)
    powers = torch.tensor([2.0 ** (i * 5 % 13 - 6) for i in range(rows)])
    return (integers * powers[:, None]).to(dtype)


def exact_base(order: int, dtype: torch.dtype) -> Tensor:
    """A base with which those of :func:`exact_rows` are exact, neither symmetric nor orthogonal: integers that every type
    holds, or, in float32, that a bfloat16 does not."""
    largest = 300 if dtype == torch.float32 else 5
    return torch.randint(-largest, largest + 1, (order, order)).to(dtype)


def assert_quantized_within(
    q: QuantizedTensor,
    exact: Tensor,
    bound: Tensor,
    given: Tensor | None = None,
    *,
    clip_ratio: float = 1.0,
    differing: float = 0.05,
) -> None:
    """Check codes and scales of ``exact`` (float64, of the shape that was quantized) rotated values.

    Args:
        q: What a kernel gave.
        exact: The rotated values.
        bound: Largest error of each of them.
        given: The scale of the whole tensor.
        clip_ratio: As the kernel had it.
        differing: Share of elements that may have two codes to choose from. With more of them the check would say little.
    """
    format, n = BY_NAME[q.format], q.shape[-1]
    exact, bound = exact.reshape(-1, n), bound.reshape(-1, n)
    scales = q.plain_scales()
    if q.block:
        scales = scales.reshape(-1, n // q.block)
        quantizer = Quantizer(format, q.block, clip_ratio)
        magnitude = exact.abs()
        ends = []
        for end in ((magnitude - bound).clamp(min=0), magnitude + bound):
            _, found = reference.quantize(end.float(), quantizer)
            ends.append(decoded_scales(found, format))
        assert ends[0].shape == scales.shape
        # The magnitudes' own rounding to fp32 is one part in 2^24.
        low, high = ends[0] * (1 - 2.0**-23), ends[1] * (1 + 2.0**-23)
        assert ((decoded_scales(scales, format) >= low) & (decoded_scales(scales, format) <= high)).all()
    else:
        assert given is not None and torch.equal(scales, given)
    decode = decoded_scales(scales, format).reshape(exact.shape[0] if q.block else 1, -1)
    decode = decode.repeat_interleave(n // decode.shape[1], 1)
    values = reference.code_values(q.codes.reshape(exact.shape[0], -1), format).double()
    reach = bound / decode + (exact / decode).abs() * _ROUNDOFF
    low, high = (_rounded(exact / decode + reach * sign, format.encoding) for sign in (-1, 1))
    assert ((values >= low) & (values <= high)).all()
    assert (low != high).double().mean() < differing


def assert_half_a_step_within(codes: Tensor, scales: Tensor, exact: Tensor, bound: Tensor) -> None:
    """Check codes with a scale for each row: off by half a step, rounded in fp32, and what the rotated values are off by."""
    steps = scales.double()[:, None]
    assert ((codes.double() * steps - exact).abs() <= steps * 0.5 * (1 + 2.0**-20) + bound).all()


def decoded_scales(scales: Tensor, format: Format) -> Tensor:
    """Scales as float64."""
    if format.scale_name == "E8M0":
        return rounding.from_e8m0_bits(scales.view(torch.uint8).to(torch.int32)).double()
    return scales.double()


def _rounded(values: Tensor, encoding: Encoding) -> Tensor:
    """The values of the codes of scaled values."""
    single = values.float()
    if encoding.is_integer:
        return rounding.to_integer(single, encoding).double()
    if encoding.bits == 4:
        return rounding.from_e2m1(rounding.to_e2m1(single)).double()
    return rounding.to_float8(single, encoding).double()
