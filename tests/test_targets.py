"""The script that holds measurements against the targets: it can pass, and every target can be missed."""

from __future__ import annotations

import csv
import itertools
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hadacore.benchmarking.quantizing import COLUMNS, Measured, default_grid, row_of
from hadacore.benchmarking.report import write_csv
from tests.benchmarks import BENCHMARKS, load_benchmark

SCRIPT = BENCHMARKS / "check_targets.py"


@pytest.fixture(scope="module")
def targets() -> ModuleType:
    return load_benchmark("check_targets")


def _table() -> list[dict[str, str]]:
    """A grid on which everything takes exactly as long as a copy."""
    return [
        {
            "dtype": dtype, "hadamard_size": str(size), "elements": str(elements), "regime": regime, "copy_us": "10",
            "hadacore_us": "10", "hadacore_inplace_us": "10", "hadacore_error_ratio": "1.0",
        }
        for dtype, size, elements, regime in itertools.product(
            ("float16", "bfloat16", "float32"), (1, 128, 1024, 4096, 8192, 16384, 32768), (2**16, 2**19, 2**21, 2**23),
            ("hot", "cold"),
        )
    ]  # fmt: skip


def _peers(factor: float) -> list[dict[str, str]]:
    peers = ("fast_hadamard_transform", "hadacore_original", "quack")
    return [{**row, **{f"{peer}_us": str(10 * factor) for peer in peers}} for row in _table()]


def test_a_copy_meets_every_target(targets: ModuleType) -> None:
    verdicts = targets.check(_table()) + targets.check_peers(_table(), _peers(5.0))
    assert all(verdict.met for verdict in verdicts)
    assert len(verdicts) == 5 * 5 + 2 + 2 + 1 + 3 * 2 + 1


@pytest.mark.parametrize(
    ("where", "change", "name"),
    [
        ({"dtype": "float16", "elements": str(2**23), "regime": "cold", "hadamard_size": "128"}, {"hadacore_us": "10.3"},
         "16-bit, >= 2^23, cold, n <= 1024"),
        ({"dtype": "bfloat16", "elements": str(2**21), "regime": "cold", "hadamard_size": "32768"}, {"hadacore_us": "14.1"},
         "16-bit, 2^21, cold, n <= 32768"),
        ({"dtype": "float16", "elements": str(2**16), "regime": "hot", "hadamard_size": "8192"}, {"hadacore_us": "18.1"},
         "16-bit, 2^16 and below, n <= 8192"),
        ({"dtype": "float32", "elements": str(2**23), "regime": "cold", "hadamard_size": "32768"}, {"hadacore_us": "10.9"},
         "float32, >= 2^23, cold, n <= 32768"),
        ({"dtype": "float32", "hadamard_size": "1"}, {"hadacore_inplace_us": "10.4"}, "in place over out of place"),
        ({"dtype": "float16", "hadamard_size": "1"}, {"hadacore_error_ratio": "1.003"}, "16-bit error / correct rounding"),
    ],
)  # fmt: skip
def test_one_slow_point_is_a_miss(
    targets: ModuleType, where: dict[str, str], change: dict[str, str], name: str
) -> None:
    rows = _table()
    next(row for row in rows if where.items() <= row.items()).update(change)
    assert [verdict.name for verdict in targets.check(rows) if not verdict.met] == [name]


def test_in_place_is_held_against_the_target_and_against_out_of_place(targets: ModuleType) -> None:
    rows = _table()
    where = {"dtype": "float16", "elements": str(2**16), "hadamard_size": "128"}
    next(row for row in rows if where.items() <= row.items()).update({"hadacore_inplace_us": "13"})
    missed = {verdict.name: verdict.worst for verdict in targets.check(rows) if not verdict.met}
    assert missed == {"16-bit, in place, ratio over the target above": 1.04, "in place over out of place": 1.3}


def test_peers_can_be_ahead(targets: ModuleType) -> None:
    peers = _peers(5.0)
    peers[7]["quack_us"] = "9.9"
    missed = [verdict for verdict in targets.check_peers(_table(), peers) if not verdict.met]
    assert [(verdict.name, verdict.worst) for verdict in missed] == [("never slower than quack", 0.99)]
    names = {verdict.name for verdict in targets.check_peers(_table(), _peers(1.2)) if not verdict.met}
    assert names == {
        "geometric mean over hadacore_original",
        "geometric mean over fast_hadamard_transform",
        "geometric mean over quack",
        "128 x 2^23 cold over fast_hadamard_transform",
    }


def test_what_was_not_measured_is_a_miss(targets: ModuleType) -> None:
    assert not any(verdict.met for verdict in targets.check([]))


def test_command(tmp_path: Path) -> None:
    rows = _table()
    for name, table in (("good", rows), ("bad", [{**row, "hadacore_us": "30"} for row in rows])):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(table)
    good = subprocess.run([sys.executable, SCRIPT, tmp_path / "good"], capture_output=True, text=True)
    assert good.returncode == 0 and "30 of 30 targets met" in good.stdout
    bad = subprocess.run([sys.executable, SCRIPT, tmp_path / "bad"], capture_output=True, text=True)
    assert bad.returncode == 1 and "MISS" in bad.stdout
    absent = subprocess.run([sys.executable, SCRIPT, tmp_path / "absent"], capture_output=True, text=True)
    assert absent.returncode == 2 and "there is no table" in absent.stderr


# ---- quantization ----------------------------------------------------------------------------------


def _quantizing() -> list[dict[str, str]]:
    """The default grid, everything as fast as a copy and three times as fast as the chain."""
    return [
        row_of(Measured(case, True, 10.0, 10.0, 30.0 if case.against_chain else None), {})
        for case in default_grid("cuda").cases()
    ]


def test_the_default_grid_can_meet_every_target_of_quantization(targets: ModuleType) -> None:
    verdicts = targets.check_quantizing(_quantizing())
    assert all(verdict.met for verdict in verdicts)
    assert len(verdicts) == 11 * 2 + 6 + 3 + 2
    assert not any(verdict.met for verdict in targets.check_quantizing([]))


@pytest.mark.parametrize(
    ("where", "change", "name"),
    [
        ({"size": "3584", "format": "nvfp4"}, {"ratio": "1.09"}, "nvfp4 16, n <= 4096, over copy"),
        ({"size": "28672", "format": "int8", "prologue": ""}, {"ratio": "1.21"}, "int8 row, n <= 32768, over copy"),
        (
            {"size": "5120", "prologue": "silu_mul:gate_up", "format": "int8"},
            {"ratio": "1.21"},
            "silu_mul:gate_up + int8 row, n <= 32768, over copy",
        ),
        ({"size": "128", "format": "int8", "rows": "262144"}, {"speedup": "1.9"}, "int8 row, times the chain"),
        (
            {"size": "512", "prologue": "silu_mul:separate", "format": "fp8_e4m3", "rows": "65536"},
            {"speedup": "2.4"},
            "silu_mul:separate + fp8_e4m3 row, times the chain",
        ),
        (
            {"size": "14336", "rows": "8", "format": "fp8_e4m3", "granularity": "row", "prologue": ""},
            {"speedup": "1.9"},
            "8 x 14336, fp8_e4m3 row, times the chain",
        ),
        ({"granularity": "token"}, {"speedup": "1.5"}, "queries and keys per token, times the chain"),
    ],
)
def test_one_slow_point_of_quantization_is_a_miss(
    targets: ModuleType, where: dict[str, str], change: dict[str, str], name: str
) -> None:
    rows = _quantizing()
    next(row for row in rows if where.items() <= row.items()).update(change)
    assert [verdict.name for verdict in targets.check_quantizing(rows) if not verdict.met] == [name]


def test_the_script_knows_a_table_of_quantization(tmp_path: Path) -> None:
    rows = _quantizing()
    rows[0]["ratio"], rows[0]["fused"] = "2.0", "no"
    path = tmp_path / "hadacore-bench-quantize.csv"
    write_csv(path, COLUMNS, rows)
    result = subprocess.run([sys.executable, str(SCRIPT), str(path)], capture_output=True, text=True)
    assert result.returncode == 1 and "32 of 33 targets met" in result.stdout
    assert "MISS  fp8_e4m3 row, n <= 4096, over copy" in result.stdout and "x 128, not fused" in result.stdout
    command = [sys.executable, str(SCRIPT), str(path), "--peers", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "--peers is for tables of `hadacore bench`" in result.stderr
