"""The registered operator: rotate and quantize. Arguments are checked by :mod:`.functional`.

Composed, it is the prologue in fp32, the transform of the fp32 result, and the reference quantizer in PyTorch operations. A
fused kernel takes the place of a backend's entry in ``IMPLEMENTATIONS``, and must give the same bits for the same rotated
values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hadacore.backends.selection import check_backend, default_backend
from hadacore.formats import BY_NAME, Quantizer
from hadacore.ops import DISPATCH_KEYS, LIBRARY, increment_version
from hadacore.prologues import Description, description_of, elements_after
from hadacore.quantization import cpu_kernels, cuda_kernels, layouts, triton_kernels
from hadacore.quantization.composed import Rotation

LIBRARY.define(
    "hadamard_quantize(Tensor x, str format, int block, Tensor? scale, float clip_ratio, int? seed, bool swizzled, "
    "int block_size, float transform_scale, Tensor? signs, bool inverse, str prologue, Tensor[] operands, float epsilon, "
    "Tensor(a!)? residual, Tensor? base=None, str? backend=None) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


Implementation = Callable[
    [
        Tensor, Rotation, Tensor | None, Quantizer, Tensor | None, int | None, Description | None, Sequence[Tensor],
        Tensor | None, Tensor | None,
    ],
    tuple[Tensor, Tensor],
]  # fmt: skip


IMPLEMENTATIONS: dict[str, Implementation] = {
    "cpu": cpu_kernels.quantize,
    "cuda": cuda_kernels.quantize,
    "triton": triton_kernels.quantize,
}


def _register(dispatch_key: str) -> None:
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
        base: Tensor | None = None,
        backend: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        check_backend(backend, x.device)
        quantizer = Quantizer(BY_NAME[format], block, clip_ratio, swizzled, seed is not None)
        rotation = Rotation(block_size, transform_scale, inverse, backend)
        description = description_of(prologue, epsilon) if prologue else None
        implementation = IMPLEMENTATIONS[backend or default_backend(x.device.type)]
        result = implementation(x, rotation, signs, quantizer, scale, seed, description, operands, residual, base)
        if residual is not None:
            increment_version(residual)
        return result

    LIBRARY.impl("hadamard_quantize", hadamard_quantize, dispatch_key)


for _dispatch_key in DISPATCH_KEYS:
    _register(_dispatch_key)


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
    base: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    n = elements_after(description_of(prologue, epsilon) if prologue else None, x.shape[-1])
    return layouts.new_outputs(x, n, BY_NAME[format], block, swizzled)
