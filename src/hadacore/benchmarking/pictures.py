"""Pictures of benchmark results, as PNG: curves, and a colour-coded table over size and element count."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

from hadacore.benchmarking.colours import hexadecimal, line_colour, ratio_colour, scale_top, text_colour
from hadacore.benchmarking.results import Panel, count

_DPI = 150
_GREY = "#c9ccd1"
_INK = "#22262b"


class PicturesUnavailableError(RuntimeError):
    """matplotlib is missing; the message says what to install."""


def check_matplotlib() -> None:
    """Raise :class:`PicturesUnavailableError` if pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PicturesUnavailableError(
            f'pictures need matplotlib, which could not be imported ({error}). Install it with: pip install "hadacore[bench]"'
        ) from error


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches, without matplotlib's global state."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def plain_axes(axes: Any) -> None:
    """Axes with as few lines as possible."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(colors=_INK, labelsize=8, color=_GREY, which="both")


def _series(panel: Panel, name: str, elements: int) -> tuple[list[int], list[float]]:
    times = panel.times[name]
    sizes = [size for size in panel.sizes if (size, elements) in times]
    return sizes, [times[size, elements] for size in sizes]


def _grid_of_axes(figure: Any, panel: Panel) -> Iterator[tuple[Any, int]]:
    columns = min(4, len(panel.elements))
    rows = math.ceil(len(panel.elements) / columns)
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, place in enumerate(axes.flat):
        if index >= len(panel.elements):
            place.set_visible(False)
            continue
        plain_axes(place)
        place.set_xscale("log", base=2)
        place.set_title(f"{count(panel.elements[index])} elements", fontsize=9, color=_INK)
        # A panel without one below it names the axis.
        if index + columns >= len(panel.elements):
            place.set_xlabel("transform size", fontsize=8, color=_INK)
        yield place, panel.elements[index]


def _figure_for(panel: Panel) -> Any:
    columns = min(4, len(panel.elements))
    return new_figure(max(6.0, 2.9 * columns + 0.6), 2.6 * math.ceil(len(panel.elements) / columns) + 1.0)


def _size_ticks(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import NullLocator

    sizes = panel.sizes
    shown = sizes[:: math.ceil(len(sizes) / 6)]
    axes.set_xticks(shown, [str(size) for size in shown], fontsize=7)
    axes.xaxis.set_minor_locator(NullLocator())
    if len(sizes) > 1:
        axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)


def _time_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high > 10 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(LogLocator(10, subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#eceef0", linewidth=0.7)
    axes.set_axisbelow(True)


def _legend(figure: Any, lines: dict[str, Any]) -> None:
    columns = min(5, len(lines))
    figure.legend(
        list(lines.values()), list(lines), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )


def draw_times(panel: Panel, device: str) -> bytes:
    """Microseconds over the transform size, one picture for each element count."""
    figure = _figure_for(panel)
    names = ("copy", *panel.implementations)
    drawn: dict[str, Any] = {}
    for axes, elements in _grid_of_axes(figure, panel):
        for name in names:
            sizes, times = _series(panel, name, elements)
            if sizes:
                (line,) = axes.plot(
                    sizes,
                    times,
                    color=line_colour(name, names),
                    linestyle="--" if name == "copy" else "-",
                    marker="" if name == "copy" and len(sizes) > 1 else "o",
                    markersize=3,
                    linewidth=1.8 if name == "hadacore" else 1.3,
                    zorder=3 if name == "hadacore" else 2,
                )
                drawn.setdefault(name.replace("_inplace", ", in place"), line)
        _time_ticks(axes)
        _size_ticks(axes, panel)
    figure.supylabel("µs", fontsize=9, color=_INK)
    figure.suptitle(f"Time, {panel.dtype}, {panel.regime}: {device}", fontsize=11, color=_INK)
    _legend(figure, drawn)
    return png(figure)


def draw_speedups(panel: Panel, device: str) -> bytes | None:
    """How many times faster than each peer, over the transform size; None without a peer."""
    peers = [name for name in panel.implementations if not name.startswith("hadacore") or name == "hadacore_original"]
    if not peers:
        return None
    figure = _figure_for(panel)
    drawn: dict[str, Any] = {}
    for axes, elements in _grid_of_axes(figure, panel):
        for name in peers:
            sizes, times = _series(panel, name, elements)
            own = panel.times["hadacore"]
            faster = [time / own[size, elements] for size, time in zip(sizes, times, strict=True)]
            (line,) = axes.plot(sizes, faster, color=line_colour(name, peers), marker="o", markersize=3, linewidth=1.5)
            drawn.setdefault(f"over {name}", line)
        axes.axhline(1.0, color="#8a8f98", linestyle="--", linewidth=1.0)
        _time_ticks(axes)
        _size_ticks(axes, panel)
    figure.supylabel("times faster", fontsize=9, color=_INK)
    figure.suptitle(f"Speedup of hadacore, {panel.dtype}, {panel.regime}: {device}", fontsize=11, color=_INK)
    _legend(figure, drawn)
    return png(figure)


def draw_ratios(panel: Panel, device: str, implementation: str = "hadacore") -> bytes:
    """Time over that of a copy, as a colour-coded table of transform size by element count."""
    from matplotlib.patches import Rectangle

    top = scale_top(panel.ratios("hadacore"))
    width, height = max(5.6, 1.3 + 0.95 * len(panel.elements)), 1.5 + 0.34 * len(panel.sizes)
    figure = new_figure(width, height)
    axes = figure.subplots()
    for i, size in enumerate(panel.sizes):
        for j, elements in enumerate(panel.elements):
            ratio = panel.ratio(implementation, size, elements)
            if ratio is None:
                axes.add_patch(Rectangle((j + 0.02, i + 0.04), 0.96, 0.92, facecolor="#f1f2f4", linewidth=0))
                continue
            colour = ratio_colour(ratio, top)
            axes.add_patch(Rectangle((j + 0.02, i + 0.04), 0.96, 0.92, facecolor=hexadecimal(colour), linewidth=0))
            axes.text(j + 0.5, i + 0.5, f"{ratio:.2f}", ha="center", va="center", fontsize=9, color=text_colour(colour))
    axes.set_xlim(0, len(panel.elements))
    axes.set_ylim(len(panel.sizes), 0)
    axes.set_xticks([j + 0.5 for j in range(len(panel.elements))], [count(n) for n in panel.elements], fontsize=9)
    axes.set_yticks([i + 0.5 for i in range(len(panel.sizes))], [str(size) for size in panel.sizes], fontsize=9)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("elements", fontsize=9, color=_INK)
    axes.set_ylabel("transform size", fontsize=9, color=_INK)
    figure.suptitle(
        f"{implementation.replace('_inplace', ', in place')}: time / time of a copy\n{panel.dtype}, {panel.regime}: {device}",
        fontsize=10,
        color=_INK,
    )
    return png(figure)


def draw_all(panels: Sequence[Panel], device: str) -> dict[str, bytes]:
    """Every picture of a benchmark, by a name for its file."""
    pictures: dict[str, bytes] = {}
    for panel in panels:
        place = f"{panel.dtype}-{panel.regime}"
        pictures[f"ratios-{place}"] = draw_ratios(panel, device)
        pictures[f"times-{place}"] = draw_times(panel, device)
        speedups = draw_speedups(panel, device)
        if speedups is not None:
            pictures[f"speedups-{place}"] = speedups
    return pictures
