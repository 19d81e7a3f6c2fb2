"""From fp32 to codes and back, bit for bit as a kernel does it, in PyTorch operations.

Every conversion saturates to the encoding's maximum and keeps the sign of zero. Values are clamped before they are
cast, because what torch's casts do beyond the maximum differs between its releases.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.formats import E2M1, E4M3, E5M2, Encoding

_DTYPES = {E4M3.name: torch.float8_e4m3fn, E5M2.name: torch.float8_e5m2}
_NAN = 0x7F  # E4M3 and E5M2; of either sign on input, positive on output
_WORD = 0xFFFFFFFF


def to_float8(values: Tensor, encoding: Encoding) -> Tensor:
    """fp32 to E4M3 or E5M2, to nearest, ties to even; infinities saturate, NaN becomes code 0x7F."""
    codes = values.clamp(-encoding.maximum, encoding.maximum).to(_DTYPES[encoding.name])
    codes.view(torch.uint8).masked_fill_(values.isnan(), _NAN)
    return codes


def to_integer(values: Tensor, encoding: Encoding) -> Tensor:
    """fp32 without NaN to int8 holding a symmetric integer, to nearest, ties to even."""
    return values.round().clamp_(-encoding.maximum, encoding.maximum).to(torch.int8)


def to_e2m1(values: Tensor, uniform: Tensor | None = None) -> Tensor:
    """fp32 without NaN to E2M1 codes in the low bits of uint8.

    Args:
        values: The scaled values.
        uniform: fp32 of their shape in [0, 1) for stochastic rounding: up where the distance to the code below, in
            steps, is larger than it. None rounds to nearest, ties to even.
    """
    magnitude = values.abs().clamp_(max=E2M1.maximum)
    # The distance of neighbouring codes is 0.5 below 2, 1 below 4, 2 above; all products here are exact.
    above_2, above_4 = magnitude >= 2.0, magnitude >= 4.0
    steps = magnitude * torch.where(above_4, 0.5, torch.where(above_2, 1.0, 2.0))
    if uniform is None:
        number = steps.round()
    else:
        below = steps.floor()
        number = below + (steps - below > uniform)
    codes = number.to(torch.uint8) + 2 * above_2.to(torch.uint8) + 2 * above_4.to(torch.uint8)
    return codes | (values.signbit().to(torch.uint8) << 3)


def from_e2m1(codes: Tensor) -> Tensor:
    """E2M1 codes in the low bits of uint8 to fp32."""
    # By arithmetic: a table would be copied from the host, which a CUDA graph cannot record.
    exponent, mantissa = (codes >> 1) & 3, codes & 1
    values = torch.where(exponent == 0, 2 * mantissa, (2 + mantissa) << exponent).to(torch.float32) * 0.25
    return torch.where((codes & 8) != 0, -values, values)


def pack(codes: Tensor) -> Tensor:
    """4-bit codes in the low bits of 8-bit elements to two a byte, the even index in the low nibble."""
    nibbles = codes.view(torch.uint8) & 15
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """Undo :func:`pack`; the high bits of each element are zero."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


def sign_extend(codes: Tensor) -> Tensor:
    """4-bit two's complement in the low bits of uint8 to int8."""
    return (codes ^ 8).to(torch.int8) - 8


def to_e8m0_bits(magnitude: Tensor, largest_exponent: int) -> Tensor:
    """The E8M0 byte, as int32, of finite fp32 magnitudes: ``floor(log2(magnitude)) - largest_exponent``, biased by 127.

    The fp32 exponent field is that floor, biased by 127 too. It is 0 for zero and subnormals, whose floor is below
    -126, so that the byte is 0 for them in either reading.
    """
    return ((magnitude.view(torch.int32) >> 23) - largest_exponent).clamp_(min=0)


def from_e8m0_bits(bits: Tensor) -> Tensor:
    """E8M0 bytes, as int32, to fp32: ``2^(byte - 127)``, NaN for 255."""
    powers = torch.where(bits == 0, 0x00400000, torch.where(bits == 255, 0x7FC00000, bits << 23))
    return powers.to(torch.int32).view(torch.float32)


def philox(counter: Tensor, seed: int) -> Tensor:
    """Philox4x32-10 of (counter, 0, 0) with the seed as the key: four 32-bit words, as int64, in a new last dimension.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1 = counter & _WORD, (counter >> 32) & _WORD
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        # int64 products wrap around, which leaves all 64 bits of the unsigned product.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & _WORD) ^ c1 ^ k0, b & _WORD, ((a >> 32) & _WORD) ^ c3 ^ k1, a & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return torch.stack((c0, c1, c2, c3), -1)


def uniform_of(elements: int, seed: int, device: torch.device) -> Tensor:
    """fp32 in [0, 1) for elements 0, 1, ...: the upper 24 bits of word ``i % 4`` of Philox at counter ``i // 4``."""
    counter = torch.arange(-(-elements // 4), dtype=torch.int64, device=device)
    words = philox(counter, seed).flatten()[:elements]
    return (words >> 8).to(torch.float32) * 2.0**-24
