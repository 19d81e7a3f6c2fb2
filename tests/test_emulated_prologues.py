"""Kernels with a prologue, run on the CPU by the emulator, against the prologue's reference and a float64 transform."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hadacore import prologues
from hadacore.formats import BY_NAME, Quantizer
from hadacore.kernels.architectures import BY_NAME as ARCHITECTURES
from hadacore.kernels.base_configurations import BaseConfiguration, base_candidates, base_source
from hadacore.kernels.configurations import SIGNS_BEFORE, KernelConfiguration, candidates
from hadacore.kernels.fusion import fused_prologue, fusion_of, fusion_of_heads, scale_factor
from hadacore.kernels.heads import HeadsConfiguration
from hadacore.kernels.warpgroup_configurations import WarpgroupConfiguration
from hadacore.prologues import GatedActivation, Prologue, RMSNorm, RotaryEmbedding
from hadacore.quantization import prologue_reference
from tests import oracle, tolerances
from tests.emulator import EmulatedKernel, Operands, Scales, compiler
from tests.quantized_values import assert_half_a_step_within

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="the emulator compiles the kernels with g++, which is not installed"
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # by ELEMENT


def check(
    configuration: KernelConfiguration | BaseConfiguration | WarpgroupConfiguration,
    x: Tensor,
    prologue: Prologue,
    *,
    heads: int = 1,
    signs: Tensor | None = None,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """INT8 codes with a scale per row are within half a step of the rotated reference; returns codes and scales."""
    n = configuration.size
    rows = x[..., 0].numel()
    description = prologue.description
    extra = {}
    if isinstance(description, RotaryEmbedding):
        cos = prologue.operands[0]
        extra = {"rotary_pairs": cos.shape[1], "table_float32": cos.dtype == torch.float32}
        if len(prologue.operands) > 2:
            extra["position_bytes"] = prologue.operands[2].element_size()
    quantizer = Quantizer(BY_NAME["int8"], n)
    fusion = fusion_of(quantizer, n, False, fused_prologue(description, n, **extra), heads)
    fused = replace(configuration, fusion=fusion)
    residual = None if prologue.residual is None else prologue.residual.clone()
    values = prologue_reference.apply(description, x, prologue.operands, prologue.residual)
    codes, scales = torch.full((rows, n), 77, dtype=torch.int8), torch.full((rows,), float("nan"))
    tokens = 1
    if isinstance(description, RotaryEmbedding):
        tokens = prologue.operands[2].numel() if len(prologue.operands) > 2 else x.shape[-3]
    given = {} if base is None else {"base": base, "base_strides": base.stride()}
    EmulatedKernel(fused).run(
        x.contiguous(), codes, n**-0.5, rows, signs=signs, grid=fused.grid(rows, 1),
        scales=Scales(scales, None, scale_factor(quantizer), rows),
        operands=Operands(prologue.operands, residual, getattr(description, "epsilon", 0.0), tokens), **given,
    )  # fmt: skip
    rotated = oracle.transform(values.double().reshape(rows, n), signs=signs, base=base)
    bound = tolerances.rotated_bound(
        values.double().reshape(rows, n), n, n**-0.5, x.dtype, True, base, tensor_cores=True
    )
    assert_half_a_step_within(codes, scales, rotated, bound)
    if residual is not None:
        assert torch.equal(residual, prologue.residual)
    return codes, scales


@pytest.mark.parametrize("code", range(3))
def test_gated_rows_of_several_transforms(code: int) -> None:
    """A block has a row of gates and ups, and gives it one scale."""
    torch.manual_seed(0)
    n, size, dtype = 1280, 128, (torch.float16, torch.bfloat16, torch.float32)[code]
    gate, up = 4 * torch.randn(3, n).to(dtype), torch.randn(3, n).to(dtype)
    prologue, quantizer = prologues.silu_mul(order="gate_up"), Quantizer(BY_NAME["int8"], n)
    fusion = fusion_of(quantizer, n, False, fused_prologue(prologue.description, n))
    (candidate,) = candidates(code, 7, ARCHITECTURES["sm_90a"], fusion)
    codes, scales = torch.zeros(3, n, dtype=torch.int8), torch.zeros(3)
    EmulatedKernel(candidate.configuration).run(
        torch.cat((gate, up), -1), codes, size**-0.5, 3 * n // size, grid=3,
        scales=Scales(scales, None, scale_factor(quantizer), 3), operands=Operands((), None, 0.0, 1),
    )  # fmt: skip
    values = prologue_reference.apply(prologue.description, torch.cat((gate, up), -1), (), None).double()
    rotated = oracle.transform(values, block_size=size)
    bound = tolerances.rotated_bound(values, size, size**-0.5, dtype, True, tensor_cores=True)
    assert_half_a_step_within(codes, scales, rotated, bound)
    largest = rotated.abs().amax(-1)
    assert ((scales.double() * 127 - largest).abs() <= bound.amax(-1)).all()


def _configurations(log2_size: int, code: int) -> list[KernelConfiguration]:
    fusion = fusion_of(Quantizer(BY_NAME["int8"], 1 << log2_size), 1 << log2_size, False)
    with_prologue = replace(fusion, prologue=fused_prologue(RMSNorm(1e-6, False), 1 << log2_size))
    found = candidates(code, log2_size, ARCHITECTURES["sm_90a"], with_prologue)
    return list(dict.fromkeys(replace(c.configuration, fusion=None) for c in found))


def _rows(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


CASES = [(4, 0, 70), (7, 1, 9), (8, 2, 5), (10, 1, 3), (11, 0, 2), (13, 1, 2)]


@pytest.mark.parametrize(("log2_size", "code", "rows"), CASES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf"])
def test_gated_activations(log2_size: int, code: int, rows: int, activation: str) -> None:
    torch.manual_seed(0)
    n, dtype = 1 << log2_size, DTYPES[code]

    def made(up: Tensor | None, order: str | None) -> Prologue:
        if activation == "silu":
            return prologues.silu_mul(up, order=order)
        return prologues.gelu_mul(up, order=order, approximate="tanh" if activation == "gelu_tanh" else "none")

    gate, up = 4 * _rows(rows, n, dtype=dtype), _rows(rows, n, dtype=dtype)
    for configuration in _configurations(log2_size, code)[-2:]:
        separate = check(configuration, gate, made(up, None))
        for order, parts in (("gate_up", (gate, up)), ("up_gate", (up, gate))):
            together = check(configuration, torch.cat(parts, -1), made(None, order))
            assert torch.equal(together[0], separate[0]) and torch.equal(together[1], separate[1])


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize(("log2_size", "code", "rows"), [*CASES, (5, 2, 19), (14, 0, 1)])
def test_rms_norm(log2_size: int, code: int, rows: int, has_residual: bool) -> None:
    """All configurations of a size give the same bits: squares are added in an order of their own."""
    torch.manual_seed(0)
    n, dtype = 1 << log2_size, DTYPES[code]
    x, weight, stream = (_rows(*shape, dtype=dtype) for shape in ((rows, n), (n,), (rows, n)))
    results = []
    for configuration in _configurations(log2_size, code):
        residual = stream.clone() if has_residual else None
        results.append(check(configuration, 5 * x, prologues.rms_norm(weight, 1e-3, residual=residual)))
    assert all(torch.equal(a[0], results[0][0]) and torch.equal(a[1], results[0][1]) for a in results)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("table", [torch.float32, None])
@pytest.mark.parametrize(("log2_size", "code"), [(6, 0), (7, 1), (8, 2), (6, 2), (4, 2), (4, 1)])
def test_rotary_embedding(log2_size: int, code: int, table: torch.dtype | None, interleaved: bool) -> None:
    torch.manual_seed(0)
    n, dtype = 1 << log2_size, DTYPES[code]
    x = _rows(2, 3, 5, n, dtype=dtype)  # batch, tokens, heads
    for pairs, positions in (
        (n // 2, None),
        (n // 4, torch.tensor([4, 0, 2], dtype=torch.int32)),
        (n // 2, torch.tensor([[3, 1, 0], [2, 2, 4]])),
    ):
        if pairs % (4 if code == 2 else 8):
            continue  # not whole vectors, which the kernels do not take
        angles = torch.rand(7, pairs, dtype=torch.float64) * 6
        cos, sin = (f(angles).to(table or dtype) for f in (torch.cos, torch.sin))
        rope = prologues.rope(cos, sin, positions, interleaved=interleaved)
        check(_configurations(log2_size, code)[0], x, rope, heads=5)


def test_signs_come_after_the_prologue() -> None:
    torch.manual_seed(0)
    for log2_size, code in ((7, 1), (8, 2), (11, 0)):
        n, dtype = 1 << log2_size, DTYPES[code]
        signs = (torch.randint(0, 2, (1, n)) * 2 - 1).to(dtype)
        configuration = _configurations(log2_size, code)[-1].with_options(SIGNS_BEFORE, False)
        check(configuration, _rows(3, n, dtype=dtype), prologues.silu_mul(_rows(3, n, dtype=dtype)), signs=signs)


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize(
    ("order", "log2_columns", "rows"), [(28, 4, 9), (20, 6, 3), (12, 9, 2), (28, 9, 2), (172, 6, 1)]
)
def test_gated_activations_with_a_base(order: int, log2_columns: int, rows: int, code: int) -> None:
    torch.manual_seed(0)
    n, dtype = order << log2_columns, DTYPES[code]
    fusion = fusion_of(Quantizer(BY_NAME["int8"], n), n, False, fused_prologue(GatedActivation("silu", "separate"), n))
    found = base_candidates(code, order, log2_columns, ARCHITECTURES["sm_90a"], fusion=fusion)
    gate, up = 4 * _rows(rows, n, dtype=dtype), _rows(rows, n, dtype=dtype)
    signs = (torch.randint(0, 2, (1, n)) * 2 - 1).to(dtype)
    for c in found:
        separate = check(c, gate, prologues.silu_mul(up))
        for order_of_halves, parts in (("gate_up", (gate, up)), ("up_gate", (up, gate))):
            together = check(c, torch.cat(parts, -1), prologues.silu_mul(order=order_of_halves))
            assert torch.equal(together[0], separate[0]) and torch.equal(together[1], separate[1])
    check(found[-1].with_options(SIGNS_BEFORE, False), gate, prologues.silu_mul(up), signs=signs)


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize(("order", "log2_columns", "rows", "code"), [
    (12, 6, 19, 1), (20, 6, 3, 2), (20, 7, 3, 0), (28, 7, 5, 1), (28, 9, 2, 0), (28, 9, 1, 2), (172, 6, 2, 1), (20, 5, 3, 2),
])  # fmt: skip
def test_rms_norm_with_a_base(order: int, log2_columns: int, rows: int, code: int, has_residual: bool) -> None:
    """All configurations of a size give the same bits here too, whatever they divide a row into."""
    torch.manual_seed(0)
    n, dtype = order << log2_columns, DTYPES[code]
    x, weight, stream = (_rows(*shape, dtype=dtype) for shape in ((rows, n), (n,), (rows, n)))
    description = RMSNorm(1e-3, has_residual)
    fusion = fusion_of(Quantizer(BY_NAME["int8"], n), n, False, fused_prologue(description, n))
    results = []
    for architecture in ("sm_80", "sm_90a"):
        found = base_candidates(code, order, log2_columns, ARCHITECTURES[architecture], fusion=fusion)
        assert found or (code == 2 and order << log2_columns > 8192)
        for c in found:
            residual = stream.clone() if has_residual else None
            results.append(check(replace(c, fusion=None), 5 * x, prologues.rms_norm(weight, 1e-3, residual=residual)))
        of_architecture = results[-len(found) :] if found else []
        assert all(torch.equal(a[i], of_architecture[0][i]) for a in of_architecture for i in (0, 1))
    if code == 2:
        assert all(torch.equal(a[1], results[0][1]) for a in results)
    if results:
        signs = (torch.randint(0, 2, (1, n)) * 2 - 1).to(dtype)
        with_signs = replace(found[-1], fusion=None).with_options(SIGNS_BEFORE, False)
        check(with_signs, x, prologues.rms_norm(weight, 1e-3, residual=stream if has_residual else None), signs=signs)


@pytest.mark.parametrize("code", [0, 1])
def test_prologues_with_a_base_of_half_the_order(code: int) -> None:
    """The values that are added to the products are the two parts that they were multiplied in."""
    torch.manual_seed(0)
    n, dtype = 924 << 5, DTYPES[code]
    gate, up = 4 * _rows(1, n, dtype=dtype), _rows(1, n, dtype=dtype)
    made = {
        GatedActivation("silu", "separate"): prologues.silu_mul(up),
        RMSNorm(1e-3, False): prologues.rms_norm(up[0], 1e-3),
    }
    for description, prologue in made.items():
        fusion = fusion_of(Quantizer(BY_NAME["int8"], n), n, False, fused_prologue(description, n))
        found = base_candidates(code, 924, 5, ARCHITECTURES["sm_90a"], fusion=fusion)
        assert len(found) > 1 and all(c.halves for c in found)
        results = [check(replace(c, fusion=None), gate, prologue) for c in found]
        assert all(torch.equal(a[i], results[0][i]) for a in results for i in (0, 1))


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(0, torch.float16), (0, torch.float32), (1, torch.bfloat16), (1, torch.float32), (2, torch.float32)],
)
def test_prologues_with_a_base_of_the_caller(code: int, dtype: torch.dtype) -> None:
    """A float16 base is in two bfloat16 parts there, since what it is multiplied by is."""
    torch.manual_seed(0)
    for order, log2_columns, rows in ((5, 3, 17), (28, 4, 9), (20, 6, 3), (28, 9, 2)):
        n = order << log2_columns
        base = torch.randn(order, order).to(dtype)
        prologue = fused_prologue(GatedActivation("silu", "separate"), n)
        fusion = fusion_of(Quantizer(BY_NAME["int8"], n), n, False, prologue)
        source = base_source(code, dtype == torch.float32)
        found = base_candidates(code, order, log2_columns, ARCHITECTURES["sm_90a"], base=source, fusion=fusion)
        gate, up = 4 * _rows(rows, n, dtype=DTYPES[code]), _rows(rows, n, dtype=DTYPES[code])
        signs = (torch.randint(0, 2, (1, n)) * 2 - 1).to(gate.dtype)
        for c in found:
            check(replace(c, fusion=None), gate, prologues.silu_mul(up), base=base)
            if c.unit_rows == 1 and c.splits == 1:
                check(replace(c, fusion=None), gate, prologues.rms_norm(up[0], 1e-3, residual=up.clone()), base=base)
        with_signs = replace(found[-1], fusion=None).with_options(SIGNS_BEFORE, False)
        check(with_signs, gate, prologues.silu_mul(up), signs=signs, base=base)


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("has_rope", [False, True])
@pytest.mark.parametrize(
    ("log2_size", "code", "heads", "kv_heads"), [(7, 1, 8, 2), (6, 0, 4, 4), (8, 2, 3, 1), (7, 0, 2, 2)]
)
def test_two_passes_over_heads(
    log2_size: int, code: int, heads: int, kv_heads: int, has_rope: bool, rotates: bool
) -> None:
    """The first pass measures each (batch, kv head); the second rotates again and quantizes with that."""
    torch.manual_seed(0)
    n, dtype, batch, tokens = 1 << log2_size, DTYPES[code], 2, 70
    x = _rows(batch, tokens, heads, n, dtype=dtype)
    prologue, operands, values = None, Operands(), x
    if has_rope:
        angles = torch.rand(tokens, n // 2, dtype=torch.float64) * 6
        rope = prologues.rope(angles.cos().float(), angles.sin().float())
        prologue = fused_prologue(rope.description, n, n // 2, True)
        operands = Operands(rope.operands, tokens=tokens)
        values = prologue_reference.apply(rope.description, x, rope.operands, None)
    signs = (torch.randint(0, 2, (1, n)) * 2 - 1).to(dtype)
    quantizer = Quantizer(BY_NAME["fp8_e4m3"], n)
    fusion = fusion_of_heads(quantizer, False, heads, kv_heads, prologue, rotates)
    places, scales = torch.zeros(batch, kv_heads, HeadsConfiguration.places), torch.zeros(batch, kv_heads)
    codes = torch.zeros(x.shape, dtype=torch.uint8)
    first = HeadsConfiguration(code, log2_size, heads, kv_heads, True, fusion, signs=SIGNS_BEFORE)
    made_of = Scales(scales, None, scale_factor(quantizer), tokens)
    EmulatedKernel(first).run(
        x, places, n**-0.5, batch * tokens * heads, signs=signs, grid=first.grid(batch * tokens * heads, 1),
        scales=made_of, operands=operands if has_rope else None,
    )  # fmt: skip
    rotated = values.double() * signs.double() * n**-0.5
    if rotates:
        rotated = oracle.transform(values.double().reshape(-1, n), signs=signs)
    rotated = rotated.reshape(batch, tokens, kv_heads, -1)
    expected, magnitudes = rotated.abs().amax((1, 3)), places.amax(2)
    assert ((magnitudes.double() - expected).abs() <= 2.0**-12 * expected).all()
    second = replace(first, measures=False)
    EmulatedKernel(second).run(
        x, codes, n**-0.5, batch * tokens * heads, signs=signs, grid=second.grid(batch * tokens * heads, 1),
        scales=replace(made_of, given=places), operands=operands if has_rope else None,
    )  # fmt: skip
    assert torch.equal(scales, (magnitudes * torch.tensor(scale_factor(quantizer))))
    decoded = codes.view(torch.float8_e4m3fn).double().view(rotated.shape) * scales.double()[:, None, :, None]
    step = (decoded.abs() * 2.0**-3).clamp(min=2.0**-9 * scales.double()[:, None, :, None])
    assert ((decoded - rotated).abs() <= step * 0.5 + 2.0**-12 * expected[:, None, :, None]).all()
