"""The FlashAttention-3 error experiment on paper: a table, CSV, JSON and a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hadacore.benchmarking import pictures
from hadacore.benchmarking.colours import OTHER_LINES
from hadacore.benchmarking.provenance import provenance
from hadacore.benchmarking.report import write_csv, write_whole
from hadacore.experiments.fa3_error import ROTATIONS, ErrorRow

_COLUMNS = tuple(field.name for field in dataclasses.fields(ErrorRow))
_STYLES = dict(zip(ROTATIONS, ("-", "--", ":"), strict=True))


def fa3_error_table(rows: Sequence[ErrorRow]) -> str:
    """A Markdown table, one line for a sequence length, head size and granularity: RMSE by rotation, and what it gains.

    >>> from hadacore.experiments import run_fa3_error
    >>> rows = run_fa3_error(sequences=[128], head_dims=[64], granularities=["head"], heads=1, device="cpu")
    >>> print(fa3_error_table(rows).splitlines()[0])
    | sequence | head size | format | scale per | not rotated | q, k rotated | q, k, v rotated | gain of q, k |
    """
    rotated = [f"{name} rotated" for name in ROTATIONS if name != "none"]
    header = ["sequence", "head size", "format", "scale per", "not rotated", *rotated, "gain of q, k"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    groups: dict[tuple[int, int, str, str], dict[str, ErrorRow]] = {}
    for row in rows:
        groups.setdefault((row.sequence, row.head_dim, row.format, row.granularity), {})[row.rotated] = row
    for (sequence, head_dim, format, granularity), members in groups.items():
        cells = [f"{members[name].rmse:.2e}" if name in members else "" for name in ROTATIONS]
        gain = f"{members['q, k'].gain:.2f}" if "q, k" in members else ""
        lines.append("| " + " | ".join([str(sequence), str(head_dim), format, granularity or "", *cells, gain]) + " |")
    return "\n".join(lines)


def draw_fa3_error(rows: Sequence[ErrorRow], device: str) -> bytes:
    """RMSE over the sequence length as a PNG file, one panel for each head size: a colour for a granularity, a line style for a
    rotation.

    Raises:
        PicturesUnavailableError: matplotlib is missing.
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("there are no rows to draw")
    head_dims = list(dict.fromkeys(row.head_dim for row in rows))
    granularities = list(dict.fromkeys(row.granularity for row in rows if row.granularity))
    colours = {g: OTHER_LINES[i % len(OTHER_LINES)] for i, g in enumerate(granularities)}
    figure = pictures.new_figure(max(6.0, 3.6 * len(head_dims) + 0.6), 4.4)
    drawn: dict[str, Any] = {}
    for axes, head_dim in zip(figure.subplots(1, len(head_dims), squeeze=False)[0], head_dims, strict=True):
        pictures.plain_axes(axes)
        series: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for row in rows:
            if row.head_dim == head_dim:
                series.setdefault((row.granularity, row.rotated), []).append((row.sequence, row.rmse))
        for (granularity, rotated), points in series.items():
            label = f"per {granularity}, {rotated}" if granularity else "fp16"
            (line,) = axes.plot(
                *zip(*sorted(points), strict=True),
                color=colours.get(granularity, "#8a8f98"),
                linestyle=_STYLES[rotated],
                marker="o",
                markersize=3,
                linewidth=1.4,
            )
            drawn.setdefault(label, line)
        sequences = sorted({row.sequence for row in rows if row.head_dim == head_dim})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sequences, [str(s) for s in sequences], fontsize=7)
        axes.minorticks_off()
        axes.grid(axis="y", color="#eceef0", linewidth=0.7)
        axes.set_title(f"head size {head_dim}", fontsize=9)
        axes.set_xlabel("sequence length", fontsize=8)
    figure.supylabel("RMSE against float64", fontsize=9)
    figure.suptitle(f"FP8 attention, inputs N(0,1) + N(0,100) Bernoulli(0.001): {device}", fontsize=10)
    figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    return pictures.png(figure)


def write_fa3_error(
    rows: Sequence[ErrorRow], folder: Path, device: torch.device | str = "cpu", *, picture: bool = True
) -> tuple[Path, ...]:
    """Write ``fa3_error.csv``, ``.json``, ``.md`` and ``.png`` with what they were made with; each aside, then renamed.

    Args:
        rows: Of :func:`run_fa3_error`.
        folder: Where; made if it is not there.
        device: What they were computed on.
        picture: Whether to draw, which needs matplotlib.

    Returns:
        The files.

    Raises:
        PicturesUnavailableError: matplotlib is missing. Nothing was written.
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("there are no rows to write")
    made_with = provenance(torch.device(device))
    drawing = draw_fa3_error(rows, str(made_with["gpu"])) if picture else None
    paths = [folder / f"fa3_error.{suffix}" for suffix in ("csv", "json", "md", "png")]
    records = [dataclasses.asdict(row) for row in rows]
    write_csv(paths[0], (*_COLUMNS, *made_with), ({**record, **made_with} for record in records))
    write_whole(paths[1], json.dumps({"made_with": made_with, "rows": records}, indent=2) + "\n")
    write_whole(paths[2], fa3_error_table(rows) + "\n")
    if drawing is None:
        return tuple(paths[:3])
    write_whole(paths[3], drawing)
    return tuple(paths)
