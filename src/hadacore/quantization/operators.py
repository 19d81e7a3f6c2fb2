"""The registered operator: rotate and quantize. Arguments are checked by :mod:`.functional`.

Every device runs it composed: the prologue in fp32, the transform of the fp32 result, the reference quantizer in PyTorch
operations. A fused kernel takes the place of a device's entry in ``IMPLEMENTATIONS``, and must give the same bits for
the same rotated values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hadacore.formats import BY_NAME, Quantizer
from hadacore.functional import hadamard_transform
from hadacore.ops import LIBRARY, increment_version
from hadacore.prologues import Description, GatedActivation, description_of
from hadacore.quantization import layouts, prologue_reference, reference

LIBRARY.define(
    "hadamard_quantize(Tensor x, str format, int block, Tensor? scale, float clip_ratio, int? seed, bool swizzled, "
    "int block_size, float transform_scale, Tensor? signs, bool inverse, str prologue, Tensor[] operands, float epsilon, "
    "Tensor(a!)? residual) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True)
class Rotation:
    """The transform between prologue and quantizer, as :func:`hadacore.hadamard_transform` takes it."""

    block_size: int
    scale: float
    inverse: bool


Implementation = Callable[
    [Tensor, Rotation, Tensor | None, Quantizer, Tensor | None, int | None, Description | None, Sequence[Tensor], Tensor | None],
    tuple[Tensor, Tensor],
]  # fmt: skip


def rotate(
    x: Tensor,
    rotation: Rotation,
    signs: Tensor | None,
    prologue: Description | None,
    operands: Sequence[Tensor],
    residual: Tensor | None,
) -> Tensor:
    """The rotated fp32 values, ``(..., n)``, that the quantizer sees."""
    values = x.float() if prologue is None else prologue_reference.apply(prologue, x, operands, residual)
    return hadamard_transform(
        values, rotation.scale, block_size=rotation.block_size, signs=signs, inverse=rotation.inverse
    )


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
) -> tuple[Tensor, Tensor]:
    """Prologue, transform and quantizer one after the other."""
    if scale is not None and scale.device.type == "cpu":
        _check_scale_value(scale)
    rotated = rotate(x, rotation, signs, prologue, operands, residual)
    codes, scales = reference.quantize(rotated.reshape(-1, rotated.shape[-1]), quantizer, scale, seed)
    return codes.view(*rotated.shape[:-1], codes.shape[-1]), scales


def _check_scale_value(scale: Tensor) -> None:
    value = scale.item()
    if not 2.0**-126 <= value <= 2.0**118:
        raise ValueError(
            f"scale must be from 2^-126 to 2^118, got {value}; hadacore.static_scale makes one of a largest magnitude"
        )


IMPLEMENTATIONS: dict[str, Implementation] = {"cpu": composed, "cuda": composed}


def _register(dispatch_key: str, implementation: Implementation) -> None:
    def hadamard_quantize(
        x: Tensor,
        format: str,
        block: int,
        scale: Tensor | None,
        clip_ratio: float,
        seed: int | None,
        swizzled: bool,
        block_size: int,
        transform_scale: float,
        signs: Tensor | None,
        inverse: bool,
        prologue: str,
        operands: Sequence[Tensor],
        epsilon: float,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        quantizer = Quantizer(BY_NAME[format], block, clip_ratio, swizzled, seed is not None)
        rotation = Rotation(block_size, transform_scale, inverse)
        description = description_of(prologue, epsilon) if prologue else None
        result = implementation(x, rotation, signs, quantizer, scale, seed, description, operands, residual)
        if residual is not None:
            increment_version(residual)
        return result

    LIBRARY.impl("hadamard_quantize", hadamard_quantize, dispatch_key)


for _device_type, _implementation in IMPLEMENTATIONS.items():
    _register(_device_type.upper(), _implementation)


@torch.library.register_fake("hadacore::hadamard_quantize", lib=LIBRARY)
def _fake(
    x: Tensor,
    format: str,
    block: int,
    scale: Tensor | None,
    clip_ratio: float,
    seed: int | None,
    swizzled: bool,
    block_size: int,
    transform_scale: float,
    signs: Tensor | None,
    inverse: bool,
    prologue: str,
    operands: Sequence[Tensor],
    epsilon: float,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    found = BY_NAME[format]
    n = x.shape[-1]
    if prologue:
        description = description_of(prologue, epsilon)
        if isinstance(description, GatedActivation) and description.layout != "separate":
            n //= 2
    codes = x.new_empty((*x.shape[:-1], n // found.packed), dtype=found.codes_dtype)
    if block == 0:
        return codes, x.new_empty((), dtype=torch.float32)
    rows, blocks = x.numel() // x.shape[-1], n // block
    if swizzled:
        return codes, x.new_empty((layouts.swizzled_size(rows, blocks),), dtype=found.scale_dtype)
    if found.is_block_major(blocks):
        return codes, x.new_empty((blocks, rows), dtype=found.scale_dtype).t()
    return codes, x.new_empty((rows, blocks), dtype=found.scale_dtype)
