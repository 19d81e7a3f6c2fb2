"""The picture of an evaluation: each row's change against the reference, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hadacore.attention import RECIPES
from hadacore.benchmarking.pictures import new_figure, plain_axes, png
from hadacore.evaluation.report import Summary
from hadacore.evaluation.statistics import Mean

_PLAIN, _ROTATED = "#d1603d", "#12805c"


def draw(summaries: Sequence[Summary], title: str) -> bytes:
    """Panels side by side: change in accuracy, in the right answer's log-likelihood, and KL divergence (logarithmic)."""
    shown = [summary for summary in summaries if summary.divergence is not None]
    panels: list[tuple[str, list[Mean | None], bool]] = []
    if any(summary.paired is not None for summary in shown):
        changes = [summary.paired for summary in shown if summary.paired is not None]
        panels.append(("accuracy, points", [_times(c.accuracy_change, 100) for c in changes], False))
        panels.append(("log-likelihood, nats", [c.log_likelihood_change for c in changes], False))
    panels.append(("KL divergence, nats", [summary.divergence for summary in shown], True))
    figure = new_figure(2.6 + 2.7 * len(panels), 1.5 + 0.36 * max(1, len(shown)))
    for index, (axes, (name, values, logarithmic)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)
    ):
        plain_axes(axes)
        _points(axes, shown, values)
        axes.set_xlabel(name, fontsize=9)
        if logarithmic and all(value is not None and value.value > 0 for value in values) and values:
            axes.set_xscale("log")
        elif not logarithmic:
            axes.axvline(0, color="#8a8f98", linewidth=1, linestyle="--", zorder=0)
            axes.locator_params(axis="x", nbins=5)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        names = [summary.row.title for summary in shown] if index == 0 else [""] * len(shown)
        axes.set_yticks(range(len(shown)), names, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return png(figure)


def _times(value: Mean, factor: float) -> Mean:
    return Mean(factor * value.value, factor * value.error)


def _points(axes: Any, shown: Sequence[Summary], values: Sequence[Mean | None]) -> None:
    for place, (summary, value) in enumerate(zip(shown, values, strict=True)):
        if value is None:
            continue
        rotated = RECIPES[summary.row.name].rotated
        error = 0.0 if math.isnan(value.error) else value.error
        axes.errorbar(
            value.value, place, xerr=error, fmt="o", markersize=5, capsize=2, linewidth=1.3,
            color=_ROTATED if rotated else _PLAIN,
        )  # fmt: skip
