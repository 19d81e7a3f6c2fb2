"""Which engine a call gets and why, what FlashAttention-3 is called with, and what bad arguments say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hadacore import BackendUnavailableError, prologues
from hadacore.attention import (
    RECIPES,
    AttentionRecipe,
    EmulatedEngine,
    VllmEngine,
    engines,
    plan_attention,
    quantized_attention,
)
from hadacore.attention import functional as attention_functional
from hadacore.attention.flash_attention import (
    LIBRARY_VARIABLE,
    FlashAttentionEngine,
    InterfaceEngine,
    Launch,
    PyTorchEngine,
    _folders_of,
)
from hadacore.backends import Support
from tests.attention_oracle import exact_attention
from tests.tolerances import attention_error, relative_error

Q, K, V = torch.randn(2, 6, 4, 64), torch.randn(2, 9, 2, 64), torch.randn(2, 9, 2, 64)
HALF = (Q.bfloat16(), K.bfloat16(), V.bfloat16())
OFFSETS = torch.tensor([0, 2, 6], dtype=torch.int32)
SEEN = torch.ones(2, 1, 6, 9, dtype=torch.bool)


class Recorded(FlashAttentionEngine):
    """FlashAttention-3's call, computed in float64: sequence by sequence, bfloat16 results."""

    name, title = "recorded", "a test"

    def __init__(self) -> None:
        self.calls: list[Launch] = []

    def missing(self) -> str | None:
        return None

    def support(self, device: torch.device) -> Support:
        return Support(True, self.title)

    def launch(self, call: Launch) -> Tensor:
        self.calls.append(call)
        out = torch.full((*call.q.shape[:2], call.v.shape[2]), torch.nan, dtype=torch.bfloat16)
        q_bounds, k_bounds = call.q_offsets.tolist(), call.k_offsets.tolist()
        for i in range(len(q_bounds) - 1):
            part = slice(q_bounds[i], q_bounds[i + 1])
            tokens = slice(k_bounds[i], k_bounds[i + 1])
            values = [call.q[part], call.k[tokens], call.v[tokens]]
            kv_heads = call.k.shape[1]
            if call.descales is not None:
                for j, scales in enumerate(call.descales):
                    assert scales.shape == (len(q_bounds) - 1, kv_heads) and scales.is_contiguous()
                    of_heads = scales[i].repeat_interleave(values[j].shape[1] // kv_heads)
                    values[j] = values[j].double() * of_heads[:, None]
            window = None if call.left < 0 else call.left + 1
            result = exact_attention(
                *(x[None] for x in values), causal=call.causal, window=window, softmax_scale=call.softmax_scale
            )
            out[part] = result[0].bfloat16()
        return out


@pytest.mark.parametrize("name", ["fp16", "fp8", "fp8_rotated", "fp8_explicit"])
@pytest.mark.parametrize("case", ["plain", "causal", "window", "left", "right", "packed", "padded keys"])
def test_flash_attention_is_called_with_what_it_takes(name: str, case: str) -> None:
    engine, n = Recorded(), 64
    q, k, v = torch.randn(2, 12, 4, n), torch.randn(2, 12, 2, n), torch.randn(2, 12, 2, n)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    options: dict[str, Any] = {"causal": case not in ("plain", "padded keys")}
    rows = torch.ones(2, 12, dtype=torch.bool)
    if case == "window":
        options["window"] = 4
    if case in ("left", "right", "padded keys"):
        position = torch.arange(12)
        there = torch.stack([position >= 5, position >= 1])
        options["mask"] = there if case == "left" else there.flip(1)
        rows = rows if case == "padded keys" else options["mask"]
    if case == "packed":
        q, k, v = q[0], k[0], v[0]
        options |= {"q_offsets": torch.tensor([0, 5, 12], dtype=torch.int32), "longest": (7, 7)}
    y = quantized_attention(q, k, v, recipe=name, engine=engine, **options)
    z = quantized_attention(q, k, v, recipe=name, engine="emulated", **options)
    if case != "packed":
        y, z = y[rows], z[rows]
    assert not y.isnan().any()
    # The emulation rounds probabilities too, and both round their result.
    bound = 2.0**-4 if name != "fp16" else 2.0**-7
    assert relative_error(y, z.double()) < bound
    (call,) = engine.calls
    assert call.q.dtype == (torch.bfloat16 if name == "fp16" else torch.float8_e4m3fn)
    assert call.q_offsets.dtype == torch.int32 and call.left == (3 if case == "window" else -1)
    assert call.right == (0 if options["causal"] else -1)
    lengths = call.k_offsets.diff()
    assert call.longest_k == int(lengths.max()) and int(lengths.sum()) == call.k.shape[0]


def test_one_scale_for_the_tensor_is_spread_over_heads() -> None:
    engine = Recorded()
    quantized_attention(*HALF, recipe=AttentionRecipe("fp8_e4m3", "tensor"), engine=engine)
    descales = engine.calls[0].descales
    assert descales is not None and all(len(scales.unique()) == 1 for scales in descales)


def test_padding_between_tokens_under_a_window_is_refused() -> None:
    there = torch.tensor([[True, False, True, True, True, True, True, True, True]] * 2)
    with pytest.raises(ValueError, match=r"padding at one end of a sequence, .*use engine='emulated'"):
        quantized_attention(*HALF, causal=True, window=3, mask=there, engine=Recorded())


@pytest.mark.parametrize(
    ("tensors", "options", "reason"),
    [
        (HALF, {"recipe": "int8"}, r"multiplies FP8 or 16-bit types, not int8"),
        (HALF, {"recipe": "int4_kv"}, r"multiplies FP8 or 16-bit types, not int4 keys and values"),
        (HALF, {"recipe": "fp8_token"}, r"one scale for each \(batch, kv head\), not per token"),
        ((Q, K, V), {}, r"its results are 16-bit, and the queries are torch.float32; use q.bfloat16\(\)"),
        (HALF, {"mask": SEEN}, r"not a mask of queries and keys"),
        (tuple(x[..., :40] for x in HALF), {}, r"head sizes up to 256 that 16 divides, not 40"),
        ((HALF[0], HALF[1], HALF[2][..., :32]), {}, r"values of the keys' head size only, not 32 for 64"),
        (tuple(x.repeat(1, 1, 1, 4) for x in HALF), {"causal": True, "window": 3}, r"head sizes above 192, .* is 256"),
    ],
)
def test_flash_attention_says_what_it_cannot_run(tensors: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"engine 'recorded' cannot run this: .*{reason}"):
        quantized_attention(*tensors, engine=Recorded(), **options)


def test_the_first_engine_that_can_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, emulated = Recorded(), EmulatedEngine()
    monkeypatch.setattr(attention_functional, "known_engines", lambda: (recorded, emulated))
    plan = plan_attention(*HALF)
    assert plan.engine is recorded and not plan.passed_over and "engine  recorded: a test" in str(plan)
    plan = plan_attention(*HALF, recipe="int8")
    assert plan.engine is emulated and "not     recorded: it multiplies FP8" in str(plan)
    quantized_attention(*HALF)
    assert len(recorded.calls) == 1
    assert plan_attention(*HALF, engine="emulated").named


def test_on_a_cpu_everything_is_emulated() -> None:
    found = engines("cpu")
    assert list(found) == ["flash_attn_interface", "torch", "vllm", "emulated"]
    assert [name for name, support in found.items() if support] == ["emulated"]
    assert all("compute capability 9.0" in support.reason for support in found.values() if not support)
    with pytest.raises(
        BackendUnavailableError, match=r"engine 'vllm' cannot run here: .*compute capability 9.0, not on cpu"
    ):
        quantized_attention(*HALF, engine="vllm")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "no file" in (VllmEngine(tmp_path / "none.so").missing() or "")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    assert "could not be loaded" in (VllmEngine(broken).missing() or "")
    monkeypatch.setenv(LIBRARY_VARIABLE, str(broken))
    assert "broken.so could not be loaded" in (VllmEngine().missing() or "")
    monkeypatch.delenv(LIBRARY_VARIABLE)
    monkeypatch.setattr("hadacore.attention.flash_attention._folders_of", lambda name: ())
    assert f"vLLM is not installed, and {LIBRARY_VARIABLE}" in (VllmEngine().missing() or "")
    assert "flash_attn_interface package is not installed" in (InterfaceEngine().missing() or "")


def test_pytorch_is_not_activated_behind_its_users_back(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = PyTorchEngine().missing() or ""
    assert "activate_flash_attention_impl('FA3')" in missing or "has no FlashAttention-3 that takes FP8" in missing


def test_an_installed_vllm_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "vllm"
    (folder / "vllm_flash_attn").mkdir(parents=True)
    (folder / "__init__.py").touch()
    library = folder / "vllm_flash_attn" / "_vllm_fa3_C.abi3.so"
    library.touch()
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    _folders_of.cache_clear()
    assert VllmEngine().library() == library
    _folders_of.cache_clear()


# What the library of vLLM 0.25 registers.
VLLM_SCHEMA = (
    "fwd(Tensor! q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, Tensor!? out, Tensor? cu_seqlens_q, "
    "Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, Tensor? seqused_q, Tensor? seqused_k, int? max_seqlen_q, int? max_seqlen_k, "
    "Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k, Tensor? rotary_cos, Tensor? rotary_sin, "
    "Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale, Tensor? v_descale, float softmax_scale, bool is_causal, "
    "int window_size_left, int window_size_right, float softcap, bool is_rotary_interleaved, Tensor? scheduler_metadata, "
    "int num_splits, bool? pack_gqa, int sm_margin, Tensor? s_aux, int cp_world_size, int cp_rank, Tensor? cp_tot_seqused_k) -> "
    "Tensor[]"
)


@pytest.fixture
def launch() -> Launch:
    q, k, v = torch.randn(6, 4, 64), torch.randn(9, 2, 64), torch.randn(9, 2, 64)
    scales = (torch.rand(2, 2), torch.rand(2, 2), torch.rand(2, 2))
    k_offsets = torch.tensor([0, 3, 9], dtype=torch.int32)
    return Launch(q, k, v, OFFSETS, k_offsets, 4, 6, scales, 0.125, True, 2)


EXPECTED: dict[str, Any] = {
    "max_seqlen_q": 4, "max_seqlen_k": 6, "softmax_scale": 0.125, "window_size_left": 2, "window_size_right": 0,
}  # fmt: skip


def test_vllm_s_operator_gets_its_arguments(launch: Launch) -> None:
    seen: dict[str, Any] = {}

    def fwd(*arguments: Any) -> list[Tensor]:
        names = [argument.name for argument in torch.ops._vllm_fa3_C.fwd.default._schema.arguments]
        seen.update({k: v for k, v in zip(names, arguments, strict=True) if v is not None})
        return [arguments[0] + 1, arguments[0]]

    library = torch.library.Library("_vllm_fa3_C", "DEF")
    try:
        library.define(VLLM_SCHEMA)
        library.impl("fwd", fwd, "CPU")
        result = VllmEngine("somewhere.so").launch(launch)
    finally:
        library._destroy()
    assert torch.equal(result, launch.q + 1)
    assert launch.descales is not None
    for name, tensor in {
        "q": launch.q, "k": launch.k, "v": launch.v, "cu_seqlens_q": launch.q_offsets, "cu_seqlens_k": launch.k_offsets,
        "q_descale": launch.descales[0], "k_descale": launch.descales[1], "v_descale": launch.descales[2],
    }.items():  # fmt: skip
        assert torch.equal(seen.pop(name), tensor)
    rest = {"num_splits": 0, "sm_margin": 0, "cp_world_size": 1, "cp_rank": 0, "softcap": 0.0}
    assert seen == EXPECTED | rest | {"is_causal": True, "is_rotary_interleaved": True}


def test_pytorch_s_operator_gets_its_arguments(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = torch.ops.aten._flash_attention_forward
    if "quantized" not in operator.overloads():
        pytest.skip("this PyTorch has no FlashAttention-3 that takes FP8")
    schema = operator.quantized._schema
    seen: dict[str, Any] = {}

    def call(*places: Any, **options: Any) -> tuple[Tensor]:
        names = [argument.name for argument in schema.arguments if not argument.kwarg_only]
        seen.update(dict(zip(names, places, strict=True)) | options)
        assert set(options) <= {argument.name for argument in schema.arguments if argument.kwarg_only}
        return (launch.q + 1,)

    monkeypatch.setattr(operator, "quantized", call)
    result = PyTorchEngine().launch(launch)
    assert torch.equal(result, launch.q + 1) and launch.descales is not None
    assert torch.equal(seen["cum_seq_k"], launch.k_offsets) and torch.equal(seen["v_descale"], launch.descales[2])
    assert (seen["max_q"], seen["max_k"], seen["dropout_p"], seen["is_causal"]) == (4, 6, 0.0, True)
    assert (seen["scale"], seen["window_size_left"], seen["window_size_right"]) == (0.125, 2, 0)


def test_the_interface_gets_its_arguments(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def flash_attn_varlen_func(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        seen.update(options)
        return q + 1, q

    monkeypatch.setattr(InterfaceEngine, "_function", staticmethod(lambda: flash_attn_varlen_func))
    assert torch.equal(InterfaceEngine().launch(launch), launch.q + 1)
    assert torch.equal(seen["cu_seqlens_k"], launch.k_offsets) and seen["max_seqlen_k"] == 6
    assert seen["window_size"] == (2, 0) and seen["causal"] and launch.descales is not None
    assert torch.equal(seen["k_descale"], launch.descales[1])


ERRORS: list[tuple[type[Exception], str, Any]] = [
    (ValueError, r"recipe must be one of fp16, .*int4_kv_rotated, or an AttentionRecipe, got 'fp4'", {"recipe": "fp4"}),
    (TypeError, r"recipe must be a name or an AttentionRecipe, got int", {"recipe": 8}),
    (ValueError, r"engine must be one of flash_attn_interface, torch, vllm, emulated, .*got 'fa3'", {"engine": "fa3"}),
    (TypeError, r"engine must be a name.*for a library use VllmEngine\(path\)", {"engine": Path("x.so")}),
    (TypeError, r"q must be a torch.Tensor, got list", {"q": [1.0]}),
    (TypeError, r"q must be one of float16, bfloat16, float32, got torch.float64", {"q": Q.double()}),
    (ValueError, r"k must be torch.float32 on cpu as q is, got torch.bfloat16", {"k": K.bfloat16()}),
    (ValueError, r"q must have shape \(batch, tokens, heads, head_dim\), got \(6, 4, 64\); packed", {"q": Q[0]}),
    (ValueError, r"records no gradient, got a v that requires grad", {"v": V.clone().requires_grad_()}),
    (ValueError, r"v must have k's shape but for the head size, got \(2, 8, 2, 64\)", {"v": V[:, :8]}),
    (ValueError, r"q and k must have the same batch and head size", {"k": K[..., :32], "v": V}),
    (ValueError, r"heads of k must divide those of q, got 2 and 3", {"q": Q[:, :, :3]}),
    (ValueError, r"size", {"q": Q[..., :3], "k": K[..., :3], "v": V[..., :3]}),
    (TypeError, r"window must be an integer or None, got float", {"window": 2.0, "causal": True}),
    (ValueError, r"window must be 1 key or more, the query's own, got 0", {"window": 0, "causal": True}),
    (ValueError, r"window= needs causal=True", {"window": 2}),
    (TypeError, r"mask must be a boolean torch.Tensor, got list", {"mask": [True]}),
    (TypeError, r"mask must be boolean.*use mask.bool\(\)", {"mask": torch.ones(2, 9)}),
    (ValueError, r"mask must have shape \(batch, keys\) = \(2, 9\) or .*\(2, 4, 6, 9\), got \(2, 6\)",
     {"mask": SEEN[:, 0, :, 0]}),
    (TypeError, r"softmax_scale must be a number or None, got str", {"softmax_scale": "1"}),
    (ValueError, r"softmax_scale must be positive, got -1", {"softmax_scale": -1}),
    (ValueError, r"k_offsets= goes with q_offsets=", {"k_offsets": OFFSETS}),
    (ValueError, r"longest= belongs to packed sequences", {"longest": (6, 9)}),
    (ValueError, r"mask= is not for packed sequences", {"q_offsets": OFFSETS, "mask": SEEN}),
    (TypeError, r"q_offsets must be an int32 tensor, got torch.int64", {"q": Q[0], "q_offsets": OFFSETS.long()}),
    (ValueError, r"q_offsets must have shape \(sequences \+ 1,\)", {"q": Q[0], "q_offsets": OFFSETS[:1]}),
    (ValueError, r"k_offsets must rise from 0 to the 9 tokens, got \[0, 2, 6\]",
     {"q": Q[0], "k": K[0], "v": V[0], "q_offsets": OFFSETS}),
    (TypeError, r"longest must be two integers, of queries and of keys, got 6",
     {"q": Q[0], "k": K[0][:6], "v": V[0][:6], "q_offsets": OFFSETS, "longest": 6}),
    (ValueError, r"rope must come from hadacore.prologues.rope, got silu_mul", {"rope": prologues.silu_mul(Q), "k": Q, "v": Q}),
    (ValueError, r"rope= needs as many queries as keys, got 6 and 9",
     {"rope": prologues.rope(torch.ones(9, 32), torch.zeros(9, 32))}),
    (ValueError, r"random signs are those of one head size, got 64 for keys and 32 for values",
     {"v": V[..., :32], "recipe": AttentionRecipe("int8", rotate=True, rotate_value=True, sign_seed=1)}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "options"), ERRORS, ids=[message[:40] for _, message, _ in ERRORS])
def test_errors(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    arguments = {"q": Q, "k": K, "v": V} | options
    with pytest.raises(error, match=message):
        quantized_attention(**arguments)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (r"format must be one of fp8_e4m3, int8, int4 or None, got 'nvfp4'", {"format": "nvfp4"}),
        (r"granularity must be one of tensor, head, block, token, got 'row'", {"granularity": "row"}),
        (r"sign_seed must be an integer or None, got True", {"sign_seed": True, "rotate": True}),
        (r"explicit and sign_seed belong to a rotation", {"explicit": True}),
        (r"explicit and sign_seed belong to a rotation", {"sign_seed": 1}),
    ],
)
def test_recipes_that_mean_nothing(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionRecipe(**options)


def test_recipes_print_themselves() -> None:
    assert str(RECIPES["fp16"]) == "not quantized"
    assert str(RECIPES["fp8_explicit"]) == "fp8_e4m3, scale per head, rotated q, k, v by an explicit product"
    assert str(RECIPES["int4_kv_rotated"]) == "int4 keys and values, scale per token, rotated q, k, v"
    assert len(set(RECIPES.values())) == len(RECIPES)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fp16", "fp8", "fp8_rotated"])
@pytest.mark.parametrize("n", [64, 80, 96, 128, 192, 256])
def test_flash_attention_on_a_gpu(name: str, n: int) -> None:
    """FP8 FlashAttention-3 is as far from float64 as its emulation, to 5 %."""
    engine = next((e for e in attention_functional.known_engines()[:-1] if e.support(torch.device("cuda"))), None)
    if engine is None:
        pytest.skip(f"no FlashAttention-3: {engines('cuda')}")
    q, k, v = (torch.randn(2, 500, h, n, device="cuda").bfloat16() for h in (8, 2, 2))
    there = torch.arange(500, device="cuda") >= torch.tensor([[100], [0]], device="cuda")
    windows: list[dict[str, Any]] = [{"causal": True, "window": 100}] if n <= 192 else []
    for options in ({"causal": True}, *windows, {"causal": True, "mask": there}, {}):
        exact = quantized_attention(q.float(), k.float(), v.float(), recipe="fp16", engine="emulated", **options)
        errors = [
            relative_error(quantized_attention(q, k, v, recipe=name, engine=e, **options), exact.double())
            for e in (engine, "emulated")
        ]
        assert errors[0] < attention_error(RECIPES[name], n, 500) + 2.0**-8
        assert abs(errors[0] / errors[1] - 1) < (0.05 if name != "fp16" else 0.5)
