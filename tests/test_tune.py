"""The spaces of configurations that benchmarks/tune.py and benchmarks/tune_kernels.py search."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch

from hadacore.formats import BY_NAME as FORMATS
from hadacore.formats import Quantizer
from hadacore.kernels.architectures import BY_NAME
from hadacore.kernels.configurations import BEFORE_EXCHANGE, maximum_log2_row
from hadacore.kernels.fragment_configurations import fragment_configuration
from hadacore.kernels.fragment_table import PLAIN
from hadacore.kernels.fusion import fused_prologue, fusion_of
from hadacore.kernels.stages import stages_of
from hadacore.prologues import GatedActivation
from tests.benchmarks import load_benchmark


@pytest.fixture(scope="module")
def tune() -> ModuleType:
    return load_benchmark("tune")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_120"])
@pytest.mark.parametrize("code", range(3))
def test_every_size_has_configurations_to_try(tune: ModuleType, code: int, architecture: str) -> None:
    for log2_size in range(maximum_log2_row(code, BY_NAME[architecture]) + 1):
        configurations = list(tune.space(code, log2_size, BY_NAME[architecture]))
        assert configurations
        for configuration in configurations:
            assert configuration.runs_on(BY_NAME[architecture])
            assert configuration.threads * configuration.minimum_blocks <= 2048
            stages_of(configuration)  # raises unless every index bit is contracted once
            for point in tune.points_of(configuration):
                early = replace(configuration, programmatic=point)
                assert early.kernel == "exchange_rows" or point != BEFORE_EXCHANGE


@pytest.fixture(scope="module")
def tune_kernels() -> ModuleType:
    return load_benchmark("tune_kernels")


@pytest.mark.parametrize("gated", [None, False, True], ids=["plain", "quantized", "gated"])
@pytest.mark.parametrize("size", [128, 1024, 4096, 16384, 192, 896, 5120, 14336, 28672, 29568])
def test_kernels_to_try_fit_and_begin_with_the_table(tune_kernels: ModuleType, size: int, gated: bool | None) -> None:
    architecture = BY_NAME["sm_90a"]
    prologue = fused_prologue(GatedActivation("silu", "gate_up"), size) if gated else None
    fusion = None if gated is None else fusion_of(Quantizer(FORMATS["fp8_e4m3"], size), size, False, prologue)
    mine = tune_kernels.of_table(1, size, fusion, architecture)
    found = tune_kernels.all_candidates(1, size, fusion, architecture)
    assert list(dict.fromkeys(mine)) == found[: len(set(mine))] and len(found) > len(set(mine))
    for configuration in found:
        assert configuration.size == size and configuration.fusion == fusion and configuration.runs_on(architecture)
    for configuration in found[len(set(mine)) :]:
        assert configuration.minimum_blocks <= architecture.blocks_that_fit(configuration.shared_bytes)


def test_small_bases_in_registers_are_tried(tune_kernels: ModuleType) -> None:
    """Every line of their table, other merges, and none where codes follow."""
    architecture = BY_NAME["sm_90a"]
    for order, log2_columns in PLAIN:
        tried = set(tune_kernels.by_fragments(1, order, log2_columns))
        assert fragment_configuration(1, order, log2_columns, architecture, False) in tried
        assert {c.warps for c in tried} == {1, 2, 4, 8} and len(tried) >= 12
        found = tune_kernels.all_candidates(1, order << log2_columns, None, architecture, "fragment_rows")
        assert tried <= set(found) and {c.kernel for c in found} == {"fragment_rows"}
        fusion = fusion_of(Quantizer(FORMATS["int8"], 1 << log2_columns), 1 << log2_columns, False)
        others = tune_kernels.all_candidates(1, order << log2_columns, fusion, architecture)
        assert "fragment_rows" not in {c.kernel for c in others}
    merges = {c.log2_merge for c in tune_kernels.by_fragments(1, 12, 6)}
    assert merges == {1, 2} and not list(tune_kernels.by_fragments(2, 12, 6))


@pytest.mark.parametrize(
    ("size", "columns", "halves", "warps"),
    [(29568, 6, True, ((2, 16), (4, 8))), (13696, 5, False, ((2, 16), (4, 8))), (10944, 4, False, ((3, 16), (4, 12)))],
)
def test_one_block_reads_a_large_row_once(
    tune_kernels: ModuleType, size: int, columns: int, halves: bool, warps: tuple[tuple[int, int], ...]
) -> None:
    """Tiles a warp and warps of a block for the orders above 180, the next row on its way."""
    found = tune_kernels.all_candidates(1, size, None, BY_NAME["sm_90a"])
    of_panel = [c for c in found if c.log2_size == columns and c.halves == halves and c.splits == 1 and c.stages == 2]
    assert {(c.tiles, c.order_warps) for c in of_panel if c.wgmma} >= set(warps)


@pytest.mark.parametrize(("name", "block", "bytes_of_64"), [("nvfp4", 16, 32), ("mxfp8", 32, 64), ("int4", 64, 32)])
def test_codes_are_the_beginning_of_an_output(
    tune_kernels: ModuleType, name: str, block: int, bytes_of_64: int
) -> None:
    output = torch.arange(128, dtype=torch.uint8).view(torch.bfloat16)
    codes = tune_kernels.codes_of(output, 64, Quantizer(FORMATS[name], block))
    assert codes.tolist() == list(range(bytes_of_64))
