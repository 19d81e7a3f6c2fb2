"""RotatedLinear: against the fp32 layer, with every GEMM, saved and loaded."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hadacore
from hadacore import BackendUnavailableError, RotatedLinear, prologues
from hadacore.formats import FORMATS
from hadacore.quantization import products

# Largest allowed error of the result over its norm: 1.1 to 1.2 times what was measured with normal data and no bias
# (0.0100, 0.0368, 0.0734, 0.179, 0.0411, 0.160, 0.136).
ERRORS = {
    "int8": 0.012,
    "fp8_e4m3": 0.042,
    "fp8_e5m2": 0.083,
    "int4": 0.2,
    "mxfp8": 0.047,
    "mxfp4": 0.18,
    "nvfp4": 0.155,
}


def _layer(device: torch.device, bias: bool = True) -> nn.Linear:
    return nn.Linear(256, 96, bias=bias).to(device)


def _error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("format", [f.name for f in FORMATS])
def test_matches_the_fp32_layer(format: str, bias: bool, device: torch.device) -> None:
    layer = _layer(device, bias)
    signs = torch.randint(0, 2, (256,), device=device) * 2 - 1
    for options in ({}, {"block_size": 64}, {"signs": signs}):
        fast = RotatedLinear.from_linear(layer, format, gemm="dequantize", **options)
        x = torch.randn(2, 40, 256, device=device)
        y = fast(x)
        assert y.dtype == torch.float32 and y.shape == (2, 40, 96)
        assert _error(y, layer(x).detach()) < ERRORS[format]


def test_a_matrix_that_is_not_symmetric(device: torch.device) -> None:
    """Order 28, of which forward and transpose differ: weight and activation are rotated alike."""
    layer, x = nn.Linear(28 * 8, 48, bias=False).to(device), torch.randn(40, 28 * 8, device=device)
    fast = RotatedLinear.from_linear(layer, "int8", gemm="int_mm")
    assert _error(fast(x), layer(x).detach()) < ERRORS["int8"]


@pytest.mark.parametrize("format", [f.name for f in FORMATS])
def test_small_weights_lose_nothing(format: str) -> None:
    layer, x = _layer(torch.device("cpu"), bias=False), torch.randn(40, 256)
    with torch.no_grad():
        layer.weight.mul_(1e-4)
    fast = RotatedLinear.from_linear(layer, format, gemm="dequantize")
    assert _error(fast(x), layer(x).detach()) < ERRORS[format]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int_mm_is_the_dequantized_product(dtype: torch.dtype, device: torch.device) -> None:
    layer = _layer(device)
    x = torch.randn(40, 256, device=device).to(dtype)
    fast = RotatedLinear.from_linear(layer, "int8", gemm="int_mm")(x)
    slow = RotatedLinear.from_linear(layer, "int8", gemm="dequantize")(x)
    assert fast.dtype == dtype and torch.allclose(fast.float(), slow.float(), rtol=2.0**-7, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_scaled_mm_is_the_dequantized_product(dtype: torch.dtype, device: torch.device) -> None:
    layer = _layer(device)
    x = torch.randn(48, 256, device=device).to(dtype)
    fast = RotatedLinear.from_linear(layer, "fp8_e4m3", gemm="scaled_mm")(x)
    slow = RotatedLinear.from_linear(layer, "fp8_e4m3", gemm="dequantize")(x)
    assert fast.dtype == dtype and _error(fast, slow.float()) < 2.0**-7


# Format, granularity, and whether the CPU multiplies it (torch 2.13; it has the first two).
SCALED = [("fp8_e4m3", "row"), ("fp8_e4m3", "tensor"), ("fp8_e4m3", 128), ("mxfp8", 32), ("nvfp4", 16)]


def _calibrated(format: str, granularity: str | int, x: torch.Tensor) -> torch.Tensor | None:
    if granularity != "tensor" and format != "nvfp4":
        return None
    return hadacore.static_scale(hadacore.hadamard_transform(x.float()).abs().amax(), format)


@pytest.mark.parametrize(("format", "granularity"), SCALED)
def test_scaled_mm_matches_the_layer_or_says_that_it_cannot(
    format: str, granularity: str | int, device: torch.device
) -> None:
    """On a GPU from sm_89 on FP8 per tensor and row must run, on Hopper 1x128, from sm_100 on MXFP8 and NVFP4."""
    layer = _layer(device)
    x = torch.randn(2, 24, 256, device=device)
    exact, options = (
        layer(x).detach(),
        {"granularity": granularity, "activation_scale": _calibrated(format, granularity, x)},
    )
    fast = RotatedLinear.from_linear(layer, format, gemm="scaled_mm", **options)
    reason = products.why_not_scaled(format, granularity, device)
    must = granularity in ("row", "tensor")
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        must = capability >= {32: (10, 0), 16: (10, 0), 128: (9, 0)}.get(granularity, (8, 9))
        if granularity == 128:
            must = capability == (9, 0) and hasattr(nn.functional, "scaled_mm")
    assert reason is None or not must, reason
    if reason is not None:
        with pytest.raises(BackendUnavailableError, match=f"has no scaled_mm of {format} .*Use gemm='dequantize'"):
            fast(x)
        return
    y = fast(x)
    slow = RotatedLinear.from_linear(layer, format, gemm="dequantize", **options)(x)
    assert y.shape == (2, 24, 96) and y.dtype == torch.float32
    assert _error(y, exact) < ERRORS[format] and _error(y, slow) < 2.0**-7
    assert _error(fast(x.bfloat16()), exact) < 1.1 * ERRORS[format]
    assert fast(x[:0]).shape == (0, 24, 96) and _error(fast(x[0, :16]), slow[0, :16]) < 2.0**-7


@pytest.mark.skipif(not hasattr(nn.functional, "scaled_mm"), reason="scaled_mm came with torch 2.10")
@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize(("format", "granularity"), SCALED)
def test_scaled_mm_takes_the_layouts(format: str, granularity: str | int, bad: bool) -> None:
    """Devices that have the product are rare, but its shapes, strides and types are checked without one."""
    scale = 0.1 if granularity == "tensor" else None
    x, weight = (
        hadacore.hadamard_quantize(torch.randn(rows, 256, device="meta"), format, granularity=granularity, scale=scale)
        for rows in (40, 96)
    )
    if not bad:
        y = products._scaled_product(x, weight)
        assert y.shape == (40, 96) and y.dtype == torch.bfloat16 and y.is_meta
        return
    broken = torch.empty(3, 3, device="meta", dtype=weight.scales.dtype)
    with pytest.raises((RuntimeError, ValueError)):
        products._scaled_product(x, dataclasses.replace(weight, scales=broken))


def test_before_torch_2_10_rows_and_tensors_are_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = _layer(torch.device("cpu")), torch.randn(40, 256)
    monkeypatch.delattr(nn.functional, "scaled_mm", raising=False)
    for granularity in ("row", "tensor"):
        options = {"granularity": granularity, "activation_scale": _calibrated("fp8_e4m3", granularity, x)}
        fast = RotatedLinear.from_linear(layer, "fp8_e4m3", gemm="scaled_mm", **options)
        assert _error(fast(x), layer(x).detach()) < ERRORS["fp8_e4m3"]
    products.why_not_scaled.cache_clear()
    try:
        with pytest.raises(BackendUnavailableError, match=r"scaled_mm came with torch 2\.10"):
            RotatedLinear.from_linear(layer, "mxfp8", gemm="scaled_mm")(x)
    finally:
        products.why_not_scaled.cache_clear()


def test_a_global_scale_of_the_activation(device: torch.device) -> None:
    """Activations of 1e-4 have block scales near E4M3's smallest unless a global scale lifts them."""
    layer, x = _layer(device, bias=False), torch.randn(40, 256, device=device) * 1e-4
    exact, scale = layer(x).detach(), _calibrated("nvfp4", 16, x)
    lost = RotatedLinear.from_linear(layer, "nvfp4", gemm="dequantize")
    kept = RotatedLinear.from_linear(layer, "nvfp4", gemm="dequantize", activation_scale=scale)
    assert _error(kept(x), exact) < ERRORS["nvfp4"] and _error(lost(x), exact) > 0.5


def test_rotation_saves_int4_from_outliers() -> None:
    """4 of 1024 channels are 60 times the rest: errors of 0.26 to 0.28 unrotated, 0.17 to 0.18 rotated, over seeds."""
    layer, x = nn.Linear(1024, 96, bias=False), torch.randn(64, 1024)
    x[:, torch.randperm(1024)[:4]] *= 60
    exact = layer(x).detach()
    unrotated = RotatedLinear.from_linear(layer, "int4", gemm="dequantize", block_size=1)
    rotated = RotatedLinear.from_linear(layer, "int4", gemm="dequantize")
    assert _error(unrotated(x), exact) > 0.25
    assert _error(rotated(x), exact) < 0.19


def test_prologue(device: torch.device) -> None:
    layer = _layer(device)
    fast = RotatedLinear.from_linear(layer, "int8", gemm="dequantize")
    gate, up = torch.randn(20, 256, device=device), torch.randn(20, 256, device=device)
    exact = layer(nn.functional.silu(gate) * up).detach()
    assert _error(fast(gate, prologues.silu_mul(up)), exact) < ERRORS["int8"]
    assert torch.equal(
        fast(torch.cat((gate, up), -1), prologues.silu_mul(order="gate_up")), fast(gate, prologues.silu_mul(up))
    )


def test_one_dimension_and_no_rows(device: torch.device) -> None:
    fast = RotatedLinear.from_linear(_layer(device), "mxfp8", gemm="dequantize")
    x = torch.randn(3, 256, device=device)
    assert torch.allclose(fast(x[0]), fast(x)[0], atol=1e-5)
    assert fast(x[:0]).shape == (0, 96)


@pytest.mark.parametrize(("format", "gemm"), [("int8", "int_mm"), ("fp8_e4m3", "scaled_mm")])
def test_compile_fullgraph(format: str, gemm: str, device: torch.device) -> None:
    torch._dynamo.reset()
    fast = RotatedLinear.from_linear(_layer(device), format, gemm=gemm)
    x = torch.randn(48, 256, device=device)
    assert torch.allclose(torch.compile(fast, fullgraph=True, backend="aot_eager")(x), fast(x), atol=1e-6)


def test_state_dict_and_repr(device: torch.device) -> None:
    first = RotatedLinear.from_linear(_layer(device), "nvfp4", gemm="dequantize", block_size=64, clip_ratio=0.9)
    second = RotatedLinear.from_linear(_layer(device), "nvfp4", gemm="dequantize", block_size=64, clip_ratio=0.9)
    x = torch.randn(5, 256, device=device)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    assert repr(first) == (
        "RotatedLinear(in_features=256, out_features=96, format=nvfp4, granularity=16, gemm=dequantize, bias=True, "
        "block_size=64, clip_ratio=0.9)"
    )


@pytest.mark.parametrize("format", [f.name for f in FORMATS])
def test_saves_and_loads(format: str, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    signs = torch.randint(0, 2, (256,)) * 2 - 1
    layer = RotatedLinear.from_linear(
        _layer(torch.device("cpu")), format, gemm="dequantize", block_size=128, signs=signs, clip_ratio=0.95
    )
    layer.save(tmp_path / "layer.safetensors")
    again = RotatedLinear.load(tmp_path / "layer.safetensors")
    x = torch.randn(7, 256)
    assert repr(again) == repr(layer) and torch.equal(again(x), layer(x))
    with safetensors.safe_open(str(tmp_path / "layer.safetensors"), framework="pt") as file:
        options = json.loads(file.metadata()["hadacore.RotatedLinear"])
    assert options["matrix"] == hadacore.describe(128) and options["block_size"] == 128 and options["format"] == format


def test_block_major_scales_survive(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    layer = RotatedLinear.from_linear(_layer(torch.device("cpu")), "fp8_e4m3", granularity=128, gemm="dequantize")
    layer.save(tmp_path / "layer.safetensors")
    x = torch.randn(7, 256)
    again = RotatedLinear.load(tmp_path / "layer.safetensors")
    assert torch.equal(again(x), layer(x)) and again.weight_scales.stride() == layer.weight_scales.stride() == (1, 96)


def test_a_scale_for_the_whole_tensor_survives(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    layer, x = _layer(torch.device("cpu")), torch.randn(7, 256)
    first = RotatedLinear.from_linear(
        layer,
        "fp8_e4m3",
        granularity="tensor",
        gemm="dequantize",
        activation_scale=_calibrated("fp8_e4m3", "tensor", x),
    )
    assert _error(first(x), layer(x).detach()) < ERRORS["fp8_e4m3"]
    first.save(tmp_path / "layer.safetensors")
    assert torch.equal(RotatedLinear.load(tmp_path / "layer.safetensors")(x), first(x))


def test_another_gemm_on_loading(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    RotatedLinear.from_linear(_layer(torch.device("cpu")), "int8", gemm="int_mm").save(tmp_path / "layer.safetensors")
    assert RotatedLinear.load(tmp_path / "layer.safetensors", gemm="dequantize").gemm == "dequantize"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2, this release reads 1; upgrade"),
        ({"matrix": "H_256 = another"}, "was rotated with H_256 = another, but this release has H_256 = Sylvester"),
        (None, "has no metadata 'hadacore.RotatedLinear'"),
    ],
)
def test_files_that_do_not_fit(change: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    safetensors_torch = pytest.importorskip("safetensors.torch")
    layer = RotatedLinear.from_linear(_layer(torch.device("cpu")), "int8", gemm="int_mm")
    metadata = None if change is None else {"hadacore.RotatedLinear": json.dumps(layer._options() | change)}
    safetensors_torch.save_file(layer.state_dict(), str(tmp_path / "x"), metadata)
    with pytest.raises(ValueError, match=message):
        RotatedLinear.load(tmp_path / "x")


def test_missing_safetensors_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    layer = RotatedLinear.from_linear(_layer(torch.device("cpu")), "int8", gemm="int_mm")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "hadacore\[safetensors\]"'):
        layer.save(tmp_path / "x")


LAYER = nn.Linear(128, 32)
WEIGHT = hadacore.hadamard_quantize(LAYER.weight.detach(), "int8")


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            TypeError,
            "must be a torch.nn.Linear, got Parameter",
            lambda: RotatedLinear.from_linear(LAYER.weight, "int8", gemm="int_mm"),
        ),
        (
            ValueError,
            "gemm must be one of dequantize, int_mm, scaled_mm, got 'auto'",
            lambda: RotatedLinear(WEIGHT, gemm="auto"),
        ),
        (
            ValueError,
            "gemm='scaled_mm' takes fp8_e4m3 row, .*, nvfp4 16, got int8 with .*'row'; use gemm='dequantize'",
            lambda: RotatedLinear(WEIGHT, gemm="scaled_mm"),
        ),
        (
            ValueError,
            "gemm='int_mm' takes int8 row, got fp8_e4m3 with granularity 128",
            lambda: RotatedLinear.from_linear(LAYER, "fp8_e4m3", granularity=128, gemm="int_mm"),
        ),
        (
            ValueError,
            "gemm='scaled_mm' takes swizzled scales of mxfp8, got plain ones",
            lambda: RotatedLinear(
                hadacore.hadamard_quantize(LAYER.weight.detach(), "mxfp8", swizzled=False), gemm="scaled_mm"
            ),
        ),
        (
            ValueError,
            "needs activation_scale=, from calibration; hadacore.static_scale makes one",
            lambda: RotatedLinear.from_linear(LAYER, "fp8_e4m3", granularity="tensor", gemm="dequantize"),
        ),
        (
            ValueError,
            "activation_scale is for granularity 'tensor' and for nvfp4, got int8 with granularity 'row'",
            lambda: RotatedLinear(WEIGHT, gemm="int_mm", activation_scale=1.0),
        ),
        (
            TypeError,
            "activation_scale must be one float32, got torch.float64",
            lambda: RotatedLinear.from_linear(
                LAYER, "nvfp4", gemm="dequantize", activation_scale=torch.ones((), dtype=torch.float64)
            ),
        ),
        (
            ValueError,
            r"bias must have shape \(32,\), got \(3,\)",
            lambda: RotatedLinear(WEIGHT, gemm="int_mm", bias=torch.ones(3)),
        ),
        (
            ValueError,
            r"signs must have shape \(128,\), got \(3,\)",
            lambda: RotatedLinear(WEIGHT, gemm="int_mm", signs=torch.ones(3)),
        ),
        (
            ValueError,
            "rows of 128 elements, got 256",
            lambda: RotatedLinear(WEIGHT, gemm="int_mm", block_size=64)(torch.ones(2, 256)),
        ),
    ],
)
def test_message(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()
