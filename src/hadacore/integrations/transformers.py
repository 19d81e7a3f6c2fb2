"""Attention implementations for Hugging Face transformers (4.56 or later, and 5): one for each recipe with a name.

Importing this registers ``hadacore_fp16``, ``hadacore_fp8``, ``hadacore_fp8_rotated`` and so on, see
:data:`hadacore.attention.RECIPES`::

    import hadacore.integrations.transformers
    model.set_attn_implementation("hadacore_fp8_rotated")

The masks are those that transformers makes for PyTorch's own attention, so caches, padding at either end, sliding windows and
packed batches work as they do there.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hadacore.attention import RECIPES, AttentionRecipe, Engine, quantized_attention
from hadacore.attention.recipes import find_recipe
from hadacore.attention.visibility import Simplified, simplify

try:
    from transformers import AttentionInterface, AttentionMaskInterface
except ImportError as error:
    raise ImportError(
        f"hadacore.integrations.transformers needs transformers 4.56 or later, which could not be imported ({error}). Install it "
        'with: pip install "hadacore[transformers]"'
    ) from error

#: What the names begin with.
PREFIX = "hadacore_"

# Arguments that some models pass and this does not compute, and what they are.
_UNSUPPORTED = {
    "softcap": "soft capping of scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a position bias",
    "head_mask": "a mask of heads",
}

_TAKEN = ("eager", "sdpa", "flex_attention")

Forward = Callable[..., tuple[Tensor, None]]


def register(
    name: str | None = None, recipe: str | AttentionRecipe | None = None, engine: str | Engine | None = None
) -> tuple[str, ...]:
    """Register attention implementations with transformers, again if they are there already.

    Args:
        name: What ``set_attn_implementation`` is to take, for one recipe. None registers every recipe of
            :data:`hadacore.attention.RECIPES` as ``hadacore_`` and its name.
        recipe: With ``name``: what it does.
        engine: As in :func:`hadacore.attention.quantized_attention`.

    Returns:
        The names.

    On a GPU, where FlashAttention-3 leaves padding away, the results of tokens that are padding are zeros, as with the flash
    attention of transformers itself.

    Raises:
        TypeError, ValueError: A name without a recipe, or the reverse; a name that transformers gives a meaning to; no such
            recipe.

    >>> from hadacore.integrations.transformers import register  # doctest: +SKIP
    >>> register("fp8_signs", AttentionRecipe("fp8_e4m3", rotate=True, sign_seed=1))  # doctest: +SKIP
    ('fp8_signs',)
    """
    if (name is None) != (recipe is None):
        raise ValueError("name= and recipe= go together; leave both away to register every recipe of RECIPES")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    if name is not None and ("flash" in name or "/" in name or name in _TAKEN):
        raise ValueError(
            f"name must not be one that transformers gives a meaning to, nor hold 'flash' or '/', which it looks up elsewhere; "
            f"got {name!r}"
        )
    wanted = {PREFIX + key: r for key, r in RECIPES.items()} if name is None else {name: find_recipe(recipe or "")}
    for key, found in wanted.items():
        AttentionInterface.register(key, _forward_of(found, engine))
        AttentionMaskInterface.register(key, attention_mask)
    return tuple(wanted)


def attention_mask(*arguments: Any, **options: Any) -> Tensor | None:
    """The mask that transformers makes for ``sdpa``: boolean, with four dimensions, or None where causal order says it all."""
    mask: Tensor | None = AttentionMaskInterface()["sdpa"](*arguments, **options)
    if mask is not None and options.get("attention_mask") is not None:
        # Not a caller's own mask: a token whose key is hidden from all is padding, and its result does not matter.
        mask.hadacore_padding = True  # type: ignore[attr-defined]
    return mask


def _forward_of(recipe: AttentionRecipe, engine: str | Engine | None) -> Forward:
    return functools.partial(attention_forward, recipe=recipe, engine=engine)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    *,
    recipe: AttentionRecipe,
    engine: str | Engine | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer. Heads come before tokens here, and after them in the result.

    Args:
        module: The attention layer.
        query: ``(batch, heads, queries, head_dim)``.
        key: ``(batch, kv_heads, keys, head_dim)``, of the whole cache.
        value: Likewise.
        attention_mask: Boolean, ``(batch, 1, queries, keys)``, or None.
        scaling: Factor of the scores.
        dropout: Must be 0.
        is_causal: Whether to see no later keys where there is no mask; None is what the layer says.
        recipe: What to do.
        engine: Who does it.
        **kwargs: What else models pass; what changes the result and is not computed here is an error.

    Raises:
        ValueError: Dropout, attention weights, soft capping, sinks or a bias are asked for.
        TypeError: The mask is not boolean.
    """
    _check_supported(module, dropout, kwargs)
    queries, keys = query.shape[2], key.shape[2]
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    causal = causal and queries > 1 and attention_mask is None
    if causal and keys > queries:
        # Without a mask, transformers fills a cache from its beginning: the first query stands at the first key.
        key, value = key[:, :, :queries], value[:, :, :queries]
    window = None
    mask = _check_mask(attention_mask, keys)
    if mask is not None and _may_run_flash_attention(mask):
        found = _simplified(mask)
        if found is not None:
            causal, window, mask = found.causal, found.window, found.padding
            key, value = key[:, :, : found.keys], value[:, :, : found.keys]
    output = quantized_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        recipe=recipe,
        causal=causal,
        window=window,
        mask=mask,
        softmax_scale=scaling,
        engine=engine,
    )
    return output, None


def _check_supported(module: nn.Module, dropout: float, options: dict[str, Any]) -> None:
    name = type(module).__name__
    if dropout:
        raise ValueError(f"hadacore's attention has no dropout, got {dropout} from {name}; call model.eval()")
    config = getattr(module, "config", None)
    if options.get("output_attentions") or getattr(config, "output_attentions", False):
        raise ValueError(
            "hadacore's attention does not return attention weights, got output_attentions=True; use "
            'set_attn_implementation("eager") for them'
        )
    for key, what in _UNSUPPORTED.items():
        if options.get(key) is not None:
            raise ValueError(
                f"hadacore's attention does not compute {what}, got {key}= from {name}; use "
                'set_attn_implementation("eager") for this model'
            )


def _check_mask(mask: Tensor | None, keys: int) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"hadacore's attention takes boolean masks, true where a key is seen, got {got}")
    return mask if mask.shape[-1] == keys else mask[..., :keys]


def _may_run_flash_attention(mask: Tensor) -> bool:
    """Whether it is worth finding out what a mask says."""
    return mask.device.type == "cuda"


# One mask serves all layers of a forward pass, and finding out what it is waits for the GPU.
_last_mask: tuple[weakref.ref[Tensor], int, Simplified | None] | None = None


def _simplified(mask: Tensor) -> Simplified | None:
    global _last_mask
    last = _last_mask
    if last is not None and last[0]() is mask and last[1] == mask._version:
        return last[2]
    found = simplify(mask, skip_padding=getattr(mask, "hadacore_padding", False))
    _last_mask = (weakref.ref(mask), mask._version, found)
    return found


register()
