"""Codes of ``warpgroup_rows.cu``, run on the CPU by the emulator: bit for bit those of the reference, of every format, and after
gated activations."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from hadacore import prologues
from hadacore.formats import BY_NAME, Quantizer
from hadacore.kernels.architectures import BY_NAME as ARCHITECTURES
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE
from hadacore.kernels.fusion import fused_prologue, fusion_of, scale_factor
from hadacore.kernels.source import kernel_source
from hadacore.kernels.warpgroup_configurations import WarpgroupConfiguration, warpgroup_candidates
from hadacore.kernels.warpgroup_table import EIGHT_BITS, EIGHT_BITS_PARTS, FOUR_BITS, GATED
from hadacore.prologues import GatedActivation
from hadacore.quantization import prologue_reference
from tests import oracle, tolerances
from tests import test_emulated_prologues as with_prologue
from tests.emulator import EmulatedKernel, EmulationError, Operands, Scales, compiler
from tests.quantized_values import assert_half_a_step_within, exact_rows
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


# Order, column bits, warpgroups, blocks a row, and whether the next row takes the panel's place.
PARTS = [
    (12, 7, 1, 1, True), (28, 8, 1, 1, False), (36, 8, 1, 2, True), (20, 8, 2, 1, True), (20, 8, 1, 2, False),
]  # fmt: skip


def _with_parts(
    order: int, log2_columns: int, warpgroups: int, blocks: int, refilled: bool, quantizer: Quantizer, code: int
) -> WarpgroupConfiguration:
    return WarpgroupConfiguration(
        code, order, 0, log2_columns, warpgroups, tensor_shares=warpgroups * blocks, column_splits=blocks,
        stages=1 if refilled else 2, refilled=refilled, fusion=fusion_of(quantizer, order << log2_columns, quantizer.block == 0),
    )  # fmt: skip


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("shape", PARTS)
def test_every_format_and_granularity(shape: tuple[int, int, int, int, bool], name: str) -> None:
    """Parts of one warp, of several, of two groups of columns; 4-bit codes where a warpgroup has two groups."""
    format, n = BY_NAME[name], shape[0] << shape[1]
    taken = 0
    for number, granularity in enumerate(format.granularities):
        block = int({"row": n, "tensor": 0}.get(str(granularity), granularity))
        given = torch.tensor([0.375]) if block == 0 else None
        kinds = [Quantizer(format, block, 0.9 if name != "mxfp8" else 1.0)]
        kinds += [Quantizer(format, block, 1.0, True)] if format.can_swizzle else []
        kinds += [Quantizer(format, block, 1.0, False, True)] if format.stochastic else []
        for quantizer in kinds:
            code = number % 2
            try:
                c = _with_parts(*shape, quantizer, code)
            except ValueError:
                continue
            check(c, quantizer, exact_rows(5, n, (torch.float16, torch.bfloat16)[code]), given=given)
            taken += 1
    assert taken


def test_signs_after_with_parts() -> None:
    quantizer = Quantizer(BY_NAME["nvfp4"], 16)
    signs = (torch.randint(0, 2, (1, 20 << 8)) * 2 - 1).to(torch.float16)
    for signs_are in (SIGNS_BEFORE, SIGNS_AFTER):
        c = _with_parts(20, 8, 1, 1, True, quantizer, 0).with_options(signs_are, False)
        check(c, quantizer, exact_rows(3, c.size, torch.float16), signs=signs)


# Table, format, and elements that share a scale (-1: a row).
TABLES = [
    (EIGHT_BITS, "fp8_e4m3", -1),
    (EIGHT_BITS_PARTS, "mxfp8", 32),
    (EIGHT_BITS_PARTS, "fp8_e4m3", 128),
    (FOUR_BITS, "nvfp4", 16),
]


@pytest.mark.parametrize(
    "order, log2_columns, name, block", [(*size, name, block) for table, name, block in TABLES for size in table]
)
def test_sizes_of_the_tables(order: int, log2_columns: int, name: str, block: int) -> None:
    """What few rows run, and what many do."""
    n = order << log2_columns
    quantizer = Quantizer(BY_NAME[name], n if block < 0 else block)
    fusion = fusion_of(quantizer, n, False)
    for c in warpgroup_candidates(1, order, log2_columns, ARCHITECTURES["sm_90a"], False, fusion):
        check(c, quantizer, exact_rows(3, n, torch.bfloat16))


@pytest.mark.parametrize("order, log2_columns", GATED)
def test_gated_sizes_of_the_table(order: int, log2_columns: int) -> None:
    """And that few rows and many have the same bits."""
    torch.manual_seed(0)
    n, dtype = order << log2_columns, torch.bfloat16
    prologue = fused_prologue(GatedActivation("silu", "separate"), n)
    fusion = fusion_of(Quantizer(BY_NAME["int8"], n), n, False, prologue)
    gate, up = 4 * torch.randn(3, n).to(dtype), torch.randn(3, n).to(dtype)
    results = [
        with_prologue.check(c, gate, prologues.silu_mul(up))
        for c in warpgroup_candidates(1, order, log2_columns, ARCHITECTURES["sm_90a"], False, fusion)
    ]
    assert results and all(torch.equal(a[i], results[0][i]) for a in results for i in (0, 1))


# Order, column bits, warpgroups, blocks a row, whether the next row takes the panel's place.
GATED_SHAPES = [
    (12, 6, 1, 1, False), (36, 7, 2, 1, True), (20, 8, 1, 2, True), (44, 7, 1, 1, False), (28, 8, 1, 1, True),
]  # fmt: skip


@pytest.mark.parametrize("code", range(2), ids=["float16", "bfloat16"])
@pytest.mark.parametrize("shape", GATED_SHAPES)
def test_gated_activations(shape: tuple[int, int, int, int, bool], code: int) -> None:
    """Each layout of gates and ups, every activation, more rows than blocks, and signs after the activation."""
    torch.manual_seed(0)
    n, dtype = shape[0] << shape[1], (torch.float16, torch.bfloat16)[code]
    gate, up = 4 * torch.randn(5, n).to(dtype), torch.randn(5, n).to(dtype)
    c = _with_parts(*shape, Quantizer(BY_NAME["int8"], n), code)
    for make in (prologues.silu_mul, prologues.gelu_mul):
        separate = with_prologue.check(c, gate, make(up))
        for order, parts in (("gate_up", (gate, up)), ("up_gate", (up, gate))):
            together = with_prologue.check(c, torch.cat(parts, -1), make(order=order))
            assert all(torch.equal(a, b) for a, b in zip(together, separate, strict=True))
    signs = (torch.randint(0, 2, (1, n)) * 2 - 1).to(dtype)
    with_prologue.check(c.with_options(SIGNS_BEFORE, False), gate, prologues.silu_mul(up), signs=signs)


# Order, column bits, warpgroups that multiply and that produce, blocks a row, and whether the next row takes the panel's place.
PRODUCERS = [
    (12, 6, 1, 1, 1, True),
    (36, 7, 2, 1, 1, True),
    (36, 7, 1, 2, 1, True),
    (20, 8, 1, 3, 2, False),
    (28, 8, 2, 2, 1, True),
]


@pytest.mark.parametrize("shape", PRODUCERS)
def test_rows_that_other_warps_activate(shape: tuple[int, int, int, int, int, bool]) -> None:
    """The same bits as without them, signs after the activation or none."""
    torch.manual_seed(0)
    order, log2_columns, warpgroups, producers, blocks, refilled = shape
    n = order << log2_columns
    gate, up = 4 * torch.randn(5, n).bfloat16(), torch.randn(5, n).bfloat16()
    signs = (torch.randint(0, 2, (1, n)) * 2 - 1).bfloat16()
    prologue = fused_prologue(GatedActivation("silu", "separate"), n)
    alone = WarpgroupConfiguration(
        1, order, 0, log2_columns, warpgroups, tensor_shares=warpgroups * blocks, column_splits=blocks, stages=1,
        refilled=refilled, fusion=fusion_of(Quantizer(BY_NAME["int8"], n), n, False, prologue),
    )  # fmt: skip
    for given in (None, signs):
        results = [
            with_prologue.check(
                replace(alone, producers=count).with_options(NO_SIGNS if given is None else SIGNS_BEFORE, False),
                gate,
                prologues.silu_mul(up),
                signs=given,
            )
            for count in (0, producers)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# What is taken out of the handover between those who activate and those who multiply, and what is reported then.
HANDOVER = {
    "the wait for a row": (r"    handover\.wait_for_row\(\);", "", "was never written|is a race"),
    "the wait until it was read": (r"    handover\.wait_until_read\(\);", "", "is a race"),
    "the fence": (r"    finish_row\(r, row, stage\);\n    handover", "    handover", "no fence_proxy_async"),
    "the barrier of a warp": (
        r"    bar_warp_sync\(\);\n    if \(lane == 0\) mbarrier_arrive\(is_there\)",
        "    if (lane == 0) mbarrier_arrive(is_there)",
        "is a race",
    ),
}


@pytest.mark.parametrize("taken_out", HANDOVER)
def test_a_handover_with_a_part_missing_is_reported(taken_out: str) -> None:
    call, instead, message = HANDOVER[taken_out]
    n = 12 << 6
    prologue = fused_prologue(GatedActivation("silu", "separate"), n)
    c = WarpgroupConfiguration(
        1, 12, 0, 6, producers=1, stages=1, refilled=True, fusion=fusion_of(Quantizer(BY_NAME["int8"], n), n, False, prologue)
    )  # fmt: skip
    text, count = re.subn(call, instead, kernel_source(c, ptx=False))
    assert count == 1
    kernel = EmulatedKernel(c, text=text)
    gate, up = torch.randn(5, n).bfloat16(), torch.randn(5, n).bfloat16()
    with pytest.raises(EmulationError, match=message):
        for seed in range(4):
            kernel.run(
                gate, torch.zeros(5, n, dtype=torch.int8), 1.0, 5, grid=1, seed=seed,
                scales=Scales(torch.zeros(5), None, 1 / 127, 5), operands=Operands((up,), None, 0.0, 1),
            )  # fmt: skip


def test_a_gated_row_of_several_transforms() -> None:
    """Gates and ups of one tensor are then as far apart as the whole row is long."""
    torch.manual_seed(0)
    n, row = 12 << 6, 3 * (12 << 6)
    prologue = fused_prologue(GatedActivation("silu", "gate_up"), row)
    quantizer = Quantizer(BY_NAME["int8"], n)
    c = WarpgroupConfiguration(1, 12, 0, 6, fusion=fusion_of(quantizer, row, False, prologue))
    x = torch.randn(2, 2 * row).bfloat16()
    codes, scales = torch.zeros(6, n, dtype=torch.int8), torch.zeros(6)
    EmulatedKernel(c).run(
        x, codes, n**-0.5, 6, grid=c.grid(6, 1), scales=Scales(scales, None, scale_factor(quantizer), 6),
        operands=Operands((), None, 0.0, 1),
    )  # fmt: skip
    values = prologue_reference.apply(GatedActivation("silu", "gate_up"), x, (), None)
    values = values.double().reshape(6, n)
    bound = tolerances.rotated_bound(values, n, n**-0.5, x.dtype, True, tensor_cores=True)
    assert_half_a_step_within(codes, scales, oracle.transform(values), bound)


@pytest.mark.parametrize("name", ["fp8_e4m3", "int8"])
def test_zeros_and_what_is_not_finite_stay_in_their_rows(name: str) -> None:
    x = exact_rows(6, 36 << 7, torch.bfloat16)
    x[1] = 0
    x[3, 17] = float("nan")
    x[4, 4000] = float("inf")
    for blocks in (1, 2):
        c = WarpgroupConfiguration(1, 36, 0, 7, column_splits=blocks, stages=3 - blocks)
        check(c, Quantizer(BY_NAME[name], c.size), x)
