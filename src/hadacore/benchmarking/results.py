"""A benchmark table in memory, as pictures and pages want it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hadacore.benchmarking.report import FIXED_COLUMNS, Row, point_of, read_rows

_SUFFIX = "_us"


@dataclass(frozen=True)
class Panel:
    """The results of one type and regime.

    Attributes:
        dtype: Element type.
        regime: ``"hot"`` or ``"cold"``.
        sizes: Transform sizes, ascending.
        elements: Element counts, ascending.
        times: Microseconds by implementation, size and element count.
    """

    dtype: str
    regime: str
    sizes: tuple[int, ...]
    elements: tuple[int, ...]
    times: Mapping[str, Mapping[tuple[int, int], float]]

    @property
    def implementations(self) -> tuple[str, ...]:
        """Whatever was measured but the copy, this package first."""
        others = sorted(name for name in self.times if name not in ("copy", "hadacore"))
        return ("hadacore", *others)

    def ratio(self, implementation: str, size: int, elements: int) -> float | None:
        """Time over that of a copy, or None if it was not measured."""
        time, copy = self.times[implementation].get((size, elements)), self.times["copy"].get((size, elements))
        return time / copy if time is not None and copy else None

    def ratios(self, implementation: str) -> list[float]:
        """All ratios of an implementation."""
        found = (self.ratio(implementation, *key) for key in self.times[implementation])
        return [ratio for ratio in found if ratio is not None]


def panels_of(rows: Sequence[Row]) -> tuple[Panel, ...]:
    """The panels of a table, in the order in which they appear in it.

    Raises:
        ValueError: There is no row, or a column is missing.
    """
    if not rows:
        raise ValueError("the table has no rows")
    missing = [column for column in FIXED_COLUMNS if column not in rows[0]]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}")
    columns = [column for column in rows[0] if column.endswith(_SUFFIX)]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["dtype"], row["regime"]), []).append(row)
    panels = []
    for (dtype, regime), members in groups.items():
        times: dict[str, dict[tuple[int, int], float]] = {}
        for row in members:
            point = point_of(row)
            for column in columns:
                if row[column]:
                    times.setdefault(column.removesuffix(_SUFFIX), {})[point.size, point.elements] = float(row[column])
        sizes = sorted({point_of(row).size for row in members})
        elements = sorted({point_of(row).elements for row in members})
        panels.append(Panel(dtype, regime, tuple(sizes), tuple(elements), times))
    return tuple(panels)


def read_panels(path: Path) -> tuple[Panel, ...]:
    """The panels of a CSV file."""
    return panels_of(read_rows(path)[1])


def count(number: int) -> str:
    """An element count for people: ``2097152`` is ``"2 Mi"``, ``4096`` is ``"4 Ki"``."""
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if number >= unit and number % unit == 0:
            return f"{number // unit} {name}"
    return f"{number:,}"
