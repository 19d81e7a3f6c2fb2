"""Benchmark results as one HTML page that needs nothing beside it: tables, pictures, provenance."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from hadacore.benchmarking.colours import hexadecimal, ratio_colour, scale_top, text_colour
from hadacore.benchmarking.results import Panel, count

_STYLE = """
:root { color-scheme: light dark; --ink: #22262b; --soft: #5d656e; --paper: #ffffff; --line: #dfe2e6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #a3abb4; --paper: #15181b; --line: #343a40; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, dl { color: var(--soft); } dl { display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem; }
dt { color: var(--ink); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 2px; font-variant-numeric: tabular-nums; }
th { font-weight: 500; padding: .15rem .6rem; text-align: right; white-space: nowrap; }
td { padding: .15rem .6rem; text-align: right; min-width: 3.6rem; border-radius: 3px; }
td.none { color: var(--soft); text-align: center; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px;
      margin: .6rem 0; display: block; }
"""


def _cell(panel: Panel, implementation: str, size: int, elements: int, top: float) -> str:
    ratio = panel.ratio(implementation, size, elements)
    if ratio is None:
        return '<td class="none">·</td>'
    colour = ratio_colour(ratio, top)
    time, copy = panel.times[implementation][size, elements], panel.times["copy"][size, elements]
    return (
        f'<td style="background:{hexadecimal(colour)};color:{text_colour(colour)}" '
        f'title="{time:.3f} µs, a copy {copy:.3f} µs">{ratio:.2f}</td>'
    )


def _table(panel: Panel, implementation: str) -> str:
    top = scale_top(panel.ratios("hadacore"))
    head = "".join(f'<th scope="col">{count(elements)}</th>' for elements in panel.elements)
    body = "".join(
        f'<tr><th scope="row">{size}</th>'
        + "".join(_cell(panel, implementation, size, elements, top) for elements in panel.elements)
        + "</tr>\n"
        for size in panel.sizes
    )
    return (
        f'<div class="wide"><table><thead><tr><th scope="col">size \\ elements</th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _picture(name: str, data: bytes) -> str:
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">\n'


def page(
    panels: Sequence[Panel],
    pictures: Mapping[str, bytes],
    made_with: Mapping[str, str | None],
    notes: Sequence[str] = (),
) -> str:
    """The page.

    Args:
        panels: Results.
        pictures: PNG files by name, as of :func:`hadacore.benchmarking.pictures.draw_all`; may be empty.
        made_with: Device and versions.
        notes: Sentences to print below them, such as why a peer is missing.
    """
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in made_with.items() if value)
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>hadacore benchmark</title><style>{_STYLE}</style></head><body>\n<h1>hadacore benchmark</h1>\n"
        f"<dl>{facts}</dl>\n"
        "<p>Each cell is time over the time of a copy of the same bytes in the same run: 1.00 is the speed of memory. "
        "Hot uses the same buffers every time, cold goes round 300 MB. Microseconds appear when you point at a cell.</p>\n"
    ]
    parts += [f"<p>{escape(note)}</p>\n" for note in notes]
    for panel in panels:
        place = f"{panel.dtype}-{panel.regime}"
        parts.append(f"<h2>{escape(panel.dtype)}, {escape(panel.regime)}</h2>\n")
        for implementation in panel.implementations:
            parts.append(f"<h3>{escape(implementation.replace('_inplace', ', in place'))}</h3>\n")
            parts.append(_table(panel, implementation))
        parts += [
            _picture(name, data)
            for name, data in pictures.items()
            if name.endswith(f"-{place}") and "ratios" not in name
        ]
    parts.append("</body></html>\n")
    return "".join(parts)
