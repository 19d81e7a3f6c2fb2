"""What is Triton's alone: its refusals, its place in the choice of backends, and quantization in one kernel."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import hadacore
from hadacore import prologues
from hadacore.backends import selection, triton
from hadacore.backends.cuda import requirements as cuda_requirements
from hadacore.backends.triton import bases, requirements
from hadacore.backends.triton.compiling import SHARED_BYTES, TARGETS, Compiled, compile_for
from hadacore.backends.triton.configurations import (
    DIRECT,
    IEEE,
    THREE_PARTS,
    Configuration,
    base_candidates,
    candidates,
    choose,
    choose_base,
)
from hadacore.backends.triton.launch import TO_INT8, base_for, configuration_for, launch, multiprocessors
from hadacore.benchmarking.report import write_csv
from hadacore.cli import compiling_triton
from hadacore.cli.app import app
from hadacore.errors import BackendUnavailableError
from hadacore.formats import BY_NAME, Quantizer
from hadacore.quantization import reference
from tests import oracle, tolerances
from tests.benchmarks import load_benchmark
from tests.test_backends import GPU, ORDERS, POWERS

pytestmark = pytest.mark.triton
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
FUSED = triton.CAPABILITIES.fused_formats
SHARED = SHARED_BYTES["sm_90"]


def _rotated(x: torch.Tensor, **options: Any) -> torch.Tensor:
    """What the kernel has before it rounds: the same kernel, with an output in fp32."""
    n, base = x.shape[-1], options.pop("base", None)
    out = torch.empty_like(x, dtype=torch.float32)
    c = configuration_for(x, n, base)
    launch(c, x, out, n**-0.5, base=base_for(x, c) if base is None else bases.in_zeros(base), **options)
    return out


def _check_quantized(x: torch.Tensor, name: str, clip_ratio: float = 1.0, **options: Any) -> None:
    n = x.shape[-1]
    q = hadacore.hadamard_quantize(x, name, clip_ratio=clip_ratio, backend="triton", **options)
    rotated = _rotated(x, **options)
    codes, scales = reference.quantize(rotated, Quantizer(BY_NAME[name], n, clip_ratio))
    assert torch.equal(q.codes.view(torch.int8), codes.view(torch.int8))
    assert torch.equal(q.scales.view(torch.int32), scales.view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("n", [*POWERS[1:], *(n for n in ORDERS if hadacore.factor(n).base_order <= 256)])
def test_codes_and_scales_are_the_references(n: int, name: str, dtype: torch.dtype) -> None:
    rows = 37 if n <= 256 else 5
    x = (torch.randn(rows, n) * 2.0 ** torch.randint(-12, 12, (rows, 1))).to(dtype).to(GPU)
    x[0, 0] *= 300
    x[1] = 0
    _check_quantized(x, name)
    x[2, n // 2] = math.nan
    x[3, 0] = -math.inf
    _check_quantized(x, name, 0.7)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("inverse", [False, True])
def test_signs_and_inverse_come_before_codes(name: str, inverse: bool) -> None:
    for n in (64, 512, 4096, 40, 5120):
        x = torch.randn(3, n, device=GPU, dtype=torch.float16)
        signs = (torch.randint(0, 2, (n,)) * 2 - 1).half().to(GPU)
        _check_quantized(x, name, signs=signs, inverse=inverse)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_base_of_the_caller(dtype: torch.dtype, inverse: bool) -> None:
    for order, n in ((1, 64), (5, 40), (12, 3072), (128, 128), (172, 688)):
        x = torch.randn(3, n).to(dtype).to(GPU)
        for base_dtype in dict.fromkeys((dtype, torch.float32)):
            base = torch.randn(order, order + 1).to(base_dtype).to(GPU)[:, 1:]
            _check_quantized(x, "int8" if order % 2 else "fp8_e4m3", base=base, inverse=inverse)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=6),
    st.sampled_from(FUSED),
    st.floats(2.0**-10, 1.0),
)
def test_every_value_is_encoded_as_the_reference_does(values: list[float], name: str, clip_ratio: float) -> None:
    """Rows of one element are their own transform."""
    x = torch.tensor(values, device=GPU)[:, None]
    _check_quantized(x, name, clip_ratio)


@pytest.mark.parametrize("name", FUSED)
def test_ties_and_subnormal_codes(name: str) -> None:
    """A row of 64 in which 448 or 127 sets the scale to 1, the others exactly between two codes, or at the least ones."""
    largest = BY_NAME[name].encoding.maximum
    steps = torch.arange(63, dtype=torch.float32)
    grids = [steps * 2.0**-10, steps + 0.5, (steps + 16.5) / 16, -steps * 2.0**-11]
    wanted = torch.stack([torch.cat((torch.tensor([largest]), grid)) for grid in grids]).to(GPU)
    # The transform of the transform: exact where the sums are, which it is not needed to be; both see the same values.
    x = hadacore.hadamard_transform(wanted, 1 / 64.0, backend="triton")
    q = hadacore.hadamard_quantize(x, name, transform_scale=1.0, backend="triton")
    back = hadacore.hadamard_transform(x, 1.0, backend="triton")
    codes, scales = reference.quantize(back, Quantizer(BY_NAME[name], 64))
    assert torch.equal(q.codes.view(torch.int8), codes.view(torch.int8)) and torch.equal(q.scales, scales)


def test_a_prologue_comes_before_the_kernel() -> None:
    gate, up = torch.randn(2, 4, 256, device=GPU, dtype=torch.bfloat16)
    ours = hadacore.hadamard_quantize(gate, "int8", prologue=prologues.silu_mul(up), backend="triton")
    values = gate.float() / (1 + torch.exp(-gate.float())) * up.float()
    expected = hadacore.hadamard_quantize(values, "int8", backend="triton")
    assert (ours.codes.int() - expected.codes.int()).abs().max() <= 1
    base = torch.randn(8, 8, device=GPU).bfloat16()
    ours = hadacore.hadamard_quantize(gate, "int8", prologue=prologues.silu_mul(up), base=base, backend="triton")
    expected = hadacore.hadamard_quantize(values, "int8", base=base.float(), backend="triton")
    assert (ours.codes.int() - expected.codes.int()).abs().max() <= 1


def test_quantization_compiles_whole() -> None:
    x = torch.randn(4, 256, device=GPU)

    def f(x: torch.Tensor) -> torch.Tensor:
        q = hadacore.hadamard_quantize(x * 2, "int8", backend="triton")
        return q.codes.float() * q.scales

    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


# ---- CUDA graphs ------------------------------------------------------------------------------------------


def test_a_base_is_not_uploaded_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(bases, "_kept", {})
    with pytest.raises(RuntimeError, match=r"base matrix of size 768 is not on cuda:0 yet.*before the capture"):
        bases.known_base(hadacore.factor(768), torch.float16, torch.device("cuda", 0))


@pytest.mark.gpu
def test_a_graph_replays_the_transform() -> None:
    for n in (128, 4096, 768):
        x = torch.randn(64, n, device="cuda", dtype=torch.float16)
        expected = hadacore.hadamard_transform(x, backend="triton")
        out = torch.zeros_like(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            hadacore.hadamard_transform(x, out=out, backend="triton")
        graph.replay()
        assert torch.equal(out, expected)


@pytest.mark.gpu
def test_another_stream_and_a_large_tensor() -> None:
    x = torch.randn(1 << 21, 2048, device="cuda", dtype=torch.bfloat16)  # 2^32 elements
    with torch.cuda.stream(torch.cuda.Stream()):
        y = hadacore.hadamard_transform(x, backend="triton")
        last = hadacore.hadamard_transform(x[-3:].clone(), backend="triton")
        torch.cuda.current_stream().synchronize()
    assert torch.equal(y[-3:], last)


# ---- refusals ---------------------------------------------------------------------------------------------


def test_refusals_of_the_transform() -> None:
    def run(x: torch.Tensor, **options: Any) -> None:
        hadacore.hadamard_transform(x.to(GPU), backend="triton", **options)

    with pytest.raises(ValueError, match="takes sizes up to 32768, got 65536; use a block_size"):
        run(torch.ones(1, 65536))
    run(torch.ones(1, 65536), block_size=32768)
    with pytest.raises(ValueError, match="takes base matrices up to order 2048, got order 2068"):
        run(torch.ones(1, 2068))
    with pytest.raises(ValueError, match="takes base matrices up to order 2048, got order 2050"):
        run(torch.ones(1, 2050), base=torch.eye(2050, device=GPU))
    if GPU.type == "cpu":
        with pytest.raises(ValueError, match=r"takes float16, bfloat16, float32, got torch\.float64"):
            run(torch.ones(1, 8, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nvfp4", {}, "quantizes to fp8_e4m3 and int8, got nvfp4; backend=None rotates"),
        ("fp8_e4m3", {"granularity": 128}, "quantizes with granularity='row', got 128"),
        ("fp8_e4m3", {"granularity": "tensor", "scale": 1.0}, "got one scale for the tensor"),
        ("int8", {"block_size": 128}, "rows that are one transform, got block_size 128 in rows of 256"),
    ],
)
def test_refusals_of_quantization(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hadacore.hadamard_quantize(torch.ones(2, 256, device=GPU), name, backend="triton", **options)


def test_a_large_base_is_not_quantized_in_one_kernel() -> None:
    x = torch.ones(2, 428, device=GPU)
    with pytest.raises(ValueError, match="base matrix has order 256 at most, got order 428"):
        hadacore.hadamard_quantize(x, "int8", backend="triton")
    with pytest.raises(ValueError, match="base matrix has order 256 at most, got order 300; backend=None rotates"):
        hadacore.hadamard_quantize(x[:, :300], "int8", base=torch.eye(300, device=GPU), backend="triton")


# ---- choosing ---------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_choice(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    selection.default_backend.cache_clear()
    yield monkeypatch
    selection.default_backend.cache_clear()


def _missing(message: str) -> Any:
    def raise_it() -> None:
        raise BackendUnavailableError(message)

    return raise_it


def test_triton_is_chosen_where_nvrtc_is_missing(fresh_choice: pytest.MonkeyPatch) -> None:
    fresh_choice.setattr(selection, "compiler_version", lambda: (13, 0))
    assert selection.default_backend("cuda") == "cuda"
    selection.default_backend.cache_clear()
    fresh_choice.setattr(selection, "compiler_version", _missing("no NVRTC"))
    assert selection.default_backend("cuda") == "triton"
    selection.default_backend.cache_clear()
    fresh_choice.setattr(selection, "triton_module", _missing("no triton"))
    assert selection.default_backend("cuda") == "cuda"  # whose error says what to install
    assert selection.default_backend("cpu") == "cpu" and selection.default_backend("xpu") == "triton"


def test_triton_is_chosen_on_amd(fresh_choice: pytest.MonkeyPatch) -> None:
    cuda_requirements.cuda_core.cache_clear()
    cuda_requirements.compiler_version.cache_clear()
    fresh_choice.setattr(torch.version, "hip", "7.0")
    assert selection.default_backend("cuda") == "triton"
    cuda_requirements.cuda_core.cache_clear()
    cuda_requirements.compiler_version.cache_clear()


def test_where_triton_is_chosen_there_is_no_plan(fresh_choice: pytest.MonkeyPatch) -> None:
    fresh_choice.setattr(selection, "compiler_version", _missing("no NVRTC"))
    with pytest.raises(ValueError, match="tensors on this GPU go to Triton's"):
        hadacore.plan(128, device="cuda")
    assert hadacore.plan(128, device="cpu").backend == "cpu"


def test_the_choice_is_made_once(fresh_choice: pytest.MonkeyPatch) -> None:
    """The first call of a CUDA tensor chooses; the table then holds the backend itself."""
    fresh_choice.setitem(selection.DEFAULTS, "cuda", selection._choose_for_cuda)
    fresh_choice.setattr(selection, "compiler_version", _missing("no NVRTC"))
    called = []
    fresh_choice.setitem(selection.BACKENDS, "triton", lambda *arguments: called.append(arguments))
    x = torch.ones(8)
    selection.DEFAULTS["cuda"](x, x, 8, 1.0, None, False, None)
    assert len(called) == 1 and selection.DEFAULTS["cuda"] is selection.BACKENDS["triton"]


def test_a_missing_or_old_triton_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton as package

    requirements.triton_module.cache_clear()
    monkeypatch.setattr(package, "__version__", "3.3.1")
    with pytest.raises(BackendUnavailableError, match=r"needs triton 3\.4 or newer, got 3\.3\.1"):
        triton.transform(torch.ones(8), torch.ones(8), 8, 1.0, None, False, None)
    monkeypatch.setitem(__import__("sys").modules, "triton", None)
    with pytest.raises(BackendUnavailableError, match=r'pip install "hadacore\[triton\]"'):
        requirements.triton_module()
    assert not triton.support()
    monkeypatch.undo()
    requirements.triton_module.cache_clear()


# ---- the table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sixteen_bit", [True, False])
def test_every_candidate_gives_the_same_result(sixteen_bit: bool) -> None:
    for log2_size in range(16):
        found = list(candidates(log2_size, sixteen_bit, SHARED))
        assert (
            found[0] == choose(log2_size, sixteen_bit, shared_bytes=SHARED) and 3 <= len(found) == len(set(found)) <= 64
        )
        for c in (*found, choose(log2_size, sixteen_bit, amd=True)):
            assert c.size == 1 << log2_size and c.works_in_place and c.blocks == 1
        # Interpreted, a program is slow; all kernels and divisions are among the small ones.
        shapes = {(c.kernel, c.order, c.parts, c.columns): c for c in found}
        dtype = torch.float16 if sixteen_bit else torch.float32
        x = torch.randn(3, 1 << log2_size, dtype=dtype, device=GPU)
        exact = oracle.transform(x)
        best = max(tolerances.rounding_error(exact, dtype), 1e-12)
        for c in shapes.values():
            y = torch.full_like(x, math.nan)
            launch(c, x, y, x.shape[-1] ** -0.5)
            assert tolerances.relative_error(y, exact) <= best * (
                tolerances.CORRECT_ROUNDING_RATIO if sixteen_bit else 8
            ), c


BASE_SIZES = [48, 192, 768, 5120, 896, 1376, 5504, 856]


def _shapes(size: int, dtype: torch.dtype) -> list[Configuration]:
    """Candidates that divide the work differently."""
    found, product = hadacore.factor(size), THREE_PARTS if dtype == torch.float32 else DIRECT
    shapes: dict[Any, Configuration] = {}
    for c in base_candidates(found.base_order, found.log2, product, shared_bytes=SHARED):
        assert c.size == size and (c.kernel == "sums" or c.rows * c.columns >= 16)
        shapes.setdefault((c.kernel, c.order, c.block, c.held, c.parts, c.columns, min(c.rows, 2)), c)
    return list(shapes.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", BASE_SIZES)
def test_every_candidate_of_a_base_gives_the_same_result(size: int, dtype: torch.dtype) -> None:
    x = torch.randn(5, size, device=GPU).to(dtype)
    signs = (torch.randint(0, 2, (size,), device=GPU) * 2 - 1).to(dtype)
    poisoned = x.clone()
    poisoned[1, size // 2], poisoned[3, 0] = math.nan, math.inf
    for c in _shapes(size, dtype):
        base = base_for(x, c)
        for inverse in (False, True):
            y = torch.full_like(x, math.nan)
            launch(c, x, y, size**-0.5, signs, inverse, base)
            exact = oracle.transform(x, signs=signs, inverse=inverse)
            limit = 8 if dtype == torch.float32 else tolerances.CORRECT_ROUNDING_RATIO
            assert tolerances.relative_error(y, exact) <= limit * tolerances.rounding_error(exact, dtype), c
        alone, beside = torch.empty_like(x[:1]), torch.empty_like(x)
        launch(c, x[2:3], alone, size**-0.5, signs, True, base)
        launch(c, poisoned, beside, size**-0.5, signs, True, base)
        assert torch.equal(alone[0], y[2]) and torch.equal(beside[::2], y[::2]), c
        assert not torch.isfinite(beside[1::2]).any(), c


@pytest.mark.parametrize("size", [768, 5120, 1376])
def test_every_candidate_of_a_base_makes_codes(size: int) -> None:
    x = torch.randn(5, size, device=GPU).half()
    x[3, 1] = math.nan
    quantizer = Quantizer(BY_NAME["int8"], size)
    for c in _shapes(size, x.dtype):
        if c.blocks > 1:  # no program has all of a row
            continue
        rotated = torch.empty_like(x, dtype=torch.float32)
        codes = torch.empty_like(x, dtype=torch.int8)
        scales = torch.empty(5, 1, device=GPU)
        launch(c, x, rotated, size**-0.5, base=base_for(x, c))
        factor = quantizer.amax_factor
        launch(c, x, codes, size**-0.5, base=base_for(x, c), epilogue=TO_INT8, scales=scales, amax_factor=factor)
        expected_codes, expected_scales = reference.quantize(rotated, quantizer)
        assert torch.equal(codes, expected_codes), c
        assert torch.equal(scales.view(torch.int32), expected_scales.view(torch.int32)), c


def test_bits_of_a_base_are_its_signs() -> None:
    for order in (12, 20, 28):
        bits = bases.base_bits(order)
        signs = torch.tensor([1.0 - 2 * (bits >> i & 1) for i in range(order * order)]).view(order, order)
        assert torch.equal(signs, oracle.known_base(order * 8).float())
    order = next(order for order in range(36, 2048, 4) if not hadacore.factor(order).symmetric)
    with pytest.raises(ValueError, match=f"symmetric base matrix, got {order}"):
        bases.base_bits(order)


def test_what_lies_around_a_callers_base_is_not_read() -> None:
    for order in (20, 32):
        around = torch.full((64, 64), math.nan, device=GPU)
        base = around[:order, :order].copy_(torch.randn(order, order))
        x = torch.randn(3, order * 4, device=GPU)
        for inverse in (False, True):
            y = torch.empty_like(x)
            triton.transform(x, y, order * 4, 1.0, None, inverse, base)
            exact = oracle.transform(x, 1.0, inverse=inverse, base=base)
            assert tolerances.relative_error(y, exact) < 1e-6


def test_a_base_is_covered_by_its_blocks() -> None:
    for order in (12, 16, 100, 128, 172, 260, 428, 2048):
        for product, callers in ((DIRECT, False), (DIRECT, True), (THREE_PARTS, False), (IEEE, True)):
            for log2_columns in range(15 - order.bit_length() + 1):
                c = choose_base(order, log2_columns, product, shared_bytes=SHARED, callers=callers)
                assert (c.order == order and c.kernel == "panel") or not callers
                assert c.size == order << log2_columns
                assert c.kernel == "sums" or c.blocks * c.held * c.block >= c.order
                assert c.kernel == "sums" or c.rows * c.columns >= 16
                assert c.works_in_place == (order <= 256)


def test_candidates_of_an_earlier_run_are_known(tmp_path: Path) -> None:
    tune = load_benchmark("tune_triton")
    jobs = tune.jobs_for([768], ["float16"])
    done = [tune.row_of({**job, "elements": 1, "us": 2.0, "copy_us": 1.0}, {}) for job in jobs]
    done[2]["status"] = "no answer in 90 s"
    for row in done:
        del row["held"]  # a column that the earlier run did not have
    file = tmp_path / "candidates.csv"
    write_csv(file, tuple(done[0]), done)
    known = tune.measured_candidates(file)
    new = [i for i, job in enumerate(jobs) if tune.identity("float16", 768, job["configuration"]) not in known]
    assert new == [2]


def test_the_grid_is_no_larger_than_the_rows() -> None:
    c = choose(12, True)
    assert c.grid(1, 132) == (1, 1)
    assert c.grid(10**6, 132) == (c.programs * 132, 1)
    assert multiprocessors(GPU) >= 1


# ---- compiling for GPUs that are not here -----------------------------------------------------------------


COMPILED = """
import sys, torch
from hadacore.backends.triton.compiling import SHARED_BYTES, compile_for, epilogues
from hadacore.backends.triton.configurations import DIRECT, IEEE, SYLVESTER, Configuration, choose, choose_base
target = sys.argv[1]
amd = target.startswith("gfx")
for c, dtype, codes in (
    (choose(1, True, amd), torch.bfloat16, False), (choose(6, True, amd), torch.float16, True),
    (choose(11, True, amd), torch.bfloat16, False), (choose(6, False, amd), torch.float32, False),
    (choose_base(12, 4, DIRECT, amd), torch.float16, True),
    (Configuration("sums", 8, 2, 64, 4, 1, 1, 12, product=SYLVESTER), torch.float16, True),
    (Configuration("sums", 2, 1, 64, 1, 1, 1, 12, product=IEEE), torch.float32, False),
    (Configuration("panel", 2, 1, 16, 4, 1, 1, 172, 64, 64, DIRECT, held=3), torch.bfloat16, False),
    (choose_base(20, 8, DIRECT, amd), torch.float16, False),
    (choose(15, True, amd, SHARED_BYTES[target]), torch.float16, False),
    (choose_base(28, 10, DIRECT, amd, SHARED_BYTES[target]), torch.bfloat16, False),
):
    for epilogue in epilogues(target) if codes else (0,):
        found = compile_for(target, c, dtype, signs=1 + (epilogue > 0), strided=epilogue == 0, epilogue=epilogue)
        assert 16 <= found.registers <= 512 and found.shared_bytes <= SHARED_BYTES[target], (c, found)
        print(c, epilogue, found)
"""


@pytest.mark.parametrize("target", list(TARGETS))
def test_kernels_compile_for_every_target(target: str) -> None:
    """In a process of its own, since Triton compiles nothing where it interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILED, target]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(result.stdout.splitlines()) >= 7


VECTORS = """
import re, torch
from hadacore.backends.triton import compiling
from hadacore.backends.triton.configurations import choose
def read(assembled):
    print(assembled["ptx"].count(".global.v4"), re.search(r"sizePerThread = \\[(\\d+)\\]", assembled["ttgir"])[1])
    return 0, 0
compiling._read_nvidia = read
for log2_size in (0, 1, 2, 3):
    for sixteen_bit, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        compiling.compile_for("sm_90", choose(log2_size, sixteen_bit), dtype)
"""


def test_short_rows_are_read_in_vectors() -> None:
    """Neighbouring lanes read neighbours: 16 bytes each, or a row where that is less and one mask covers it."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", VECTORS], env=environment, capture_output=True, text=True)
    found = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    assert found == [(4, 8), (8, 4), (0, 2), (0, 2), (0, 4), (8, 4), (8, 8), (8, 4)], result.stderr[-2000:]


def test_nothing_is_compiled_where_triton_interprets() -> None:
    if not triton.is_interpreted():
        pytest.skip("Triton compiles here")
    with pytest.raises(BackendUnavailableError, match="TRITON_INTERPRET is set"):
        compile_for("sm_90", choose(7, True), torch.float16)


def test_the_command_line_reports_what_the_compiler_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_one(kernel: compiling_triton.Kernel) -> compiling_triton.Checked:
        if kernel.target == "gfx942":
            return compiling_triton.Checked(kernel, None, "ValueError: no such thing")
        return compiling_triton.Checked(kernel, Compiled(200, 16, 10**6 if kernel.target == "sm_80" else 4096))

    monkeypatch.setattr(compiling_triton, "check_one", check_one)
    run = CliRunner().invoke
    good = run(app, ["check-triton", "--sizes", "128,768", "--arch", "sm_90", "--jobs", "1"])
    assert good.exit_code == 0 and re.search(r"sm_90 float16 +2 +200 +2 +16 +4096", good.output)
    bad = run(app, ["check-triton", "--sizes", "128", "--arch", "sm_80,gfx942", "--dtypes", "float32", "--jobs", "1"])
    assert bad.exit_code == 1
    assert "needs 1000000 bytes of shared memory" in bad.output and "no such thing" in bad.output
    assert "2 of 2 kernels do not compile" in bad.output


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--sizes", "65536", "sizes up to 32768, got 65536"),
        ("--arch", "sm_30", "target must be one of"),
        ("--dtypes", "float64", "dtype must be one of float16, bfloat16, float32"),
    ],
)
def test_the_command_line_refuses(option: str, value: str, message: str) -> None:
    result = CliRunner().invoke(app, ["check-triton", option, value])
    assert result.exit_code == 2
    assert message in re.sub(r"[│╭╮╰╯─\s]+", " ", result.output)
