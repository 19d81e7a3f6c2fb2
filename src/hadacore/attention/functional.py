"""Attention in low precision: the public functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hadacore.attention import arguments
from hadacore.attention.engines import Engine, known_engines
from hadacore.attention.operands import Packing, prepare, rotate_back
from hadacore.attention.problem import Problem
from hadacore.attention.recipes import AttentionRecipe, find_recipe
from hadacore.attention.visibility import Visibility
from hadacore.errors import BackendUnavailableError
from hadacore.prologues import Prologue


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What a call would run: the engine, and why not the others. It prints itself.

    Attributes:
        problem: Sizes and options.
        engine: Who multiplies.
        passed_over: Engines that come before it, and why each cannot run this.
        named: Whether the caller named the engine.
    """

    problem: Problem
    engine: Engine
    passed_over: dict[str, str]
    named: bool

    def __str__(self) -> str:
        p = self.problem
        what = f"{p.batch} packed sequences of {p.queries}" if p.packed else f"batch {p.batch}, {p.queries}"
        order = ("causal" if p.causal else "all keys") + (f", window {p.window}" if p.window is not None else "")
        order += ", padding" * p.padding + ", mask" * p.mask
        support = self.engine.support(p.device)
        lines = [
            f"Attention, {what} queries and {p.keys} keys, {p.heads} / {p.kv_heads} heads of {p.head_dim}, {order}, "
            f"{str(p.dtype).removeprefix('torch.')}, on {p.device}",
            f"  recipe  {p.recipe}",
            f"  engine  {self.engine.name}{', as named' if self.named else ''}: {support.reason}",
        ]
        lines += [f"  not     {name}: {reason}" for name, reason in self.passed_over.items()]
        return "\n".join(lines)


def quantized_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    recipe: str | AttentionRecipe = "fp8_rotated",
    rope: Prologue | None = None,
    causal: bool = False,
    window: int | None = None,
    mask: Tensor | None = None,
    q_offsets: Tensor | None = None,
    k_offsets: Tensor | None = None,
    longest: tuple[int, int] | None = None,
    softmax_scale: float | None = None,
    engine: str | Engine | None = None,
) -> Tensor:
    r"""Scaled dot-product attention of rotated and quantized queries, keys and values.

    .. math:: \mathrm{softmax}(\mathrm{softmax\_scale} \cdot \mathrm{rope}(q)\, \mathrm{rope}(k)^T)\, v

    Queries and keys are rotated alike, so that their products stay; values that are rotated are rotated back in the output.
    Query head h belongs to kv head ``h // (heads / kv_heads)``. Query i stands at position ``keys - queries + i`` of the keys,
    so that the last query sees the last key, as in FlashAttention.

    Args:
        q: ``(batch, queries, heads, head_dim)``, float16, bfloat16 or float32; or packed ``(tokens, heads, head_dim)`` with
            ``q_offsets``. The head size is 64, 80, 96, 128, 192, 256 or any other that has a Hadamard matrix.
        k: ``(batch, keys, kv_heads, head_dim)``, or packed; kv_heads divides heads.
        v: ``(batch, keys, kv_heads, value_dim)``, or packed.
        recipe: A name of :data:`RECIPES`, or an :class:`AttentionRecipe`.
        rope: From :func:`hadacore.prologues.rope`, applied to queries and keys.
        causal: Queries see no later keys.
        window: Queries see the last ``window`` keys up to their own only; needs ``causal``.
        mask: Boolean: ``(batch, keys)``, true where there is a key and no padding; or ``(batch or 1, heads or 1, queries,
            keys)``, true where a key is seen. Not for packed sequences.
        q_offsets: int32, ``(sequences + 1,)``: the first token of each packed sequence, and the number of tokens.
        k_offsets: Likewise of keys and values; None is ``q_offsets``.
        longest: Tokens of the longest sequence of queries and of keys. None finds them out, which waits for a GPU.
        softmax_scale: Factor of the scores; None is ``head_dim ** -0.5``.
        engine: A name, see :func:`engines`, or an engine such as ``VllmEngine(path)``. None: on a GPU the first of
            FlashAttention-3's that can run this, else ``"emulated"``; on a CPU ``"emulated"``. :func:`plan_attention` says which.

    Returns:
        q's shape with ``value_dim`` for the head size, and q's dtype. A query that sees no key gets zeros.

    Raises:
        TypeError: Wrong type or dtype of an argument.
        ValueError: Wrong shape, size, device or value; a gradient is asked for; the named engine cannot run this.
        BackendUnavailableError: The named engine is missing here; the message says what to install.

    Numerics: :mod:`hadacore.attention.emulated` states where an FP8 kernel rounds; ``docs/attention.md`` says what that
    costs. Keys that no query sees, and queries that see no key, have no influence on scales. FlashAttention-3 returns
    bfloat16 for FP8 operands, which for float16 queries is rounded once more. No gradient.

    Source: Shah et al., FlashAttention-3, arXiv 2407.08608 (FP8 attention and rotation of queries and keys);
    Dao et al., FlashAttention, arXiv 2205.14135 (online softmax).

    >>> import torch
    >>> q, k, v = torch.randn(2, 5, 8, 64), torch.randn(2, 9, 2, 64), torch.randn(2, 9, 2, 64)
    >>> quantized_attention(q, k, v, recipe="fp8_rotated", causal=True).shape
    torch.Size([2, 5, 8, 64])
    """
    call = _Call.of(q, k, v, recipe, rope, causal, window, mask, q_offsets, k_offsets)
    plan = _choose(call.problem, engine)
    scale = arguments.check_softmax_scale(softmax_scale, call.problem.head_dim)
    if call.packed is not None:
        longest = arguments.check_longest(longest, call.packed)
    elif longest is not None:
        raise ValueError("longest= belongs to packed sequences; leave it away without q_offsets=")
    if q.numel() == 0 or call.k.shape[1] == 0 or v.numel() == 0:
        return q.new_zeros((*q.shape[:-1], v.shape[-1]))
    operands = prepare(call.q, call.k, call.v, call.problem.recipe, rope, call.packed)
    result = plan.engine.attend(operands, call.visibility, scale, q.dtype, call.packed, longest)
    if call.problem.recipe.rotate_value:
        result = rotate_back(result, operands.signs, call.problem.recipe.explicit)
    return result.view(*q.shape[:-1], v.shape[-1])


def plan_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    recipe: str | AttentionRecipe = "fp8_rotated",
    rope: Prologue | None = None,
    causal: bool = False,
    window: int | None = None,
    mask: Tensor | None = None,
    q_offsets: Tensor | None = None,
    k_offsets: Tensor | None = None,
    engine: str | Engine | None = None,
) -> AttentionPlan:
    """What :func:`quantized_attention` would run with these arguments, and why. Nothing is computed.

    Raises:
        As :func:`quantized_attention`.

    >>> import torch
    >>> x = torch.randn(1, 16, 4, 64)
    >>> print(plan_attention(x, x, x, causal=True))  # doctest: +ELLIPSIS
    Attention, batch 1, 16 queries and 16 keys, 4 / 4 heads of 64, causal, float32, on cpu
      recipe  fp8_e4m3, scale per head, rotated q, k, v
      engine  emulated: PyTorch operations with FP8's roundings, for accuracy, not for speed
    ...
    """
    return _choose(_Call.of(q, k, v, recipe, rope, causal, window, mask, q_offsets, k_offsets).problem, engine)


@dataclass(frozen=True, eq=False)
class _Call:
    """Checked arguments, all of them with four dimensions."""

    problem: Problem
    q: Tensor
    k: Tensor
    v: Tensor
    visibility: Visibility
    packed: tuple[Packing, Packing] | None

    @staticmethod
    def of(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        recipe: str | AttentionRecipe,
        rope: Prologue | None,
        causal: bool,
        window: int | None,
        mask: Tensor | None,
        q_offsets: Tensor | None,
        k_offsets: Tensor | None,
    ) -> _Call:
        found = find_recipe(recipe)
        offsets = arguments.check_offsets(q, k, q_offsets, k_offsets, mask)
        arguments.check_tensors(q, k, v, found, rope, packed=offsets is not None)
        arguments.check_order(causal, window)
        packed = None
        if offsets is not None:
            packed = Packing.of(offsets[0], q.shape[0]), Packing.of(offsets[1], k.shape[0])
            q, k, v = q[None], k[None], v[None]
        padding, full = arguments.check_mask(mask, q, k)
        visibility = Visibility(bool(causal), window, padding, full)
        used_queries, used_keys = visibility.used(q.shape[1])
        # What takes no part must not decide a scale.
        if used_queries is not None:
            q = q.masked_fill(~used_queries[:, :, None, None], 0.0)
        if used_keys is not None:
            k = k.masked_fill(~used_keys[:, :, None, None], 0.0)
            v = v.masked_fill(~used_keys[:, :, None, None], 0.0)
        batch = q.shape[0] if offsets is None else offsets[0].shape[0] - 1
        problem = Problem(
            found, q.device, q.dtype, batch, q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3],
            bool(causal), window, offsets is not None, padding is not None, full is not None,
        )  # fmt: skip
        return _Call(problem, q, k, v, visibility, packed)


def _choose(problem: Problem, wanted: str | Engine | None) -> AttentionPlan:
    known = known_engines()
    if wanted is None:
        passed_over: dict[str, str] = {}
        for engine in known:
            support = engine.support(problem.device)
            reason = engine.refusal(problem) if support else support.reason
            if reason is None:
                return AttentionPlan(problem, engine, passed_over, named=False)
            passed_over[engine.name] = reason
        raise AssertionError("the emulated engine runs everything")
    engine = _named(wanted, known)
    support = engine.support(problem.device)
    if not support:
        raise BackendUnavailableError(f"the attention engine {engine.name!r} cannot run here: {support.reason}")
    refusal = engine.refusal(problem)
    if refusal is not None:
        raise ValueError(
            f"the attention engine {engine.name!r} cannot run this: {refusal}; use engine='emulated' or None"
        )
    return AttentionPlan(problem, engine, {}, named=True)


def _named(wanted: str | Engine, known: tuple[Engine, ...]) -> Engine:
    if isinstance(wanted, str):
        found = next((engine for engine in known if engine.name == wanted), None)
        if found is None:
            names = ", ".join(engine.name for engine in known)
            raise ValueError(f"engine must be one of {names}, an engine, or None to have one chosen, got {wanted!r}")
        return found
    if isinstance(wanted, Path) or not all(hasattr(wanted, name) for name in ("support", "refusal", "attend")):
        raise TypeError(
            f"engine must be a name, an engine or None, got {type(wanted).__name__}; for a library use VllmEngine(path)"
        )
    return wanted
