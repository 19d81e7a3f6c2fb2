"""Attention implementations of transformers: tiny models of random weights against PyTorch's own attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="4.56")

from hadacore.attention import RECIPES, AttentionRecipe, quantized_attention  # noqa: E402
from hadacore.integrations import transformers as integration  # noqa: E402

LENGTH = 20
NAMES = [integration.PREFIX + name for name in RECIPES]
# A layer adds its output to what it got, so that a relative error of attention is one of the logits, and smaller; two layers
# of tiny models, whose scores have a standard deviation below 1.
BOUNDS = {"fp16": 1e-5, "fp8": 0.1, "int8": 0.025, "int4": 0.35}
COMMON: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGURATIONS = {
    "llama": ("LlamaConfig", {}),
    "llama 96": ("LlamaConfig", {"head_dim": 96}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 64}),
}


def make_model(name: str) -> Any:
    torch.manual_seed(1)
    kind, extra = CONFIGURATIONS[name]
    configuration = getattr(transformers, kind)(**COMMON, **extra)
    return transformers.AutoModelForCausalLM.from_config(configuration).eval()


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def model(request: pytest.FixtureRequest) -> Any:
    return make_model(request.param)


def batch(side: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 128, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    there = torch.ones_like(ids)
    if side != "none":
        there[0, slice(0, 5) if side == "left" else slice(15, 20)] = 0
    return {"input_ids": ids, "attention_mask": there}


@torch.no_grad()
def logits(model: Any, name: str, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    model.set_attn_implementation(name)
    result: torch.Tensor = model(**inputs, **options).logits
    return result[inputs["attention_mask"].bool()]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def bound_of(name: str) -> float:
    return BOUNDS[name.removeprefix(integration.PREFIX).split("_")[0]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_logits_are_those_of_sdpa(model: Any, name: str, side: str) -> None:
    inputs = batch(side)
    found = difference(logits(model, name, inputs), logits(model, "sdpa", inputs))
    assert found < bound_of(name)
    assert name == "hadacore_fp16" or found > 1e-4  # it is not PyTorch's attention that ran


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("cache", [None, "static"])
@torch.no_grad()
def test_masks_in_fewer_words_as_on_a_gpu(
    model: Any, side: str, cache: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What FlashAttention-3 is given on a GPU, multiplied here by the emulation: causal order, a window and padding."""
    inputs = batch(side)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    expected = logits(model, "sdpa", inputs)
    tokens = model.generate(**inputs, **options)
    seen = []

    def spy(*arguments: Any, **more: Any) -> torch.Tensor:
        seen.append(more)
        return quantized_attention(*arguments, **more)

    monkeypatch.setattr(integration, "_may_run_flash_attention", lambda mask: True)
    monkeypatch.setattr(integration, "quantized_attention", spy)
    assert difference(logits(model, "hadacore_fp16", inputs), expected) < BOUNDS["fp16"]
    # With padding at the right, transformers goes on from the result of a token that is padding: nonsense, and another one here.
    real = slice(1, 2) if side == "right" else slice(0, 2)
    assert torch.equal(model.generate(**inputs, **options)[real], tokens[real])
    assert all(more["mask"] is None or more["mask"].dim() == 2 for more in seen)
    assert any(more["causal"] for more in seen)
    own = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    own[:, :, 7:, 7] = False  # a caller's mask that hides the key of a query from all, the query being no padding
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        expected = model(input_ids=inputs["input_ids"], attention_mask=own).logits
        model.set_attn_implementation("hadacore_fp16")
        assert difference(model(input_ids=inputs["input_ids"], attention_mask=own).logits, expected) < BOUNDS["fp16"]


@pytest.mark.parametrize("side", ["none", "left"])
@torch.no_grad()
def test_decoding_with_a_cache_is_the_whole_at_once(model: Any, side: str) -> None:
    inputs = batch(side)
    whole = logits(model, "hadacore_fp16", inputs).view(-1, 128)[-1]
    first = {key: value[:, :12] for key, value in inputs.items()}
    model.set_attn_implementation("hadacore_fp16")
    result = model(**first, use_cache=True)
    for begin, end in ((12, 15), (15, 16), (16, 20)):  # several tokens, one, several
        result = model(
            input_ids=inputs["input_ids"][:, begin:end],
            attention_mask=inputs["attention_mask"][:, :end],
            past_key_values=result.past_key_values,
            use_cache=True,
        )
    assert difference(result.logits[1, -1], whole) < 1e-5


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", ["hadacore_fp16", "hadacore_fp8_rotated", "hadacore_int4_kv_rotated"])
@torch.no_grad()
def test_generate(model: Any, name: str, cache: str | None) -> None:
    inputs = batch("left")
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "cache_implementation": cache}
    model.set_attn_implementation(name)
    tokens = model.generate(**inputs, **options)
    assert tokens.shape == (2, LENGTH + 8)
    if name == "hadacore_fp16":
        model.set_attn_implementation("sdpa")
        assert torch.equal(tokens, model.generate(**inputs, **options))
    else:
        # Every scale is that of the keys there are so far, whatever cache holds them.
        other = {**options, "cache_implementation": None if cache else "static"}
        assert torch.equal(tokens, model.generate(**inputs, **other))


def test_a_layer_s_own_scale_and_order() -> None:
    """What models other than these pass: another factor of the scores, attention to all keys, three tokens after a cache."""
    module = torch.nn.Module()
    q, k, v = torch.randn(1, 4, 3, 64), torch.randn(1, 2, 9, 64), torch.randn(1, 2, 9, 64)
    mask = torch.ones(3, 9, dtype=torch.bool).tril(6)[None, None]
    for options in (
        {"attention_mask": mask, "scaling": 0.3},
        {"attention_mask": None, "is_causal": False},
        {"attention_mask": mask[:, :, :1].expand(1, 1, 3, 9)},
    ):
        y, weights = integration.attention_forward(module, q, k, v, recipe=RECIPES["fp16"], **options)
        expected = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=options["attention_mask"], scale=options.get("scaling"), enable_gqa=True
        )
        assert weights is None and y.is_contiguous() and difference(y, expected.transpose(1, 2)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_models(dtype: torch.dtype) -> None:
    model = make_model("llama").to(dtype)
    inputs = batch("left")
    found = logits(model, "hadacore_fp8_rotated", inputs)
    assert found.dtype == dtype
    assert difference(found.float(), logits(model, "sdpa", inputs).float()) < BOUNDS["fp8"]


def test_own_recipes_and_engines() -> None:
    recipe = AttentionRecipe("fp8_e4m3", "token", rotate=True, sign_seed=3)
    assert integration.register("my_recipe", recipe, engine="emulated") == ("my_recipe",)
    model, inputs = make_model("llama"), batch("none")
    assert difference(logits(model, "my_recipe", inputs), logits(model, "sdpa", inputs)) < BOUNDS["fp8"]
    assert set(integration.register()) == set(NAMES)
    with pytest.raises(ValueError, match=r"name= and recipe= go together"):
        integration.register("alone")
    with pytest.raises(TypeError, match=r"name must be a string, got int"):
        integration.register(3, recipe)  # type: ignore[arg-type]
    for taken in ("sdpa", "my_flash", "me/mine"):
        with pytest.raises(ValueError, match=r"name must not be one that transformers gives a meaning to"):
            integration.register(taken, recipe)
    with pytest.raises(ValueError, match=r"recipe must be one of"):
        integration.register("other", "nonsense")


def test_an_engine_that_cannot_run_is_an_error() -> None:
    integration.register("on_vllm", "fp8", engine="vllm")
    with pytest.raises(RuntimeError, match=r"engine 'vllm' cannot run here"):
        logits(make_model("llama"), "on_vllm", batch("none"))


def test_what_is_not_computed_is_an_error() -> None:
    inputs = batch("none")
    model = make_model("llama")
    with pytest.raises(ValueError, match=r"does not return attention weights.*set_attn_implementation\(\"eager\"\)"):
        logits(model, "hadacore_fp8", inputs, output_attentions=True)
    model.set_attn_implementation("hadacore_fp8")
    with pytest.raises(ValueError, match=r"records no gradient"):
        model(**inputs)
    config = copy.deepcopy(model.config)
    config.attention_dropout = 0.1
    training = transformers.AutoModelForCausalLM.from_config(config).train()
    with pytest.raises(ValueError, match=r"has no dropout, got 0.1 from LlamaAttention; call model.eval\(\)"):
        logits(training, "hadacore_fp8", inputs)
    additive = torch.zeros(2, 1, LENGTH, LENGTH)
    with (
        pytest.raises(TypeError, match=r"takes boolean masks, true where a key is seen, got torch.float32"),
        torch.no_grad(),
    ):
        model(input_ids=inputs["input_ids"], attention_mask=additive)


@pytest.mark.parametrize(
    ("kind", "what"), [("Gemma2Config", "soft capping of scores"), ("GptOssConfig", "attention sinks")]
)
def test_models_with_other_scores_are_an_error(kind: str, what: str) -> None:
    extra = {"head_dim": 32, "num_local_experts": 2} if kind == "GptOssConfig" else {"head_dim": 32}
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**COMMON, **extra)).eval()
    with pytest.raises(ValueError, match=rf"does not compute {what}"):
        logits(model, "hadacore_fp8", batch("none"))
