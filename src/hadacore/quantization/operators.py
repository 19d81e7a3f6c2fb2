"""The registered operator: rotate and quantize. Arguments are checked by :mod:`.functional`.

Composed, it is the prologue in fp32, the transform of the fp32 result, and the reference quantizer in PyTorch operations. A
fused kernel takes the place of a device's entry in ``IMPLEMENTATIONS``, and must give the same bits for the same rotated
values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hadacore.formats import BY_NAME, Quantizer
from hadacore.ops import LIBRARY, increment_version
from hadacore.prologues import Description, GatedActivation, description_of
from hadacore.quantization import cpu_kernels, cuda_kernels, layouts
from hadacore.quantization.composed import Rotation

LIBRARY.define(
    "hadamard_quantize(Tensor x, str format, int block, Tensor? scale, float clip_ratio, int? seed, bool swizzled, "
    "int block_size, float transform_scale, Tensor? signs, bool inverse, str prologue, Tensor[] operands, float epsilon, "
    "Tensor(a!)? residual) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


Implementation = Callable[
    [Tensor, Rotation, Tensor | None, Quantizer, Tensor | None, int | None, Description | None, Sequence[Tensor], Tensor | None],
    tuple[Tensor, Tensor],
]  # fmt: skip


IMPLEMENTATIONS: dict[str, Implementation] = {"cpu": cpu_kernels.quantize, "cuda": cuda_kernels.quantize}


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
    n = x.shape[-1]
    if prologue:
        description = description_of(prologue, epsilon)
        if isinstance(description, GatedActivation) and description.layout != "separate":
            n //= 2
    return layouts.new_outputs(x, n, BY_NAME[format], block, swizzled)
