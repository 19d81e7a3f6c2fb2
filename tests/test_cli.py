"""The command line: what each command prints and writes, and what it says to mistakes."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")

from typer.testing import CliRunner

import hadacore
from hadacore.backends.cuda.cache import CACHE_VARIABLE, open_cache
from hadacore.benchmarking import peers
from hadacore.benchmarking.quantizing import Case, Measured
from hadacore.benchmarking.report import FIXED_COLUMNS, PROVENANCE_COLUMNS
from hadacore.cli import bench, compiling, demo, demo_quantize, information
from hadacore.cli.app import app
from hadacore.formats import BY_NAME, FORMATS, Quantizer
from hadacore.functional import hadamard_transform
from hadacore.kernels.base_configurations import choose_base
from hadacore.kernels.fusion import fusion_of


def run(*arguments: str, code: int = 0) -> str:
    """The output of a command with line breaks and frames taken out, after its exit code was checked."""
    result = CliRunner().invoke(app, list(arguments))
    text = re.sub(r"[│╭╮╰╯─\s]+", " ", result.output)
    assert result.exit_code == code, (text, result.exception)
    assert "Traceback" not in text
    return text


@pytest.fixture
def needs_matplotlib() -> None:
    pytest.importorskip("matplotlib")


@pytest.fixture
def needs_compiler() -> None:
    pytest.importorskip("cuda.core")
    pytest.importorskip("cuda.bindings")


def test_version_and_help() -> None:
    assert run("--version").strip() == f"hadacore {hadacore.__version__}"
    text = run("--help")
    for command in ("demo", "bench", "eval", "plan", "info", "compile"):
        assert command in text


def test_runs_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "hadacore.cli", "plan", "8"], capture_output=True, text=True)
    assert result.returncode == 0 and "H_8 = Sylvester(2^3)" in result.stdout


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_missing_packages_are_explained(module: str) -> None:
    code = f"import sys; sys.modules['{module}'] = None; from hadacore.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert 'pip install "hadacore[cli]"' in result.stderr and "Traceback" not in result.stderr


# ---- plan ------------------------------------------------------------------------------------------


def test_plan_prints_the_plan() -> None:
    text = run("plan", "4096", "--arch", "sm_90a", "--dtype", "bfloat16", "--rows", "7", "--signs", "--inverse")
    assert "Plan for 7 rows of 4096, bfloat16, on sm_90a, 132 multiprocessors" in text
    assert "after the transform" in text and "exchange" in text
    for architecture, kernels in (("sm_80", ("pass 1", "pass 2")), ("sm_90a", ("16 warps x 2 blocks",))):
        text = run("plan", "65536", "--arch", architecture, "--dtype", "bfloat16")
        assert all(kernel in text for kernel in kernels) and ("pass 1" in text) == (len(kernels) == 2)


def test_plan_options_all_matter() -> None:
    base = ["plan", "8192", "--arch", "sm_90a"]
    plain = run(*base)
    for extra in (
        ["--dtype", "float32"], ["--rows", "2"], ["--block-size", "128"], ["--multiprocessors", "66", "--rows", "100"],
        ["--signs"], ["--inverse"],
    ):  # fmt: skip
        assert run(*base, *extra) != plain, extra
    assert "the matrix is symmetric" in run(*base, "--inverse")
    assert "transformed on the CPU only" in run(*base, "--dtype", "float64")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["102"], "no Hadamard matrix of order 102"),
        (["128", "--block-size", "96"], "96"),
        (["128", "--dtype", "int8"], "expected one of float16, bfloat16, float32, float64, got 'int8'"),
        (["128", "--arch", "sm_70"], "architecture must be one of sm_80"),
        (["128", "--multiprocessors", "4"], "needs --arch"),
        (["128", "--rows", "-1"], "rows must be 0 or more, got -1"),
        (["many"], "valid int"),
    ],
)
def test_plan_errors(arguments: list[str], message: str) -> None:
    assert message in run("plan", *arguments, code=2)


# ---- info ------------------------------------------------------------------------------------------


def test_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kernels"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    text = run("info")
    assert hadacore.__version__ in text and torch.__version__ in text
    assert "cpu available: native kernels, " in text or "cpu available: PyTorch operations, " in text
    assert ("cuda available" if torch.cuda.is_available() else "cuda unavailable: ") in text
    assert f"{folder}, empty" in text and not folder.exists()
    assert "emulated available: PyTorch operations" in text and "flash_attn_interface unavailable: " in text
    assert "fast_hadamard_transform" in text and "quack" in text


def test_info_says_why_the_cache_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert "not used: cache folder" in run("info")


# ---- demo ------------------------------------------------------------------------------------------


def test_demo(tmp_path: Path, needs_matplotlib: None) -> None:
    text = run("demo", "--device", "cpu", "--elements", "65536", "--dtype", "bfloat16", "--out", str(tmp_path / "new"))
    assert "Llama-2-70B prefill" in text and "Llama-3-8B decode" in text and "INT4" in text
    with (tmp_path / "new" / "hadacore-demo.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3 * 3
    assert {(r["model"], r["phase"], r["elements"]) for r in rows} == {
        ("Llama-2-70B", "prefill", "65536"), ("Llama-2-70B", "decode", "8192"),
        ("Llama-3-8B", "prefill", "65536"), ("Llama-3-8B", "decode", "4096"),
    }  # fmt: skip
    for row in rows:
        assert float(row["copy_us"]) > 0 and float(row["hadacore_us"]) > 0
        if row["format"] != "FP8":  # a rotation helps integers whenever there are outliers
            assert float(row["error_after"]) < 0.8 * float(row["error_before"])
    assert (tmp_path / "new" / "hadacore-demo.png").read_bytes().startswith(b"\x89PNG")
    assert "Error in %, gated activations" in text and "silu_mul:gate_up + fp8_e4m3" in text and "chain" not in text
    assert (tmp_path / "new" / "hadacore-demo-quantize.png").read_bytes().startswith(b"\x89PNG")
    errors = {(r["format"], r["granularity"]): r for r in read(tmp_path / "new" / "hadacore-demo-quantize.csv")}
    assert set(errors) == {(f.name, str(g)) for f in FORMATS for g in f.granularities}
    for name, gain in (("int8", 5.0), ("int4", 1.8)):
        row = errors[name, "row"]
        assert float(row["error_none"]) > gain * float(row["error_whole_row"])


def test_demo_quantizes_what_it_says(device: torch.device, needs_matplotlib: None) -> None:
    x = demo_quantize.gated_activations(16, 1024, torch.Generator(device).manual_seed(1))
    largest = x.square().mean(0).sqrt()
    assert (largest > 20 * largest.median()).sum() >= 4
    for format in (BY_NAME["int4"], BY_NAME["nvfp4"]):
        error = demo_quantize.quantization_error(x, format, format.default, 1024)
        rotated = hadamard_transform(x)
        scale = hadacore.static_scale(rotated.abs().amax(), "nvfp4") if format.has_global_scale else None
        back = hadamard_transform(hadacore.hadamard_quantize(x, format.name, scale=scale).dequantize(), inverse=True)
        assert error == pytest.approx(float((back - x).norm() / x.norm()), rel=1e-3)
    case = Case("quantize", "float16", 1024, 8, "int8", "row", "", True)
    times = [Measured(case, True, 10.0, 11.0, 30.0)]
    table = demo_quantize.time_table(times)
    assert [column.header for column in table.columns][-2:] == ["chain, µs", "faster"]
    errors = list(demo_quantize.measure_format_errors(x.half()))
    for shown in (times, []):
        assert demo_quantize.draw(errors, shown, "a GPU").startswith(b"\x89PNG")


def test_demo_activations_and_errors(device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(1)
    keys = demo.KINDS[1]
    x = demo.activations(keys, 4000, 4, generator)
    for head in range(4):
        size = x[head::4].square().mean(0).sqrt()
        large = size[size > 5]
        assert len(large) == keys.outlier_channels and float(large.min()) > 14 and float(large.max()) < 31
    # The reported error after rotation is what is measured in the rotated domain, the rotation being orthonormal.
    for number_format in demo.FORMATS:
        _, after = demo.quantization_errors(x, number_format)
        rotated = hadamard_transform(x)
        there = (demo.quantized(rotated, number_format) - rotated).norm() / rotated.norm()
        assert after == pytest.approx(float(there), rel=1e-3)


def test_demo_quantizes_to_the_grid() -> None:
    x = torch.tensor([-2.0, -0.3, 0.0, 0.1, 1.1])
    int4 = demo.quantized(x, demo.FORMATS[1])
    torch.testing.assert_close(int4, torch.tensor([-7.0, -1.0, 0.0, 0.0, 4.0]) * 2 / 7)
    fp8 = demo.quantized(x, demo.FORMATS[2])
    assert fp8[0] == -2.0 and bool((fp8 - x).abs().le(x.abs() * 2**-4).all())
    assert bool(demo.quantized(torch.zeros(4), demo.FORMATS[0]).eq(0).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--elements", "100"], "elements must be a positive multiple of the head size 128, got 100; 128 is one"),
        (["--dtype", "float64"], "expected one of float16, bfloat16, float32, got 'float64'"),
        (["--device", "tpu"], "expected cpu or cuda, got 'tpu'"),
    ],
)
def test_demo_errors(arguments: list[str], message: str, needs_matplotlib: None) -> None:
    assert message in run("demo", *arguments, code=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there() -> None:
    assert "cannot run on the GPU" in run("demo", "--device", "cuda", code=1)


@pytest.mark.parametrize("command", ["demo", "bench"])
def test_missing_matplotlib_is_explained(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "hadacore[bench]"' in run(command, "--device", "cpu", "--out", str(tmp_path), code=1)
    assert not list(tmp_path.iterdir())


# ---- bench -----------------------------------------------------------------------------------------

TINY = ("--device", "cpu", "--sizes", "64,128", "--elements", "4096,8192", "--dtypes", "float16", "--regimes", "hot")


@pytest.fixture
def fake_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("fake_peer")
    module.hadamard_transform = lambda x, scale: hadamard_transform(x, scale)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_peer", module)
    table = (
        peers.Peer("fake_peer", ("fake_peer",), peers._scaled, (torch.float16,), 2, 64, "", ("cpu",)),
        peers.Peer("absent_peer", ("absent_peer",), peers._scaled, (torch.float16,), 2, 64, "absent", ("cpu",)),
    )
    monkeypatch.setattr(peers, "PEERS", table)


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_bench(tmp_path: Path, fake_peer: None, needs_matplotlib: None) -> None:
    text = run("bench", *TINY, "--in-place", "--out", str(tmp_path))
    assert "absent_peer is left out: not installed (absent)" in text and "4 of 4 points" in text
    rows = read(tmp_path / "hadacore-bench.csv")
    assert tuple(rows[0]) == (
        *FIXED_COLUMNS, "fake_peer_us", "hadacore_inplace_us", "hadacore_error_ratio", "copy_kernel",
        *PROVENANCE_COLUMNS,
    )  # fmt: skip
    assert len(rows) == 4
    for row in rows:
        assert float(row["copy_us"]) > 0 and float(row["hadacore_us"]) > 0 and float(row["hadacore_inplace_us"]) > 0
        assert bool(row["fake_peer_us"]) == (row["hadamard_size"] == "64")
        assert row["torch"] == torch.__version__
    details = json.loads((tmp_path / "hadacore-bench.json").read_text())
    assert details["missing_peers"] == {"absent_peer": "not installed (absent)"} and "median" in details["method"]
    names = {path.name for path in tmp_path.iterdir()}
    drawn = {f"hadacore-bench-{kind}-float16-hot.png" for kind in ("ratios", "times", "speedups")}
    assert names == {"hadacore-bench.csv", "hadacore-bench.json", "hadacore-bench.html"} | drawn


def test_bench_continues_a_killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("bench", *TINY, "--no-pictures", "--out", str(tmp_path))
    measure_grid = bench.measure_grid
    monkeypatch.setattr(bench, "measure_grid", lambda *a, **k: _killed_after(3, measure_grid(*a, **k)))
    result = CliRunner().invoke(app, list(options))
    assert result.exit_code != 0
    partial = tmp_path / "hadacore-bench.partial.csv"
    assert not (tmp_path / "hadacore-bench.csv").exists() and len(read(partial)) == 3
    first = read(partial)
    monkeypatch.setattr(bench, "measure_grid", measure_grid)
    assert "continue it with --resume, or delete it" in run(*options, code=2)
    assert "has the columns" in run(*options, "--resume", "--in-place", code=2)
    assert "1 of 4 points to measure" in run(*options, "--resume")
    rows = read(tmp_path / "hadacore-bench.csv")
    assert not partial.exists() and rows[:3] == first and len(rows) == 4
    assert len({(r["hadamard_size"], r["elements"]) for r in rows}) == 4


def _killed_after(count: int, measurements: object) -> object:
    for index, measured in enumerate(measurements):  # type: ignore[call-overload]
        if index == count:
            raise KeyboardInterrupt
        yield measured


def test_bench_does_not_mix_machines(tmp_path: Path) -> None:
    options = ("bench", *TINY, "--no-pictures", "--out", str(tmp_path))
    run(*options)
    table = tmp_path / "hadacore-bench.csv"
    table.rename(tmp_path / "hadacore-bench.partial.csv")
    partial = tmp_path / "hadacore-bench.partial.csv"
    partial.write_text(partial.read_text().replace(torch.__version__, "1.0"))
    assert "it was measured with torch '1.0', now it is" in run(*options, "--resume", code=2)


def test_bench_says_when_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*arguments: object, **options: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench, "measure_grid", short)
    text = run("bench", *TINY, "--no-pictures", "--out", str(tmp_path), code=1)
    assert "name fewer --elements" in text and "--resume" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "102"], "no Hadamard matrix of order 102"),
        (["--sizes", "12x"], "expected whole numbers, got '12x'"),
        (["--sizes", ","], "expected a comma-separated list, got nothing"),
        (["--elements", "-5"], "element counts must be 1 or more, got -5"),
        (["--sizes", "4096", "--elements", "64"], "no combination is left"),
        (["--dtypes", "float64"], "expected some of float16, bfloat16, float32, got 'float64'"),
        (["--regimes", "warm"], "expected some of hot, cold, got 'warm'"),
        (["--quick", "--sizes", "2", "--elements", "4096", "--dtypes", "float16"], "leave nothing to shorten"),
    ],
)
def test_bench_errors(arguments: list[str], message: str, tmp_path: Path) -> None:
    output = run("bench", "--device", "cpu", "--no-pictures", "--out", str(tmp_path), *arguments, code=2)
    assert message in output and not list(tmp_path.iterdir())


# ---- compile ---------------------------------------------------------------------------------------


def test_compile_fills_a_cache(tmp_path: Path, needs_compiler: None) -> None:
    folder = tmp_path / "kernels"
    options = ("compile", "--sizes", "128", "--dtypes", "float16", "--arch", "sm_80,sm_90a", "--cache", str(folder))
    kernels = compiling.kernels_for((128,), ("float16",), ("sm_80", "sm_90a"))
    text = run(*options, "--check")
    count = len(kernels)
    assert "registers" in text and f"{count} kernels" in text and len(open_cache(folder)) == count
    assert all(compiling.compile_one(kernel, folder).from_cache for kernel in kernels)
    assert "spill" not in run(*options, "--all-variants") and len(open_cache(folder)) == 6 * count
    assert information.cache_state(folder).files == 6 * count


def test_compile_in_several_processes(tmp_path: Path, needs_compiler: None) -> None:
    kernels = compiling.kernels_for((256,), ("bfloat16",), ("sm_90a", "sm_120"))
    seen: list[compiling.Compiled] = []
    found = compiling.compile_all(kernels, tmp_path / "kernels", jobs=2, progress=seen.append)
    assert found == seen and [r.kernel for r in found] == list(kernels)
    assert all(r.failure is None and not r.from_cache and r.code_bytes > 1000 for r in found)
    assert len(open_cache(tmp_path / "kernels")) == len(kernels)


def test_compile_selects_what_can_run() -> None:
    count = len(compiling.kernels_for((128,), ("float16",), ("sm_90a",)))
    assert len(compiling.kernels_for((128,), ("float16",), ("sm_90a",), signs=True)) == 3 * count
    assert len(compiling.kernels_for((128,), ("float16",), ("sm_90a",), strided=True)) == 2 * count
    # Rows of four 16-bit elements are half a vector: there is no strided kernel for them.
    assert len(compiling.kernels_for((4,), ("float16",), ("sm_90a",), strided=True)) == len(
        compiling.kernels_for((4,), ("float16",), ("sm_90a",))
    )
    assert not any(k.configuration.cluster > 1 for k in compiling.kernels_for(architectures=("sm_80",)))
    # What takes passes on one GPU is one launch on another; passes have no strided kernels.
    for architecture, dtype, kernels in (
        ("sm_80", "bfloat16", {"exchange_rows", "columns"}), ("sm_90a", "bfloat16", {"exchange_rows"}),
        ("sm_90a", "float32", {"exchange_rows"}), ("sm_100a", "float16", {"exchange_rows"}),
        ("sm_120", "bfloat16", {"exchange_rows", "columns"}), ("sm_120", "float32", {"exchange_rows"}),
    ):  # fmt: skip
        found = compiling.kernels_for((65536,), (dtype,), (architecture,), signs=True, strided=True)
        assert {k.configuration.kernel for k in found} == kernels
        variants = {(k.configuration.signs, k.configuration.strided) for k in found}
        assert len(variants) == (3 if "columns" in kernels else 6)
    assert compiling.worker_count(None, 1) == 1 and compiling.worker_count(3, 1) == 3


def test_compile_selects_what_quantizes() -> None:
    arguments = (("bfloat16",), ("sm_90a",))
    requests = compiling.quantized(["int8", "fp8_e4m3:128", "mxfp8"])
    assert [str(request) for request in requests] == ["int8 row", "fp8_e4m3 128", "mxfp8 32"]
    for size, signs in ((4096, 3), (5120, 3)):
        plain = compiling.kernels_for((size,), *arguments, quantize=requests)
        fusions = {k.configuration.fusion for k in plain}  # type: ignore[union-attr]
        assert len(fusions) == 3 and None not in fusions
        assert len(compiling.kernels_for((size,), *arguments, signs=True, quantize=requests)) == signs * len(plain)
    # What runs when a tensor is quantized is among them.
    quantizer = Quantizer(BY_NAME["int8"], 5120)
    swizzled = Quantizer(BY_NAME["mxfp8"], 32, swizzled=True)
    for each in (quantizer, swizzled):
        chosen = choose_base(1, 20, 8, 100, (9, 0), 132, fusion=fusion_of(each, 5120, False))
        assert chosen in {k.configuration for k in compiling.kernels_for((5120,), *arguments, quantize=requests)}
    gated = compiling.quantized(["int8"], ["silu_mul:gate_up", "rms_norm"])
    found = {k.configuration.fusion.prologue.kind for k in compiling.kernels_for((4096,), *arguments, quantize=gated)}  # type: ignore[union-attr]
    assert len(found) == 2


def test_compile_says_what_has_no_kernel() -> None:
    requests = compiling.quantized(["int8", "mxfp8"])
    assert not compiling.without_kernel((128, 4096, 14336), ("float16",), ("sm_80", "sm_90a"), requests)
    assert not compiling.kernels_for((4,), ("float16",), ("sm_80",), quantize=requests)
    reasons = compiling.without_kernel((4, 65536), ("float16",), ("sm_80",), requests)
    assert set(reasons) == {f"{size} to {what}" for size in (4, 65536) for what in ("int8 row", "mxfp8 32")}
    assert "shorter than a vector" in reasons["4 to int8 row"]
    assert "powers of two up to 32768, not 65536" in reasons["65536 to mxfp8 32"]
    assert "multiple of the block of 32" in reasons["4 to mxfp8 32"]


def test_compile_quantizing_kernels(tmp_path: Path, needs_compiler: None) -> None:
    folder = tmp_path / "kernels"
    text = run(
        "compile", "--sizes", "4,128", "--dtypes", "bfloat16", "--arch", "sm_90a", "--quantize", "int8,nvfp4", "--prologue",
        "silu_mul:separate", "--check", "--cache", str(folder),
    )  # fmt: skip
    assert "no kernel for 4 to silu_mul:separate + int8 row: a transform of 4 elements is shorter" in text
    requests = compiling.quantized(["int8", "nvfp4"], ["silu_mul:separate"])
    kernels = compiling.kernels_for((128,), ("bfloat16",), ("sm_90a",), quantize=requests)
    assert len(kernels) == len(open_cache(folder)) > 0


def test_compile_fails_on_spills_and_on_errors(
    tmp_path: Path, needs_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("compile", "--sizes", "128", "--dtypes", "float16", "--arch", "sm_90a", "--cache", str(tmp_path / "k"))
    report = compiling.Resources(255, 16, 8, 8)
    monkeypatch.setattr(compiling, "resources_of", lambda configuration, architecture: report)  # what is cached already
    monkeypatch.setattr(compiling, "parse_report", lambda text: report)
    text = run(*options, "--check", code=1)
    assert "0 of 3 kernels failed to compile, 3 spill" in text and "spill_store_bytes=8" in text
    run(*options)  # without --check, nothing is checked
    monkeypatch.setattr(compiling, "kernel_source", lambda kernel: "this is no CUDA")
    assert "3 of 3 kernels failed to compile" in run(*options, code=1)


def test_compile_says_when_the_cache_is_not_filled(
    tmp_path: Path, needs_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hadacore.backends.cuda.cache.KernelCache.put", lambda self, key, code: False)
    (kernel, *_) = compiling.kernels_for((2,), ("float16",), ("sm_90a",))
    assert "could not be written" in (compiling.compile_one(kernel, tmp_path / "kernels").failure or "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "3"], "no Hadamard matrix of order 3"),
        (["--dtypes", "float64"], "dtype must be one of float16, bfloat16, float32, got 'float64'"),
        (["--arch", "sm_70"], "architecture must be one of sm_80"),
        (["--jobs", "0"], "jobs must be 1 or more, got 0"),
        (["--quantize", "int2"], "format must be one of fp8_e4m3"),
        (["--quantize", "int8:32"], "granularity of int8 must be one of row, got '32'"),
        (["--quantize", "int8", "--prologue", "rope"], "prologue must be one of silu_mul:separate"),
        (["--prologue", "rms_norm"], "needs --quantize"),
    ],
)
def test_compile_errors(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in run("compile", "--cache", str(tmp_path / "kernels"), *arguments, code=2)
    assert not (tmp_path / "kernels").exists()


def test_compile_refuses_a_folder_that_others_can_write(tmp_path: Path, needs_compiler: None) -> None:
    tmp_path.chmod(0o777)
    text = run("compile", "--sizes", "2", "--arch", "sm_90a", "--cache", str(tmp_path), code=2)
    assert "can be written by other users" in text


def test_compile_refuses_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made"):
        compiling.check_cache_folder(tmp_path / "file" / "kernels")


def test_compile_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[int, int]:
        raise hadacore.BackendUnavailableError('needs cuda-core. Install it with: pip install "hadacore[cuda13]"')

    monkeypatch.setattr(compiling, "compiler_version", missing)
    text = run("compile", "--sizes", "2", "--cache", str(tmp_path / "kernels"), code=1)
    assert 'pip install "hadacore[cuda13]"' in text
