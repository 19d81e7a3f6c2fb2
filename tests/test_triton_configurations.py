"""Triton's configurations: every candidate gives the same result, and kernels compile for GPUs that are not here."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import hadacore
from hadacore.backends import triton
from hadacore.backends.triton import bases
from hadacore.backends.triton.candidates import base_candidates, candidates
from hadacore.backends.triton.compiling import SHARED_BYTES, TARGETS, Compiled, compile_for
from hadacore.backends.triton.configurations import (
    DIRECT,
    IEEE,
    THREE_PARTS,
    TWO_PARTS,
    Configuration,
    choose,
    choose_base,
)
from hadacore.backends.triton.launch import TO_INT8, base_for, launch, multiprocessors
from hadacore.backends.triton.requirements import architecture_refusal, triton_module
from hadacore.benchmarking.report import write_csv
from hadacore.cli import compiling_triton
from hadacore.cli.app import app
from hadacore.errors import BackendUnavailableError
from hadacore.formats import BY_NAME, Quantizer
from hadacore.quantization import reference
from tests import oracle, tolerances
from tests.benchmarks import load_benchmark
from tests.test_backends import GPU

pytestmark = pytest.mark.triton
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SHARED = SHARED_BYTES["sm_90"]


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


BASE_SIZES = [48, 192, 768, 5120, 896, 1376, 5504, 856, 6272, 11008]


def _shapes(size: int, dtype: torch.dtype) -> list[Configuration]:
    """Candidates that divide the work differently."""
    found, product = hadacore.factor(size), THREE_PARTS if dtype == torch.float32 else DIRECT
    shapes: dict[Any, Configuration] = {}
    for c in base_candidates(found.base_order, found.log2, product, shared_bytes=SHARED):
        assert c.size == size and (c.kernel == "sums" or c.rows * c.columns >= 16)
        shapes.setdefault(
            (c.kernel, c.product, c.order, c.block, c.held, c.parts, c.columns, c.inner, min(c.rows, 2)), c
        )
    return list(shapes.values())


# The last one is of several programs, with columns that are a product.
@pytest.mark.parametrize(("size", "dtype"), [*itertools.product(BASE_SIZES, DTYPES), (10944, torch.float16)], ids=str)
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


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (768, torch.float16),
        (5120, torch.float16),
        (1376, torch.float16),
        (5504, torch.float16),
        (5504, torch.float32),
    ],
    ids=str,
)
def test_every_candidate_of_a_base_makes_codes(size: int, dtype: torch.dtype) -> None:
    x = torch.randn(5, size, device=GPU).to(dtype)
    x[3, 1] = math.nan
    quantizer = Quantizer(BY_NAME["int8"], size)
    for c in _shapes(size, x.dtype):
        if not c.makes_codes:
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


LOOPED = Configuration("bits", 2, 1, 16, 4, 1, 2, 260, 64, 64, DIRECT, held=5)
TWO_PARTS_LOOPED = Configuration("bits", 1, 1, 16, 4, 1, 3, 260, 64, 64, TWO_PARTS, held=5)


@pytest.mark.parametrize(
    ("c", "dtype", "same"),
    [
        (replace(LOOPED, ahead=True), torch.bfloat16, LOOPED),
        (replace(LOOPED, fetches=True), torch.float16, LOOPED),
        (replace(TWO_PARTS_LOOPED, ahead=True, fused=True), torch.float32, TWO_PARTS_LOOPED),
        (Configuration("bits", 2, 1, 32, 4, 1, 2, 172, 64, 64, DIRECT, held=3, inner=16), torch.float16, None),
        (Configuration("bits", 1, 2, 32, 4, 1, 2, 96, 64, 128, DIRECT, held=2, inner=16), torch.bfloat16, None),
        (Configuration("panel", 2, 1, 64, 4, 1, 1, 20, 32, 32, DIRECT, inner=16, fetches=True), torch.float16, None),
        (Configuration("panel", 2, 1, 8, 4, 1, 1, 20, 32, 32, DIRECT, fused=True), torch.float16, None),
        (
            Configuration("sums", 1, 1, 256, 2, 1, 1, 12, product=IEEE, fused=True, warp_bits=5),
            torch.float32,
            Configuration("sums", 1, 1, 256, 2, 1, 1, 12, product=IEEE),
        ),
    ],
    ids=str,
)
def test_options_of_configurations_give_the_same_result(
    c: Configuration, dtype: torch.dtype, same: Configuration | None
) -> None:
    """The same bits as without the option where nothing is added in another order."""
    x = torch.randn(5, c.size, device=GPU).to(dtype)
    signs = (torch.randint(0, 2, (c.size,), device=GPU) * 2 - 1).to(dtype)
    y = torch.full_like(x, math.nan)
    launch(c, x, y, c.size**-0.5, signs, True, base_for(x, c))
    exact = oracle.transform(x, signs=signs, inverse=True)
    limit = 8 if dtype == torch.float32 else tolerances.CORRECT_ROUNDING_RATIO
    assert tolerances.relative_error(y, exact) <= limit * tolerances.rounding_error(exact, dtype)
    if same is not None:
        plain = torch.empty_like(x)
        launch(same, x, plain, c.size**-0.5, signs, True, base_for(x, same))
        assert torch.equal(plain, y)


def test_what_needs_ptx_is_left_out_elsewhere() -> None:
    c = replace(LOOPED, fetches=True, registers=168, ahead=True)
    assert c.portable() == replace(LOOPED, ahead=True)
    assert c.constants()["FETCH"] and not c.portable().constants()["FETCH"]


def test_rows_of_any_magnitude_are_two_parts() -> None:
    size = 5504
    c = next(c for c in base_candidates(172, 5, THREE_PARTS, SHARED) if c.product == TWO_PARTS)
    x = torch.randn(8, size, device=GPU)
    x[:, ::7] *= 1e-6
    x *= torch.tensor([1e-44, 1e-38, 1e-36, 1e-30, 1e-3, 1e30, 1e35, 0.0], device=GPU)[:, None]
    y = torch.empty_like(x)
    launch(c, x, y, size**-0.5, base=base_for(x, c))
    exact = oracle.transform(x)
    for row in range(8):
        smallest = 2.0**-149  # what a result below the normal numbers is off by
        error, allowed = (y[row] - exact[row]).norm().item(), tolerances.rounding_error(exact[row], x.dtype)
        assert error <= 8 * allowed * exact[row].norm().item() + smallest * size**0.5, row
    x[1, 3], x[4, 5] = math.inf, math.nan
    launch(c, x, y, size**-0.5, base=base_for(x, c))
    assert not torch.isfinite(y[[1, 4]]).any() and torch.isfinite(y[[0, 2, 3, 5, 6, 7]]).all()


def test_a_base_as_bits_is_the_base() -> None:
    for size in (5504, 13696):
        found = hadacore.factor(size)
        packed = bases.known_bits(found, GPU, found.base_order).cpu()
        base = bases.known_base(found, torch.float16, GPU).cpu()
        column = torch.arange(found.base_order)
        position = 15 - (column // 2) % 16 + 16 * (column % 2)
        for bits, matrix in zip(packed, (base, base.T), strict=True):
            assert torch.equal((bits.T[:, column // 32] >> position) & 1, (matrix < 0).int())


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
                assert c.works_in_place == (order <= 256 or c.kernel == "bits")
                codes = choose_base(order, log2_columns, product, shared_bytes=SHARED, callers=callers, codes=True)
                assert codes.makes_codes or order > 256


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


def test_candidates_are_chosen_by_what_they_set() -> None:
    tune = load_benchmark("tune_triton")
    jobs = tune.jobs_for([13696], ["float16"])
    chosen = [job for job in jobs if tune.sets_a_field(job["configuration"], ["ahead", "inner"])]
    assert 0 < len(chosen) < len(jobs) and all(job["configuration"]["ahead"] for job in chosen)
    with pytest.raises(ValueError, match=r"those of a configuration \(kernel, .*, got speed"):
        tune.sets_a_field(jobs[0]["configuration"], ["speed"])


def test_the_grid_is_no_larger_than_the_rows() -> None:
    c = choose(12, True)
    assert c.grid(1, 132) == (1, 1)
    assert c.grid(10**6, 132) == (c.programs * 132, 1)
    assert multiprocessors(GPU) >= 1


def test_an_old_triton_is_refused_where_it_compiles_to_a_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_module(), "__version__", "3.6.0")
    refusal = architecture_refusal(10)
    assert refusal is not None and "needs triton 3.9 or newer there" in refusal
    assert architecture_refusal(9) is None and architecture_refusal(12) is None
    monkeypatch.setattr(triton_module(), "__version__", "3.9.0")
    assert architecture_refusal(10) is None


# ---- compiling for GPUs that are not here -----------------------------------------------------------------


COMPILED = """
import sys, torch
from dataclasses import replace
from hadacore.backends.triton.compiling import SHARED_BYTES, compile_for, epilogues
from hadacore.backends.triton.configurations import DIRECT, IEEE, SYLVESTER, TWO_PARTS, Configuration, choose, choose_base
target = sys.argv[1]
amd = target.startswith("gfx")
LOOPED = Configuration("bits", 2, 1, 16, 4, 1, 2, 260, 64, 64, DIRECT, held=5)
TWO_PARTS_LOOPED = Configuration("bits", 1, 1, 16, 4, 1, 3, 260, 64, 64, TWO_PARTS, held=5)
for c, dtype, codes in (
    (choose(1, True, amd), torch.bfloat16, False), (choose(6, True, amd), torch.float16, True),
    (choose(11, True, amd), torch.bfloat16, False), (choose(6, False, amd), torch.float32, False),
    (choose_base(12, 4, DIRECT, amd), torch.float16, True),
    (Configuration("sums", 8, 2, 64, 4, 1, 1, 12, product=SYLVESTER), torch.float16, True),
    (Configuration("sums", 2, 1, 64, 1, 1, 1, 12, product=IEEE), torch.float32, False),
    (Configuration("panel", 2, 1, 16, 4, 1, 1, 172, 64, 64, DIRECT, held=3), torch.bfloat16, False),
    (Configuration("bits", 1, 1, 64, 4, 1, 3, 172, 64, 64, DIRECT, held=3), torch.bfloat16, False),
    (Configuration("bits", 2, 1, 16, 4, 1, 2, 260, 64, 64, TWO_PARTS, held=5), torch.float32, False),
    (replace(LOOPED, ahead=True, fetches=True), torch.float16, False),
    (replace(TWO_PARTS_LOOPED, fused=True), torch.float32, False),
    (Configuration("panel", 1, 1, 64, 4, 1, 1, 20, 32, 32, DIRECT, inner=16, fetches=True), torch.float16, False),
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
    if target == "sm_100" and architecture_refusal(10) is not None:
        assert "to a trap for compute capability 10" in result.stderr
        return
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
