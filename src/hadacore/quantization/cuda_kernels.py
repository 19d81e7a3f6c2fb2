"""Rotation and quantization by one CUDA kernel, where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hadacore.backends.cuda import quantize as backend
from hadacore.backends.cuda.launch import cuda_code, is_aligned
from hadacore.elements import BY_DTYPE
from hadacore.formats import Quantizer
from hadacore.kernels.architectures import architecture_of
from hadacore.kernels.fusion import FusedPrologue, Fusion, fused_prologue, scale_factor
from hadacore.kernels.quantizing import find_fusion
from hadacore.prologues import Description, RMSNorm, RotaryEmbedding, elements_after
from hadacore.quantization import layouts, prologue_reference
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
    """One kernel; two, if the prologue must be PyTorch's; or composed where :func:`find_fusion` says that there is none."""
    n = elements_after(prologue, x.shape[-1])
    fusion: Fusion | str = ""
    if prologue is not None:
        fused = prologue_of_tensors(prologue, n, x, operands, residual)
        if isinstance(fused, FusedPrologue):
            heads = x.shape[-2] if isinstance(prologue, RotaryEmbedding) else 1
            fusion = _fusion_of_tensors(x, n, rotation, quantizer, scale, base, fused, heads)
        if isinstance(fusion, str):
            x, prologue = prologue_reference.apply(prologue, x, operands, residual), None
    if prologue is None:
        fusion = _fusion_of_tensors(x, n, rotation, quantizer, scale, base)
    if isinstance(fusion, str):
        return composed(x, rotation, signs, quantizer, scale, seed, None, (), None, base)
    if signs is not None and signs.dtype != x.dtype:
        signs = signs.to(x.dtype)
    tensors = None if prologue is None else operands_of(prologue, x, operands, residual)
    return _launch(x, n, rotation, signs, quantizer, scale, seed, fusion, tensors, _base_beside(x, base))


def _base_beside(x: Tensor, base: Tensor | None) -> Tensor | None:
    """The base in x's type or float32. After a prologue of PyTorch operations x is float32, whatever it was."""
    return base if base is None or base.dtype == x.dtype else base.float()


def _fusion_of_tensors(
    x: Tensor, n: int, rotation: Rotation, quantizer: Quantizer, scale: Tensor | None, base: Tensor | None,
    prologue: FusedPrologue | None = None, heads: int = 1,
) -> Fusion | str:  # fmt: skip
    """:func:`find_fusion` for a problem on its GPU."""
    return find_fusion(
        cuda_code(x.dtype),
        n,
        rotation.block_size,
        quantizer,
        scale is not None,
        rotation.inverse,
        architecture_of(torch.cuda.get_device_capability(x.device)),
        prologue,
        heads,
        0 if base is None else base.shape[0],
        None if base is None else torch.float32 in (base.dtype, x.dtype),
    )


def prologue_of_tensors(
    prologue: Description, n: int, x: Tensor, operands: Sequence[Tensor], residual: Tensor | None
) -> FusedPrologue | str:
    """The prologue as a part of a kernel, or why these tensors cannot have it."""
    of_type = operands if not isinstance(prologue, RotaryEmbedding) else ()
    for tensor in (x, *operands, *(() if residual is None else (residual,))):
        if not is_aligned(tensor):
            return "a fused prologue reads contiguous tensors that start on 16 bytes"
    if any(t.dtype != x.dtype for t in of_type) or (residual is not None and residual.dtype != x.dtype):
        return "a fused prologue reads tensors of x's type"
    if not isinstance(prologue, RotaryEmbedding):
        return fused_prologue(prologue, n)
    cos, vector = operands[0], BY_DTYPE[x.dtype].vector_elements
    if cos.dtype not in (torch.float32, x.dtype) or operands[1].dtype != cos.dtype:
        return "a fused rotary embedding reads tables of float32 or of x's type"
    if cos.shape[1] % vector:
        return f"a fused rotary embedding turns pairs in whole vectors, {cos.shape[1]} are no multiple of {vector}"
    size = operands[2].element_size() if len(operands) == 3 else 8
    return fused_prologue(prologue, n, cos.shape[1], cos.dtype == torch.float32, size)


def operands_of(
    prologue: Description, x: Tensor, operands: Sequence[Tensor], residual: Tensor | None
) -> backend.PrologueOperands:
    """What a kernel reads for a prologue."""
    tokens = 1
    if isinstance(prologue, RotaryEmbedding):
        tokens = operands[2].numel() if len(operands) == 3 else x.shape[-3]
    epsilon = prologue.epsilon if isinstance(prologue, RMSNorm) else 0.0
    return backend.PrologueOperands(tuple(operands), residual, epsilon, tokens)


def _launch(
    x: Tensor, n: int, rotation: Rotation, signs: Tensor | None, quantizer: Quantizer, given: Tensor | None, seed: int | None,
    fusion: Fusion, operands: backend.PrologueOperands | None, base: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows = x.numel() // x.shape[-1]
    codes, scales = layouts.new_outputs(x, n, quantizer.format, quantizer.block, quantizer.swizzled)
    if quantizer.block == 0:
        assert given is not None
        scales.copy_(given)
    matrix = backend.ScaleMatrix(scales, given, scale_factor(quantizer), rows, seed or 0)
    backend.quantize(
        x, codes, rotation.block_size, rotation.scale, signs, rotation.inverse, fusion, matrix, operands, base
    )
    return codes, scales
