"""The formats of quantized tensors: one table, from which the reference, the checks, the kernels and the docs are derived.

A quantized tensor is codes and decode scales: ``x ~ value(code) * scale``. A format says how a code is encoded, how
many consecutive elements may share a scale, and what type the scale has.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch

PER_TENSOR = "tensor"
PER_ROW = "row"
Granularity = str | int

# Smallest normal fp32. An fp32 scale is never below it, so its reciprocal is finite, also for rows of zeros.
SMALLEST_SCALE = 2.0**-126


@dataclass(frozen=True)
class Encoding:
    """How a number is written in a few bits.

    Attributes:
        name: The name in tables.
        bits: Bits of a code.
        maximum: Largest magnitude; larger values saturate to it.
        largest_exponent: Exponent of the largest power of two that is a code.
        mantissa_bits: Stored mantissa bits of a floating-point code, or None for integers.
        bias: Exponent bias of a floating-point code.
    """

    name: str
    bits: int
    maximum: float
    largest_exponent: int
    mantissa_bits: int | None = None
    bias: int = 0

    @property
    def is_integer(self) -> bool:
        """Whether codes are integers in two's complement."""
        return self.mantissa_bits is None

    @property
    def smallest(self) -> float:
        """Smallest positive value: 1 for integers, the smallest subnormal otherwise."""
        return 1.0 if self.mantissa_bits is None else 2.0 ** (1 - self.bias - self.mantissa_bits)


E4M3 = Encoding("E4M3", 8, 448.0, 8, mantissa_bits=3, bias=7)
E5M2 = Encoding("E5M2", 8, 57344.0, 15, mantissa_bits=2, bias=15)
E2M1 = Encoding("E2M1", 4, 6.0, 2, mantissa_bits=1, bias=1)
INT8 = Encoding("INT8", 8, 127.0, 6)
INT4 = Encoding("INT4", 4, 7.0, 2)


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: The name users pass, such as ``"fp8_e4m3"``.
        encoding: How codes are written.
        codes_dtype: The torch dtype of the codes; ``uint8`` holds two 4-bit codes, the even index in the low nibble.
        granularities: What may share a scale: ``"tensor"``, ``"row"``, or a number of consecutive elements of a row.
        default: The granularity where none is given.
        scale_name: Type of a scale: ``"fp32"``, ``"E8M0"`` or ``"E4M3"``.
        scale_dtype: The torch dtype of the scales.
        has_global_scale: Whether one fp32 scale of the whole tensor multiplies the block scales.
        can_swizzle: Whether the scales may be in the 32x4x4 order, which they then are unless told otherwise.
        stochastic: Whether codes may be rounded stochastically.
        source: Where the format is defined.
    """

    name: str
    encoding: Encoding
    codes_dtype: torch.dtype
    granularities: tuple[Granularity, ...]
    default: Granularity
    scale_name: str
    scale_dtype: torch.dtype
    source: str
    has_global_scale: bool = False
    can_swizzle: bool = False
    stochastic: bool = False

    @property
    def packed(self) -> int:
        """Codes in one element of ``codes_dtype``: 1 or 2."""
        return 8 // self.encoding.bits

    def is_block_major(self, blocks: int) -> bool:
        """Whether ``blocks`` scales a row are stored block by block: FP8 with fp32 scales, as ``scaled_mm`` takes them."""
        return blocks > 1 and self.encoding in (E4M3, E5M2) and self.scale_dtype == torch.float32


_OFP8 = "OCP 8-bit Floating Point Specification (OFP8) 1.0; Micikevicius et al., arXiv 2209.05433"
_MX = "OCP Microscaling Formats (MX) Specification 1.0; Rouhani et al., arXiv 2310.10537"
_NVFP4 = "NVIDIA cuBLAS documentation, 1D block scaling for FP8 and FP4 data types"
_SYMMETRIC = "symmetric two's complement integers, the most negative code unused"

FORMATS: tuple[Format, ...] = (
    Format("fp8_e4m3", E4M3, torch.float8_e4m3fn, (PER_TENSOR, PER_ROW, 128), PER_ROW, "fp32", torch.float32, _OFP8),
    Format("fp8_e5m2", E5M2, torch.float8_e5m2, (PER_TENSOR, PER_ROW, 128), PER_ROW, "fp32", torch.float32, _OFP8),
    Format("int8", INT8, torch.int8, (PER_ROW,), PER_ROW, "fp32", torch.float32, _SYMMETRIC),
    Format("int4", INT4, torch.uint8, (PER_ROW, 32, 64, 128), PER_ROW, "fp32", torch.float32, _SYMMETRIC),
    Format(
        "mxfp8", E4M3, torch.float8_e4m3fn, (32,), 32, "E8M0", torch.float8_e8m0fnu, _MX, can_swizzle=True
    ),
    Format(
        "mxfp4", E2M1, torch.uint8, (32,), 32, "E8M0", torch.float8_e8m0fnu, _MX, can_swizzle=True, stochastic=True
    ),
    Format(
        "nvfp4", E2M1, torch.uint8, (16,), 16, "E4M3", torch.float8_e4m3fn, _NVFP4,
        has_global_scale=True, can_swizzle=True, stochastic=True,
    ),
)  # fmt: skip

BY_NAME: dict[str, Format] = {f.name: f for f in FORMATS}


def round_to_float32(value: float) -> float:
    """The fp32 number nearest to ``value``: host constants reach the reference and a kernel as the same bits."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


@dataclass(frozen=True)
class Quantizer:
    """What happens to the rotated fp32 values: the value that a kernel's epilogue is specialised by.

    Attributes:
        format: The format.
        block: Consecutive elements of a row that share a scale, the whole row's count for one per row; 0 means that one
            given scale serves the whole tensor.
        clip_ratio: Share of the largest magnitude that the largest code stands for.
        swizzled: Whether the scales are in the 32x4x4 order.
        stochastic: Whether codes are rounded stochastically, otherwise to nearest, ties to even.
    """

    format: Format
    block: int
    clip_ratio: float = 1.0
    swizzled: bool = False
    stochastic: bool = False

    @property
    def amax_factor(self) -> float:
        """The fp32 constant that makes a scale of the largest magnitude, ``fp32(clip_ratio / maximum)``."""
        return round_to_float32(self.clip_ratio / self.format.encoding.maximum)

    @property
    def clip_factor(self) -> float:
        """``clip_ratio`` as fp32, which an E8M0 scale's magnitude is multiplied by before its exponent is taken."""
        return round_to_float32(self.clip_ratio)
