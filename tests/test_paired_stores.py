"""Lanes that exchange halves of their results and store 16 bytes (``paired`` of ``base_rows.cu``): the same bits, and where."""

from __future__ import annotations

import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hadacore
from hadacore.backends.cuda import compiler as nvrtc
from hadacore.formats import BY_NAME as FORMATS
from hadacore.formats import Quantizer
from hadacore.kernels.architectures import ARCHITECTURES, BY_NAME
from hadacore.kernels.base_configurations import BaseConfiguration, choose_base, panel_candidates
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE
from hadacore.kernels.fusion import fusion_of
from hadacore.kernels.source import constants, kernel_source
from hadacore.matrices import factor
from tests import oracle, tolerances
from tests.emulator import EmulatedKernel, EmulationError, compiler

HOPPER = BY_NAME["sm_90a"]
SIZES = (5632, 6912, 7168, 14336, 15360)
FROM = 25_165_824  # elements
DTYPES = (torch.float16, torch.bfloat16)

# One group of columns, two and four; whole tiles of the base and a part of one; warps that drift; blocks that share a row.
CONFIGURATIONS = [
    BaseConfiguration(0, 20, 0, 6, 1, order_warps=4, stages=2, wgmma=True),
    BaseConfiguration(1, 44, 0, 7, 1, order_warps=4, stages=2, wgmma=True),
    BaseConfiguration(0, 56, 1, 8, 1, order_warps=4, stages=2, wgmma=True),
    BaseConfiguration(1, 108, 0, 6, 2, order_warps=4, stages=2, wgmma=True),
    BaseConfiguration(0, 36, 0, 7, 1, order_warps=4, stages=2, wgmma=True, drift=True),
    BaseConfiguration(1, 108, 0, 6, 1, order_warps=4, stages=1, wgmma=True, splits=2),
]
needs_emulator = pytest.mark.skipif(
    compiler() is None, reason="the emulator compiles the kernels with g++, which is not installed"
)


def _candidates(size: int, code: int = 0, **more: object) -> tuple[BaseConfiguration, ...]:
    matrix = factor(size)
    return panel_candidates(code, matrix.base_order, matrix.log2, HOPPER, **more)


def _run(c: BaseConfiguration, x: Tensor, *, in_place: bool = False, seed: int = 0) -> Tensor:
    y = x.clone() if in_place else torch.full_like(x, math.nan)
    report = EmulatedKernel(c).run(y if in_place else x, y, c.size**-0.5, len(x), grid=c.grid(len(x), 1), seed=seed)
    assert report.written_bytes == 2 * x.numel() and report.extra_wavefronts == 0
    return y


@needs_emulator
@pytest.mark.parametrize("plain", CONFIGURATIONS, ids=str)
def test_the_same_bits(plain: BaseConfiguration) -> None:
    x = torch.randn(3, plain.size).to(DTYPES[plain.element_code])
    y, exact = _run(plain, x), oracle.transform(x)
    limit = tolerances.CORRECT_ROUNDING_RATIO * tolerances.rounding_error(exact, x.dtype)
    assert tolerances.relative_error(y, exact) <= limit
    c = replace(plain, paired=True)
    for seed in range(2):
        assert torch.equal(_run(c, x, seed=seed), y)
    assert not c.works_in_place or torch.equal(_run(c, x, in_place=True, seed=2), y)


@needs_emulator
def test_a_lane_that_leaves_before_the_exchange_is_reported() -> None:
    """Rows past the last of the base are somebody's neighbours as well."""
    c = replace(CONFIGURATIONS[0], paired=True)
    text = kernel_source(c, ptx=False)
    early = "if (!PAIRED && !target.has_row(8 * half)) continue;"
    assert text.count(early) == 1
    x = torch.randn(2, c.size).half()
    kernel = EmulatedKernel(c, text=text.replace(early, "if (!target.has_row(8 * half)) continue;"))
    with pytest.raises(EmulationError, match=r"other lanes of the warp are at|wait at shfl_sync_bfly"):
        kernel.run(x, torch.empty_like(x), 1.0, 2, grid=2)


def test_which_sizes_and_how_many_elements() -> None:
    for size in (*SIZES, 5376, 6144, 6400, 6656, 10240, 12288, 13824, 28672):
        *others, many = _candidates(size)
        assert many.paired == (size in SIZES) and not any(c.paired for c in others)
        if not many.paired:
            continue
        assert replace(many, paired=False) in others
        matrix = factor(size)
        for rows in (1, 64, FROM // size, FROM // size + 1):
            chosen = choose_base(0, matrix.base_order, matrix.log2, rows, (9, 0), 132)
            assert isinstance(chosen, BaseConfiguration) and chosen.paired == (rows * size >= FROM), (size, rows)
        for signs, strided in ((SIGNS_BEFORE, False), (SIGNS_AFTER, False), (NO_SIGNS, True)):
            with_options = choose_base(0, matrix.base_order, matrix.log2, 1 << 20, (9, 0), 132, signs, strided)
            assert isinstance(with_options, BaseConfiguration) and not with_options.paired


def test_where_it_is_not() -> None:
    for size in SIZES:
        int8 = fusion_of(Quantizer(FORMATS["int8"], size), size, False)
        assert not any(c.paired for c in (*_candidates(size, 2), *_candidates(size, fusion=int8)))
        matrix = factor(size)
        for architecture in ARCHITECTURES:
            found = panel_candidates(0, matrix.base_order, matrix.log2, architecture)
            assert any(c.paired for c in found) == architecture.has_wgmma


def test_a_plan_says_so() -> None:
    printed = str(hadacore.plan(14336, torch.float16, rows=4000, architecture="sm_90a"))
    assert "lanes store in pairs" in printed
    assert "lanes store in pairs" not in str(hadacore.plan(14336, torch.float16, rows=600, architecture="sm_90a"))


@pytest.mark.parametrize(
    "changes",
    [
        {"wide": True}, {"wgmma": False}, {"log2_size": 5}, {"signs": SIGNS_BEFORE}, {"strided": True},
        {"fusion": fusion_of(Quantizer(FORMATS["int8"], 2816), 2816, False)},
    ],
    ids=["wide", "mma.sync", "32 columns", "signs", "strided", "quantizer"],
)  # fmt: skip
def test_configurations_that_cannot_be(changes: dict[str, object]) -> None:
    plain = BaseConfiguration(0, 44, 0, 6, 1, order_warps=4, stages=2, wgmma=True, paired=True)
    with pytest.raises(ValueError, match="lanes exchange what a narrow second product gives, without options"):
        replace(plain, **changes)


@pytest.mark.parametrize("size", SIZES)
def test_nothing_spills(size: int, tmp_path: Path) -> None:
    pytest.importorskip("cuda.core")
    pytest.importorskip("cuda.bindings")
    log = StringIO()
    c = _candidates(size)[-1]
    nvrtc.cached_compile(kernel_source(c), constants(c), "sm_90a", refresh=True, folder=tmp_path, log=log)
    assert nvrtc.parse_report(log.getvalue()).stays_in_registers
