"""Prologues: each against its definition in float64, on every option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hadacore import hadamard_quantize, hadamard_transform, prologues
from hadacore.formats import BY_NAME, Quantizer
from hadacore.prologues import Prologue
from hadacore.quantization import prologue_reference, reference
from tests import oracle, tolerances
from tests.quantized_values import assert_quantized_within

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
ROUNDOFF = 2.0**-24


def _apply(prologue: Prologue, x: torch.Tensor) -> torch.Tensor:
    return prologue_reference.apply(prologue.description, x, prologue.operands, prologue.residual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["separate", "gate_up", "up_gate"])
@pytest.mark.parametrize("activation", ["silu", "tanh", "none"])
def test_gated_activations(activation: str, layout: str, dtype: torch.dtype, device: torch.device) -> None:
    gate, up = torch.randn(5, 64).to(dtype).to(device) * 4, torch.randn(5, 64).to(dtype).to(device)
    options: dict[str, Any] = {} if activation == "silu" else {"approximate": activation}
    make = prologues.silu_mul if activation == "silu" else prologues.gelu_mul
    if layout == "separate":
        prologue, x = make(up, **options), gate
    else:
        prologue, x = make(order=layout, **options), torch.cat((gate, up) if layout == "gate_up" else (up, gate), -1)
    y = _apply(prologue, x)
    g, u = gate.double(), up.double()
    exact = (F.silu(g) if activation == "silu" else F.gelu(g, approximate=activation)) * u
    assert y.dtype == torch.float32 and y.shape == gate.shape
    # exp and tanh of the fp32 libraries are good to a few units of their argument's size; far below zero, where
    # tanh and erf near -1 cancel, the error is that of a number near g.
    bound = 16 * ROUNDOFF * (exact.abs() + (g * u).abs())
    assert ((y.double() - exact).abs() <= bound).all()
    q = hadamard_quantize(x, "int8", prologue=prologue)
    rotated = tolerances.rotated_bound(y, 64, 64**-0.5, dtype, prologue=True)
    rotated = rotated + 64**-0.5 * bound.sum(-1, keepdim=True)
    assert_quantized_within(
        q, oracle.transform(exact), rotated, differing=0.3 if device.type == "cuda" and dtype != torch.float32 else 0.05
    )
    codes, scales = reference.quantize(hadamard_transform(y), Quantizer(BY_NAME["int8"], 64))
    assert q.shape == gate.shape
    if device.type == "cpu":  # on a GPU one kernel does both, and adds in another order
        assert torch.equal(q.codes, codes) and torch.equal(q.scales, scales)


def test_gates_of_any_size_are_finite(device: torch.device) -> None:
    gate = torch.tensor([[-3e38, -1000.0, -90.0, 0.0, 90.0, 1000.0, 1e30, 1e38]], device=device)
    for prologue in (
        prologues.silu_mul(torch.ones_like(gate)),
        prologues.gelu_mul(torch.ones_like(gate), approximate="none"),
    ):
        y = _apply(prologue, gate)
        assert torch.allclose(y, gate.clamp(min=0), atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(with_residual: bool, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(3, 7, 128).to(dtype).to(device)
    weight = torch.rand(128).to(dtype).to(device)
    residual = torch.randn(3, 7, 128).to(dtype).to(device) if with_residual else None
    z = x.float() + (0 if residual is None else residual.float())
    y = _apply(prologues.rms_norm(weight, 1e-3, residual=residual), x)
    exact = z.double() / (z.double().square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    assert ((y.double() - exact).abs() <= 16 * ROUNDOFF * exact.abs()).all()
    if residual is not None:
        assert residual.dtype == dtype and torch.equal(residual, z.to(dtype))


def test_the_residual_is_written_in_place_whatever_its_strides(device: torch.device) -> None:
    storage = torch.zeros(128, 6, device=device)
    residual = storage.t()
    x = torch.randn(6, 128, device=device)
    hadamard_quantize(x, "int8", prologue=prologues.rms_norm(torch.ones(128, device=device), residual=residual))
    assert torch.equal(storage.t(), x)


def test_writing_the_residual_is_noticed_by_autograd() -> None:
    weight = torch.randn(8, requires_grad=True)
    residual = torch.randn(4, 8)
    y = (weight * residual).sum()
    hadamard_quantize(torch.randn(4, 8), "int8", prologue=prologues.rms_norm(torch.ones(8), residual=residual))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def _tables(positions: int, pairs: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(positions)[:, None] * 100.0 ** -(torch.arange(pairs) / pairs)
    return angles.cos().to(device), angles.sin().to(device)


@pytest.mark.parametrize("pairs", [4, 8])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", [(5,), (2, 5)])
def test_rope(shape: tuple[int, ...], interleaved: bool, pairs: int, device: torch.device) -> None:
    """Pair (a, b) as the complex number a + ib times exp(i angle)."""
    cos, sin = _tables(40, pairs, device)
    x = torch.randn(2, 5, 3, 16, device=device)
    positions = torch.randint(0, 40, shape, device=device)
    y = _apply(prologues.rope(cos, sin, positions, interleaved=interleaved), x)
    turned = x[..., : 2 * pairs].double()
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., :pairs], turned[..., pairs:])
    turn = torch.complex(cos.double(), sin.double())[positions].unsqueeze(-2)
    z = torch.complex(a, b) * turn
    got = y[..., : 2 * pairs]
    real, imaginary = (got[..., 0::2], got[..., 1::2]) if interleaved else (got[..., :pairs], got[..., pairs:])
    assert torch.allclose(real.double(), z.real, atol=1e-6) and torch.allclose(imaginary.double(), z.imag, atol=1e-6)
    assert torch.equal(y[..., 2 * pairs :], x[..., 2 * pairs :])
    int32 = prologues.rope(cos, sin, positions.int(), interleaved=interleaved)
    assert torch.equal(_apply(int32, x), y)


def test_rope_without_positions_counts_tokens(device: torch.device) -> None:
    cos, sin = _tables(9, 8, device)
    x = torch.randn(2, 5, 3, 16, device=device)
    assert torch.equal(
        _apply(prologues.rope(cos, sin), x), _apply(prologues.rope(cos, sin, torch.arange(5, device=device)), x)
    )
    q = hadamard_quantize(x, "fp8_e4m3", prologue=prologues.rope(cos, sin))
    y = _apply(prologues.rope(cos, sin), x)
    bound = tolerances.rotated_bound(y, 16, 0.25, torch.float32, prologue=True)
    assert_quantized_within(q, oracle.transform(y), bound)


def test_rope_leaves_its_input_alone(device: torch.device) -> None:
    cos, sin = _tables(5, 8, device)
    x = torch.randn(5, 3, 16, device=device)
    before = x.clone()
    _apply(prologues.rope(cos, sin), x)
    assert torch.equal(x, before)


def test_descriptions_are_values_with_names() -> None:
    weight = torch.ones(4)
    made = [
        prologues.silu_mul(order="gate_up"),
        prologues.gelu_mul(weight, approximate="none"),
        prologues.rms_norm(weight, 0.5),
        prologues.rms_norm(weight, 0.5, residual=weight),
        prologues.rope(torch.ones(2, 2), torch.ones(2, 2), interleaved=True),
    ]
    assert [p.description.name for p in made] == [
        "silu_mul:gate_up", "gelu_erf_mul:separate", "rms_norm", "rms_norm:residual", "rope:interleaved",
    ]  # fmt: skip
    for prologue in made:
        assert prologues.description_of(prologue.description.name, 0.5) == prologue.description
        assert hash(prologue.description) == hash(prologues.description_of(prologue.description.name, 0.5))
