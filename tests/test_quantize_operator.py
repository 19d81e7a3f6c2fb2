"""The quantizing operator as a citizen of PyTorch: schema, fakes, compile, meta."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hadacore import hadamard_quantize, prologues
from hadacore.formats import BY_NAME, FORMATS, Format
from hadacore.quantization import QuantizedTensor

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
CASES = [(f, g) for f in FORMATS for g in f.granularities]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _arguments(x: torch.Tensor, format: Format, granularity: str | int, **options: Any) -> tuple[Any, ...]:
    n = x.shape[-1]
    block = 0 if granularity == "tensor" else n if granularity == "row" else granularity
    given = torch.tensor(0.5, device=x.device) if granularity == "tensor" or format.has_global_scale else None
    seed = 3 if format.stochastic else None
    defaults = {"signs": None, "prologue": "", "operands": [], "epsilon": 0.0, "residual": None, **options}
    return (
        x, format.name, block, given, 0.9, seed, format.can_swizzle, n, 0.1, defaults["signs"], False,
        defaults["prologue"], defaults["operands"], defaults["epsilon"], defaults["residual"],
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(3, 128), (2, 3, 256), (0, 128)])
@pytest.mark.parametrize(("format", "granularity"), CASES, ids=lambda c: c.name if isinstance(c, Format) else str(c))
def test_opcheck(format: Format, granularity: str | int, shape: tuple[int, ...], device: torch.device) -> None:
    x = torch.randn(shape, device=device)
    signs = torch.ones(shape[-1], device=device)
    arguments = _arguments(x, format, granularity, signs=signs)
    torch.library.opcheck(torch.ops.hadacore.hadamard_quantize.default, arguments, test_utils=UTILITIES)


@pytest.mark.parametrize("name", ["silu_mul:separate", "gelu_erf_mul:up_gate", "rms_norm:residual", "rope:half"])
def test_opcheck_with_prologue(name: str, device: torch.device) -> None:
    x = torch.randn(2, 3, 4, 128, device=device)
    format = next(f for f in FORMATS if f.name == "int8")
    table = torch.randn(9, 16, device=device)
    operands = {
        "silu": [torch.randn_like(x)],
        "gelu": [],
        "rms_": [torch.ones(128, device=device)],
        "rope": [table, table],
    }
    residual = torch.randn_like(x) if "residual" in name else None
    arguments = list(
        _arguments(x, format, "row", prologue=name, operands=operands[name[:4]], epsilon=1e-6, residual=residual)
    )
    if "up_gate" in name:
        arguments[2], arguments[7] = 64, 64
    torch.library.opcheck(torch.ops.hadacore.hadamard_quantize.default, tuple(arguments), test_utils=UTILITIES)


@pytest.mark.parametrize("inverse", [False, True])
def test_opcheck_with_a_base(inverse: bool, device: torch.device) -> None:
    x, base = torch.randn(3, 160, device=device), torch.randn(5, 6, device=device)[:, 1:]
    arguments = list(_arguments(x, BY_NAME["int8"], "row"))
    arguments[10] = inverse
    torch.library.opcheck(torch.ops.hadacore.hadamard_quantize.default, (*arguments, base, None), test_utils=UTILITIES)


def test_compile_fullgraph_with_a_base(device: torch.device) -> None:
    torch._dynamo.reset()
    base = torch.randn(5, 5, device=device)

    def f(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hadamard_quantize(x * 2, "fp8_e4m3", base=base.to(x.dtype), block_size=160, inverse=True).codes, x + 1

    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(3, 320, device=device).to(dtype)
        got = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
        assert all(_same(a, b) for a, b in zip(got, f(x), strict=True))


def test_compile_fullgraph_with_dynamic_rows(device: torch.device) -> None:
    torch._dynamo.reset()
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append(1)
        return graph.forward

    def f(x: torch.Tensor) -> tuple[QuantizedTensor, torch.Tensor]:
        q = hadamard_quantize(x * 2, "nvfp4", scale=0.3)
        codes, scales = hadamard_quantize(x, "fp8_e4m3", granularity=128)
        return q, codes.float() + scales.sum() + hadamard_quantize(x, "mxfp4", swizzled=False).dequantize()

    g = torch.compile(f, fullgraph=True, dynamic=True, backend=backend)
    for rows in (2, 3, 7, 200):
        x = torch.randn(rows, 256, device=device)
        (q, y), (expected, z) = g(x), f(x)
        assert _same(q.codes, expected.codes) and _same(q.scales, expected.scales) and q.shape == x.shape
        assert torch.equal(y, z)
    assert len(compiled) == 1


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_with_prologue_and_residual(backend: str, device: torch.device) -> None:
    torch._dynamo.reset()
    weight = torch.rand(64, device=device)

    def f(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        norm = prologues.rms_norm(weight, 1e-5, residual=residual)
        q = hadamard_quantize(x, "int4", granularity=32, prologue=norm)
        return q.codes, q.scales, q.dequantize() + residual

    x, residual = torch.randn(5, 64, device=device), torch.randn(5, 64, device=device)
    other = residual.clone()
    expected = f(x, residual)
    got = torch.compile(f, fullgraph=True, backend=backend)(x, other)
    assert torch.equal(residual, other)
    assert all(torch.equal(a, b) for a, b in zip(got[:2], expected[:2], strict=True))
    assert torch.allclose(got[2], expected[2], atol=1e-6)


def test_meta_tensors() -> None:
    x = torch.empty(130, 256, dtype=torch.bfloat16, device="meta")
    q = hadamard_quantize(x, "mxfp4")
    assert q.codes.is_meta and q.codes.shape == (130, 128) and q.scales.shape == (256 * 8,)
    assert hadamard_quantize(x, "fp8_e4m3", granularity=128).scales.stride() == (1, 130)
    rows = torch.empty(3, 80, device="meta")
    assert hadamard_quantize(rows, "int8", base=torch.empty(5, 5, device="meta")).codes.shape == (3, 80)


def test_every_device_has_the_operator() -> None:
    for key in ("CPU", "CUDA", "Meta"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("hadacore::hadamard_quantize", key)
