"""One attention problem, as an engine must know it to say whether it can run it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hadacore.attention.recipes import AttentionRecipe


@dataclass(frozen=True)
class Problem:
    """Sizes and options of a call.

    Attributes:
        recipe: What is done to the operands.
        device: Where they are.
        dtype: Of the input.
        batch: Sequences.
        queries: Tokens of queries; of all sequences if they are packed.
        keys: Tokens of keys and values.
        heads: Query heads.
        kv_heads: Heads of keys and values.
        head_dim: Elements of a head of queries and keys.
        value_dim: Elements of a head of values.
        causal: Whether queries see no later keys.
        window: Sliding window, or None.
        packed: Whether sequences are packed, with their offsets.
        padding: Whether there is a mask of padding.
        mask: Whether there is a mask of queries and keys.
    """

    recipe: AttentionRecipe
    device: torch.device
    dtype: torch.dtype
    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    causal: bool
    window: int | None = None
    packed: bool = False
    padding: bool = False
    mask: bool = False
