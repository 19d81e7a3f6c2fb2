"""``hadacore bench``: measures a grid into a CSV file, then draws it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from hadacore.backends.selection import default_backend
from hadacore.benchmarking.grid import Grid
from hadacore.benchmarking.measure import Measurement, measure_grid
from hadacore.benchmarking.page import page
from hadacore.benchmarking.peers import find_peers
from hadacore.benchmarking.pictures import draw_all
from hadacore.benchmarking.provenance import provenance
from hadacore.benchmarking.report import (
    PROVENANCE_COLUMNS,
    PartialTable,
    columns_for,
    point_of,
    row_of,
    write_details,
    write_whole,
)
from hadacore.benchmarking.results import panels_of
from hadacore.benchmarking.timing import COLD_BYTES, MAXIMUM_PAIRS

NAME = "hadacore-bench"
_METHOD = (
    "On a GPU: time between two events around a replayed CUDA graph, divided by its calls, median of 5 to 9 replays. "
    "On the CPU: wall time, least of 7 to 50 samples. hot: the same buffers every time. cold: round buffers that cover "
    f"{COLD_BYTES} bytes (at most {MAXIMUM_PAIRS} pairs), after a read of as many other bytes. Random data. copy_us: "
    "the fastest of Tensor.copy_ and, on a GPU, the package's copy kernel. hadacore_error_ratio: relative L2 error "
    "against a float64 transform, divided by that of rounding the float64 result."
)


def check_same_machine(table: PartialTable, made_with: Mapping[str, str | None]) -> None:
    """Refuse to continue a table that was measured with something else.

    Raises:
        ValueError: It was.
    """
    for row in table.rows:
        for name in PROVENANCE_COLUMNS:
            now = made_with.get(name) or ""
            if row[name] != now:
                raise ValueError(
                    f"cannot continue {table.partial}: it was measured with {name} {row[name]!r}, now it is "
                    f"{now!r}; delete it to start again"
                )


class Benchmark:
    """A run of a grid on a device into a folder.

    Args:
        grid: What to measure.
        device: Where.
        folder: Where to write.
        in_place: Measure the transform in place, too.
        resume: Continue a run that was killed.
        backend: Which one runs the transform; None is the device's.

    Raises:
        ValueError: A run that was killed is there and ``resume`` is not given, or it was another kind of run.
    """

    def __init__(
        self, grid: Grid, device: torch.device, folder: Path, *, in_place: bool = False, resume: bool = False,
        backend: str | None = None,
    ) -> None:  # fmt: skip
        self.grid, self.device, self.folder, self.in_place = grid, device, folder, in_place
        self.backend = backend or default_backend(device.type)
        self.made_with = {**provenance(device), "backend": self.backend}
        self.peers, self.missing = find_peers(device.type)
        self.failures: dict[str, str] = {}
        columns = columns_for([peer.name for peer in self.peers], in_place)
        self.table = PartialTable(folder / f"{NAME}.csv", columns, resume=resume)
        check_same_machine(self.table, self.made_with)
        self.done = frozenset(point_of(row) for row in self.table.rows)
        self.remaining = sum(point not in self.done for point in grid.points())

    def measure(self, progress: Callable[[Measurement], None] = lambda measurement: None) -> None:
        """Measure what is not measured yet; every line is on disk before the next is measured."""
        measurements = measure_grid(
            self.grid, self.device, self.peers, in_place=self.in_place, backend=self.backend, done=self.done,
            report_failure=self._failed,
        )  # fmt: skip
        for measurement in measurements:
            self.table.append(row_of(measurement, self.made_with))
            progress(measurement)

    def _failed(self, peer: str, reason: str) -> None:
        self.failures.setdefault(peer, reason)  # the first of perhaps many

    def finish(self, pictures: bool = True) -> tuple[Path, ...]:
        """Rename the table, write what it was made with beside it, and draw it. Returns the files."""
        self.table.complete()
        notes = tuple(f"{name}: {reason}" for name, reason in (*self.missing.items(), *self.failures.items()))
        details = self.folder / f"{NAME}.json"
        write_details(
            details, {"method": _METHOD, **self.made_with, "missing_peers": self.missing, "failed_peers": self.failures}
        )
        files = [self.table.path, details]
        if pictures:
            panels = panels_of(self.table.rows)
            drawn = draw_all(panels, self.made_with["gpu"] or "")
            for name, data in drawn.items():
                files.append(self.folder / f"{NAME}-{name}.png")
                write_whole(files[-1], data)
            files.append(self.folder / f"{NAME}.html")
            write_whole(files[-1], page(panels, drawn, self.made_with, notes))
        return tuple(files)
