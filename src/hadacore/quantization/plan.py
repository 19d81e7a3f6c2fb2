"""Plans of rotation with quantization: what will run, as a value that prints itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hadacore.formats import Granularity, Quantizer
from hadacore.plan import Plan
from hadacore.plan import plan as plan_transform
from hadacore.prologues import Description, GatedActivation, RMSNorm
from hadacore.quantization import arguments


@dataclass(frozen=True)
class QuantizationPlan:
    """How rows are rotated and quantized.

    Attributes:
        n: Elements of a row.
        rows: Rows.
        dtype: Of the input.
        transform: The plan of the transform, which gets the prologue's fp32 result.
        quantizer: Format, block and options.
        prologue: What comes before, or None.
    """

    n: int
    rows: int
    dtype: torch.dtype
    transform: Plan
    quantizer: Quantizer
    prologue: Description | None

    @property
    def fused(self) -> bool:
        """Whether one kernel does all of it; in this release none does."""
        return False

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
        lines = [f"Plan for {self.rows} rows of {self.n}, {self.dtype}, to {q.format.name}: composed, not fused"]
        if self.prologue is not None:
            lines.append(f"  prologue  {self.prologue.name}, PyTorch operations in fp32")
        lines.append("  transform of the fp32 values:")
        lines += ["    " + line for line in str(self.transform).splitlines()]
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
        signs: Whether there are random signs.
        inverse: Whether the transpose is applied.
        device: The device to plan for.
        architecture: A GPU that is not here.

    Raises:
        TypeError, ValueError: As :func:`hadacore.hadamard_quantize` and :func:`hadacore.plan`.

    >>> print(plan_quantize(256, "int8", rows=4, device="cpu"))  # doctest: +ELLIPSIS
    Plan for 4 rows of 256, torch.bfloat16, to int8: composed, not fused
      transform of the fp32 values:
        Plan for 4 rows of 256, float32, on cpu
    ...
      quantize  one fp32 scale a row, to nearest even, PyTorch operations
      a fused kernel would move 3,088 bytes; composed it is several times that
    """
    found = arguments.check_format(format)
    arguments.check_input_dtype(dtype)
    _, block = arguments.check_granularity(granularity, found, n)
    clip = arguments.check_clip_ratio(clip_ratio)
    arguments.check_seed(0 if stochastic else None, found)
    quantizer = Quantizer(found, block, clip, arguments.check_swizzled(swizzled, found), stochastic)
    transform = plan_transform(
        n,
        torch.float32,
        rows=rows,
        block_size=block_size,
        signs=signs,
        inverse=inverse,
        device=device,
        architecture=architecture,
    )
    return QuantizationPlan(n, rows, dtype, transform, quantizer, prologue)
