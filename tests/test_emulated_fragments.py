"""``fragment_rows.cu``, small bases in the registers of a warp, run on the CPU by the emulator, every access checked."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hadacore.kernels import source
from hadacore.kernels.architectures import BY_NAME
from hadacore.kernels.base_signs import dense_base
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE
from hadacore.kernels.fragment_configurations import FragmentConfiguration, fragment_configuration
from hadacore.kernels.fragment_table import PLAIN
from hadacore.kernels.source import kernel_source
from hadacore.matrices import factor
from tests import oracle, tolerances
from tests.emulator import EmulatedKernel, EmulationError, compiler

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="the emulator compiles the kernels with g++, which is not installed"
)

DTYPES = (torch.float16, torch.bfloat16)  # by ELEMENT
GUARD = 64  # elements before and after the output
SIZES = sorted(order << log2_columns for order, log2_columns in PLAIN)


def _configuration(size: int, code: int, architecture: str = "sm_90a") -> FragmentConfiguration:
    matrix = factor(size)
    found = fragment_configuration(code, matrix.base_order, matrix.log2, BY_NAME[architecture], False)
    assert found is not None
    return found


def _one_warp(size: int, code: int) -> FragmentConfiguration:
    """The same sums by blocks of one warp, which take few rows."""
    return replace(_configuration(size, code), warps=1)


def _code(size: int) -> int:
    """One type of each size, to keep the suite quick."""
    return SIZES.index(size) % 2


@functools.lru_cache(maxsize=256)
def _kernel(configuration: FragmentConfiguration, cuda_arch: int = 900) -> EmulatedKernel:
    return EmulatedKernel(configuration, cuda_arch=cuda_arch)


def _signs(n: int, dtype: torch.dtype) -> Tensor:
    return (torch.randint(0, 2, (n,)) * 2 - 1).to(dtype)


def _run(
    c: FragmentConfiguration, x: Tensor, *, signs: Tensor | None = None, in_place: bool = False, grid: int = 2, seed: int = 0,
    cuda_arch: int = 900,
) -> Tensor:  # fmt: skip
    """By so many blocks, so that warps loop over rows."""
    buffer = torch.full((x.numel() + 2 * GUARD,), math.nan, dtype=x.dtype)
    out = buffer[GUARD : GUARD + x.numel()].view(x.shape)
    if in_place:
        out.copy_(x)
    report = _kernel(c, cuda_arch).run(
        out if in_place else x, out, c.size**-0.5, x.shape[0], signs=signs, grid=grid, seed=seed
    )
    assert report.written_bytes == x.numel() * x.element_size() and report.extra_wavefronts == 0
    assert buffer[:GUARD].isnan().all() and buffer[GUARD + x.numel() :].isnan().all()
    return out


def _check(y: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert torch.isfinite(y).all()
    limit = tolerances.CORRECT_ROUNDING_RATIO * tolerances.rounding_error(exact, dtype)
    assert tolerances.relative_error(y, exact) <= limit


@pytest.mark.parametrize("code", range(2), ids=["float16", "bfloat16"])
@pytest.mark.parametrize("size", SIZES)
def test_a_block_of_any_number_of_warps_gives_the_same_bits(size: int, code: int) -> None:
    """Of every size of the table, by warps of two blocks that have two units and more, the last one incomplete."""
    found = _one_warp(size, code), _configuration(size, code)
    unit = found[0].unit_rows
    x = torch.randn(4 * found[-1].warps * unit + unit // 2 + 1, size).to(DTYPES[code])
    x[1] = 1  # where almost all sums are 0
    exact = oracle.transform(x)
    results = [_run(c, x, seed=seed) for c in found for seed in range(2)]
    _check(results[0], exact, x.dtype)
    assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_100a", "sm_120"])
def test_other_gpus_give_the_same_bits(architecture: str) -> None:
    major, minor = BY_NAME[architecture].capability
    for size in (112, 576, 768):
        code = _code(size)
        x = torch.randn(9, size).to(DTYPES[code])
        y = _run(_configuration(size, code), x)
        c = _configuration(size, code, architecture)
        assert torch.equal(_run(c, x, cuda_arch=100 * major + 10 * minor), y), c


@pytest.mark.parametrize("signs_are", [SIGNS_BEFORE, SIGNS_AFTER])
@pytest.mark.parametrize("size", SIZES)
def test_signs_and_in_place(size: int, signs_are: int) -> None:
    """Before the transform, and after it as of the inverse; two units, and one row more."""
    c, code = _one_warp(size, _code(size)), _code(size)
    x = torch.randn(2 * c.unit_rows + 1, size).to(DTYPES[code])
    signs = _signs(size, x.dtype)
    signed = c.with_options(signs_are, False)
    y = _run(signed, x, signs=signs, seed=1)
    _check(y, oracle.transform(x, signs=signs, inverse=signs_are == SIGNS_AFTER), x.dtype)
    assert signed.works_in_place and torch.equal(_run(signed, x, signs=signs, in_place=True, grid=1, seed=2), y)


@pytest.mark.parametrize("size", SIZES)
def test_in_place_where_blocks_loop(size: int) -> None:
    """The next unit of a warp is read before the one before is written: they are never the same rows."""
    c = _one_warp(size, _code(size))
    x = torch.randn(7 * c.unit_rows - c.unit_rows // 2, size).to(DTYPES[_code(size)])
    y = _run(c, x, grid=1)
    for seed in range(3):
        assert torch.equal(_run(c, x, in_place=True, seed=seed), y)


def test_in_place_without_the_barrier_of_a_warp_is_reported() -> None:
    c = _one_warp(960, 0)
    text = kernel_source(c, ptx=False)
    assert text.count("    bar_warp_sync();") == 1
    x = torch.randn(3, 960).half()
    with pytest.raises(EmulationError, match="is a race: this write and the read by"):
        EmulatedKernel(c, text=text.replace("    bar_warp_sync();", "    ;")).run(x, x, 1.0, 3, grid=1, seed=1)


@pytest.mark.parametrize("size", SIZES)
def test_strided_rows(size: int) -> None:
    """Rows of two levels, signs of two rows, and a number of rows that leaves a unit incomplete."""
    code = _code(size)
    for signs_are in (NO_SIGNS, SIGNS_BEFORE if code else SIGNS_AFTER):
        c = _one_warp(size, code).with_options(signs_are, True)
        rows = 2 * (c.unit_rows // 2 + 1)
        # Row r is at 3 (r / 2) + r % 2 of the input: of three rows, the last is no input.
        projection = torch.randn(3 * rows // 2, size + 8).to(DTYPES[code])
        projection[2::3] = math.nan
        signs = None if signs_are == NO_SIGNS else _signs(2 * size, projection.dtype)
        out = torch.full((rows + 2, 2 * size), math.nan, dtype=projection.dtype)
        report = _kernel(c).run(
            projection, out, size**-0.5, rows, signs=signs, sign_rows=2, grid=2, seed=1,
            strides=(2, 3 * (size + 8), size + 8, 4 * size, 2 * size),
        )  # fmt: skip
        assert report.written_bytes == 2 * rows * size
        x = projection.view(-1, 3, size + 8)[:, :2, :size].reshape(-1, 2 * size)
        exact = oracle.transform(x, block_size=size, signs=signs, inverse=signs_are == SIGNS_AFTER).view(rows, size)
        _check(out[:rows, :size], exact, x.dtype)
        assert out[:, size:].isnan().all() and out[rows:].isnan().all()


@pytest.mark.parametrize("size", SIZES)
def test_every_row_of_an_incomplete_unit(size: int) -> None:
    """A row's bits do not depend on how many there are, nor on which block has it."""
    c = _configuration(size, _code(size))
    rows = 2 * c.unit_rows + 1
    x = torch.randn(rows, size).to(DTYPES[_code(size)])
    together = _run(c, x)
    for count in range(1, rows):
        assert torch.equal(_run(c, x[:count], grid=1, seed=count), together[:count])


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("size", SIZES)
def test_rows_stay_apart(size: int, poison: float) -> None:
    """Neighbours in a unit, and the rows that a warp has before and after: whatever one holds, the others keep their bits."""
    c = _one_warp(size, _code(size))
    rows = 5 * c.unit_rows
    x = torch.randn(rows, size).to(DTYPES[_code(size)])
    clean = _run(c, x)
    bad = (c.unit_rows // 2, 3 * c.unit_rows)  # then a row of the next unit of another block
    for row in bad:
        x[row, size // 3 + row] = poison
    y = _run(c, x)
    others = [row for row in range(rows) if row not in bad]
    assert torch.equal(y[others], clean[others])
    assert not torch.isfinite(y[list(bad)]).any()


@pytest.mark.parametrize("size", SIZES)
def test_largest_float16_values_do_not_overflow_inside(size: int) -> None:
    """A row of the matrix, whose only result is 65504 times the size; and a few large values that are summed."""
    c = _one_warp(size, 0)
    row = torch.tensor(dense_base(size, factor(size).log2, False, False))[3].half()
    y = torch.empty(1, size).half()
    _kernel(c).run(65504 * row[None], y, 1 / size, 1)
    expected = torch.zeros_like(y)
    expected[0, 3] = 65504
    assert torch.equal(y, expected)
    x = torch.full((1, size), 65504.0).half() * _signs(size, torch.float16)
    x[:, torch.arange(size) % 61 > 0] = 0  # or the exact result would overflow as well
    _check(_run(c, x), oracle.transform(x), x.dtype)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("order", [20, 44, 64])
@pytest.mark.parametrize("log2_size", range(2, 6))
def test_a_base_that_is_not_symmetric(
    log2_size: int, order: int, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No matrix of the library's of so small an order is one, so the text gets another: every sign is where it belongs."""
    c = FragmentConfiguration(log2_size % 2, order, 0, log2_size, transposed=transposed)
    assert all(factor(size).symmetric for size in SIZES)
    matrix = np.random.default_rng(order).choice((-1, 1), (order, order)).astype(np.int8)
    monkeypatch.setattr(source, "_signs", source._signs.__wrapped__)
    monkeypatch.setattr(
        source, "dense_base", lambda size, log2_merge, transposed, halves: matrix.T if transposed else matrix
    )
    kernel = EmulatedKernel(c, text=source.kernel_source(c, ptx=False))
    x = torch.randn(c.unit_rows + 1, c.size).to(DTYPES[c.element_code])
    y = torch.full_like(x, math.nan)
    kernel.run(x, y, c.size**-0.5, len(x), grid=1)
    applied = torch.tensor(matrix.T if transposed else matrix).double()
    rows = applied @ x.double().view(len(x), order, -1)
    _check(y, oracle.transform(rows.reshape(-1, 1 << log2_size), c.size**-0.5).reshape(x.shape), x.dtype)


def test_rows_past_the_last_of_the_panel_are_zeros() -> None:
    """The base is padded with ones, so whatever were there would be part of every result."""
    c = _one_warp(80, 0)
    text = kernel_source(c, ptx=False)
    zeros = "word[w] = 0;"
    assert text.count(zeros) == 1
    x = torch.randn(4, 80).half()
    for kept, finite in ((text, True), (text.replace(zeros, "word[w] = 0x7e007e00u;"), False)):
        y = torch.empty_like(x)
        EmulatedKernel(c, text=kept).run(x, y, 1.0, 4)
        assert torch.isfinite(y).all() == finite
