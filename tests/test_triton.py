"""What is Triton's alone: its refusals, its place in the choice of backends, and quantization in one kernel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hadacore
from hadacore import prologues
from hadacore.backends import selection, triton
from hadacore.backends.cuda import requirements as cuda_requirements
from hadacore.backends.triton import bases, requirements
from hadacore.backends.triton.launch import base_for, configuration_for, launch
from hadacore.errors import BackendUnavailableError
from hadacore.formats import BY_NAME, Quantizer
from hadacore.quantization import reference
from tests.test_backends import GPU, ORDERS, POWERS

pytestmark = pytest.mark.triton
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
FUSED = triton.CAPABILITIES.fused_formats


def _rotated(x: torch.Tensor, **options: Any) -> torch.Tensor:
    """What the kernel has before it rounds: the same kernel, with an output in fp32."""
    n, base = x.shape[-1], options.pop("base", None)
    out = torch.empty_like(x, dtype=torch.float32)
    c = configuration_for(x, n, base)
    launch(c, x, out, n**-0.5, base=base_for(x, c, base), **options)
    return out


def _check_quantized(x: torch.Tensor, name: str, clip_ratio: float = 1.0, **options: Any) -> None:
    n = x.shape[-1]
    q = hadacore.hadamard_quantize(x, name, clip_ratio=clip_ratio, backend="triton", **options)
    rotated = _rotated(x, **options)
    codes, scales = reference.quantize(rotated, Quantizer(BY_NAME[name], n, clip_ratio))
    assert torch.equal(q.codes.view(torch.int8), codes.view(torch.int8))
    assert torch.equal(q.scales.view(torch.int32), scales.view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("n", [*POWERS[1:], *(n for n in ORDERS if hadacore.factor(n).base_order <= 256)])
def test_codes_and_scales_are_the_references(n: int, name: str, dtype: torch.dtype) -> None:
    rows = 37 if n <= 256 else 5
    x = (torch.randn(rows, n) * 2.0 ** torch.randint(-12, 12, (rows, 1))).to(dtype).to(GPU)
    x[0, 0] *= 300
    x[1] = 0
    _check_quantized(x, name)
    x[2, n // 2] = math.nan
    x[3, 0] = -math.inf
    _check_quantized(x, name, 0.7)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("inverse", [False, True])
def test_signs_and_inverse_come_before_codes(name: str, inverse: bool) -> None:
    for n in (64, 512, 4096, 40, 5120):
        x = torch.randn(3, n, device=GPU, dtype=torch.float16)
        signs = (torch.randint(0, 2, (n,)) * 2 - 1).half().to(GPU)
        _check_quantized(x, name, signs=signs, inverse=inverse)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_base_of_the_caller(dtype: torch.dtype, inverse: bool) -> None:
    for order, n in ((1, 64), (5, 40), (12, 3072), (128, 128), (172, 688)):
        x = torch.randn(3, n).to(dtype).to(GPU)
        for base_dtype in dict.fromkeys((dtype, torch.float32)):
            base = torch.randn(order, order + 1).to(base_dtype).to(GPU)[:, 1:]
            _check_quantized(x, "int8" if order % 2 else "fp8_e4m3", base=base, inverse=inverse)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=6),
    st.sampled_from(FUSED),
    st.floats(2.0**-10, 1.0),
)
def test_every_value_is_encoded_as_the_reference_does(values: list[float], name: str, clip_ratio: float) -> None:
    """Rows of one element are their own transform."""
    x = torch.tensor(values, device=GPU)[:, None]
    _check_quantized(x, name, clip_ratio)


@pytest.mark.parametrize("name", FUSED)
def test_ties_and_subnormal_codes(name: str) -> None:
    """A row of 64 in which 448 or 127 sets the scale to 1, the others exactly between two codes, or at the least ones."""
    largest = BY_NAME[name].encoding.maximum
    steps = torch.arange(63, dtype=torch.float32)
    grids = [steps * 2.0**-10, steps + 0.5, (steps + 16.5) / 16, -steps * 2.0**-11]
    wanted = torch.stack([torch.cat((torch.tensor([largest]), grid)) for grid in grids]).to(GPU)
    # The transform of the transform: exact where the sums are, which it is not needed to be; both see the same values.
    x = hadacore.hadamard_transform(wanted, 1 / 64.0, backend="triton")
    q = hadacore.hadamard_quantize(x, name, transform_scale=1.0, backend="triton")
    back = hadacore.hadamard_transform(x, 1.0, backend="triton")
    codes, scales = reference.quantize(back, Quantizer(BY_NAME[name], 64))
    assert torch.equal(q.codes.view(torch.int8), codes.view(torch.int8)) and torch.equal(q.scales, scales)


def test_a_prologue_comes_before_the_kernel() -> None:
    gate, up = torch.randn(2, 4, 256, device=GPU, dtype=torch.bfloat16)
    ours = hadacore.hadamard_quantize(gate, "int8", prologue=prologues.silu_mul(up), backend="triton")
    values = gate.float() / (1 + torch.exp(-gate.float())) * up.float()
    expected = hadacore.hadamard_quantize(values, "int8", backend="triton")
    assert (ours.codes.int() - expected.codes.int()).abs().max() <= 1
    base = torch.randn(8, 8, device=GPU).bfloat16()
    ours = hadacore.hadamard_quantize(gate, "int8", prologue=prologues.silu_mul(up), base=base, backend="triton")
    expected = hadacore.hadamard_quantize(values, "int8", base=base.float(), backend="triton")
    assert (ours.codes.int() - expected.codes.int()).abs().max() <= 1


def test_quantization_compiles_whole() -> None:
    x = torch.randn(4, 256, device=GPU)

    def f(x: torch.Tensor) -> torch.Tensor:
        q = hadacore.hadamard_quantize(x * 2, "int8", backend="triton")
        return q.codes.float() * q.scales

    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


# ---- CUDA graphs ------------------------------------------------------------------------------------------


def test_a_base_is_not_uploaded_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(bases, "_kept", {})
    with pytest.raises(RuntimeError, match=r"base matrix of size 768 is not on cuda:0 yet.*before the capture"):
        bases.known_base(hadacore.factor(768), torch.float16, torch.device("cuda", 0))


@pytest.mark.gpu
def test_a_graph_replays_the_transform() -> None:
    for n in (128, 4096, 768):
        x = torch.randn(64, n, device="cuda", dtype=torch.float16)
        expected = hadacore.hadamard_transform(x, backend="triton")
        out = torch.zeros_like(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            hadacore.hadamard_transform(x, out=out, backend="triton")
        graph.replay()
        assert torch.equal(out, expected)


@pytest.mark.gpu
def test_another_stream_and_a_large_tensor() -> None:
    x = torch.randn(1 << 21, 2048, device="cuda", dtype=torch.bfloat16)  # 2^32 elements
    with torch.cuda.stream(torch.cuda.Stream()):
        y = hadacore.hadamard_transform(x, backend="triton")
        last = hadacore.hadamard_transform(x[-3:].clone(), backend="triton")
        torch.cuda.current_stream().synchronize()
    assert torch.equal(y[-3:], last)


# ---- refusals ---------------------------------------------------------------------------------------------


def test_refusals_of_the_transform() -> None:
    def run(x: torch.Tensor, **options: Any) -> None:
        hadacore.hadamard_transform(x.to(GPU), backend="triton", **options)

    with pytest.raises(ValueError, match="takes sizes up to 32768, got 65536; use a block_size"):
        run(torch.ones(1, 65536))
    run(torch.ones(1, 65536), block_size=32768)
    with pytest.raises(ValueError, match="takes base matrices up to order 2048, got order 2068"):
        run(torch.ones(1, 2068))
    with pytest.raises(ValueError, match="takes base matrices up to order 2048, got order 2050"):
        run(torch.ones(1, 2050), base=torch.eye(2050, device=GPU))
    if GPU.type == "cpu":
        with pytest.raises(ValueError, match=r"takes float16, bfloat16, float32, got torch\.float64"):
            run(torch.ones(1, 8, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nvfp4", {}, "quantizes to fp8_e4m3 and int8, got nvfp4; backend=None rotates"),
        ("fp8_e4m3", {"granularity": 128}, "quantizes with granularity='row', got 128"),
        ("fp8_e4m3", {"granularity": "tensor", "scale": 1.0}, "got one scale for the tensor"),
        ("int8", {"block_size": 128}, "rows that are one transform, got block_size 128 in rows of 256"),
    ],
)
def test_refusals_of_quantization(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hadacore.hadamard_quantize(torch.ones(2, 256, device=GPU), name, backend="triton", **options)


def test_a_large_base_is_not_quantized_in_one_kernel() -> None:
    x = torch.ones(2, 428, device=GPU)
    with pytest.raises(ValueError, match="base matrix has order 256 at most, got order 428"):
        hadacore.hadamard_quantize(x, "int8", backend="triton")
    with pytest.raises(ValueError, match="base matrix has order 256 at most, got order 300; backend=None rotates"):
        hadacore.hadamard_quantize(x[:, :300], "int8", base=torch.eye(300, device=GPU), backend="triton")


# ---- choosing ---------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_choice(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    selection.default_backend.cache_clear()
    yield monkeypatch
    selection.default_backend.cache_clear()


def _missing(message: str) -> Any:
    def raise_it() -> None:
        raise BackendUnavailableError(message)

    return raise_it


def test_triton_is_chosen_where_nvrtc_is_missing(fresh_choice: pytest.MonkeyPatch) -> None:
    fresh_choice.setattr(selection, "compiler_version", lambda: (13, 0))
    assert selection.default_backend("cuda") == "cuda"
    selection.default_backend.cache_clear()
    fresh_choice.setattr(selection, "compiler_version", _missing("no NVRTC"))
    assert selection.default_backend("cuda") == "triton"
    selection.default_backend.cache_clear()
    fresh_choice.setattr(selection, "triton_module", _missing("no triton"))
    assert selection.default_backend("cuda") == "cuda"  # whose error says what to install
    assert selection.default_backend("cpu") == "cpu" and selection.default_backend("xpu") == "triton"


def test_triton_is_chosen_on_amd(fresh_choice: pytest.MonkeyPatch) -> None:
    cuda_requirements.cuda_core.cache_clear()
    cuda_requirements.compiler_version.cache_clear()
    fresh_choice.setattr(torch.version, "hip", "7.0")
    assert selection.default_backend("cuda") == "triton"
    cuda_requirements.cuda_core.cache_clear()
    cuda_requirements.compiler_version.cache_clear()


def test_where_triton_is_chosen_there_is_no_plan(fresh_choice: pytest.MonkeyPatch) -> None:
    fresh_choice.setattr(selection, "compiler_version", _missing("no NVRTC"))
    with pytest.raises(ValueError, match="tensors on this GPU go to Triton's"):
        hadacore.plan(128, device="cuda")
    assert hadacore.plan(128, device="cpu").backend == "cpu"


def test_the_choice_is_made_once(fresh_choice: pytest.MonkeyPatch) -> None:
    """The first call of a CUDA tensor chooses; the table then holds the backend itself."""
    fresh_choice.setitem(selection.DEFAULTS, "cuda", selection._choose_for_cuda)
    fresh_choice.setattr(selection, "compiler_version", _missing("no NVRTC"))
    called = []
    fresh_choice.setitem(selection.BACKENDS, "triton", lambda *arguments: called.append(arguments))
    x = torch.ones(8)
    selection.DEFAULTS["cuda"](x, x, 8, 1.0, None, False, None)
    assert len(called) == 1 and selection.DEFAULTS["cuda"] is selection.BACKENDS["triton"]


def test_a_missing_or_old_triton_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton as package

    requirements.triton_module.cache_clear()
    monkeypatch.setattr(package, "__version__", "3.3.1")
    with pytest.raises(BackendUnavailableError, match=r"needs triton 3\.4 or newer, got 3\.3\.1"):
        triton.transform(torch.ones(8), torch.ones(8), 8, 1.0, None, False, None)
    monkeypatch.setitem(__import__("sys").modules, "triton", None)
    with pytest.raises(BackendUnavailableError, match=r'pip install "hadacore\[triton\]"'):
        requirements.triton_module()
    assert not triton.support()
    monkeypatch.undo()
    requirements.triton_module.cache_clear()
