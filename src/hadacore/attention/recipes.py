"""Recipes of attention in low precision: one small description, and one table of those with names."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hadacore.formats import PER_TENSOR

PER_HEAD = "head"
PER_BLOCK = "block"
PER_TOKEN = "token"
GRANULARITIES = (PER_TENSOR, PER_HEAD, PER_BLOCK, PER_TOKEN)

#: Tokens of a head that share a scale with ``"block"``. FlashAttention-3's paper has one scale for each tile of queries or keys.
BLOCK_TOKENS = 128

_FORMATS = ("fp8_e4m3", "int8", "int4")


@dataclass(frozen=True)
class AttentionRecipe:
    """What happens to queries, keys, values and probabilities before they are multiplied.

    Attributes:
        format: ``"fp8_e4m3"``, ``"int8"``, ``"int4"``, or None, which leaves everything in the type it comes in.
        granularity: What shares a scale: the whole ``"tensor"``; ``"head"``: all tokens of a (batch, kv head), query heads of
            a group together, as FlashAttention-3 takes them; ``"block"``: 128 tokens of a head; ``"token"``: one token of a head.
        rotate: Rotate the heads of queries and keys before, which their products do not change by.
        rotate_value: Rotate the heads of values too, and the output back.
        quantize_query: Whether queries are quantized, or keys and values alone, as a cache holds them.
        sign_seed: Seed of the random signs that the rotation starts with, or None for none.
        explicit: Rotate by a product with the Hadamard matrix in fp32, instead of by :func:`hadacore.hadamard_transform`.

    Raises:
        ValueError: A format, granularity or combination that means nothing.

    Probabilities of ``"fp8_e4m3"`` are rounded to E4M3 too, all others to the 16-bit type of the queries, if it is one.

    >>> AttentionRecipe("fp8_e4m3", rotate=True)
    AttentionRecipe(fp8_e4m3, scale per head, rotated q, k)
    """

    format: str | None = None
    granularity: str = PER_HEAD
    rotate: bool = False
    rotate_value: bool = False
    quantize_query: bool = True
    sign_seed: int | None = None
    explicit: bool = False

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in _FORMATS:
            raise ValueError(f"format must be one of {', '.join(_FORMATS)} or None, got {self.format!r}")
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}, got {self.granularity!r}")
        if self.sign_seed is not None and (isinstance(self.sign_seed, bool) or not isinstance(self.sign_seed, int)):
            raise ValueError(f"sign_seed must be an integer or None, got {self.sign_seed!r}")
        if not self.rotated and (self.explicit or self.sign_seed is not None):
            raise ValueError("explicit and sign_seed belong to a rotation; set rotate or rotate_value")

    @property
    def rotated(self) -> bool:
        """Whether anything is rotated."""
        return self.rotate or self.rotate_value

    @property
    def is_fp8(self) -> bool:
        """Whether queries, keys, values and probabilities all are E4M3, as an FP8 kernel multiplies them."""
        return self.format == "fp8_e4m3" and self.quantize_query

    def signs(self, head_dim: int, device: torch.device) -> Tensor | None:
        """The random signs of a head, fp32, the same on every device; None without a seed."""
        if self.sign_seed is None:
            return None
        return _signs(self.sign_seed, head_dim, device)

    def __repr__(self) -> str:
        return f"AttentionRecipe({self})"

    def __str__(self) -> str:
        if self.format is None:
            words = ["not quantized"]
        else:
            shared = f"{BLOCK_TOKENS} tokens of a head" if self.granularity == PER_BLOCK else self.granularity
            words = [self.format + ("" if self.quantize_query else " keys and values"), f"scale per {shared}"]
        turned = ["q, k"] * self.rotate + ["v"] * self.rotate_value
        if turned:
            words.append("rotated " + ", ".join(turned) + (" by an explicit product" if self.explicit else ""))
        if self.sign_seed is not None:
            words.append(f"random signs of seed {self.sign_seed}")
        return ", ".join(words)


@functools.lru_cache(32)
def _signs(seed: int, head_dim: int, device: torch.device) -> Tensor:
    # Kept: they come from the host, which a CUDA graph cannot record.
    generator = torch.Generator().manual_seed(seed)
    return (1.0 - 2.0 * torch.randint(0, 2, (head_dim,), generator=generator)).to(device)


#: The recipes with names, for :func:`hadacore.attention.quantized_attention`, transformers and the evaluation.
RECIPES: dict[str, AttentionRecipe] = {
    "fp16": AttentionRecipe(),
    "fp8": AttentionRecipe("fp8_e4m3", PER_HEAD),
    "fp8_rotated": AttentionRecipe("fp8_e4m3", PER_HEAD, rotate=True, rotate_value=True),
    "fp8_explicit": AttentionRecipe("fp8_e4m3", PER_HEAD, rotate=True, rotate_value=True, explicit=True),
    "fp8_token": AttentionRecipe("fp8_e4m3", PER_TOKEN),
    "fp8_token_rotated": AttentionRecipe("fp8_e4m3", PER_TOKEN, rotate=True, rotate_value=True),
    "int8": AttentionRecipe("int8", PER_TOKEN),
    "int8_rotated": AttentionRecipe("int8", PER_TOKEN, rotate=True, rotate_value=True),
    "int4_kv": AttentionRecipe("int4", PER_TOKEN, quantize_query=False),
    "int4_kv_rotated": AttentionRecipe("int4", PER_TOKEN, rotate=True, rotate_value=True, quantize_query=False),
}


def find_recipe(recipe: str | AttentionRecipe) -> AttentionRecipe:
    """The recipe with a name, or the one that was given.

    Raises:
        TypeError: Neither a name nor a recipe.
        ValueError: No recipe has the name.
    """
    if isinstance(recipe, AttentionRecipe):
        return recipe
    if not isinstance(recipe, str):
        raise TypeError(f"recipe must be a name or an AttentionRecipe, got {type(recipe).__name__}")
    found = RECIPES.get(recipe)
    if found is None:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, or an AttentionRecipe, got {recipe!r}")
    return found
