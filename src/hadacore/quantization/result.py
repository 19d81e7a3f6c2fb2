"""What quantizing returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hadacore.formats import BY_NAME, PER_ROW, PER_TENSOR, Granularity
from hadacore.quantization import layouts, reference

_DEQUANTIZED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes and decode scales, ``x ~ value(code) * scale``. Unpacks into ``codes, scales``.

    Attributes:
        codes: The format's dtype, shape ``(..., n)``; 4-bit codes are uint8, shape ``(..., n / 2)``, the even index in the
            low nibble (``codes.view(torch.float4_e2m1fn_x2)`` is what ``scaled_mm`` takes for MXFP4 and NVFP4).
        scales: Per row ``(..., 1)``, per block ``(..., n / block)``, for a tensor without dimensions, and swizzled one
            dimension.
        format: The format's name.
        shape: The shape that was quantized.
        granularity: ``"tensor"``, ``"row"``, or elements of a block.
        swizzled: Whether the scales are in the 32x4x4 order.
        global_scale: NVFP4's fp32 scale of the whole tensor, or None for 1.

    >>> import hadacore
    >>> codes, scales = hadacore.hadamard_quantize(torch.randn(4, 64), "int4", granularity=32)
    >>> codes.shape, codes.dtype, scales.shape
    (torch.Size([4, 32]), torch.uint8, torch.Size([4, 2]))
    """

    codes: Tensor
    scales: Tensor
    format: str
    shape: torch.Size
    granularity: Granularity
    swizzled: bool = False
    global_scale: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.codes, self.scales))

    @property
    def block(self) -> int:
        """Consecutive elements that share a scale; 0 where all of the tensor does."""
        if self.granularity == PER_TENSOR:
            return 0
        return self.shape[-1] if self.granularity == PER_ROW else int(self.granularity)

    def plain_scales(self) -> Tensor:
        """The scales as ``(..., blocks)``, whatever their order in memory; one for a tensor as it is."""
        if not self.swizzled:
            return self.scales
        rows, blocks = self.codes.numel() // self.codes.shape[-1], self.shape[-1] // self.block
        return layouts.unswizzle(self.scales, rows, blocks).view(*self.shape[:-1], blocks)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``value(code) * scale``, of the shape that was quantized: rotated values, which no inverse was applied to.

        Args:
            dtype: float16, bfloat16, float32 or float64.

        Raises:
            TypeError: Another dtype.

        Numerics: one fp32 product (float64 for float64, which is exact), then one rounding to ``dtype``.

        >>> import hadacore
        >>> x = torch.randn(4, 64)
        >>> q = hadacore.hadamard_quantize(x, "int8")
        >>> back = hadacore.hadamard_transform(q.dequantize(), inverse=True)
        >>> bool((back - x).norm() / x.norm() < 0.01)
        True
        """
        if dtype not in _DEQUANTIZED:
            allowed = ", ".join(str(d) for d in _DEQUANTIZED)
            raise TypeError(f"dtype must be one of {allowed}, got {dtype}")
        scales = self.plain_scales()
        if self.granularity != PER_TENSOR:
            scales = scales.reshape(-1, scales.shape[-1])
        work = torch.float64 if dtype == torch.float64 else torch.float32
        codes = self.codes.reshape(-1, self.codes.shape[-1])
        values = reference.dequantize(codes, scales, BY_NAME[self.format], self.global_scale, work)
        return values.view(self.shape).to(dtype)
