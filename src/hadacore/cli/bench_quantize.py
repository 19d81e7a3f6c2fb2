"""``hadacore bench quantize``: measures rotation with quantization into a CSV file, then draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from hadacore.benchmarking.provenance import provenance
from hadacore.benchmarking.quantizing import (
    COLUMNS,
    QUERY_KEY,
    Measured,
    QuantizeGrid,
    key_of,
    key_of_case,
    measure,
    row_of,
)
from hadacore.benchmarking.quantizing_picture import draw_quantizing, kind_of
from hadacore.benchmarking.report import PartialTable, Row, write_whole
from hadacore.cli.bench import check_same_machine

NAME = "hadacore-bench-quantize"


class QuantizeBenchmark:
    """A run of a grid on a device into a folder.

    Args:
        grid: What to measure.
        device: Where.
        folder: Where to write.
        chains: Measure the unfused chain, too.
        resume: Continue a run that was killed.

    Raises:
        ValueError: A run that was killed is there and ``resume`` is not given, or it was another kind of run.
    """

    def __init__(
        self, grid: QuantizeGrid, device: torch.device, folder: Path, *, chains: bool, resume: bool = False
    ) -> None:
        self.grid, self.device, self.folder, self.chains = grid, device, folder, chains
        self.made_with = provenance(device)
        self.table = PartialTable(folder / f"{NAME}.csv", COLUMNS, resume=resume)
        check_same_machine(self.table, self.made_with)
        self.done = frozenset(key_of(row) for row in self.table.rows)
        self.remaining = sum(key_of_case(case) not in self.done for case in grid.cases())

    def measure(self, progress: Callable[[Measured], None] = lambda measured: None) -> None:
        """Measure what is not measured yet; every line is on disk before the next is measured."""
        for measured in measure(self.grid, self.device, chains=self.chains, done=self.done):
            self.table.append(row_of(measured, self.made_with))
            progress(measured)

    def finish(self, pictures: bool = True) -> tuple[Path, ...]:
        """Rename the table and draw it. Returns the files."""
        self.table.complete()
        files = [self.table.path]
        if pictures:
            files.append(self.folder / f"{NAME}.png")
            write_whole(files[-1], draw_quantizing(self.table.rows, self.made_with["gpu"] or ""))
        return tuple(files)


def summary(rows: Iterable[Row], fewest_elements: int) -> list[tuple[str, ...]]:
    """Lines of the printed table: what, rows, fused, worst ratio up to 4096 and above, least speedup over the chain.

    Args:
        rows: Of the table.
        fewest_elements: What less than nine tenths of is few rows.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        few = int(row["elements"]) < 0.9 * fewest_elements  # counts are rounded to whole rows
        what = "q and k" if row["operation"] == QUERY_KEY else "few" if few else "many"
        groups.setdefault((kind_of(row), what), []).append(row)
    lines: list[tuple[str, ...]] = []
    for (kind, what), members in groups.items():
        fused = sum(row["fused"] == "yes" for row in members)
        small = [float(row["ratio"]) for row in members if int(row["size"]) <= 4096]
        large = [float(row["ratio"]) for row in members if int(row["size"]) > 4096]
        speedups = [float(row["speedup"]) for row in members if row["speedup"]]
        ends = (max(small, default=None), max(large, default=None), min(speedups, default=None))
        numbers = ("" if value is None else f"{value:.2f}" for value in ends)
        lines.append((kind, what, f"{fused}/{len(members)}", *numbers))
    return lines
