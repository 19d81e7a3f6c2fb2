"""Outlier channels leave a model's function as it is, bit for bit in fp32, and change what quantizers see."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from torch import Tensor

from hadacore.evaluation.models import use_recipe
from hadacore.evaluation.outliers import SUPPORTED, OutlierChannels, add_outlier_channels
from tests.small_models import random_model

IDS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(3))


def logits(model: torch.nn.Module, implementation: str) -> Tensor:
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def decoded(model: torch.nn.Module) -> Tensor:
    """Logits of the last token, the others being in the cache."""
    with torch.no_grad():
        cache = model(IDS[:, :-1], use_cache=True).past_key_values
        return model(IDS[:, -1:], past_key_values=cache, use_cache=True).logits


@pytest.mark.parametrize("factor", [16.0, 2.0**-5])
@pytest.mark.parametrize("kind", SUPPORTED)
def test_logits_stay_bit_for_bit(kind: str, factor: float) -> None:
    model = random_model(kind)
    implementations = ("eager", "sdpa", "hadacore_fp16")
    use_recipe(model, "fp16")
    before = [logits(model, name) for name in implementations]
    cached = decoded(model)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    add_outlier_channels(model, OutlierChannels(3, factor))
    for name, expected in zip(implementations, before, strict=True):
        assert torch.equal(logits(model, name), expected), name
    assert torch.equal(decoded(model), cached)
    changed = {name.split(".")[-2] for name, p in model.named_parameters() if not torch.equal(p, weights[name])}
    assert changed == ({"q_norm", "k_norm"} if kind == "qwen3" else {"q_proj", "k_proj"}) | {"v_proj", "o_proj"}


def test_keys_and_values_get_outliers() -> None:
    model = random_model()
    attention = model.model.layers[1].self_attn
    before = attention.k_proj.weight.clone(), attention.v_proj.weight.clone()
    add_outlier_channels(model, OutlierChannels(2, 16.0))
    for weight, old, channels in ((attention.k_proj.weight, before[0], 4), (attention.v_proj.weight, before[1], 2)):
        ratio = (weight / old)[:, 0].view(2, 16)  # (kv heads, channels)
        assert ((ratio == 16) | (ratio == 1)).all() and (ratio == 16).sum(1).tolist() == [channels] * 2
    pairs = (attention.k_proj.weight / before[0])[:, 0].view(2, 2, 8)
    assert torch.equal(pairs[:, 0], pairs[:, 1])  # i and i + 8 of a head


def test_quantizers_see_them() -> None:
    """INT4 keys and values lose by outlier channels, which rotation then spreads."""
    model = random_model()
    error = {}
    for label in ("as made", "with outliers"):
        exact = logits(model, "hadacore_fp16")
        error[label] = {
            name: float((logits(model, f"hadacore_{name}") - exact).norm()) for name in ("int4_kv", "int4_kv_rotated")
        }
        add_outlier_channels(model, OutlierChannels(1, 64.0))
    assert error["with outliers"]["int4_kv"] > 1.5 * error["as made"]["int4_kv"]
    assert error["with outliers"]["int4_kv_rotated"] < error["with outliers"]["int4_kv"]


def test_choice_of_channels_is_the_seeds() -> None:
    models = [random_model() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        add_outlier_channels(model, OutlierChannels(2, 16.0, seed))
    weights = [model.model.layers[0].self_attn.k_proj.weight for model in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("factor", [0.0, -2.0, 3.0, 17.0])
def test_factor_must_be_a_power_of_two(factor: float) -> None:
    with pytest.raises(ValueError, match=f"must be a power of two, such as 16, got {factor}"):
        OutlierChannels(1, factor)


def test_errors() -> None:
    with pytest.raises(ValueError, match="must be 1 or more, got 0"):
        OutlierChannels(0, 2.0)
    with pytest.raises(ValueError, match="known for llama, mistral, qwen2, qwen3, got a model of type 'gpt2'"):
        add_outlier_channels(random_model("gpt2"), OutlierChannels(1, 2.0))
    with pytest.raises(ValueError, match="a head of 16 channels has 8 pairs, got 9 outlier channels"):
        add_outlier_channels(random_model(), OutlierChannels(9, 2.0))
    with pytest.raises(ValueError, match=r"k_proj times a power of two is not exact in torch.float16.*--dtype float32"):
        add_outlier_channels(random_model().half(), OutlierChannels(1, 2.0**-16))
