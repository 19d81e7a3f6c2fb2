"""Plans and the table of configurations: sound, complete, and what the numerics promise."""

from __future__ import annotations

import math

import pytest
import torch

import hadacore
from hadacore.elements import CUDA_ELEMENTS, Element
from hadacore.formats import BY_NAME, Quantizer
from hadacore.kernels.architectures import ARCHITECTURES, CHECKED, Architecture, architecture_of
from hadacore.kernels.architectures import BY_NAME as BY_ARCHITECTURE
from hadacore.kernels.base_configurations import BaseConfiguration, base_candidates
from hadacore.kernels.configurations import TABLE, KernelConfiguration, candidates, choose, maximum_log2_row
from hadacore.kernels.fusion import fusion_of
from hadacore.kernels.stages import stages_of
from hadacore.matrices import factor
from tests import oracle, tolerances
from tests.stage_executor import execute

SIZES = [2**k for k in range(17)]  # of one launch on Hopper


def _all_candidates() -> list[KernelConfiguration]:
    return [candidate.configuration for listed in TABLE.values() for candidate in listed]


@pytest.mark.parametrize("configuration", _all_candidates(), ids=str)
def test_every_index_bit_is_contracted_once(configuration: KernelConfiguration) -> None:
    bits = [bit for stage in stages_of(configuration) for bit in stage.bits]
    assert sorted(bits) == list(range(configuration.log2_size))
    assert math.prod(stage.radix for stage in stages_of(configuration)) == configuration.size


def test_a_schedule_that_misses_a_bit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hold 2\^12 elements, the row has 2\^13"):
        KernelConfiguration("exchange_rows", 0, 13, 2, 4)
    with pytest.raises(ValueError, match="must hold the whole row"):
        KernelConfiguration("warp_rows", 0, 10, 1)
    with pytest.raises(ValueError, match="must divide into passes"):
        KernelConfiguration("exchange_rows", 0, 12, 1, 1, cluster=8)
    with pytest.raises(ValueError, match="a cluster writes one row to its exchange buffer, once"):
        KernelConfiguration("exchange_rows", 0, 14, 3, 4, cluster=2, prefetch=True)
    configuration = KernelConfiguration("warp_rows", 0, 10, 2)
    object.__setattr__(configuration, "log2_size", 9)  # a configuration that was tampered with
    with pytest.raises(ValueError, match=r"are contracted, expected 0..8"):
        stages_of(configuration)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
@pytest.mark.parametrize("element", CUDA_ELEMENTS, ids=lambda e: e.name)
def test_every_size_runs_on_every_architecture(element: Element, architecture: object) -> None:
    code = element.cuda_code
    assert code is not None
    for log2_size in range(maximum_log2_row(code, architecture) + 1):
        listed = candidates(code, log2_size, architecture)
        assert math.isinf(listed[-1].up_to_elements_per_multiprocessor)
        limits = [candidate.up_to_elements_per_multiprocessor for candidate in listed]
        assert limits == sorted(limits)
        for candidate in listed:
            configuration = candidate.configuration
            assert configuration.element_code == code and configuration.log2_size == log2_size
            assert configuration.shared_bytes <= architecture.shared_memory_per_block
            assert configuration.threads <= 1024 and configuration.cluster <= 8


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
@pytest.mark.parametrize("element", CUDA_ELEMENTS, ids=lambda e: e.name)
def test_65536_is_one_launch_where_a_cluster_holds_it(element: Element, architecture: Architecture) -> None:
    """256 KiB of fp32 values: in 16 bits 128 in each of two blocks, 32 in each of eight where rows are few; in float32 always."""
    needed = (128 if element.bytes == 2 else 32) * 1024
    held = architecture.capability >= (9, 0) and architecture.shared_memory_per_block > needed
    for rows in (1, 16, 17, 4096):
        for options in ({}, {"signs": True}, {"signs": True, "inverse": True}):
            planned = hadacore.plan(1 << 16, element.dtype, rows=rows, architecture=architecture.name, **options)
            if held:
                c = planned.configuration
                assert c is not None and c.runs_on(architecture) and c.works_in_place and planned.passes is None
                assert c.cluster == (2 if element.bytes == 2 and rows > 16 else 8) and c.grid(rows, 132) == rows
            else:
                assert planned.configuration is None and planned.passes is not None
                assert planned.passes.split == (11, 5)
    for size in (1 << 17, 1 << 20):
        planned = hadacore.plan(size, element.dtype, rows=3, architecture=architecture.name)
        assert planned.configuration is None and planned.passes is not None


@pytest.mark.parametrize("log2_size", range(17))
def test_a_launch_covers_every_row_once(log2_size: int) -> None:
    for rows in (1, 2, 3, 17, 132, 133, 1000, 2**26, 2**31 + 5):
        if rows > 2**26 and log2_size > 8:
            continue  # beyond any memory
        configuration = choose(0, log2_size, rows, (9, 0), 132)
        grid = configuration.grid(rows, 132)
        assert 1 <= grid * configuration.cluster <= 2**31 - 1
        if configuration.kernel == "warp_rows":
            capacity = grid * configuration.warps * configuration.units
            units = configuration.units_of(rows)
            assert capacity - configuration.warps * configuration.units < units <= capacity
        elif configuration.prefetch:
            assert grid == min(rows, 132 * configuration.minimum_blocks)
        else:
            assert grid == rows


def test_few_rows_of_a_large_size_are_spread_over_clusters() -> None:
    assert choose(0, 15, 2, (9, 0), 132).cluster == 8
    assert choose(0, 15, 5000, (9, 0), 132).cluster == 1
    assert choose(0, 15, 2, (8, 0), 108).cluster == 1


@pytest.mark.parametrize("log2_size", range(17))
def test_all_configurations_of_a_size_have_the_same_arithmetic(log2_size: int) -> None:
    """Bits come in the same order and through the same units, which is what makes results independent of rows."""
    for element_bytes in (2, 4):
        below_tile = set()
        above_tile = set()
        for candidate in TABLE[element_bytes, log2_size]:
            stages = stages_of(candidate.configuration)
            below_tile.add(tuple((stage.unit, stage.bits) for stage in stages if stage.bits[0] < 8))
            above_tile.add(tuple(bit for stage in stages for bit in stage.bits if stage.bits[0] >= 8))
        assert len(below_tile) == 1
        assert above_tile == {tuple(range(8, log2_size))}


@pytest.mark.parametrize("factor", [1.0, 6e4, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_the_stages_give_correct_rounding(size: int, dtype: torch.dtype, factor: float) -> None:
    """The numerics contract follows from the plan: one split, fp32 sums, one rounding."""
    x = ((torch.rand(max(4, 32768 // size), size, dtype=torch.float64) * 2 - 1) * factor).to(dtype)
    scale = size**-0.5 if factor <= 1 else 1 / size
    exact = oracle.transform(x, scale)
    stages = hadacore.plan(size, dtype, rows=x.shape[0], architecture="sm_90a").stages
    error = tolerances.relative_error(execute(stages, x, scale), exact)
    assert error <= tolerances.rounding_error(exact, dtype) * tolerances.CORRECT_ROUNDING_RATIO


def test_the_split_is_needed() -> None:
    """The test above can fail: one bfloat16 rounding between the products is far outside the contract."""
    x = torch.randn(64, 256, dtype=torch.float64).half()
    exact = oracle.transform(x)
    stages = hadacore.plan(256, torch.float16, architecture="sm_90a").stages
    rounded = execute(stages[:1], x.half(), 1.0).bfloat16()
    error = tolerances.relative_error(execute(stages[1:], rounded.float(), 1 / 16).half(), exact)
    assert error > 1.4 * tolerances.rounding_error(exact, torch.float16)


def test_printed_plan() -> None:
    text = str(hadacore.plan(32768, torch.float16, rows=2, signs=True, inverse=True, architecture="sm_90a"))
    for fragment in (
        "Plan for 2 rows of 32768, float16, on sm_90a, 132 multiprocessors",
        "H_32768 = Sylvester(2^15), natural order, symmetric",
        "signs    after the transform",
        "bits 0 1 3 4",
        "bits 11 12 13 14  in 2 warps x 8 blocks",
        "distributed shared memory",
        "launch   16 blocks of 64 threads, 16392 bytes of shared memory a block",
        "moves    262,144 bytes; 983,040 additions",
    ):
        assert fragment in text, (fragment, text)
    blocks = hadacore.plan(14336, torch.bfloat16, rows=3, block_size=2048, architecture="sm_80", multiprocessors=108)
    assert blocks.problem.rows == 21 and "7 blocks a row" in str(blocks)


def test_plan_for_the_cpu() -> None:
    planned = hadacore.plan(8, torch.float64, device="cpu")
    assert planned.backend == "cpu" and planned.configuration is None
    assert [stage.bits for stage in planned.stages] == [(0,), (1,), (2,)]
    assert "float64" in str(planned)


@pytest.mark.parametrize(
    ("dtype", "base_dtype", "products"),
    [
        (torch.bfloat16, torch.bfloat16, 1), (torch.float16, torch.float16, 1), (torch.bfloat16, torch.float32, 3),
        (torch.float16, torch.float32, 5), (torch.float32, torch.float32, 6),
    ],
)  # fmt: skip
def test_plan_with_a_base(dtype: torch.dtype, base_dtype: torch.dtype, products: int) -> None:
    """Of a size, 5 * 64, that has no Hadamard matrix of the library's; the base may be anywhere."""
    base = torch.empty(5, 5, dtype=base_dtype, device="meta")
    planned = hadacore.plan(640, dtype, rows=3, block_size=320, base=base, architecture="sm_90a")
    assert planned.problem.rows == 6 and planned.additions == 6 * 320 * (6 + 4)
    assert planned.configuration.base == (2 if base_dtype == torch.float32 else 1)
    assert planned.stages[0].base_order == 5 and math.prod(stage.radix for stage in planned.stages) == 320
    assert planned.multiply_adds == 6 * 16 * 16 * 64 * products and planned.predicted_ratio is None
    assert "matrix   the given base of order 5 (x) Sylvester(2^6), 2 blocks a row" in str(planned)
    on_cpu = hadacore.plan(640, dtype, block_size=320, base=base, device="cpu")
    assert sorted(stage.base_order for stage in on_cpu.stages)[-1] == 5 and len(on_cpu.stages) == 7


def test_a_base_of_order_one_is_a_base() -> None:
    planned = hadacore.plan(64, torch.float32, base=torch.ones(1, 1), architecture="sm_80")
    assert isinstance(planned.configuration, BaseConfiguration) and planned.configuration.order == 1


def test_messages_about_a_base() -> None:
    with pytest.raises(ValueError, match=r"a base of order 3 goes with sizes 3 \* 2\^k .* got x's last dimension 64"):
        hadacore.plan(64, base=torch.ones(3, 3).half())
    with pytest.raises(TypeError, match=r"base must be torch.float16 or torch.float32 .*got torch.float64"):
        hadacore.plan(64, base=torch.ones(4, 4).double())
    with pytest.raises(ValueError, match=r"base matrices up to order 2048, got order 2050"):
        hadacore.plan(2050, base=torch.empty(2050, 2050, device="meta"), architecture="sm_90a")
    with pytest.raises(ValueError, match=r"several smaller transforms .* plan block_size=1280 and 512 instead"):
        hadacore.plan(20480 << 5, base=torch.ones(5, 5), block_size=5 << 17, architecture="sm_90a")


@pytest.mark.gpu
def test_plan_for_this_gpu() -> None:
    planned = hadacore.plan(4096, rows=100)
    assert planned.backend == "cuda"
    assert planned.multiprocessors == torch.cuda.get_device_properties(0).multi_processor_count


def test_old_gpus_are_named() -> None:
    with pytest.raises(ValueError, match=r"compute capability 7.5 \(sm_75\).*need 8.0 .*use a newer GPU"):
        architecture_of((7, 5))


def test_unknown_new_gpus_get_safe_limits() -> None:
    assert architecture_of((12, 9)).shared_memory_per_block == 99 * 1024
    assert architecture_of((13, 0)).name == "sm_130"
    assert set(CHECKED) <= {architecture.name for architecture in ARCHITECTURES}


@pytest.mark.parametrize(
    ("n", "dtype", "measured"),
    [
        (3584, torch.bfloat16, 1.04), (3840, torch.bfloat16, 1.04), (14336, torch.bfloat16, 1.13), (18944, torch.bfloat16, 1.35),
        (13696, torch.float16, 2.17), (28672, torch.float16, 1.19), (5120, torch.float32, 2.32), (28672, torch.float32, 7.73),
    ],
)  # fmt: skip
def test_predicted_time_is_near_what_was_measured(n: int, dtype: torch.dtype, measured: float) -> None:
    """Times over a copy at 2^25 elements on an H200, of docs/performance.md."""
    found = hadacore.plan(n, dtype, rows=(1 << 25) // n, architecture="sm_90a")
    ratio = found.predicted_ratio
    assert ratio is not None and 0.85 < ratio / measured < 1.15
    assert f"predicts {ratio:.2f} times a copy of the same bytes, for many rows on an H200" in str(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_blocks_that_loop_over_rows_are_as_many_as_fit(architecture: Architecture) -> None:
    """More would be a second wave, and would have fewer registers for nothing."""
    for log2_size in range(11, 16):
        fusion = fusion_of(Quantizer(BY_NAME["fp8_e4m3"], 1 << log2_size), 1 << log2_size, False)
        for fused in (None, fusion):
            for candidate in candidates(1, log2_size, architecture, fused):
                c = candidate.configuration
                assert not c.prefetch or c.minimum_blocks <= architecture.blocks_that_fit(c.shared_bytes)
    assert [a.blocks_that_fit(0) for a in ARCHITECTURES if a.name == "sm_90a"] == [228]
    assert (
        BY_ARCHITECTURE["sm_120"].blocks_that_fit(24 * 1024) == 4
        and BY_ARCHITECTURE["sm_120"].blocks_that_fit(1 << 20) == 1
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_no_more_blocks_fit_than_loop_over_rows(architecture: Architecture) -> None:
    """A multiprocessor with room for another would get more of the work than its neighbours."""
    for size in (80, 896, 1152, 5120, 8960, 14336, 28672):
        matrix = factor(size)
        for c in base_candidates(1, matrix.base_order, matrix.log2, architecture):
            launched = c.launched_bytes(architecture)
            assert c.shared_bytes <= launched <= architecture.shared_memory_per_block
            fitting = architecture.blocks_that_fit(launched)
            loops = c.kernel == "fragment_rows" or c.stages == 2
            assert (fitting <= c.minimum_blocks) if loops else launched == c.shared_bytes
    assert BY_ARCHITECTURE["sm_90a"].least_bytes_of(1) == 114 * 1024


def test_a_plan_names_the_shared_memory_of_its_launch() -> None:
    """Two blocks of 256 threads: 57,344 bytes for two panels, 77,824 so that no third fits."""
    planned = hadacore.plan(14336, torch.bfloat16, rows=2341, architecture="sm_90a")
    assert "launch   264 blocks of 256 threads, 77824 bytes of shared memory a block" in str(planned)
    assert planned.configuration is not None and planned.configuration.shared_bytes == 57344
