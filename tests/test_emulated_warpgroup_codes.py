"""Codes of ``warpgroup_rows.cu``, run on the CPU by the emulator, bit for bit those of the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hadacore.formats import BY_NAME, Quantizer
from hadacore.kernels.architectures import BY_NAME as ARCHITECTURES
from hadacore.kernels.configurations import SIGNS_AFTER, SIGNS_BEFORE
from hadacore.kernels.fusion import fusion_of
from hadacore.kernels.warpgroup_configurations import _QUANTIZING_TABLE, WarpgroupConfiguration, warpgroup_candidates
from tests.emulator import compiler
from tests.quantized_values import exact_rows
from tests.test_emulated_quantize import check

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="the emulator compiles the kernels with g++, which is not installed"
)

# Order, column bits, warpgroups, blocks a row: rows that are no multiple of 8 or of 16, one to four tiles left at the end of
# stmatrix, one group of columns and several, of one warpgroup, of two, of blocks in a cluster.
SMALL = [
    (12, 6, 1, 1),
    (20, 6, 1, 1),
    (28, 7, 1, 1),
    (36, 6, 1, 1),
    (44, 7, 2, 1),
    (36, 8, 2, 2),
    (20, 8, 1, 4),
    (60, 6, 1, 1),
]


@pytest.mark.parametrize("order, log2_columns, warpgroups, blocks", SMALL)
@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "int8"])
def test_codes_and_scales(order: int, log2_columns: int, warpgroups: int, blocks: int, name: str) -> None:
    for code, dtype in enumerate((torch.float16, torch.bfloat16)):
        c = WarpgroupConfiguration(
            code,
            order,
            0,
            log2_columns,
            warpgroups,
            tensor_shares=warpgroups,
            column_splits=blocks,
            stages=3 - min(2, blocks),
        )
        check(c, Quantizer(BY_NAME[name], c.size, 0.9), exact_rows(5, c.size, dtype))


@pytest.mark.parametrize("order, log2_columns, warpgroups, blocks", SMALL)
def test_given_scale(order: int, log2_columns: int, warpgroups: int, blocks: int) -> None:
    c = WarpgroupConfiguration(1, order, 0, log2_columns, warpgroups, tensor_shares=warpgroups, column_splits=blocks)
    check(c, Quantizer(BY_NAME["fp8_e4m3"], 0), exact_rows(3, c.size, torch.bfloat16), given=torch.tensor([0.375]))


@pytest.mark.parametrize("signs_are", [SIGNS_BEFORE, SIGNS_AFTER])
@pytest.mark.parametrize("order, log2_columns", [(36, 6), (20, 8)])
def test_signs(order: int, log2_columns: int, signs_are: int) -> None:
    c = WarpgroupConfiguration(0, order, 0, log2_columns).with_options(signs_are, False)
    signs = (torch.randint(0, 2, (1, c.size)) * 2 - 1).to(torch.float16)
    check(c, Quantizer(BY_NAME["int8"], c.size), exact_rows(3, c.size, torch.float16), signs=signs)


@pytest.mark.parametrize("order, log2_columns", _QUANTIZING_TABLE)
def test_sizes_of_the_table(order: int, log2_columns: int) -> None:
    """What few rows run, and what many do."""
    n = order << log2_columns
    quantizer = Quantizer(BY_NAME["fp8_e4m3"], n)
    fusion = fusion_of(quantizer, n, False)
    for c in warpgroup_candidates(1, order, log2_columns, ARCHITECTURES["sm_90a"], False, fusion):
        check(replace(c, fusion=None), quantizer, exact_rows(3, n, torch.bfloat16))


@pytest.mark.parametrize("name", ["fp8_e4m3", "int8"])
def test_zeros_and_what_is_not_finite_stay_in_their_rows(name: str) -> None:
    x = exact_rows(6, 36 << 7, torch.bfloat16)
    x[1] = 0
    x[3, 17] = float("nan")
    x[4, 4000] = float("inf")
    for blocks in (1, 2):
        c = WarpgroupConfiguration(1, 36, 0, 7, column_splits=blocks, stages=3 - blocks)
        check(c, Quantizer(BY_NAME[name], c.size), x)
