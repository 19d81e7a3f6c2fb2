"""Tables on disk: CSV files that are written line by line aside, and renamed when they are complete."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hadacore.benchmarking.grid import Point
from hadacore.benchmarking.measure import Measurement

POINT_COLUMNS = ("dtype", "hadamard_size", "elements", "regime")
FIXED_COLUMNS = (*POINT_COLUMNS, "copy_us", "hadacore_us")
IN_PLACE_COLUMN = "hadacore_inplace_us"
PROVENANCE_COLUMNS = ("gpu", "driver", "cuda", "torch", "hadacore", "commit", "backend")

Row = dict[str, str]


def columns_for(peers: Sequence[str], in_place: bool) -> tuple[str, ...]:
    """The header: the fixed columns, one for each peer, and what the measurement was made with."""
    extra = (IN_PLACE_COLUMN,) if in_place else ()
    times = tuple(f"{name}_us" for name in peers)
    return (*FIXED_COLUMNS, *times, *extra, "hadacore_error_ratio", "copy_kernel", *PROVENANCE_COLUMNS)


def row_of(measurement: Measurement, made_with: Mapping[str, str | None]) -> Row:
    """A measurement as text by column; microseconds to the nanosecond."""
    point = measurement.point
    row = {
        "dtype": point.dtype,
        "hadamard_size": str(point.size),
        "elements": str(point.elements),
        "regime": point.regime,
        "copy_us": f"{measurement.copy_us:.3f}",
        "hadacore_us": f"{measurement.hadacore_us:.3f}",
        "hadacore_error_ratio": f"{measurement.hadacore_error_ratio:.6f}",
        "copy_kernel": measurement.copy_kernel,
    }
    row |= {f"{name}_us": f"{time:.3f}" for name, time in measurement.peers_us.items()}
    if measurement.hadacore_inplace_us is not None:
        row[IN_PLACE_COLUMN] = f"{measurement.hadacore_inplace_us:.3f}"
    return row | {name: made_with.get(name) or "" for name in PROVENANCE_COLUMNS}


def point_of(row: Mapping[str, str]) -> Point:
    """The point that a row is about."""
    return Point(row["dtype"], int(row["hadamard_size"]), int(row["elements"]), row["regime"])


def _line(values: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def partial_path(path: Path) -> Path:
    """Where the lines of ``path`` are collected until it is complete."""
    return path.with_suffix(f".partial{path.suffix}")


def read_rows(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    """Header and rows of a table. A last line that was not written to its end is left out."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(io.StringIO(whole)))
    if not lines:
        return (), []
    header = tuple(lines[0])
    return header, [dict(zip(header, line, strict=True)) for line in lines[1:] if len(line) == len(header)]


class PartialTable:
    """A table in the making, in ``<name>.partial.csv`` beside its final place.

    Every row is on disk when :meth:`append` returns, so that a run that is killed can be continued.

    Args:
        path: The final place.
        columns: The header.
        resume: Continue what a killed run left, if it left anything.

    Raises:
        ValueError: There is something left and ``resume`` is not given, or it has another header.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, resume: bool = False) -> None:
        self.path, self.columns, self.rows = path, tuple(columns), list[Row]()
        self.partial = partial_path(path)
        if self.partial.exists():
            if not resume:
                raise ValueError(
                    f"{self.partial} is left from a run that did not end: continue it with --resume, or delete it"
                )
            header, self.rows = read_rows(self.partial)
            if header and header != self.columns:
                raise ValueError(
                    f"cannot continue {self.partial}: it has the columns {', '.join(header)}, this run writes "
                    f"{', '.join(self.columns)}. Use the same options and packages, or delete it."
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written anew, which also drops a line that was cut off.
        whole = _line(self.columns) + "".join(_line(self._values(row)) for row in self.rows)
        aside = self.partial.with_suffix(".new")
        aside.write_text(whole, encoding="utf-8")
        aside.replace(self.partial)

    def _values(self, row: Mapping[str, str]) -> list[str]:
        unknown = set(row) - set(self.columns)
        if unknown:
            raise KeyError(f"the table has no columns {sorted(unknown)}")
        return [row.get(column, "") for column in self.columns]

    def append(self, row: Row) -> None:
        """Add a row and flush it."""
        values = self._values(row)
        with self.partial.open("a", encoding="utf-8", newline="") as file:
            file.write(_line(values))
        self.rows.append(dict(zip(self.columns, values, strict=True)))

    def complete(self) -> None:
        """Rename to the final place."""
        self.partial.replace(self.path)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file aside and rename it, so that ``path`` is never half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    aside.replace(path)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a finished table."""
    write_whole(path, _line(columns) + "".join(_line(str(row[column]) for column in columns) for row in rows))


def write_details(path: Path, details: Mapping[str, Any]) -> None:
    """Write what a table does not hold, as JSON."""
    write_whole(path, json.dumps(details, indent=2) + "\n")
