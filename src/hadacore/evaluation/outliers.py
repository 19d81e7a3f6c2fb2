"""Outlier channels that leave a model's function as it is: powers of two that cancel in exact arithmetic and in fp32.

Queries and keys meet in a sum of products over channels, so a channel of K times f and the same channel of Q times 1/f change
no product. Rotary embedding mixes channels i and i + head_dim/2, so both get the same factor. Values meet the output
projection in the same way. For f a power of two every intermediate result is scaled exactly, as long as none leaves the range
of normal numbers, so logits in fp32 are the same bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Models whose attention has q_proj, k_proj, v_proj, o_proj and rotary embedding over whole heads in halves.
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class OutlierChannels:
    """What was done to a model.

    Attributes:
        pairs: Channel pairs of each head of K, and channels of each head of V.
        factor: What K and V were multiplied by there; Q and the output projection were divided by it.
        seed: Of the choice of channels.
    """

    pairs: int
    factor: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"outlier channels must be 1 or more, got {self.pairs}")
        if not self.factor > 0 or math.frexp(self.factor)[0] != 0.5:
            raise ValueError(f"the factor of outlier channels must be a power of two, such as 16, got {self.factor}")

    def __str__(self) -> str:
        return f"{2 * self.pairs} channels of each K head and {self.pairs} of each V head times {self.factor:g}"


def add_outlier_channels(model: nn.Module, channels: OutlierChannels) -> None:
    """Give a transformers model outlier channels in K and V, in place; its function stays.

    In every layer and for every kv head, ``pairs`` random pairs ``(i, i + head_dim / 2)`` of k_proj's rows are multiplied by
    ``factor`` and the same rows of q_proj, of all query heads of the group, divided by it; likewise ``pairs`` rows of v_proj
    and columns of o_proj. Where queries and keys are normalised (Qwen3), the norms' weights take the factors, so all heads of a
    layer share their channels.

    Raises:
        ValueError: The model's architecture is not known, there are fewer channels, or the weights' type cannot hold a
            product exactly.
    """
    config: Any = model.config
    if config.model_type not in SUPPORTED:
        raise ValueError(
            f"outlier channels are known for {', '.join(SUPPORTED)}, got a model of type {config.model_type!r}"
        )
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    if channels.pairs > head_dim // 2:
        raise ValueError(
            f"a head of {head_dim} channels has {head_dim // 2} pairs, got {channels.pairs} outlier channels"
        )
    generator = torch.Generator().manual_seed(channels.seed)
    with torch.no_grad():
        for layer in model.get_submodule("model.layers").children():
            attention: Any = layer.self_attn
            normed = hasattr(attention, "k_norm")
            of_k = _factors(1 if normed else kv_heads, head_dim // 2, channels, generator).repeat(1, 2)
            of_v = _factors(kv_heads, head_dim, channels, generator)
            groups = heads // kv_heads
            if normed:
                _scale(attention.k_norm, of_k[0], "k_norm")
                _scale(attention.q_norm, 1 / of_k[0], "q_norm")
            else:
                _scale(attention.k_proj, of_k.flatten(), "k_proj")
                _scale(attention.q_proj, 1 / of_k.repeat_interleave(groups, 0).flatten(), "q_proj")
            _scale(attention.v_proj, of_v.flatten(), "v_proj")
            o_factors = 1 / of_v.repeat_interleave(groups, 0).flatten()
            attention.o_proj.weight.copy_(_exact(attention.o_proj.weight, o_factors, "o_proj"))


def _factors(heads: int, count: int, channels: OutlierChannels, generator: torch.Generator) -> Tensor:
    factors = torch.ones(heads, count)
    for head in factors:
        head[torch.randperm(count, generator=generator)[: channels.pairs]] = channels.factor
    return factors


def _scale(module: nn.Module, factors: Tensor, name: str) -> None:
    """Multiply output channels: rows of the weight, and the bias."""
    weight: Any = module.weight
    weight.copy_(_exact(weight, factors[:, None] if weight.dim() == 2 else factors, name))
    bias: Any = getattr(module, "bias", None)
    if bias is not None:
        bias.copy_(_exact(bias, factors, name))


def _exact(weight: Tensor, factors: Tensor, name: str) -> Tensor:
    factors = factors.to(weight)
    scaled = weight * factors
    if not torch.equal(scaled / factors, weight):
        raise ValueError(
            f"{name} times a power of two is not exact in {weight.dtype}: some weights leave its range; use --dtype float32 or "
            "bfloat16, or a factor nearer to 1"
        )
    return scaled
