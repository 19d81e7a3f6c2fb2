"""The picture of a table of quantization: ratios to a copy, and speedups over the unfused chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hadacore.benchmarking.colours import LINES, OTHER_LINES
from hadacore.benchmarking.pictures import new_figure, plain_axes, png
from hadacore.benchmarking.quantizing import NO_PROLOGUE, QUANTIZE, QUERY_KEY, SILU_GATE_UP, SILU_SEPARATE
from hadacore.benchmarking.report import Row

_COLOURS = (LINES["hadacore"], *OTHER_LINES, "#5b6470", "#7cc4a4")
_DASHES = {NO_PROLOGUE: "-", SILU_GATE_UP: "--", SILU_SEPARATE: ":"}
_COPY = LINES["copy"]
_GRID = "#eceef0"


def kind_of(row: Row) -> str:
    """Format, granularity and prologue, for people: ``silu_mul:gate_up + int8 row``."""
    prologue = f"{row['prologue']} + " if row["prologue"] else ""
    return prologue + _format_of(row)


def _format_of(row: Row) -> str:
    return f"{row['format']} {row['granularity']}"


def _sizes_axis(axes: Any, sizes: Sequence[int]) -> None:
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes], fontsize=7, rotation=60)
    axes.set_xlabel("elements of a row", fontsize=8)
    axes.axhline(1.0, color=_COPY, linestyle="--", linewidth=1.0)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _lines(axes: Any, rows: Sequence[Row], column: str, formats: Sequence[str]) -> dict[str, Any]:
    """One line for each kind, a colour for each format and granularity, and a dash for each prologue."""
    sizes = sorted({int(row["size"]) for row in rows})
    drawn = {}
    for kind in dict.fromkeys(kind_of(row) for row in rows):
        members = [row for row in rows if kind_of(row) == kind and row[column]]
        if not members:
            continue
        colour = _COLOURS[formats.index(_format_of(members[0])) % len(_COLOURS)]
        places = sorted((sizes.index(int(row["size"])), float(row[column])) for row in members)
        (drawn[kind],) = axes.plot(
            [place for place, _ in places], [value for _, value in places], color=colour, marker="o", markersize=3,
            linewidth=1.2, linestyle=_DASHES[members[0]["prologue"]],
        )  # fmt: skip
    _sizes_axis(axes, sizes)
    return drawn


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    labels = []
    for row in rows:
        what = "queries, keys" if row["operation"] == QUERY_KEY else f"{row['rows']} x {row['size']}"
        labels.append(f"{what}: {kind_of(row)}")
    bars = axes.barh(range(len(rows)), [float(row["speedup"]) for row in rows], color=_COLOURS[0], height=0.65)
    axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1.0, color=_COPY, linestyle="--", linewidth=1.0)


def draw_quantizing(rows: Sequence[Row], device: str) -> bytes:
    """Times over a copy's at the largest element count; speedups over the chain, with many rows, and with few and for queries
    and keys, as far as the chain was measured."""
    quantized = [row for row in rows if row["operation"] == QUANTIZE]
    largest: dict[tuple[str, str], int] = {}
    for row in quantized:
        place = row["size"], kind_of(row)
        largest[place] = max(largest.get(place, 0), int(row["elements"]))
    many = [row for row in quantized if int(row["elements"]) == largest[row["size"], kind_of(row)]]
    with_chain = [row for row in many if row["speedup"]]
    others = [row for row in rows if row["speedup"] and row not in many]
    formats = list(dict.fromkeys(_format_of(row) for row in many))
    panels = 1 + bool(with_chain) + bool(others)
    figure = new_figure(5.4 * panels, max(5.4, 1.6 + 0.2 * len(others)))
    places = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in places:
        plain_axes(axes)
    drawn = _lines(places[0], many, "ratio", formats)
    places[0].set_title("time / time of a copy of the same bytes", fontsize=9)
    if with_chain:
        _lines(places[1], with_chain, "speedup", formats)
        places[1].set_title("times faster than the unfused chain", fontsize=9)
    if others:
        _bars(places[-1], others)
        places[-1].set_title("times faster than the unfused chain", fontsize=9)
    figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(f"Rotation with quantization, {rows[0]['dtype']}, cold: {device}", fontsize=11)
    return png(figure)
