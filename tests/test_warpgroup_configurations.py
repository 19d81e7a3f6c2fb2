"""``warpgroup_rows.cu`` without running it: its table, its generated text, the stages of its plan, and which kernels drift."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import hadacore
from hadacore.formats import BY_NAME as FORMATS
from hadacore.formats import Quantizer
from hadacore.kernels.architectures import ARCHITECTURES, BY_NAME
from hadacore.kernels.base_configurations import (
    BASE_OF_ELEMENTS,
    BASE_OF_FLOAT32,
    BaseConfiguration,
    base_candidates,
    choose_base,
    panel_candidates,
)
from hadacore.kernels.base_signs import base_row_signs_text, dense_base
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE
from hadacore.kernels.fusion import fused_prologue, fusion_of
from hadacore.kernels.source import constants, kernel_source
from hadacore.kernels.stages import warpgroup_stages
from hadacore.kernels.warpgroup_configurations import WarpgroupConfiguration, warpgroup_candidates
from hadacore.kernels.warpgroup_table import EIGHT_BITS, EIGHT_BITS_PARTS, FOUR_BITS, GATED, PLAIN, Table
from hadacore.kernels.wgmma import wgmma_text
from hadacore.matrices import factor
from hadacore.matrices.orders import base_matrix
from hadacore.prologues import GatedActivation, RMSNorm
from tests import oracle, tolerances
from tests.stage_executor import execute

HOPPER = BY_NAME["sm_90a"]
Configuration = BaseConfiguration | WarpgroupConfiguration
#: Times over a copy at 2^25 elements on an H200, float16.
MEASURED = {
    2304: 1.06, 2560: 1.04, 3072: 1.04, 4608: 1.07, 4864: 1.07, 5120: 1.09, 9216: 1.13, 18432: 1.19, 20480: 1.17,
}  # fmt: skip


def _candidates(size: int, code: int = 0, transposed: bool = False) -> tuple[WarpgroupConfiguration, ...]:
    matrix = factor(size)
    return warpgroup_candidates(code, matrix.base_order, matrix.log2, HOPPER, transposed)


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_table_has_the_sizes_that_were_measured() -> None:
    assert sorted(order << log2_columns for order, log2_columns in PLAIN) == sorted(MEASURED)
    for order, log2_columns in {*PLAIN, *EIGHT_BITS, *EIGHT_BITS_PARTS, *FOUR_BITS, *GATED}:
        matrix = factor(order << log2_columns)
        assert (matrix.base_order, matrix.log2) == (order, log2_columns)  # or the line would never be found


@pytest.mark.parametrize("code", range(2), ids=["float16", "bfloat16"])
@pytest.mark.parametrize("size", MEASURED)
def test_candidates_of_the_table(size: int, code: int) -> None:
    """Few and many rows have the same sums; blocks that loop are as many as fit."""
    *few, many = found = _candidates(size, code)
    assert {c.size for c in found} == {size} and {c.element_code for c in found} == {code}
    assert len({(c.tensor_shares, c.order, c.log2_size) for c in found}) == 1
    assert all(c.runs_on(HOPPER) and c.threads <= 1024 and c.programmatic for c in found)
    assert many.stages == 2 and many.works_in_place
    assert many.minimum_blocks == HOPPER.blocks_that_fit(many.launched_bytes(HOPPER))
    assert many.grid(5, 132) == 5 and many.grid(10**6, 132) == 132 * many.minimum_blocks
    assert few and [c.column_splits for c in few] == sorted({c.column_splits for c in few}, reverse=True)
    for c in few:
        assert c.stages == 1 and not c.works_in_place
        assert c.panel_rows // 8 % c.order_splits == 0  # or blocks would have unequal work
        assert c.launched_bytes(HOPPER) == c.shared_bytes
        assert c.grid(5, 132) == 5 * c.column_splits * c.order_splits


def test_registers_that_options_take() -> None:
    """One block less has to fit, and with one block no less."""
    few, many = _candidates(2304)
    for signs, strided in ((SIGNS_BEFORE, False), (NO_SIGNS, True), (SIGNS_AFTER, True)):
        with_options = many.with_options(signs, strided)
        assert (with_options.signs, with_options.strided) == (signs, strided)
        assert with_options.minimum_blocks == many.minimum_blocks - 1 == 6
        assert few.with_options(signs, strided).minimum_blocks == 1
    assert many.with_options(NO_SIGNS, False) is many


@pytest.mark.parametrize("size", MEASURED)
def test_who_takes_another_kernel(size: int) -> None:
    matrix = factor(size)
    order, log2_columns = matrix.base_order, matrix.log2
    for code in (0, 1):
        for transposed in (False, True):
            found = base_candidates(code, order, log2_columns, HOPPER, transposed=transposed)
            assert found == _candidates(size, code, transposed) and all(c.transposed == transposed for c in found)
    others = [
        *base_candidates(2, order, log2_columns, HOPPER),
        *base_candidates(0, order, log2_columns, HOPPER, base=BASE_OF_ELEMENTS),
        *base_candidates(0, order, log2_columns, HOPPER, base=BASE_OF_FLOAT32),
        *(c for a in ARCHITECTURES if not a.has_wgmma for c in base_candidates(0, order, log2_columns, a)),
    ]  # fmt: skip
    assert {c.kernel for c in others} == {"base_rows"}
    assert not warpgroup_candidates(2, order, log2_columns, HOPPER, False)


def _quantizing(
    code: int, order: int, log2_columns: int, name: str, block: int, gated: bool
) -> tuple[Configuration, ...]:
    size = order << log2_columns
    prologue = fused_prologue(GatedActivation("silu", "gate_up"), size) if gated else None
    fusion = fusion_of(Quantizer(FORMATS[name], size if block < 0 else block), size, False, prologue)
    found = base_candidates(code, order, log2_columns, HOPPER, fusion=fusion)
    assert all(c.fusion == fusion and c.size == size and c.runs_on(HOPPER) for c in found)
    return found


# Table, whether a gated activation precedes, and its codes: format and elements that share a scale (-1: a row, 0: given).
TABLES: dict[str, tuple[Table, bool, list[tuple[str, int]]]] = {
    "eight bits": (EIGHT_BITS, False, [("fp8_e4m3", -1), ("fp8_e5m2", -1), ("int8", -1), ("fp8_e4m3", 0)]),
    "parts": (EIGHT_BITS_PARTS, False, [("mxfp8", 32)]),
    "four bits": (FOUR_BITS, False, [("nvfp4", 16), ("mxfp4", 32), ("int4", -1), ("int4", 128)]),
    "gated": (GATED, True, [("fp8_e4m3", -1), ("int8", -1), ("fp8_e4m3", 0), ("mxfp8", 32)]),
}


@pytest.mark.parametrize("of", TABLES)
def test_candidates_of_the_tables_with_codes(of: str) -> None:
    """Few rows have more blocks a row, with the same sums; those that share a row's scale are a cluster."""
    table, gated, kinds = TABLES[of]
    for (order, log2_columns), (name, block) in itertools.product(table, kinds):
        *few, many = found = _quantizing(1, order, log2_columns, name, block, gated)
        assert {c.kernel for c in found} == {"warpgroup_rows"}
        assert len({(c.tensor_shares, c.order, c.log2_size) for c in found}) == 1
        assert all(c.cluster == (c.column_splits if block == -1 else 1) for c in found)
        assert many.minimum_blocks <= HOPPER.blocks_that_fit(many.shared_bytes) and many.loops
        assert many.grid(10**6, 132) * many.cluster == 132 * many.minimum_blocks
        assert not any(c.loops or c.minimum_blocks > 1 for c in few)
        assert few == sorted(few, key=lambda c: -c.column_splits) and all(
            c.column_splits > many.column_splits for c in few
        )


def test_quantizers_that_take_another_kernel() -> None:
    """Those that are not in the tables, and where scales or 4-bit codes want more columns than a warpgroup has."""
    others = [
        (28, 7, "nvfp4", 16, False), (20, 7, "mxfp4", 32, False), (20, 7, "fp8_e4m3", 128, False), (20, 7, "int4", -1, True),
        (20, 7, "fp8_e4m3", 128, True), (44, 8, "fp8_e4m3", -1, False),
    ]  # fmt: skip
    for order, log2_columns, name, block, gated in others:
        assert {c.kernel for c in _quantizing(1, order, log2_columns, name, block, gated)} == {"base_rows"}
    for order, log2_columns in GATED:
        for activation in (RMSNorm(1e-6, False), RMSNorm(1e-6, True)):
            size = order << log2_columns
            fusion = fusion_of(Quantizer(FORMATS["int8"], size), size, False, fused_prologue(activation, size))
            assert {c.kernel for c in base_candidates(1, order, log2_columns, HOPPER, fusion=fusion)} == {"base_rows"}
        assert {c.kernel for c in _quantizing(2, order, log2_columns, "int8", -1, True)} <= {"base_rows"}


@pytest.mark.parametrize(
    ("changes", "name", "block", "message"),
    [
        ({"column_splits": 2}, "int4", 4608, "4-bit codes of two groups of columns are put together"),
        ({"column_splits": 2}, "fp8_e4m3", 128, "a warpgroup has no whole parts of 128 columns"),
        ({"warpgroups": 2}, "fp8_e4m3", 128, "a warpgroup has no whole parts of 128 columns"),
        ({"order_splits": 5}, "fp8_e4m3", 4608, "up to 8 blocks share the columns"),
        ({"overlap": True}, "fp8_e4m3", 4608, "codes are not stored until all products are there"),
        ({"refilled": True}, "fp8_e4m3", 4608, "one stage is refilled, where codes follow"),
    ],
)
def test_codes_that_cannot_be(changes: dict[str, int], name: str, block: int, message: str) -> None:
    fusion = fusion_of(Quantizer(FORMATS[name], block), 4608, False)
    with pytest.raises(ValueError, match=message):
        WarpgroupConfiguration(0, 36, 0, 7, fusion=fusion, **changes)


def test_registers_of_producers() -> None:
    """As many as the others leave: 512 threads have 128 each, of which 256 give 64 away; and none moves where none can."""
    prologue = fused_prologue(GatedActivation("silu", "separate"), 28 << 10)
    fusion = fusion_of(Quantizer(FORMATS["int8"], 28 << 10), 28 << 10, False, prologue)
    c = WarpgroupConfiguration(0, 56, 1, 9, 2, 1, tensor_shares=2, stages=1, refilled=True, fusion=fusion)
    assert c.registers == (0, 0) and "more activate" not in str(c)
    assert replace(c, producers=2).registers == (192, 64) and replace(c, producers=2).threads == 512
    assert replace(c, producers=1).registers == (216, 64)
    assert replace(c, producers=2, minimum_blocks=2).registers == (0, 0)
    assert "8 warps more activate rows" in str(replace(c, producers=2))


def test_producers_that_cannot_be() -> None:
    fusion = fusion_of(Quantizer(FORMATS["int8"], 4608), 4608, False)
    with pytest.raises(ValueError, match="producers activate rows, and have one stage"):
        WarpgroupConfiguration(0, 36, 0, 7, stages=1, producers=1, fusion=fusion)
    prologue = fused_prologue(GatedActivation("silu", "separate"), 4608)
    with pytest.raises(ValueError, match="producers activate rows, and have one stage"):
        WarpgroupConfiguration(0, 36, 0, 7, producers=1, fusion=replace(fusion, prologue=prologue))


def test_prologues_that_cannot_be() -> None:
    prologue = fused_prologue(RMSNorm(1e-6, False), 4608)
    with pytest.raises(ValueError, match="a gated activation is the only prologue"):
        WarpgroupConfiguration(0, 36, 0, 7, fusion=fusion_of(Quantizer(FORMATS["int8"], 4608), 4608, False, prologue))


def test_plain_results_have_no_other_place() -> None:
    with pytest.raises(ValueError, match="one stage is refilled, where codes follow"):
        WarpgroupConfiguration(0, 36, 0, 7, stages=1, refilled=True)


def test_shared_memory_with_codes() -> None:
    """Two panels, the base and H64 in words of 4 bytes; then codes, maxima of four warps for two groups, reciprocals of four
    parts, by 40 rows; and two mbarriers."""
    prologue = fused_prologue(GatedActivation("silu", "separate"), 36 << 7)
    fusion = fusion_of(Quantizer(FORMATS["mxfp8"], 32), 36 << 7, False, prologue)
    prefetched = WarpgroupConfiguration(0, 36, 0, 7, fusion=fusion)
    matrices = 2 * 40 * 128 + 2 * 64 * 128
    assert prefetched.shared_bytes == 2 * 2 * 2 * 40 * 128 + matrices
    refilled = replace(prefetched, stages=1, refilled=True)
    assert refilled.shared_bytes == 2 * 2 * 40 * 128 + matrices + 40 * 128 + 4 * 40 * (4 * 2 + 4)
    assert replace(refilled, producers=1).shared_bytes == refilled.shared_bytes + 16
    assert "next row refills" in str(refilled) and "next row prefetched" in str(prefetched)


def test_other_sizes_take_another_kernel() -> None:
    for order, log2_columns in ((12, 4), (12, 9), (20, 9), (28, 9), (36, 3), (76, 7)):
        found = base_candidates(0, order, log2_columns, HOPPER)
        assert found and found == panel_candidates(0, order, log2_columns, HOPPER)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"element_code": 2}, "rows are of 16-bit elements"),
        ({"log2_size": 5}, "64 columns and more"),
        ({"order": 37}, "an even order"),
        ({"order": 260}, "up to 256"),
        ({"warpgroups": 8}, "must share 4 groups of columns evenly"),
        ({"warpgroups": 3}, "must share 4 groups of columns evenly"),
        ({"column_splits": 3}, "must share 4 groups of columns evenly"),
        ({"warpgroups": 2, "column_splits": 4}, "must share 4 groups of columns evenly"),
        ({"tensor_shares": 2}, "must share 4 groups of columns evenly"),
        ({"order_splits": 6}, "each block must have some of 5 tiles of rows"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(WarpgroupConfiguration(0, 36, 0, 8), **changes)


def test_shared_memory_and_widths() -> None:
    """Two stages of 4 groups of 40 rows, the base, of 40 rows and 64 columns, H64 and its negative."""
    c = WarpgroupConfiguration(0, 36, 0, 8, 2, tensor_shares=2)
    assert c.threads == 256 and c.shared_bytes == 2 * 4 * 40 * 128 + 40 * 128 + 2 * 64 * 128
    assert (c.panel_rows, c.own_rows, c.own_groups, c.widths) == (40, 40, 2, (80, 40))
    assert WarpgroupConfiguration(0, 36, 0, 9).widths == (160, 40)  # of 8 groups, 4
    split = WarpgroupConfiguration(0, 76, 0, 6, stages=1, order_splits=3)
    assert split.shared_bytes == 80 * 128 + 2 * 32 * 128 + 64 * 128 and split.widths == (80, 32)
    assert WarpgroupConfiguration(0, 256, 0, 6).widths == (256, 256)


def test_a_configuration_in_words() -> None:
    few, many = _candidates(9216)
    assert str(many) == (
        "warpgroup_rows 72 x 2^7, 4 warps/block, next row prefetched, products overlap, next kernel from after its loads"
    )
    assert str(few).startswith("warpgroup_rows 72 x 2^7, 4 warps/block, one row a block, 6 blocks/row")


# ---- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [8, 40, 80, 160, 256])
def test_operands_of_generated_instructions(width: int) -> None:
    """Numbered in order, as many as are given, and sums that are only written where nothing is added."""
    text = wgmma_text([width])
    functions = re.findall(r"void (\w+)\(float \(&d\)\[(\d+)\]\[4\], (.*?), u64 b\) \{(.*?)\n\}", text, re.DOTALL)
    assert [(name, left) for name, _, left, _ in functions] == [
        (f"wgmma_m64k{depth}_f32_{kind}", left)
        for kind, depth in (("f16", 16), ("bf16", 16), ("tf32", 8))
        for left in ("u32 a0, u32 a1, u32 a2, u32 a3", "u64 a")
    ]
    for name, tiles, left, body in functions:
        assert int(tiles) == width // 8
        kind, in_registers = name.rsplit("_", 1)[1], "a0" in left
        depth = 8 if kind == "tf32" else 16
        instructions = re.findall(r'asm volatile\("(.*?);"\s*: (.*?) : (.*?)\);', body, re.DOTALL)
        assert len(instructions) == 2
        for (instruction, outputs, inputs), start in zip(instructions, (True, False), strict=True):
            assert instruction.startswith(f"wgmma.mma_async.sync.aligned.m64n{width}k{depth}.f32.{kind}.{kind} {{%0,")
            operands = [int(number) for number in re.findall(r"%(\d+)", instruction)]
            given = re.findall(r'"(\S+)"\(([^)]*)\)', f"{outputs}, {inputs}")
            assert operands == list(range(len(given)))
            assert given[: width // 2] == [
                ("=f" if start else "+f", f"d[{i // 4}][{i % 4}]") for i in range(width // 2)
            ]
            expected = [("r", f"a{i}") for i in range(4)] if in_registers else [("l", "a")]
            assert given[width // 2 :] == [*expected, ("l", "b")]
            # Whether to add, signs, and that K is contiguous in A, if it is in shared memory, and B, where there is a choice.
            contiguous = "" if kind == "tf32" else ", 0" if in_registers else ", 0, 0"
            assert instruction.endswith(f", {int(not start)}, 1, 1{contiguous}")


def test_a_width_that_is_needed_twice_is_written_once() -> None:
    assert wgmma_text((40, 40)) == wgmma_text([40])
    assert wgmma_text((80, 40)) == wgmma_text((40, 80)) and wgmma_text((80, 40)).count("template") == 12


@pytest.mark.parametrize("size", MEASURED)
def test_a_kernel_has_the_instructions_of_its_widths(size: int) -> None:
    for c in _candidates(size):
        text = kernel_source(c)
        assert sorted({int(n) for n in re.findall(r"m64n(\d+)k16\.f32\.bf16", text)} - {64} | set(c.widths)) == sorted(
            {*c.widths}
        )
        assert "wgmma.mma_async" not in kernel_source(c, ptx=False)
        defined = dict(constants(c))
        assert {"ORDER": str(c.order), "WGMMA": "1", "STAGES": str(c.stages)}.items() <= defined.items()


@pytest.mark.parametrize(("size", "merge"), [(12 << 7, 1), (36 << 6, 0), (76 << 6, 0), (172 << 6, 0)])
@pytest.mark.parametrize("transposed", [False, True])
def test_signs_of_rows_are_the_matrix(size: int, merge: int, transposed: bool) -> None:
    matrix = dense_base(size, merge, transposed, False)
    order = matrix.shape[0]
    text = base_row_signs_text(matrix)
    found = re.search(r"kWordsOfRow = (\d+);\n.*base_row_signs\[(\d+)\] = \{(.*)\};", text)
    assert found is not None
    words_of_row, count = int(found[1]), int(found[2])
    words = np.array([int(word, 16) for word in found[3].split(",")], dtype=np.uint32)
    assert words_of_row == -(-order // 32) and len(words) == count == order * words_of_row
    bits = (
        words.reshape(order, words_of_row)[:, np.arange(32 * words_of_row) // 32] >> (np.arange(32 * words_of_row) % 32)
        & 1
    )
    assert np.array_equal(1 - 2 * bits[:, :order].astype(int), matrix) and not bits[:, order:].any()


# ---- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", MEASURED)
def test_stages_contract_every_bit_once(size: int) -> None:
    """And few rows as many ones, which is what makes results independent of them."""
    few, *_, many = (warpgroup_stages(c) for c in _candidates(size))
    bits = [bit for stage in many for bit in stage.bits]
    assert sorted(bits) == list(range(factor(size).log2)) and math.prod(stage.radix for stage in many) == size
    assert [(stage.unit, stage.bits) for stage in few] == [(stage.unit, stage.bits) for stage in many]
    assert many[-1].base_order == factor(size).base_order and many[0].bits[:6] == tuple(range(6))


def test_bits_that_a_stage_contracts() -> None:
    """20480 = 20 * 2^10: one bit merged into the base, the one that two shares differ in by the first product."""
    stages = [(stage.unit, stage.bits) for stage in warpgroup_stages(_candidates(20480)[1])]
    assert stages == [
        ("Tensor Cores", (0, 1, 2, 3, 4, 5, 8)),
        ("registers", (6, 7)),
        ("Tensor Cores, high + low", (9,)),
    ]
    c = WarpgroupConfiguration(0, 36, 0, 8)
    object.__setattr__(c, "tensor_shares", 8)  # a configuration that was tampered with
    with pytest.raises(ValueError, match="are contracted, expected"):
        warpgroup_stages(c)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", MEASURED)
def test_the_stages_give_correct_rounding(size: int, dtype: torch.dtype) -> None:
    x = torch.randn(4, size, dtype=torch.float64).to(dtype)
    exact = oracle.transform(x)
    planned = hadacore.plan(size, dtype, rows=4, architecture="sm_90a")
    base = torch.tensor(base_matrix(factor(size)))
    error = tolerances.relative_error(execute(planned.stages, x, size**-0.5, base), exact)
    assert error <= tolerances.rounding_error(exact, dtype) * tolerances.CORRECT_ROUNDING_RATIO


def test_printed_plan() -> None:
    planned = hadacore.plan(9216, torch.float16, rows=5000, architecture="sm_90a")
    assert isinstance(planned.configuration, WarpgroupConfiguration)
    assert planned.multiply_adds == 5000 * 2 * 80 * 72 * 128  # twice, 72 rows, and 80 as K
    for fragment in (
        "warpgroup_rows 72 x 2^7, 4 warps/block, next row prefetched",
        f"launch   264 blocks of 128 threads, {planned.configuration.launched_bytes(HOPPER)} bytes of shared memory",
    ):
        assert fragment in str(planned), (fragment, str(planned))
    assert "2 blocks/row" not in str(planned) and "6 blocks/row" in str(
        hadacore.plan(9216, torch.float16, rows=3, architecture="sm_90a")
    )


@pytest.mark.parametrize("size", MEASURED)
def test_predicted_time_is_near_what_was_measured(size: int) -> None:
    ratio = hadacore.plan(size, torch.float16, rows=(1 << 25) // size, architecture="sm_90a").predicted_ratio
    assert ratio is not None and 0.85 < ratio / MEASURED[size] < 1.15


@pytest.mark.parametrize("size", MEASURED)
def test_few_rows_are_spread_over_blocks(size: int) -> None:
    matrix = factor(size)
    *few, many = _candidates(size)
    for rows in (1, 8, 64, 300, 5000):
        chosen = choose_base(0, matrix.base_order, matrix.log2, rows, (9, 0), 132)
        assert chosen == next((c for c in few if c.grid(rows, 132) <= 198), many)
    signed = choose_base(1, matrix.base_order, matrix.log2, 5000, (9, 0), 132, SIGNS_AFTER, True)
    assert isinstance(signed, WarpgroupConfiguration) and signed.signs == SIGNS_AFTER and signed.strided


# ---- drift ----------------------------------------------------------------------------------------------------------


def _panels(size: int, code: int = 0, **more: object) -> tuple[BaseConfiguration, ...]:
    matrix = factor(size)
    return panel_candidates(code, matrix.base_order, matrix.log2, HOPPER, **more)


def test_warps_drift_where_a_block_is_alone() -> None:
    """With an mbarrier of 8 bytes. Never where one block has one unit, or several blocks share a multiprocessor."""
    drifting = set()
    for size in (80, 896, 2880, 5120, 8960, 12288, 13696, 14336, 15360, 18944, 28672, 29568, 36864):
        for c in _panels(size):
            assert c.drift == (c.wgmma and c.stages == 2 and c.minimum_blocks == 1), c
            assert dict(constants(c))["DRIFT"] == str(int(c.drift)) and ("warps drift" in str(c)) == c.drift
            assert c.shared_bytes == replace(c, drift=False).shared_bytes + 8 * c.drift and c.runs_on(HOPPER)
            drifting |= {size} if c.drift else set()
    assert {13696, 18944, 28672, 36864} <= drifting and not {80, 896, 14336} & drifting


def test_options_leave_a_block_that_drifts_alone() -> None:
    for c in _panels(13696):
        with_options = c.with_options(SIGNS_BEFORE, True)
        assert with_options.drift == c.drift and (not c.drift or with_options.minimum_blocks == 1)


def test_nothing_drifts_that_cannot() -> None:
    for size in (13696, 18944, 28672):
        assert not any(c.drift for c in _panels(size, 2))
        assert not any(c.drift for c in _panels(size, fusion=fusion_of(Quantizer(FORMATS["int8"], size), size, False)))
        matrix = factor(size)
        for architecture in ARCHITECTURES:
            if not architecture.has_wgmma:
                found = panel_candidates(0, matrix.base_order, matrix.log2, architecture)
                assert not any(c.drift for c in found)


@pytest.mark.parametrize(
    "changes",
    [
        {"wgmma": False, "wide": False},
        {"stages": 1},
        {"fusion": fusion_of(Quantizer(FORMATS["int8"], 1280), 1280, False)},
    ],
    ids=["mma.sync", "one stage", "quantizer"],
)
def test_drift_that_cannot_be(changes: dict[str, object]) -> None:
    c = BaseConfiguration(0, 20, 0, 6, 1, order_warps=4, stages=2, wgmma=True, wide=True, drift=True)
    with pytest.raises(ValueError, match="warps drift by wgmma, with two stages and no quantizer"):
        replace(c, **changes)
