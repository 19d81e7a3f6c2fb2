"""Argument checks of attention. Each error says what was got, what is allowed, and what to do."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from hadacore.attention.operands import Packing
from hadacore.attention.recipes import AttentionRecipe
from hadacore.matrices import check_size
from hadacore.prologues import Prologue, RotaryEmbedding, check_prologue

_INPUTS = (torch.float16, torch.bfloat16, torch.float32)


def check_tensors(
    q: Tensor, k: Tensor, v: Tensor, recipe: AttentionRecipe, rope: Prologue | None, *, packed: bool
) -> None:
    """Check types, shapes and devices of queries, keys and values, and their rotary embedding."""
    dimensions = 3 if packed else 4
    shape = "(tokens, heads, head_dim)" if packed else "(batch, tokens, heads, head_dim)"
    allowed = _INPUTS if recipe.format is not None or recipe.rotated else (*_INPUTS, torch.float64)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if x.dtype not in allowed:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise TypeError(f"{name} must be one of {names}, got {x.dtype}; convert it with {name}.to(torch.bfloat16)")
        if x.dim() != dimensions or x.shape[-2] == 0 or x.shape[-1] == 0:
            hint = "" if packed else "; packed sequences need q_offsets="
            raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}{hint}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} on {q.device} as q is, got {x.dtype} on {x.device}")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"attention in low precision records no gradient, got a {name} that requires grad; use {name}.detach() or "
                "torch.no_grad()"
            )
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"v must have k's shape but for the head size, got {tuple(v.shape)} and {tuple(k.shape)}")
    if q.shape[-1] != k.shape[-1] or (not packed and q.shape[0] != k.shape[0]):
        raise ValueError(f"q and k must have the same batch and head size, got {tuple(q.shape)} and {tuple(k.shape)}")
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(f"the heads of k must divide those of q, got {k.shape[-2]} and {q.shape[-2]}")
    if recipe.rotate:
        check_size(q.shape[-1])
    if recipe.rotate_value:
        check_size(v.shape[-1])
        if recipe.sign_seed is not None and v.shape[-1] != q.shape[-1]:
            raise ValueError(
                f"random signs are those of one head size, got {q.shape[-1]} for keys and {v.shape[-1]} for values; use a recipe "
                "without sign_seed"
            )
    if rope is not None:
        for x in (q, k):
            check_prologue(rope, x, x.shape[-1])
        if not isinstance(rope.description, RotaryEmbedding):
            raise ValueError(f"rope must come from hadacore.prologues.rope, got {rope.description.name}")
        if q.shape[-3] != k.shape[-3]:
            raise ValueError(
                f"rope= needs as many queries as keys, got {q.shape[-3]} and {k.shape[-3]}; apply it to each before the call"
            )


def check_order(causal: bool, window: int | None) -> None:
    """Check causal order and window."""
    if window is None:
        return
    if isinstance(window, bool) or not isinstance(window, int):
        raise TypeError(f"window must be an integer or None, got {type(window).__name__}")
    if window < 1:
        raise ValueError(f"window must be 1 key or more, the query's own, got {window}; None is no window")
    if not causal:
        raise ValueError("window= needs causal=True; pass a mask of queries and keys for another window")


def check_mask(mask: Tensor | None, q: Tensor, k: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """A mask as padding ``(batch, keys)``, or of queries and keys with four dimensions; both None without one."""
    if mask is None:
        return None, None
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a boolean torch.Tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be boolean, true where a key is seen, got {mask.dtype}; for 0 and 1 use mask.bool()"
        )
    if mask.device != q.device:
        raise ValueError(f"mask must be on q's device {q.device}, got {mask.device}; use mask.to(q.device)")
    batch, queries, heads = q.shape[:3]
    keys = k.shape[1]
    if mask.dim() == 2 and mask.shape == (batch, keys):
        return mask, None
    if (
        mask.dim() == 4
        and mask.shape[0] in (1, batch)
        and mask.shape[1] in (1, heads)
        and mask.shape[2:] == (queries, keys)
    ):
        return None, mask
    raise ValueError(
        f"mask must have shape (batch, keys) = {(batch, keys)} or (batch or 1, heads or 1, queries, keys) = "
        f"{(batch, heads, queries, keys)}, got {tuple(mask.shape)}"
    )


def check_offsets(
    q: Tensor, k: Tensor, q_offsets: Tensor | None, k_offsets: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """The offsets of packed queries and keys, or None."""
    if q_offsets is None:
        if k_offsets is not None:
            raise ValueError("k_offsets= goes with q_offsets=; pass both for packed sequences")
        return None
    if mask is not None:
        raise ValueError("mask= is not for packed sequences, which hold no padding; leave it away")
    of_k = q_offsets if k_offsets is None else k_offsets
    for name, offsets, x in (("q_offsets", q_offsets, q), ("k_offsets", of_k, k)):
        if not isinstance(offsets, Tensor) or offsets.dtype != torch.int32:
            got = offsets.dtype if isinstance(offsets, Tensor) else type(offsets).__name__
            raise TypeError(f"{name} must be an int32 tensor, got {got}")
        if offsets.dim() != 1 or offsets.shape[0] < 2 or offsets.shape != q_offsets.shape:
            raise ValueError(
                f"{name} must have shape (sequences + 1,), the same for queries and keys, got {tuple(offsets.shape)}"
            )
        if not isinstance(x, Tensor) or offsets.device != x.device:
            raise ValueError(f"{name} must be on the device of the tokens, got {offsets.device}")
        # Looking at values on a GPU would wait for it.
        if offsets.device.type == "cpu" and (
            int(offsets[0]) != 0 or int(offsets[-1]) != x.shape[0] or bool((offsets[1:] < offsets[:-1]).any())
        ):
            raise ValueError(f"{name} must rise from 0 to the {x.shape[0]} tokens, got {offsets.tolist()}")
    return q_offsets, of_k


def check_longest(longest: tuple[int, int] | None, packed: tuple[Packing, Packing]) -> tuple[int, int]:
    """Tokens of the longest sequence of queries and of keys."""
    if longest is None:
        lengths = [int((packing.offsets[1:] - packing.offsets[:-1]).max()) for packing in packed]
        return lengths[0], lengths[1]
    if not isinstance(longest, (tuple, list)) or len(longest) != 2 or not all(isinstance(n, int) for n in longest):
        raise TypeError(f"longest must be two integers, of queries and of keys, got {longest!r}")
    return longest[0], longest[1]


def check_softmax_scale(softmax_scale: float | None, head_dim: int) -> float:
    """The factor of the scores; None is ``head_dim ** -0.5``."""
    if softmax_scale is None:
        return float(head_dim**-0.5)
    if isinstance(softmax_scale, bool) or not isinstance(softmax_scale, numbers.Real):
        raise TypeError(f"softmax_scale must be a number or None, got {type(softmax_scale).__name__}")
    if not softmax_scale > 0:
        raise ValueError(f"softmax_scale must be positive, got {softmax_scale}")
    return float(softmax_scale)
