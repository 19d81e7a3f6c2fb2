"""``hadacore bench quantize``: the grid, the chain it compares with, the table, the picture and the command."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")

import hadacore
from hadacore import hadamard_quantize, prologues, quantize_query_key
from hadacore.benchmarking import quantizing, unfused
from hadacore.benchmarking.quantizing import COLUMNS, Case, Heads, Measured, QuantizeGrid, default_grid, row_of
from hadacore.benchmarking.report import Row
from hadacore.cli import bench_quantize
from tests.test_cli import needs_matplotlib, run  # noqa: F401  (a fixture)

CPU = torch.device("cpu")
SMALL_BYTES = 1 << 20
TINY = QuantizeGrid(
    sizes=(128, 448), elements=(2**13,), few_rows=(2,), few_rows_sizes=(512,), heads=Heads(1, 4, 4, 2), chain_sizes=()
)


def as_it_is(step: object) -> object:
    """In the place of torch.compile."""
    return step


# ---- the chain -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "granularity"),
    [
        ("fp8_e4m3", "row"),
        ("fp8_e4m3", 128),
        ("int8", "row"),
        ("int4", "row"),
        ("mxfp8", 32),
        ("mxfp4", 32),
        ("nvfp4", 16),
    ],
)
def test_the_chain_computes_the_same(format: str, granularity: str | int, device: torch.device) -> None:
    """Codes and scales of the same layout, types and values, but for last bits: it divides where the reference multiplies."""
    x = torch.randn(130, 256, device=device)
    x[3] = 0
    expected = hadamard_quantize(x, format, granularity=granularity)
    chain = unfused.quantize_chain(format, 256 if granularity == "row" else int(granularity), compile=as_it_is)
    codes, scales = chain(x, out=torch.empty_like(x))
    assert codes.dtype == expected.codes.dtype and codes.shape == expected.codes.shape
    assert (codes.view(torch.uint8) != expected.codes.view(torch.uint8)).float().mean() < 0.002
    assert scales.shape == expected.scales.shape and scales.stride() == expected.scales.stride()
    if scales.dtype == torch.float32:
        torch.testing.assert_close(scales, expected.scales, rtol=2.0**-22, atol=0)
    else:
        assert (scales.view(torch.uint8) != expected.scales.view(torch.uint8)).float().mean() < 0.002


def test_the_chain_with_a_gated_activation(device: torch.device) -> None:
    """The chain rounds the activation to 16 bits, the fused call does not: a few codes differ by a step."""
    both = torch.randn(16, 512, device=device, dtype=torch.bfloat16)
    gate, up = both.chunk(2, -1)
    expected = hadamard_quantize(gate, "int8", prologue=prologues.silu_mul(up)).codes.int()
    out = torch.empty(16, 256, device=device, dtype=torch.bfloat16)
    for prologue, inputs in ((unfused.silu_mul, (gate, up)), (unfused.silu_mul_gate_up, (both,))):
        codes, _ = unfused.quantize_chain("int8", 256, prologue, as_it_is)(*inputs, out=out)
        assert (codes.int() - expected).abs().max() <= 2


@pytest.mark.parametrize("granularity", ["head", "token"])
def test_the_chain_of_queries_and_keys(granularity: str, device: torch.device) -> None:
    q = torch.randn(2, 6, 8, 64, device=device)
    cos, sin = quantizing.rope_tables(6, 64, device)
    expected = quantize_query_key(q, q[:, :, :2], rope=prologues.rope(cos, sin), granularity=granularity)
    chain = unfused.query_key_chain(2, granularity == "token", as_it_is)
    codes, scales = chain(q, cos, sin, out=torch.empty_like(q))
    torch.testing.assert_close(scales, expected.q_descale, rtol=1e-5, atol=0)
    assert (codes.view(torch.uint8) != expected.q.view(torch.uint8)).float().mean() < 0.01


def test_the_steps_compile_whole() -> None:
    """Without a break in the graph, and for more shapes than dynamo compiles one function for."""

    def compile_whole(step: object) -> object:
        return torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False)  # type: ignore[call-overload]

    formats = (("int8", 64), ("fp8_e4m3", 64), ("int4", 64), ("mxfp8", 32), ("mxfp4", 32), ("nvfp4", 16))
    for format, block in formats:
        x = torch.randn(2, 64)
        unfused.quantize_chain(format, block, compile=compile_whole)(x, out=torch.empty_like(x))
    for rows in range(3, 12):
        unfused.forget_compiled()
        x = torch.randn(rows, 64)
        unfused.quantize_chain("int8", 64, compile=compile_whole)(x, out=torch.empty_like(x))
    cos, sin = quantizing.rope_tables(3, 64, CPU)
    q = torch.randn(1, 3, 4, 64)
    for per_token in (False, True):
        unfused.query_key_chain(2, per_token, compile_whole)(q, cos, sin, out=torch.empty_like(q))


# ---- the grid --------------------------------------------------------------------------------------


def test_the_grid_covers_the_targets() -> None:
    cases = default_grid("cuda").cases()
    assert len(set(cases)) == len(cases)
    kinds = {(c.format, c.granularity, c.prologue) for c in cases if c.operation == "quantize"}
    assert {("fp8_e4m3", "row", p) for p in ("", "silu_mul:gate_up", "silu_mul:separate")} <= kinds
    assert {
        (name, granularity, "") for name, granularity in (("fp8_e4m3", 128), ("int4", "row"), ("nvfp4", 16))
    } <= kinds
    many = [c for c in cases if c.rows > 64 and c.operation == "quantize"]
    for size in (128, 4096, 14336, 28672, 32768):
        counts = {c.elements for c in many if c.size == size}
        assert len(counts) == 2 and all(abs(a - b) < size for a, b in zip(sorted(counts), (2**23, 2**25), strict=True))
        chained = {(c.format, c.prologue) for c in many if c.size == size and c.against_chain}
        assert len({c for c in chained if c[0] in ("fp8_e4m3", "int8")}) == 6
    assert {(c.rows, c.size) for c in cases if c.rows <= 64} == {
        (r, n) for r in (1, 8, 64) for n in (4096, 14336, 28672)
    }
    assert sum(c.operation == "query_key" for c in cases) == 2
    assert len(default_grid("cuda", quick=True).cases()) < 25


def test_reads_for_each_byte_of_codes() -> None:
    reads = {(c.format, c.prologue): c.reads for c in QuantizeGrid().cases()}
    assert reads["int8", ""] == 2 and reads["nvfp4", ""] == 4 and reads["fp8_e4m3", "silu_mul:separate"] == 4
    assert Case("quantize", "float16", 128, 1, "int4", "row", "silu_mul:gate_up").reads == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float32"}, "dtype must be one of bfloat16, float16, got 'float32'"),
        ({"sizes": (102,)}, "no Hadamard matrix of order 102"),
        ({"sizes": (64,)}, "sizes must be 128 or more, got 64"),
        ({"elements": (0,)}, "element counts must be 1 or more, got 0"),
    ],
)
def test_grid_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizeGrid(**change)  # type: ignore[arg-type]


# ---- measuring -------------------------------------------------------------------------------------


def test_measures_every_case_once(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = []
    monkeypatch.setattr(unfused, "forget_compiled", lambda: forgotten.append(1))
    monkeypatch.setattr(unfused, "compiled", as_it_is)
    monkeypatch.setattr(unfused.quantize_chain, "__defaults__", (None, as_it_is))
    monkeypatch.setattr(unfused.query_key_chain, "__defaults__", (as_it_is,))
    measured = list(quantizing.measure(TINY, CPU, cold_bytes=SMALL_BYTES))
    assert [m.case for m in measured] == list(TINY.cases())
    for m in measured:
        assert m.copy_us > 0 and m.hadacore_us > 0 and (m.chain_us is not None) == m.case.against_chain
        assert m.ratio == m.hadacore_us / m.copy_us and (m.speedup is None) == (m.chain_us is None)
        assert m.fused == _plan(m.case)
    assert len(forgotten) == len({(m.case.operation, m.case.size, m.case.rows) for m in measured})
    done = {quantizing.key_of_case(m.case) for m in measured[:-1]}
    again = list(quantizing.measure(TINY, CPU, chains=False, done=done, cold_bytes=SMALL_BYTES))
    assert [m.case for m in again] == [measured[-1].case] and again[0].chain_us is None


def _plan(case: Case) -> bool:
    """On the CPU kernels begin with the rotation."""
    if case.prologue:
        return False
    return hadacore.plan_quantize(case.size, case.format, granularity=case.granularity, device="cpu").fused


@pytest.mark.gpu
def test_on_a_gpu_chains_are_compiled() -> None:
    grid = QuantizeGrid(
        sizes=(1024,), elements=(2**20,), few_rows=(), few_rows_sizes=(), heads=Heads(1, 64, 8, 2), chain_sizes=(1024,)
    )
    measured = list(quantizing.measure(grid, torch.device("cuda", 0), cold_bytes=1 << 24))
    assert len(measured) == len(grid.cases()) and all(m.chain_us is not None for m in measured)
    assert all(m.fused for m in measured)
    # A few tokens' queries and keys are three launches, as the chain's are.
    assert all(m.speedup is not None and (m.speedup > 1 or m.case.operation != "quantize") for m in measured)


# ---- the table and the picture ---------------------------------------------------------------------


def _rows(grid: QuantizeGrid, chain: bool = True) -> list[Row]:
    made_with = {"gpu": "a GPU", "torch": "2"}
    return [
        row_of(Measured(c, c.prologue == "", 10.0, 11.0, 25.0 if chain and c.against_chain else None), made_with)
        for c in grid.cases()
    ]


def test_rows_and_summary() -> None:
    rows = _rows(default_grid("cuda"))
    assert all(tuple(row) == COLUMNS for row in rows)
    first = rows[0]
    assert (first["ratio"], first["fused"], first["gpu"], first["driver"]) == ("1.1000", "yes", "a GPU", "")
    assert {row["speedup"] for row in rows} == {"", "2.273"}
    lines = bench_quantize.summary(rows, 2**23)
    assert lines[0] == ("fp8_e4m3 row", "many", "30/30", "1.10", "1.10", "2.27")
    assert ("silu_mul:gate_up + fp8_e4m3 row", "few", "0/9", "1.10", "1.10", "2.27") in lines
    assert ("rope + fp8_e4m3 head", "q and k", "0/1", "1.10", "", "2.27") in lines


@pytest.mark.parametrize("chain", [False, True])
def test_picture(chain: bool) -> None:
    pytest.importorskip("matplotlib")
    from hadacore.benchmarking.quantizing_picture import draw_quantizing

    assert draw_quantizing(_rows(TINY, chain), "a GPU").startswith(b"\x89PNG")


# ---- the command -----------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "default_grid", lambda device_type, dtype, quick: TINY)
    measure = quantizing.measure
    monkeypatch.setattr(
        bench_quantize, "measure", lambda *a, **k: measure(*a, **k, cold_bytes=SMALL_BYTES)
    )  # a round of 300 MB takes seconds


def _read(path: Path) -> list[Row]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_command(tiny: None, needs_matplotlib: None, tmp_path: Path) -> None:  # noqa: F811
    text = run("bench", "quantize", "--device", "cpu", "--out", str(tmp_path / "new"))
    count = len(TINY.cases())
    assert "No GPU: small sizes on the CPU" in text and f"{count} of {count} points" in text
    rows = _read(tmp_path / "new" / "hadacore-bench-quantize.csv")
    assert tuple(rows[0]) == COLUMNS and len(rows) == count and rows[0]["torch"] == torch.__version__
    assert not any(row["chain_us"] for row in rows)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "hadacore-bench-quantize.csv", "hadacore-bench-quantize.png",
    }  # fmt: skip


def test_command_continues_a_killed_run(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("bench", "quantize", "--device", "cpu", "--no-pictures", "--out", str(tmp_path))
    table = bench_quantize.PartialTable(tmp_path / "hadacore-bench-quantize.csv", COLUMNS)
    made_with = bench_quantize.provenance(CPU)
    table.append(row_of(Measured(TINY.cases()[0], False, 10.0, 11.0), made_with))
    assert "continue it with --resume, or delete it" in run(*options, code=2)
    assert f"{len(TINY.cases()) - 1} of {len(TINY.cases())} points" in run(*options, "--resume")
    rows = _read(tmp_path / "hadacore-bench-quantize.csv")
    assert rows[0]["hadacore_us"] == "11.000" and len(rows) == len(TINY.cases())
    other = made_with | {"torch": "1.0"}
    bench_quantize.PartialTable(tmp_path / "hadacore-bench-quantize.csv", COLUMNS).append(
        row_of(Measured(TINY.cases()[0], False, 10.0, 11.0), other)
    )
    assert "it was measured with torch '1.0', now it is" in run(*options, "--resume", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick", "quantize"], "is an option of `hadacore bench`; write it after quantize"),
        (["quantise"], "No such command 'quantise'"),
        (["quantize", "--dtype", "float32"], "dtype must be one of bfloat16, float16, got 'float32'"),
        (["quantize", "--sizes", "64"], "sizes must be 128 or more, got 64"),
        (["quantize", "--sizes", "many"], "expected whole numbers, got 'many'"),
    ],
)
def test_command_errors(arguments: list[str], message: str, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--no-pictures", "--out", str(tmp_path)] if arguments[0] == "quantize" else []
    assert message in run("bench", *arguments, *options, code=2) and not list(tmp_path.iterdir())


def test_command_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "--no-pictures" in run("bench", "quantize", "--device", "cpu", "--out", str(tmp_path), code=1)
