"""The benchmark of attention on the CPU, small: that it runs, what it writes, and that a missed target is told."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from hadacore.attention import EmulatedEngine
from tests.benchmarks import load_benchmark

benchmark = load_benchmark("attention")


@pytest.fixture(scope="module")
def line() -> dict[str, str]:
    """The emulation stands in for FlashAttention-3; nothing is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        patch.setattr(benchmark, "time_operation", lambda operation, workload: operation(*workload.pairs[0]) or 5.0)
        measured: dict[str, str] = benchmark.measure(
            benchmark.Case(1, 64, 96, 4, 2, 64), EmulatedEngine(64), torch.device("cpu")
        )
    return measured


def test_a_line_has_every_field(line: dict[str, str]) -> None:
    assert set(line) == set(benchmark.FIELDS) and line["prepare_share"] == "1.0000"
    assert float(line["error_flash"]) < float(line["error_flash_plain"]) * 1.2
    assert float(line["error_flash_bf16"]) < 0.01 < float(line["error_emulated"]) < 0.2
    # Another block of keys: another rounding of each probability, the same error.
    assert line["error_flash"] != line["error_emulated"] and abs(float(line["error_ratio"]) - 1) < 0.05


def test_missed_targets_are_told(line: dict[str, str]) -> None:
    good = {**line, "case": benchmark.CASES[0].name, "prepare_share": "0.09", "prepare_us": "50", "unfused_us": "90"}
    assert benchmark.missed_targets([good]) == []
    slow = {**good, "prepare_share": "0.1234", "prepare_us": "95"}
    messages = benchmark.missed_targets([slow, {**line, "error_ratio": "1.06"}])
    assert ["12.3% of FP8 attention" in messages[0], "95 us, the compiled chain 90 us" in messages[1]] == [True, True]
    assert "1.06 times the emulation's" in messages[2] and len(messages) == 3


def test_the_unfused_chain_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    case = benchmark.Case(2, 16, 32, 4, 2, 64)
    q, k, v = case.inputs(torch.device("cpu"))
    results = benchmark.unfused_chain(case, torch.device("cpu"))(q, k, v)
    ours = benchmark.prepare(q, k, v, benchmark.ROTATED)
    for operand, codes, scales in zip((ours.q, ours.k, ours.v), results[::2], results[1::2], strict=True):
        # The chain rounds rotated values to bfloat16 before.
        assert torch.allclose(scales, operand.scales, rtol=2.0**-7)
        of_heads = operand.scale_of_tokens().unsqueeze(-1)
        difference = (codes.float() - operand.codes.float()) * of_heads
        assert difference.norm() < 0.04 * (operand.codes.float() * of_heads).norm()


def test_what_is_written(line: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "new" / "attention.csv"
    benchmark.write(path, [line], {"gpu": "a GPU", "commit": None})
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == line["case"] and row["gpu"] == "a GPU" and not list(path.parent.glob("*.partial"))


def test_without_flash_attention_it_says_why() -> None:
    with pytest.raises(SystemExit, match=r"no FlashAttention-3: vllm: .*not on cpu"):
        benchmark.choose_engine(Path("none.so"), torch.device("cpu"))
