"""Plans of quantization say what runs and what must move."""

from __future__ import annotations

import pytest
import torch

from hadacore import hadamard_quantize, plan_quantize, prologues
from hadacore.backends.cpu import native
from hadacore.formats import BY_NAME, FORMATS, Format, Quantizer
from hadacore.kernels.architectures import BY_NAME as ARCHITECTURES
from hadacore.kernels.configurations import candidates
from hadacore.kernels.fusion import fusion_of


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_bytes_are_those_of_the_tensors(format: Format) -> None:
    x = torch.randn(128, 256, dtype=torch.bfloat16)
    q = hadamard_quantize(x, format.name)
    moved = sum(t.numel() * t.element_size() for t in (x, q.codes, q.scales))
    plan = plan_quantize(256, format.name, rows=128, device="cpu")
    assert plan.bytes_to_move == moved
    if native.unavailable_reason() is None:
        assert plan.fused and f"to {format.name}: fused\n" in str(plan) and "in the same pass" in str(plan)
    else:
        assert not plan.fused and "the native library is not used" in str(plan)


def test_what_is_not_fused_says_why() -> None:
    plan = plan_quantize(64, "mxfp4", stochastic=True, device="cpu")
    assert not plan.fused and "to mxfp4: composed, not fused\n  because   " in str(plan)
    long = plan_quantize(1 << 17, "int8", device="cpu")
    assert not long.fused
    if native.unavailable_reason() is None:
        assert plan.composed_reason == "the native kernels round to nearest only"
        assert long.composed_reason is not None and "up to 2^16, got 2^17" in long.composed_reason
        assert plan_quantize(1 << 17, "int8", block_size=1 << 16, device="cpu").fused


def test_rows_that_no_quantizer_goes_with_take_one_launch_and_operations() -> None:
    plan = plan_quantize(1 << 16, "int8", architecture="sm_90a")
    assert plan.composed_reason == "a quantizer goes with powers of two up to 32768, not 65536"
    assert plan.transform.configuration is not None and plan.transform.passes is None
    fusion = fusion_of(Quantizer(BY_NAME["int8"], 1 << 16), 1 << 16, False)
    assert not candidates(2, 16, ARCHITECTURES["sm_90a"], fusion)


def test_prologues_count() -> None:
    elements, codes = 8 * 64, 8 * 64 + 8 * 4
    gated = plan_quantize(64, "int8", rows=8, prologue=prologues.silu_mul(order="gate_up").description)
    assert gated.bytes_to_move == 2 * 2 * elements + codes and "silu_mul:gate_up" in str(gated)
    weight = torch.ones(64)
    for residual, inputs in ((None, 1), (torch.ones(8, 64), 3)):
        description = prologues.rms_norm(weight, residual=residual).description
        plan = plan_quantize(64, "int8", torch.float32, rows=8, prologue=description)
        assert plan.bytes_to_move == inputs * 4 * elements + codes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_transform_that_ends_within_a_block_is_composed(dtype: torch.dtype) -> None:
    """Blocks of 128 of a row of 640 are no parts of its two transforms of 320, but its ten of 64 end with them."""
    plan = plan_quantize(640, "fp8_e4m3", dtype, granularity=128, block_size=320, architecture="sm_90a")
    assert plan.composed_reason == "a transform of 320 elements ends within 128 that share a scale"
    assert plan_quantize(640, "fp8_e4m3", dtype, granularity=128, architecture="sm_90a").fused
    assert plan_quantize(640, "fp8_e4m3", dtype, granularity=128, block_size=64, architecture="sm_90a").fused
    assert plan_quantize(640, "mxfp8", dtype, block_size=320, architecture="sm_90a").fused


def test_a_base() -> None:
    """Of sizes of which there is no matrix of the library's; where no kernel has it the plan says why."""
    for dtype, base_dtype in ((torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32,) * 2):
        base = torch.empty(5, 5, dtype=base_dtype, device="meta")
        for options in ({"architecture": "sm_90a"}, {"architecture": "sm_80", "inverse": True, "signs": True}):
            plan = plan_quantize(320, "fp8_e4m3", dtype, base=base, **options)
            assert plan.fused and "matrix   the given base of order 5 (x) Sylvester(2^6)" in str(plan)
    gated = prologues.silu_mul(order="gate_up").description
    norm = prologues.rms_norm(torch.ones(320)).description
    base = torch.empty(5, 5, device="meta")
    assert plan_quantize(320, "int8", base=base, prologue=gated, architecture="sm_90a").prologue_reason is None
    plan = plan_quantize(320, "int8", base=base, prologue=norm, architecture="sm_90a")
    assert plan.fused and plan.prologue_reason is None
    plan = plan_quantize(320, "int8", torch.float32, base=base, prologue=norm, block_size=320, architecture="sm_90a")
    assert plan.fused and plan.prologue_reason is None
    narrow = torch.empty(20, 20, device="meta")
    plan = plan_quantize(320, "int8", base=narrow, prologue=norm, architecture="sm_90a")
    reason = "a kernel that normalises holds rows of 64 columns and more, 320 is 20 * 2^4"
    assert plan.fused and plan.prologue_reason == reason
    square = torch.empty(128, 128, device="meta")
    plan = plan_quantize(128, "int8", base=square, architecture="sm_90a")
    assert plan.composed_reason == "128 is 128 * 2^0, and 2^0 columns are fewer than a vector of 8"
    plan = plan_quantize(640, "int8", base=base, block_size=320, architecture="sm_90a")
    assert plan.composed_reason == "640 elements that share a scale are several transforms of 320"
    plan = plan_quantize(640, "fp8_e4m3", granularity=128, base=base, block_size=320, architecture="sm_90a")
    assert plan.composed_reason == "a transform of 320 elements ends within 128 that share a scale"
    on_cpu = plan_quantize(320, "int8", base=base, device="cpu")
    assert on_cpu.fused == (native.unavailable_reason() is None)
    long = plan_quantize(1 << 17, "int8", base=torch.empty(1, 1, device="meta"), device="cpu")
    assert not long.fused


def test_lines() -> None:
    text = str(plan_quantize(256, "nvfp4", stochastic=True, architecture="sm_90a"))
    assert "one E4M3 scale for 16 elements, swizzled, stochastic" in text
    assert "on        sm_90a, 132 multiprocessors" in text and "predicts" not in text
    assert "one given fp32 scale" in str(plan_quantize(256, "fp8_e4m3", granularity="tensor", device="cpu"))


def test_messages() -> None:
    with pytest.raises(TypeError, match=r"x must be float16, .* got torch.int8"):
        plan_quantize(256, "int8", torch.int8)
    with pytest.raises(ValueError, match=r"stochastic rounding is for mxfp4, nvfp4"):
        plan_quantize(256, "int8", stochastic=True)
    with pytest.raises(TypeError, match=r"base must be torch.bfloat16 or torch.float32 .*got torch.float16"):
        plan_quantize(256, "int8", base=torch.ones(2, 2).half())
    with pytest.raises(ValueError, match=r"base matrices up to order 2048, got order 2050"):
        plan_quantize(4100, "int8", base=torch.empty(2050, 2050, device="meta"), architecture="sm_90a")
    with pytest.raises(ValueError, match=r"no Hadamard matrix of order 668"):
        plan_quantize(668, "int8")


def test_a_fused_plan_is_of_the_kernel_that_quantizes() -> None:
    """Its input is not widened, and its codes, prologue and blocks are those that are launched."""
    gated = prologues.silu_mul(order="gate_up").description
    plan = plan_quantize(14336, "fp8_e4m3", rows=4096, prologue=gated, architecture="sm_90a")
    c = plan.transform.configuration
    assert c is not None and c.kernel == "warpgroup_rows" and c.fusion is not None and c.fusion.prologue is not None
    assert plan.transform.problem.element.dtype == torch.bfloat16 and plan.transform.predicted_ratio is None
    assert "on the prologue's values as tf32" in str(plan) and str(c) in str(plan)
    few = plan_quantize(14336, "fp8_e4m3", rows=1, architecture="sm_90a").transform.configuration
    assert few is not None and few.cluster == 4 and few.fusion is not None and few.fusion.prologue is None
    power = plan_quantize(4096, "nvfp4", architecture="sm_90a").transform.configuration
    assert power is not None and power.kernel == "exchange_rows" and power.fusion is not None
    base = torch.empty(5, 5, dtype=torch.float32, device="meta")
    given = plan_quantize(320, "int8", base=base, architecture="sm_80").transform
    assert given.configuration is not None and given.configuration.fusion is not None and given.problem.base_order == 5


def test_a_prologue_by_pytorch_leaves_a_float32_kernel() -> None:
    norm = prologues.rms_norm(torch.ones(640)).description
    plan = plan_quantize(640, "mxfp8", prologue=norm, block_size=64, architecture="sm_90a")
    assert plan.fused and plan.prologue_reason is not None
    assert plan.transform.problem.element.dtype == torch.float32


def test_a_composed_plan_is_of_the_transform() -> None:
    plan = plan_quantize(640, "int8", block_size=64, architecture="sm_90a")
    assert not plan.fused and plan.transform.configuration is not None and plan.transform.configuration.fusion is None
    assert "transform of the fp32 values:" in str(plan) and "float32, on sm_90a" in str(plan)
