"""Plans of rotation with quantization: what will run, as a value that prints itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hadacore.backends import cpu
from hadacore.backends.cuda.launch import cuda_code
from hadacore.checks import check_base_matrix
from hadacore.formats import Granularity, Quantizer
from hadacore.kernels.fusion import FusedPrologue, Fusion, fused_prologue
from hadacore.kernels.quantizing import find_fusion
from hadacore.plan import Plan, fused_plan
from hadacore.plan import plan as plan_transform
from hadacore.prologues import Description, GatedActivation, RMSNorm, RotaryEmbedding
from hadacore.quantization import arguments


@dataclass(frozen=True)
class QuantizationPlan:
    """How rows are rotated and quantized.

    Attributes:
        n: Elements of a row.
        rows: Rows.
        dtype: Of the input.
        transform: The plan of the kernel that quantizes as well, where one does on a GPU; else of the transform in fp32.
        quantizer: Format, block and options.
        prologue: What comes before, or None.
        composed_reason: Why rotation and quantizer are not one kernel, or None if they are.
        prologue_reason: Why the prologue is not a part of that kernel, or None if it is, or there is none.
    """

    n: int
    rows: int
    dtype: torch.dtype
    transform: Plan
    quantizer: Quantizer
    prologue: Description | None
    composed_reason: str | None
    prologue_reason: str | None = None

    @property
    def fused(self) -> bool:
        """Whether one kernel rotates and quantizes. The prologue is part of it where ``prologue_reason`` is None."""
        return self.composed_reason is None

    @property
    def bytes_to_move(self) -> int:
        """Bytes that must be read and written at least: input, residual, codes and scales, in one pass."""
        elements = self.rows * self.n
        inputs = 2 if isinstance(self.prologue, GatedActivation) else 1
        if isinstance(self.prologue, RMSNorm) and self.prologue.has_residual:
            inputs = 3  # the residual is read and written
        format = self.quantizer.format
        scales = elements // self.quantizer.block if self.quantizer.block else 0
        return (
            inputs * elements * self.dtype.itemsize
            + elements * format.encoding.bits // 8
            + scales * format.scale_dtype.itemsize
        )

    def __str__(self) -> str:
        q = self.quantizer
        if q.block == 0:
            shared = "one given fp32 scale"
        elif q.block == self.n:
            shared = f"one {q.format.scale_name} scale a row"
        else:
            shared = f"one {q.format.scale_name} scale for {q.block} elements" + (", swizzled" if q.swizzled else "")
        rounding = "stochastic" if q.stochastic else "to nearest even"
        how = "fused" if self.fused else "composed, not fused"
        lines = [f"Plan for {self.rows} rows of {self.n}, {self.dtype}, to {q.format.name}: {how}"]
        if self.composed_reason is not None:
            lines.append(f"  because   {self.composed_reason}")
        if self.prologue is not None:
            where = "in the same kernel"
            if self.prologue_reason is not None:
                where = f"PyTorch operations, because {self.prologue_reason}"
            lines.append(f"  prologue  {self.prologue.name}, in fp32, {where}")
        if self.fused and self.transform.architecture is not None:
            lines += [f"  on        {self.transform.where}", *self.transform.steps()]
        else:
            lines.append("  transform of the fp32 values:")
            lines += ["    " + line for line in str(self.transform).splitlines()]
        if self.fused:
            lines.append(f"  quantize  {shared}, {rounding}, in the same pass, before anything is rounded to 16 bits")
            lines.append(f"  moves     {self.bytes_to_move:,} bytes")
        else:
            lines.append(f"  quantize  {shared}, {rounding}, PyTorch operations")
            lines.append(f"  a fused kernel would move {self.bytes_to_move:,} bytes; composed it is several times that")
        return "\n".join(lines)


def plan_quantize(
    n: int,
    format: str,
    dtype: torch.dtype = torch.bfloat16,
    *,
    granularity: Granularity | None = None,
    rows: int = 8192,
    prologue: Description | None = None,
    clip_ratio: float = 1.0,
    stochastic: bool = False,
    swizzled: bool | None = None,
    block_size: int | None = None,
    base: Tensor | None = None,
    signs: bool = False,
    inverse: bool = False,
    device: torch.device | str | None = None,
    architecture: str | None = None,
) -> QuantizationPlan:
    """Plan :func:`hadacore.hadamard_quantize` without running it.

    Args:
        n: Elements of a rotated row.
        format: As in :func:`hadacore.hadamard_quantize`, and so ``granularity``, ``clip_ratio`` and ``swizzled``.
        dtype: Of the input.
        granularity: What shares a scale.
        rows: Rows of ``n`` elements.
        prologue: A description, such as ``prologues.silu_mul(up).description``.
        clip_ratio: Share of the largest magnitude.
        stochastic: Whether there is a seed.
        swizzled: Whether scales are swizzled.
        block_size: As in :func:`hadacore.plan`, and so the rest.
        base: In ``dtype`` or float32.
        signs: Whether there are random signs.
        inverse: Whether the transpose is applied.
        device: The device to plan for.
        architecture: A GPU that is not here.

    A prologue is planned for contiguous tensors of the input's type, a rotary embedding for tables of float32 that turn whole
    heads.

    Raises:
        TypeError, ValueError: As :func:`hadacore.hadamard_quantize` and :func:`hadacore.plan`.

    >>> print(plan_quantize(256, "mxfp4", rows=4, stochastic=True, device="cpu"))  # doctest: +ELLIPSIS
    Plan for 4 rows of 256, torch.bfloat16, to mxfp4: composed, not fused
      because   ...
      transform of the fp32 values:
        Plan for 4 rows of 256, float32, on cpu
    ...
      quantize  one E8M0 scale for 32 elements, swizzled, stochastic, PyTorch operations
      a fused kernel would move 2,592 bytes; composed it is several times that
    """
    found = arguments.check_format(format)
    arguments.check_input_dtype(dtype)
    _, block = arguments.check_granularity(granularity, found, n)
    clip = arguments.check_clip_ratio(clip_ratio)
    arguments.check_seed(0 if stochastic else None, found)
    quantizer = Quantizer(found, block, clip, arguments.check_swizzled(swizzled, found), stochastic)
    if base is not None:
        base, _ = check_base_matrix(base, dtype, n, block_size)
    transform = plan_transform(
        n,
        torch.float32,
        rows=rows,
        block_size=block_size,
        base=None if base is None else base.to("meta", torch.float32),
        signs=signs,
        inverse=inverse,
        device=device,
        architecture=architecture,
    )
    size, order = transform.problem.size, transform.problem.base_order
    reason, prologue_reason = None, None
    if transform.backend == "cpu":
        reason = cpu.composed_reason(size, quantizer, order)
        prologue_reason = None if prologue is None else "the CPU's kernels begin with the rotation"
        return QuantizationPlan(n, rows, dtype, transform, quantizer, prologue, reason, prologue_reason)
    assert transform.architecture is not None
    given, target = quantizer.block == 0, transform.architecture

    def fusion_for(x_dtype: torch.dtype, before: FusedPrologue | None = None) -> Fusion | str:
        float32_base = None if base is None else torch.float32 in (base.dtype, x_dtype)
        return find_fusion(
            cuda_code(x_dtype), n, size, quantizer, given, inverse, target, before, 1, order, float32_base
        )

    pairs = n // 2 if isinstance(prologue, RotaryEmbedding) else 0
    kernel_dtype = dtype
    fusion = fusion_for(dtype, None if prologue is None else fused_prologue(prologue, n, pairs, True))
    if prologue is not None and isinstance(fusion, str):
        prologue_reason, kernel_dtype = fusion, torch.float32
        fusion = fusion_for(torch.float32)
    if isinstance(fusion, str):
        reason = fusion
    else:
        transform = fused_plan(transform, kernel_dtype, fusion, None if base is None else base.dtype)
    return QuantizationPlan(n, rows, dtype, transform, quantizer, prologue, reason, prologue_reason)
