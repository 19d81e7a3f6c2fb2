"""``fragment_rows.cu`` without running it: its table, its generated text, its registers, and the stages of its plan."""

from __future__ import annotations

import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

import hadacore
from hadacore.backends.cuda import compiler
from hadacore.formats import BY_NAME as FORMATS
from hadacore.formats import Quantizer
from hadacore.kernels.architectures import ARCHITECTURES, BY_NAME, CHECKED, Architecture
from hadacore.kernels.base_configurations import (
    BASE_OF_ELEMENTS,
    BASE_OF_FLOAT32,
    base_candidates,
    choose_base,
)
from hadacore.kernels.base_signs import base_signs_text, dense_base, in_fragment_order
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE
from hadacore.kernels.fragment_configurations import FragmentConfiguration, fragment_configuration
from hadacore.kernels.fragment_table import PLAIN
from hadacore.kernels.fusion import fusion_of
from hadacore.kernels.source import constants, kernel_source
from hadacore.kernels.stages import fragment_stages
from hadacore.matrices import factor
from hadacore.matrices.orders import base_matrix
from tests import oracle, tolerances
from tests.stage_executor import execute

HOPPER = BY_NAME["sm_90a"]
#: Times over a copy at 2^25 elements on an H200, bfloat16.
MEASURED = {
    80: 1.076, 112: 1.060, 144: 1.074, 160: 1.064, 176: 1.071, 208: 1.095, 240: 1.086, 320: 1.084, 384: 1.047, 416: 1.117,
    448: 1.059, 480: 1.085, 576: 1.066, 640: 1.058, 704: 1.052, 768: 1.044, 832: 1.072, 896: 1.064, 960: 1.068, 1152: 1.071,
    1280: 1.049, 1408: 1.045, 1536: 1.055, 1792: 1.072,
}  # fmt: skip
OPTIONS = [(signs, strided) for strided in (False, True) for signs in (NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER)]


def _configuration(
    size: int, code: int = 0, architecture: Architecture = HOPPER, transposed: bool = False
) -> FragmentConfiguration:
    matrix = factor(size)
    found = fragment_configuration(code, matrix.base_order, matrix.log2, architecture, transposed)
    assert found is not None
    return found


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_table_has_the_sizes_that_were_measured() -> None:
    assert sorted(order << log2_columns for order, log2_columns in PLAIN) == sorted(MEASURED)
    for order, log2_columns in PLAIN:
        matrix = factor(order << log2_columns)
        assert (matrix.base_order, matrix.log2) == (order, log2_columns)  # or the line would never be found


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
@pytest.mark.parametrize("size", MEASURED)
def test_configurations_of_the_table(size: int, architecture: Architecture) -> None:
    """As many blocks fit as loop over rows, on every GPU."""
    for code in (0, 1):
        c = _configuration(size, code, architecture)
        assert c.size == size and c.element_code == code and c.works_in_place
        assert c.runs_on(architecture) and bool(c.programmatic) == architecture.has_programmatic_launch
        assert architecture.blocks_that_fit(c.launched_bytes(architecture)) == c.minimum_blocks <= 16
        assert c.warps * c.minimum_blocks <= 40  # 48 warps are what some GPUs hold
        assert c.grid(10**6, 132) == 132 * c.minimum_blocks
        assert c.grid(5 * c.warps * c.unit_rows, 132) == 5 and c.grid(5 * c.warps * c.unit_rows + 1, 132) == 6


def test_fewer_blocks_where_the_compiler_takes_more_registers() -> None:
    for size in MEASURED:
        here, there = _configuration(size), _configuration(size, architecture=BY_NAME["sm_100a"])
        assert there == replace(here, minimum_blocks=there.minimum_blocks)
        assert 2 * here.minimum_blocks <= 3 * there.minimum_blocks < 2 * here.minimum_blocks + 3


@pytest.mark.parametrize("size", MEASURED)
def test_who_takes_another_kernel(size: int) -> None:
    matrix = factor(size)
    order, log2_columns = matrix.base_order, matrix.log2
    for architecture in ARCHITECTURES:
        for code, transposed in ((0, False), (1, True)):
            found = base_candidates(code, order, log2_columns, architecture, transposed=transposed)
            assert found == (_configuration(size, code, architecture, transposed),)
            assert found[0].transposed == transposed
    int8 = fusion_of(Quantizer(FORMATS["int8"], size), size, False)
    others = [
        *base_candidates(2, order, log2_columns, HOPPER),
        *base_candidates(0, order, log2_columns, HOPPER, base=BASE_OF_ELEMENTS),
        *base_candidates(0, order, log2_columns, HOPPER, base=BASE_OF_FLOAT32),
        *base_candidates(0, order, log2_columns, HOPPER, fusion=int8),
    ]  # fmt: skip
    assert {c.kernel for c in others} == {"base_rows"}
    assert fragment_configuration(0, order, log2_columns, HOPPER, False, int8) is None


def test_other_sizes_take_another_kernel() -> None:
    for order, log2_columns in ((12, 2), (12, 3), (12, 4), (28, 3), (36, 3), (44, 3), (52, 5), (60, 5), (12, 8)):
        found = base_candidates(0, order, log2_columns, HOPPER)
        assert found and {c.kernel for c in found} <= {"base_rows", "warpgroup_rows"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"element_code": 2}, "rows are of 16-bit elements"),
        ({"order": 42}, "a multiple of 4"),
        ({"order": 68}, "an order up to 64"),
        ({"log2_size": 1}, r"a warp holds 2\^2 to 2\^5 columns"),
        ({"log2_size": 6}, r"a warp holds 2\^2 to 2\^5 columns"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FragmentConfiguration(0, 36, 0, 4), **changes)


def test_options_leave_room_for_a_block_less() -> None:
    c = _configuration(960)
    assert c.with_options(NO_SIGNS, False) is c
    for signs, strided in OPTIONS[1:]:
        assert c.with_options(signs, strided) == replace(c, signs=signs, strided=strided, minimum_blocks=3)
    assert replace(c, minimum_blocks=1).with_options(SIGNS_AFTER, False).minimum_blocks == 1


def test_rows_of_a_unit() -> None:
    """16 columns or 32 side by side: of rows of 4 and 16, and of 8 and 32."""
    assert [FragmentConfiguration(0, 12, 0, log2_size).unit_rows for log2_size in range(2, 6)] == [4, 4, 1, 1]


def test_a_configuration_in_words() -> None:
    assert str(_configuration(960)) == "fragment_rows 60 x 2^4, 4 warps/block, next kernel from after its loads"
    assert str(_configuration(960, architecture=BY_NAME["sm_80"])) == "fragment_rows 60 x 2^4, 4 warps/block"


# ---- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", MEASURED)
@pytest.mark.parametrize("transposed", [False, True])
def test_signs_are_the_matrix(size: int, transposed: bool) -> None:
    """In the order of the operands, padded with ones; and the text has them."""
    c = _configuration(size, transposed=transposed)
    matrix = dense_base(size, c.log2_merge, transposed, False)
    ordered = in_fragment_order(matrix)
    padded = 16 * c.order_tiles
    assert ordered.shape == (padded, padded) and (ordered[c.order :] == 1).all()
    for slot in range(padded):  # of K: 2 t + e + 8 h
        t, e, h = slot // 2 % 4, slot % 2, slot // 8 % 2
        column = slot // 16 * 16 + 4 * (2 * h + e) + t
        expected = matrix[:, column] if column < c.order else np.ones(c.order)
        assert np.array_equal(ordered[: c.order, slot], expected)
    text = kernel_source(c)
    assert base_signs_text(ordered) in text
    assert {"ORDER": str(c.order), "MIN_BLOCKS": str(c.minimum_blocks), "WARPS": str(c.warps)}.items() <= dict(
        constants(c)
    ).items()


@pytest.mark.parametrize("architecture", CHECKED)
@pytest.mark.parametrize("size", MEASURED)
def test_nothing_spills(size: int, architecture: str, tmp_path: Path) -> None:
    """Of every line for every kind of machine, without options and with one pair of them each."""
    pytest.importorskip("cuda.core")
    pytest.importorskip("cuda.bindings")
    number = sorted(MEASURED).index(size)
    plain = _configuration(size, number % 2, BY_NAME[architecture])
    for c in (plain, plain.with_options(*OPTIONS[1 + (number + CHECKED.index(architecture)) % (len(OPTIONS) - 1)])):
        log = StringIO()
        compiled, _ = compiler.cached_compile(
            kernel_source(c), constants(c), architecture, refresh=True, folder=tmp_path, log=log
        )
        if compiled.code_type != "cubin":
            pytest.skip("NVRTC is older than the GPU")
        found = compiler.parse_report(log.getvalue())
        assert found.stays_in_registers, (c, found)
        assert found.registers <= 65536 // (c.threads * c.minimum_blocks)


# ---- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", MEASURED)
def test_stages_contract_every_bit_once(size: int) -> None:
    stages = fragment_stages(_configuration(size))
    bits = [bit for stage in stages for bit in stage.bits]
    assert sorted(bits) == list(range(factor(size).log2)) and math.prod(stage.radix for stage in stages) == size
    assert stages[0].base_order == factor(size).base_order


def test_bits_that_a_stage_contracts() -> None:
    expected = {
        80: [("Tensor Cores", ()), ("registers", (0, 1))],
        160: [("Tensor Cores", ()), ("registers", (0, 1, 2))],
        960: [("Tensor Cores", ()), ("Tensor Cores, high + low", (0, 1, 2, 3))],
        1536: [("Tensor Cores", (5, 6)), ("Tensor Cores, high + low", (0, 2, 3, 4)), ("registers", (1,))],
    }
    for size, stages in expected.items():
        assert [(stage.unit, stage.bits) for stage in fragment_stages(_configuration(size))] == stages
    c = FragmentConfiguration(0, 36, 0, 4)
    object.__setattr__(c, "log2_size", 6)  # a configuration that was tampered with
    with pytest.raises(ValueError, match="are contracted, expected"):
        fragment_stages(c)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", MEASURED)
def test_the_stages_give_correct_rounding(size: int, dtype: torch.dtype) -> None:
    x = torch.randn(8, size, dtype=torch.float64).to(dtype)
    exact = oracle.transform(x)
    planned = hadacore.plan(size, dtype, rows=8, architecture="sm_90a")
    base = torch.tensor(base_matrix(factor(size)))
    error = tolerances.relative_error(execute(planned.stages, x, size**-0.5, base), exact)
    assert error <= tolerances.rounding_error(exact, dtype) * tolerances.CORRECT_ROUNDING_RATIO


def test_printed_plan() -> None:
    planned = hadacore.plan(960, torch.bfloat16, rows=40000, architecture="sm_90a")
    assert isinstance(planned.configuration, FragmentConfiguration)
    assert planned.multiply_adds == 40000 * 64 * 64 * 16
    for fragment in (
        "fragment_rows 60 x 2^4, 4 warps/block",
        "radix 60    bits none         in rows of the panel: Tensor Cores, 60 multiply-adds an element, mma.m16n8k16",
        "radix 16    bits 0 1 2 3      in accumulators and lane bits 0 1: Tensor Cores, high + low, mma.m16n8k16 twice",
        "launch   528 blocks of 128 threads, 46080 bytes of shared memory a block",
    ):
        assert fragment in str(planned), (fragment, str(planned))
    few = str(hadacore.plan(960, torch.bfloat16, rows=3, architecture="sm_90a"))
    assert "launch   1 blocks of 128 threads" in few


@pytest.mark.parametrize("size", MEASURED)
def test_predicted_time_is_near_what_was_measured(size: int) -> None:
    ratio = hadacore.plan(size, torch.bfloat16, rows=(1 << 25) // size, architecture="sm_90a").predicted_ratio
    assert ratio is not None and 0.95 < ratio / MEASURED[size] < 1.05


@pytest.mark.parametrize("size", MEASURED)
def test_any_number_of_rows_takes_the_same_kernel(size: int) -> None:
    matrix = factor(size)
    for rows in (1, 8, 64, 1000, 50000):
        assert choose_base(0, matrix.base_order, matrix.log2, rows, (9, 0), 132) == _configuration(size)
    signed = choose_base(1, matrix.base_order, matrix.log2, 50000, (9, 0), 132, SIGNS_AFTER, True)
    assert signed == _configuration(size, 1).with_options(SIGNS_AFTER, True)
