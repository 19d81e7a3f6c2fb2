"""Rotation and quantization by one Triton kernel, where there is one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hadacore.backends import triton
from hadacore.formats import Quantizer
from hadacore.prologues import Description, elements_after
from hadacore.quantization import prologue_reference
from hadacore.quantization.composed import Rotation, composed


def quantize(
    x: Tensor,
    rotation: Rotation,
    signs: Tensor | None,
    quantizer: Quantizer,
    scale: Tensor | None,
    seed: int | None,
    prologue: Description | None,
    operands: Sequence[Tensor],
    residual: Tensor | None,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One kernel, after the prologue.

    Where there is none, composed of Triton's transform and the reference, unless this backend was asked for by name.

    Raises:
        ValueError: It was, and has no such kernel; the message says why.
    """
    n = elements_after(prologue, x.shape[-1])
    why = triton.quantization_refusal(x, n, rotation.block_size, quantizer, None if base is None else base.shape[0])
    if why is not None and rotation.backend is not None:
        raise ValueError(f"{why}; backend=None rotates and quantizes one after the other")
    if prologue is not None:
        x = prologue_reference.apply(prologue, x, operands, residual)
    if why is not None:
        return composed(x, rotation, signs, quantizer, scale, seed, None, (), None, base)
    if signs is not None and signs.dtype != x.dtype:
        signs = signs.to(x.dtype)
    return triton.quantize(x, rotation.scale, signs, rotation.inverse, quantizer, base)
