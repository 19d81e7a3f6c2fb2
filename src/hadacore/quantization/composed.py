"""Rotation and quantization one after the other: the prologue, the transform and the quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hadacore.formats import Quantizer
from hadacore.functional import hadamard_transform
from hadacore.prologues import Description
from hadacore.quantization import prologue_reference, reference


@dataclass(frozen=True)
class Rotation:
    """The transform between prologue and quantizer, as :func:`hadacore.hadamard_transform` takes it."""

    block_size: int
    scale: float
    inverse: bool
    backend: str | None = None


def rotate(
    x: Tensor,
    rotation: Rotation,
    signs: Tensor | None,
    prologue: Description | None,
    operands: Sequence[Tensor],
    residual: Tensor | None,
    base: Tensor | None = None,
) -> Tensor:
    """The rotated fp32 values, ``(..., n)``, that the quantizer sees. A base of 16 bits is exact in fp32."""
    values = x.float() if prologue is None else prologue_reference.apply(prologue, x, operands, residual)
    return hadamard_transform(
        values, rotation.scale, block_size=rotation.block_size, base=None if base is None else base.float(), signs=signs,
        inverse=rotation.inverse, backend=rotation.backend,
    )  # fmt: skip


def composed(
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
    """Prologue, transform and quantizer one after the other."""
    if scale is not None and scale.device.type == "cpu":
        check_scale_value(scale)
    rotated = rotate(x, rotation, signs, prologue, operands, residual, base)
    codes, scales = reference.quantize(rotated.reshape(-1, rotated.shape[-1]), quantizer, scale, seed)
    return codes.view(*rotated.shape[:-1], codes.shape[-1]), scales


def check_scale_value(scale: Tensor) -> None:
    """Check the value of a given scale, on the CPU, where looking at it waits for nothing."""
    value = scale.item()
    if not 2.0**-126 <= value <= 2.0**118:
        raise ValueError(
            f"scale must be from 2^-126 to 2^118, got {value}; hadacore.static_scale makes one of a largest magnitude"
        )
