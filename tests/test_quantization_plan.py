"""Plans of quantization say what runs and what must move."""

from __future__ import annotations

import pytest
import torch

from hadacore import hadamard_quantize, plan_quantize, prologues
from hadacore.backends.cpu import native
from hadacore.formats import FORMATS, Format


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


def test_prologues_count() -> None:
    elements, codes = 8 * 64, 8 * 64 + 8 * 4
    gated = plan_quantize(64, "int8", rows=8, prologue=prologues.silu_mul(order="gate_up").description)
    assert gated.bytes_to_move == 2 * 2 * elements + codes and "silu_mul:gate_up" in str(gated)
    weight = torch.ones(64)
    for residual, inputs in ((None, 1), (torch.ones(8, 64), 3)):
        description = prologues.rms_norm(weight, residual=residual).description
        plan = plan_quantize(64, "int8", torch.float32, rows=8, prologue=description)
        assert plan.bytes_to_move == inputs * 4 * elements + codes


def test_lines() -> None:
    text = str(plan_quantize(256, "nvfp4", stochastic=True, architecture="sm_90a"))
    assert "one E4M3 scale for 16 elements, swizzled, stochastic" in text
    assert "float32, on sm_90a" in text
    assert "one given fp32 scale" in str(plan_quantize(256, "fp8_e4m3", granularity="tensor", device="cpu"))


def test_messages() -> None:
    with pytest.raises(TypeError, match=r"x must be float16, .* got torch.int8"):
        plan_quantize(256, "int8", torch.int8)
    with pytest.raises(ValueError, match=r"stochastic rounding is for mxfp4, nvfp4"):
        plan_quantize(256, "int8", stochastic=True)
    with pytest.raises(ValueError, match=r"no Hadamard matrix of order 668"):
        plan_quantize(668, "int8")
