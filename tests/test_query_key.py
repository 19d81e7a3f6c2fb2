"""Queries and keys: codes and scales by definition, attention after it, the paged cache, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hadacore import QuantizedTensor, hadamard_quantize, hadamard_transform, paged_slots, prologues, quantize_query_key
from hadacore.quantization import prologue_reference, query_key
from tests import oracle as float64_oracle
from tests import quantization_oracle as oracle
from tests import tolerances
from tests.quantized_values import assert_quantized_within

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.uint8)


def _rope(tokens: int, pairs: int, device: torch.device, **options: Any) -> prologues.Prologue:
    angles = torch.arange(3.0 * tokens)[:, None] * 100.0 ** -(torch.arange(pairs) / pairs)
    return prologues.rope(angles.cos().to(device), angles.sin().to(device), **options)


def _heads(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.randn(2, 6, 8, 32) * torch.rand(2, 1, 8, 1) * 10
    return q.to(dtype).to(device), torch.randn(2, 6, 2, 32).to(dtype).to(device)


@pytest.mark.parametrize("interleaved", [None, False, True])
@pytest.mark.parametrize("format", ["fp8_e4m3", "fp8_e5m2"])
def test_one_scale_for_each_group_of_heads(format: str, interleaved: bool | None, device: torch.device) -> None:
    q, k = _heads(device, torch.bfloat16)
    rope = None if interleaved is None else _rope(6, 16, device, interleaved=interleaved)
    signs = (torch.randint(0, 2, (32,), device=device) * 2 - 1).float()
    result = quantize_query_key(q, k, rope=rope, format=format, signs=signs, clip_ratio=0.9)
    for codes, descale, x in ((result.q, result.q_descale, q), (result.k, result.k_descale, k)):
        y = x.float() if rope is None else prologue_reference.apply(rope.description, x, rope.operands, None)
        exact = float64_oracle.transform(y, signs=signs)
        bound = tolerances.rotated_bound(y, 32, 32**-0.5, x.dtype, rope is not None)
        y = hadamard_transform(y, signs=signs).cpu().numpy()
        assert codes.shape == x.shape and descale.shape == (2, 2) and descale.is_contiguous()
        group = x.shape[2] // 2
        for b in range(2):
            for h in range(2):
                heads = slice(h * group, (h + 1) * group)
                flat = codes[b, :, heads].reshape(1, -1)
                one = QuantizedTensor(flat, descale[b, h].view(1, 1), format, flat.shape, "row")
                ends = (values[b, :, heads].reshape(1, -1) for values in (exact, bound))
                assert_quantized_within(one, *ends, clip_ratio=0.9, differing=0.3 if device.type == "cuda" else 0.05)
                if device.type == "cuda":  # a kernel of 16-bit inputs adds in another order
                    continue
                expected, scales = oracle.quantize(y[b, :, heads].reshape(1, -1), format, y[b, :, heads].size, 0.9)
                assert descale[b, h].item() == scales.item()
                assert _bytes(codes)[b, :, heads].cpu().flatten().tolist() == expected.flatten().tolist()


def test_one_scale_for_each_token(device: torch.device) -> None:
    q, k = _heads(device)
    result = quantize_query_key(q, k, granularity="token", rope=_rope(6, 8, device))
    for codes, descale, x in ((result.q, result.q_descale, q), (result.k, result.k_descale, k)):
        expected = hadamard_quantize(x, "fp8_e4m3", prologue=_rope(6, 8, device))
        assert torch.equal(_bytes(codes), _bytes(expected.codes)) and torch.equal(descale, expected.scales.squeeze(-1))


def test_given_scales(device: torch.device) -> None:
    q, k = _heads(device)
    found = quantize_query_key(q, k)
    given = quantize_query_key(q, k, q_scale=found.q_descale, k_scale=found.k_descale)
    for a, b in zip(given, found, strict=True):
        assert torch.equal(a.float(), b.float())
    small = quantize_query_key(q, k, k_scale=torch.full((2, 2), 1e-4, device=device))
    assert small.k.float().abs().max().item() == 448.0 and torch.equal(small.q_descale, found.q_descale)


def test_attention_scores_are_kept(device: torch.device) -> None:
    """Relative error of the scores of 0.03: two roundings of relative error 0.026 over sqrt(2) each, averaged."""
    q, k = torch.randn(1, 64, 8, 128, device=device), torch.randn(1, 64, 2, 128, device=device)
    rope = _rope(64, 64, device)
    result = quantize_query_key(q, k, rope=rope)
    turned = [prologue_reference.apply(rope.description, x, rope.operands, None) for x in (q, k)]
    qd = result.q.float() * result.q_descale.repeat_interleave(4, 1)[:, None, :, None]
    kd = result.k.float() * result.k_descale[:, None, :, None]
    got, exact = (
        torch.einsum("bqhd,bkhd->bhqk", a, b.repeat_interleave(4, 2)) for a, b in ((qd, kd), (turned[0], turned[1]))
    )
    assert (got - exact).norm() < 0.045 * exact.norm()
    assert F.cosine_similarity(got.flatten(), exact.flatten(), 0) > 0.999


def test_what_is_not_finite_stays_in_its_group(device: torch.device) -> None:
    q, k = _heads(device)
    clean = quantize_query_key(q, k)
    q[1, 2, 5, 3] = math.inf
    result = quantize_query_key(q, k)
    assert result.q_descale[1, 1].isnan() and (_bytes(result.q)[1, :, 4:] == 0x7F).all()
    assert torch.equal(_bytes(result.q)[0], _bytes(clean.q)[0]) and torch.equal(
        _bytes(result.q)[1, :, :4], _bytes(clean.q)[1, :, :4]
    )
    assert torch.equal(_bytes(result.k), _bytes(clean.k)) and torch.equal(result.k_descale, clean.k_descale)


@pytest.mark.parametrize("granularity", ["head", "token"])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty(shape: tuple[int, int], granularity: str, device: torch.device) -> None:
    q, k = torch.empty(*shape, 4, 16, device=device), torch.empty(*shape, 2, 16, device=device)
    result = quantize_query_key(q, k, granularity=granularity)
    assert (
        result.q.shape == q.shape and result.k_descale.shape == (shape[0], 2) if granularity == "head" else (*shape, 2)
    )
    assert result.k_descale.isfinite().all()


# ---- paged cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize("integers", [torch.int32, torch.int64], ids=str)
def test_keys_land_in_their_slots(integers: torch.dtype, device: torch.device) -> None:
    q, k = _heads(device)
    block_table = torch.tensor([[3, 0], [5, 1]], device=device, dtype=integers)
    positions = torch.tensor([[2, 3, 4, 5, -1, -1], [0, 1, 2, 3, 4, 7]], device=device, dtype=integers)
    slots = paged_slots(block_table, positions, 4)
    assert slots.tolist() == [14, 15, 0, 1, -1, -1, 20, 21, 22, 23, 4, 7]
    pool = torch.full((2, 7, 4, 2, 32), 9, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
    key_cache = pool.transpose(0, 1)[:, 1]  # strided, as one of the keys and values of a pool
    scale_cache = torch.zeros(7, 4, 2, device=device)
    result = quantize_query_key(
        q, k, granularity="token", key_cache=key_cache, slot_mapping=slots.to(integers), scale_cache=scale_cache
    )
    expected, scales = torch.full((28, 2, 32), 9, dtype=torch.uint8), torch.zeros(28, 2)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[slot] = _bytes(result.k).flatten(0, 1)[token].cpu()
            scales[slot] = result.k_descale.flatten(0, 1)[token].cpu()
    assert torch.equal(_bytes(key_cache).cpu().reshape(28, 2, 32), expected)
    assert torch.equal(scale_cache.cpu().view(28, 2), scales)
    assert (_bytes(pool)[0] == 9).all()


def test_tokens_without_slots_write_nothing(device: torch.device) -> None:
    q, k = _heads(device)
    cache = torch.full((2, 4, 2, 32), 9, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
    quantize_query_key(q, k, key_cache=cache, slot_mapping=torch.full((12,), -1, device=device))
    assert (_bytes(cache) == 9).all()
    empty = quantize_query_key(
        q[:, :0], k[:, :0], key_cache=cache, slot_mapping=torch.empty(0, dtype=torch.long, device=device)
    )
    assert empty.k.shape == (2, 0, 2, 32)


# ---- operators --------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_opcheck(given: bool, per_token: bool, device: torch.device) -> None:
    q, _ = _heads(device)
    scale = torch.ones(2, 2, device=device) if given and not per_token else None
    rope = list(_rope(6, 8, device).operands)
    arguments = (q, "fp8_e4m3", 2, per_token, scale, 1.0, 0.5, None, False, rope)
    torch.library.opcheck(torch.ops.hadacore.hadamard_quantize_heads.default, arguments, test_utils=UTILITIES)


def test_opcheck_of_the_cache(device: torch.device) -> None:
    values, cache = torch.randn(3, 2, 8, device=device), torch.zeros(2, 4, 2, 8, device=device)
    slots = torch.tensor([5, -1, 0], device=device)
    torch.library.opcheck(torch.ops.hadacore.write_paged_cache.default, (values, slots, cache), test_utils=UTILITIES)


def test_compile_fullgraph_with_dynamic_tokens(device: torch.device) -> None:
    torch._dynamo.reset()
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append(1)
        return graph.forward

    rope = _rope(100, 16, device)

    def f(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(quantize_query_key(q, k, rope=rope))

    g = torch.compile(f, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (3, 5, 70):  # not 2: equal sizes share a symbol
        q, k = torch.randn(2, tokens, 8, 32, device=device), torch.randn(2, tokens, 2, 32, device=device)
        assert all(torch.equal(a.float(), b.float()) for a, b in zip(g(q, k), f(q, k), strict=True))
    assert len(compiled) == 1


Q, K = torch.randn(2, 3, 4, 16), torch.randn(2, 3, 2, 16)
CACHE = torch.zeros(2, 4, 2, 16).to(torch.float8_e4m3fn)
SLOTS = torch.arange(6)

ERRORS: list[tuple[type[Exception], str, Any]] = [
    (ValueError, r"to fp8_e4m3 or fp8_e5m2, got 'int8'", lambda: quantize_query_key(Q, K, format="int8")),
    (
        ValueError,
        r"granularity must be 'head' or 'token', got 'row'",
        lambda: quantize_query_key(Q, K, granularity="row"),
    ),
    (ValueError, r"k must have shape \(batch, tokens, heads, head_dim\), got", lambda: quantize_query_key(Q, K[0])),
    (ValueError, r"heads of k must divide those of q, got 2 and 3", lambda: quantize_query_key(Q[:, :, :3], K)),
    (ValueError, r"same batch and head_dim, .*got \(2, 3, 4, 16\) and \(1,", lambda: quantize_query_key(Q, K[:1])),
    (ValueError, r"k must be on q's device cpu, got meta", lambda: quantize_query_key(Q, K.to("meta"))),
    (
        ValueError,
        r"with rope= as many tokens",
        lambda: quantize_query_key(Q, K[:, :2], rope=prologues.rope(torch.ones(9, 8), torch.ones(9, 8))),
    ),
    (
        ValueError,
        r"rope must come from .*got rms_norm",
        lambda: quantize_query_key(Q, K, rope=prologues.rms_norm(torch.ones(16))),
    ),
    (ValueError, r"no Hadamard matrix of order 7", lambda: quantize_query_key(Q[..., :7], K[..., :7])),
    (TypeError, r"q_scale must be a float32 tensor, got float", lambda: quantize_query_key(Q, K, q_scale=1.0)),
    (
        ValueError,
        r"k_scale must have shape \(batch, kv_heads\) = \(2, 2\), got \(2,\)",
        lambda: quantize_query_key(Q, K, k_scale=torch.ones(2)),
    ),
    (
        ValueError,
        r"k_scale must be on q's device cpu",
        lambda: quantize_query_key(Q, K, k_scale=torch.ones(2, 2, device="meta")),
    ),
    (ValueError, r"given scales must be from 2\^-126", lambda: quantize_query_key(Q, K, k_scale=torch.zeros(2, 2))),
    (
        ValueError,
        r"scales per token are computed, got q_scale",
        lambda: quantize_query_key(Q, K, granularity="token", q_scale=torch.ones(2, 2)),
    ),
    (ValueError, r"key_cache needs slot_mapping=.*paged_slots", lambda: quantize_query_key(Q, K, key_cache=CACHE)),
    (
        TypeError,
        r"key_cache must be a torch.float8_e4m3fn tensor, got torch.float32",
        lambda: quantize_query_key(Q, K, key_cache=CACHE.float(), slot_mapping=SLOTS),
    ),
    (
        ValueError,
        r"key_cache must have shape \(blocks, block_size, \*\(2, 16\)\), got \(4, 2, 16\)",
        lambda: quantize_query_key(Q, K, key_cache=CACHE[0], slot_mapping=SLOTS),
    ),
    (
        TypeError,
        r"slot_mapping must be an int32 or int64 tensor, got list",
        lambda: quantize_query_key(Q, K, key_cache=CACHE, slot_mapping=[1]),
    ),
    (
        ValueError,
        r"slot_mapping must have shape \(batch \* tokens,\) = \(6,\), got \(5,\)",
        lambda: quantize_query_key(Q, K, key_cache=CACHE, slot_mapping=SLOTS[:5]),
    ),
    (
        ValueError,
        r"must be on k's device cpu, got cpu and meta",
        lambda: quantize_query_key(Q, K, key_cache=CACHE, slot_mapping=SLOTS.to("meta")),
    ),
    (
        ValueError,
        r"slots must be below 8, .*got 8",
        lambda: quantize_query_key(Q, K, key_cache=CACHE, slot_mapping=SLOTS + 3),
    ),
    (
        ValueError,
        r"scale_cache goes with key_cache and granularity='token'",
        lambda: quantize_query_key(Q, K, key_cache=CACHE, slot_mapping=SLOTS, scale_cache=torch.zeros(2, 4, 2)),
    ),
    (TypeError, r"block_table must be an int32 or int64 tensor, got list", lambda: paged_slots([[1]], SLOTS, 4)),
    (
        ValueError,
        r"positions \(sequences, tokens\), got \(2, 3\) and \(6,\)",
        lambda: paged_slots(SLOTS.view(2, 3), SLOTS, 4),
    ),
    (
        ValueError,
        r"block_size must be a positive integer, got 0",
        lambda: paged_slots(SLOTS.view(2, 3), SLOTS.view(2, 3), 0),
    ),
]


@pytest.mark.parametrize(("error", "message", "call"), ERRORS, ids=[message[:40] for _, message, _ in ERRORS])
def test_message(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


def test_what_the_cuda_kernels_do_not_take_is_composed() -> None:
    """Heads of 80 have no kernels for a scale of a head; nothing of the call gets lost on the way to the composed path."""
    x = torch.randn(2, 5, 4, 80)
    arguments = (x, "fp8_e4m3", 2, False, None, 0.9, 0.5, None, False, [])
    for rotate in (True, False):
        codes, scales = query_key._quantize_heads_by_kernels(*arguments, rotate)
        expected = torch.ops.hadacore.hadamard_quantize_heads(*arguments, rotate)
        assert torch.equal(codes.view(torch.uint8), expected[0].view(torch.uint8)) and torch.equal(scales, expected[1])
    assert not torch.equal(scales, torch.ops.hadacore.hadamard_quantize_heads(*arguments)[1])
