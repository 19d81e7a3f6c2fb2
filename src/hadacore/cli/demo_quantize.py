"""The second half of ``hadacore demo``: every format with and without a rotation, and what the fused kernel costs.

The activations are synthetic, of the kind that the last matrix of a gated feed-forward layer meets: ``silu(gate) * up``
whose channels have lognormal magnitudes, a few of them 60 times larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from hadacore.benchmarking.pictures import new_figure, plain_axes, png
from hadacore.benchmarking.quantizing import NO_PROLOGUE, SILU_GATE_UP, Measured, QuantizeGrid, measure
from hadacore.benchmarking.timing import COLD_BYTES
from hadacore.cli.printing import coloured, table
from hadacore.formats import FORMATS, PER_ROW, PER_TENSOR, Format, Granularity
from hadacore.functional import hadamard_transform
from hadacore.quantization.functional import hadamard_quantize, static_scale

ROWS, N = 128, 4096
BLOCK_SIZE = 128  # of the rotation of parts of a row
_OUTLIER_CHANNELS, _OUTLIER_GAIN = 8, 60.0
_TIMED = (("fp8_e4m3", PER_ROW, NO_PROLOGUE), ("int8", PER_ROW, NO_PROLOGUE), ("fp8_e4m3", PER_ROW, SILU_GATE_UP))
_COLD_BYTES_CPU = 1 << 26  # a round of COLD_BYTES would take most of the demonstration
_TIMED_SIZES = (4096, 14336)
_COLOURS = ("#b5367a", "#7cc4a4", "#12805c")
KINDS = ("none", f"blocks of {BLOCK_SIZE}", "whole row")


def gated_activations(rows: int, n: int, generator: torch.Generator) -> Tensor:
    """fp32 ``(rows, n)`` on the generator's device."""
    options: dict[str, Any] = {"generator": generator, "device": generator.device}
    gate, up = (torch.randn(rows, n, **options) * torch.randn(n, **options).exp() for _ in range(2))
    x = torch.nn.functional.silu(gate) * up
    x[:, torch.randperm(n, **options)[:_OUTLIER_CHANNELS]] *= _OUTLIER_GAIN
    return x


@dataclass(frozen=True)
class FormatErrors:
    """Relative L2 errors of a format: not rotated, in blocks, and whole rows rotated."""

    format: str
    granularity: Granularity
    errors: tuple[float, ...]

    @property
    def name(self) -> str:
        """Format and granularity."""
        return f"{self.format} {self.granularity}"


def quantization_error(x: Tensor, format: Format, granularity: Granularity, block_size: int) -> float:
    """``||dequantized - rotated|| / ||rotated||``, rotated by blocks; a transform of one element is none.

    The rotation is orthonormal, so that the error before and after its inverse is the same.
    """
    rotated = hadamard_transform(x.float(), block_size=block_size)
    needs_scale = granularity == PER_TENSOR or format.has_global_scale
    scale = static_scale(rotated.abs().amax(), format.name) if needs_scale else None
    q = hadamard_quantize(x, format.name, granularity=granularity, scale=scale, block_size=block_size)
    return float((q.dequantize() - rotated).norm() / rotated.norm())


def measure_format_errors(x: Tensor) -> Iterator[FormatErrors]:
    """Errors of every format and granularity that divides a row."""
    n = x.shape[-1]
    for format in FORMATS:
        for granularity in format.granularities:
            if not isinstance(granularity, int) or n % granularity == 0:
                errors = tuple(quantization_error(x, format, granularity, size) for size in (1, BLOCK_SIZE, n))
                yield FormatErrors(format.name, granularity, errors)


def measure_fused_times(dtype: str, elements: int, device: torch.device) -> Iterator[Measured]:
    """The fused call beside a copy of the same bytes and, on a GPU, the unfused chain."""
    grid = QuantizeGrid(dtype, _TIMED_SIZES, (elements,), _TIMED, _TIMED_SIZES, (), (), None)
    on_gpu = device.type == "cuda"
    return measure(grid, device, chains=on_gpu, cold_bytes=COLD_BYTES if on_gpu else _COLD_BYTES_CPU)


def error_table(errors: Sequence[FormatErrors]) -> Table:
    """Errors in per cent; green and red tell whether a rotation helps or hurts."""
    lines = table("Error in %, gated activations, rotated:", "format", "scale per", *KINDS, left=2)
    for entry in errors:
        before, *after = entry.errors
        cells = [coloured(before, error) for error in after]
        lines.add_row(entry.format, str(entry.granularity), f"{100 * before:5.2f}", *cells)
    return lines


def time_table(times: Sequence[Measured]) -> Table:
    """Times of the fused call, and of the chain where it was measured."""
    columns = ["", "rows x n", "copy, µs", "µs", "ratio"]
    if times[0].chain_us is not None:
        columns += ["chain, µs", "faster"]
    lines = table(f"Time of rotation with quantization, {times[0].case.dtype}, cold", *columns, left=2)
    for m in times:
        cells = [f"{m.copy_us:,.1f}", f"{m.hadacore_us:,.1f}", f"{m.ratio:.2f}"]
        if m.chain_us is not None:
            cells += [f"{m.chain_us:,.1f}", f"{m.speedup:.2f}"]
        lines.add_row(_name(m), f"{m.case.rows:,} x {m.case.size}", *cells)
    return lines


def _name(measured: Measured) -> str:
    prologue = f"{measured.case.prologue} + " if measured.case.prologue else ""
    return prologue + measured.case.format


CSV_COLUMNS = ("format", "granularity", *(f"error_{kind.replace(' ', '_')}" for kind in KINDS))


def csv_rows(errors: Sequence[FormatErrors]) -> Iterator[dict[str, Any]]:
    """One row for each format and granularity."""
    for entry in errors:
        values = (entry.format, entry.granularity, *(f"{error:.6f}" for error in entry.errors))
        yield dict(zip(CSV_COLUMNS, values, strict=True))


def draw(errors: Sequence[FormatErrors], times: Sequence[Measured], device: str) -> bytes:
    """The picture, as PNG: errors of each format as bars, and times of the fused call, copy and chain."""
    figure = new_figure(11.5, 4.8)
    left, *rest = figure.subplots(1, 1 + bool(times), squeeze=False, width_ratios=(1.7, 1)[: 1 + bool(times)])[0]
    plain_axes(left)
    for index, (kind, colour) in enumerate(zip(KINDS, _COLOURS, strict=True)):
        places = [place + 0.27 * (index - 1) for place in range(len(errors))]
        left.bar(places, [100 * e.errors[index] for e in errors], 0.25, color=colour, label=f"rotated: {kind}")
    left.set_xticks(range(len(errors)), [e.name for e in errors], rotation=50, ha="right", fontsize=8)
    left.set_ylabel("relative L2 error, %", fontsize=9)
    left.set_title("silu(gate) * up with outlier channels (synthetic)", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    for axes in rest:
        _draw_times(axes, times, device)
    figure.suptitle("Quantization after a Hadamard rotation", fontsize=12)
    return png(figure)


def _draw_times(axes: Any, times: Sequence[Measured], device: str) -> None:
    plain_axes(axes)
    labels = [f"{_name(m)}, {m.case.size}" for m in times]
    series: list[tuple[str, str, list[float]]] = [
        ("copy", "#8a8f98", [m.copy_us for m in times]),
        ("hadamard_quantize", "#12805c", [m.hadacore_us for m in times]),
    ]
    chains = [m.chain_us for m in times if m.chain_us is not None]
    if len(chains) == len(times):
        series.append(("unfused chain", "#d1603d", chains))
    for index, (name, colour, values) in enumerate(series):
        places = [place + 0.27 * (index - 1) for place in range(len(times))]
        axes.barh(places, values, 0.25, color=colour, label=name)
    axes.set_yticks(range(len(times)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("µs, cold", fontsize=9)
    axes.set_title(device, fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=3)
