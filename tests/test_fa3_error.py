"""FlashAttention-3's error experiment: its inputs, its numbers, and what is written."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hadacore.attention import quantized_attention
from hadacore.experiments import draw_fa3_error, fa3_error_table, fa3_inputs, run_fa3_error, write_fa3_error
from tests.attention_oracle import exact_attention


@pytest.fixture(scope="module")
def rows() -> Any:
    return run_fa3_error(sequences=[256, 1024], head_dims=[64, 128], heads=2, device="cpu")


def test_inputs_are_normal_with_rare_outliers_of_variance_100() -> None:
    x = torch.cat([t.float().flatten() for t in fa3_inputs(2048, 4, 128, torch.Generator().manual_seed(0))])
    count = x.numel()
    # Variance 1 + 0.001 * 100; the fourth moment, 3 (1 + 2 * 0.1 + 0.001 * 10^4), is what tells variance 100 from deviation 100.
    fourth = 3 * (1 + 2 * 0.1 + 0.001 * 1e4)
    assert abs(float(x.square().mean()) - 1.1) < 4 * math.sqrt((fourth - 1.1**2) / count)
    eighth = 105 * 0.001 * 101**4
    assert abs(float(x.double().pow(4).mean()) - fourth) < 5 * math.sqrt(eighth / count)
    assert 0.4 < float((x.abs() > 6).float().mean()) / (0.001 * math.erfc(6 / math.sqrt(202))) < 1.6


def test_every_case_is_there_once(rows: Any) -> None:
    assert len(rows) == 4 * (1 + 4 * 3) == len({(r.sequence, r.head_dim, r.granularity, r.rotated) for r in rows})


def test_rotation_gains_most_with_one_scale_for_the_tensor(rows: Any) -> None:
    by = {(r.sequence, r.head_dim, r.granularity, r.rotated): r for r in rows}
    for n in (64, 128):
        for granularity in ("tensor", "head"):
            row = by[1024, n, granularity, "q, k"]
            assert row.gain > 1.4 and row.gain == by[1024, n, granularity, "none"].rmse / row.rmse
        assert by[1024, n, "tensor", "q, k"].gain > by[1024, n, "token", "q, k"].gain
        # E4M3's step is 2^7 times that of float16, and it is taken in scores too, where an error counts several times.
        assert 2**6 < by[1024, n, "tensor", "q, k"].rmse / by[1024, n, "", "none"].rmse < 2**10


def test_errors_are_against_float64() -> None:
    (row, *_) = run_fa3_error(sequences=[100], head_dims=[64], heads=2, granularities=["head"], seed=3, device="cpu")
    q, k, v = fa3_inputs(100, 2, 64, torch.Generator().manual_seed(3))
    exact = exact_attention(q, k, v)
    size = float(exact.square().mean().sqrt())
    y = quantized_attention(q, k, v, recipe="fp16")
    assert row.rmse == pytest.approx(float((y.double() - exact).square().mean().sqrt()), rel=1e-9)
    assert row.relative == pytest.approx(row.rmse / size)
    # Rounding of the result alone: a uniform error of up to 2^-11 of a power of two, and about as much of the probabilities.
    assert 2.0**-13 < row.relative < 2.0**-10


def test_few_queries_give_the_same_error() -> None:
    options: dict[str, Any] = {"sequences": [1024], "head_dims": [64], "granularities": ["token"], "device": "cpu"}
    few, all_of_them = (run_fa3_error(**options, queries=count) for count in (256, None))
    for a, b in zip(few, all_of_them, strict=True):
        assert a.rmse == pytest.approx(b.rmse, rel=0.15) and a.rmse != b.rmse


def test_progress_and_seeds() -> None:
    seen: list[tuple[int, int]] = []
    options: dict[str, Any] = {
        "sequences": [64],
        "head_dims": [64],
        "granularities": ["head"],
        "heads": 1,
        "device": "cpu",
    }
    first = run_fa3_error(**options, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert first == run_fa3_error(**options) != run_fa3_error(**options, seed=1)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, r"granularities must be of tensor, head, block, token, got 'row'", {"granularities": ["row"]}),
        (ValueError, r"sequences must be 1 or more, got 0", {"sequences": [0]}),
        (ValueError, r"head_dims must not be empty", {"head_dims": []}),
        (ValueError, r"queries must be 1 or more, got -1", {"queries": -1}),
        (TypeError, r"heads must be integers, got 1.5", {"heads": 1.5}),
    ],
)
def test_errors(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        run_fa3_error(**options)


def test_what_is_written(rows: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = write_fa3_error(rows, tmp_path / "new")
    assert [path.name for path in paths] == ["fa3_error.csv", "fa3_error.json", "fa3_error.md", "fa3_error.png"]
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    with paths[0].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert (
        len(table) == len(rows) and float(table[1]["rmse"]) == rows[1].rmse and table[0]["torch"] == torch.__version__
    )
    record = json.loads(paths[1].read_text())
    assert record["rows"][5]["granularity"] == rows[5].granularity and record["made_with"]["torch"] == torch.__version__
    assert paths[3].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"no rows to write"):
        write_fa3_error([], tmp_path)
    with pytest.raises(ValueError, match=r"no rows to draw"):
        draw_fa3_error([], "cpu")
    assert len(write_fa3_error(rows, tmp_path / "plain", picture=False)) == 3


def test_the_table_shows_what_rotation_gains(rows: Any) -> None:
    lines = fa3_error_table(rows).splitlines()
    assert len(lines) == 2 + 4 * 5
    first = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert first[:4] == ["256", "64", "fp8_e4m3", "tensor"] and float(first[7]) == pytest.approx(
        rows[2].gain, abs=0.006
    )
