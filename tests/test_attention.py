"""Attention in low precision against float64, and against the roundings of an FP8 kernel done independently."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hadacore import prologues, quantize_query_key
from hadacore.attention import RECIPES, AttentionRecipe, EmulatedEngine, quantized_attention
from hadacore.attention.emulated import keys_of_a_block
from hadacore.attention.operands import Packing, prepare, quantize_heads, rotate, rotate_back
from hadacore.attention.visibility import simplify
from hadacore.formats import E4M3
from hadacore.quantization import rounding
from tests import oracle
from tests.attention_oracle import exact_attention, fp8_attention, visible
from tests.tolerances import attention_error, attention_flips, attention_float32, relative_error

SIZES = (64, 80, 96, 128, 192, 256)
EMULATED = "emulated"


def tensors(queries: int, keys: int, heads: int = 4, kv_heads: int = 2, n: int = 64, batch: int = 2, seed: int = 0,
            dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, queries, heads, n), (batch, keys, kv_heads, n), (batch, keys, kv_heads, n))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_close_to_float64(name: str, n: int) -> None:
    q, k, v = tensors(33, 50, n=n)
    y = quantized_attention(q, k, v, recipe=name, causal=True)
    assert y.shape == q.shape and y.dtype == q.dtype
    exact = exact_attention(q, k, v, causal=True)
    assert relative_error(y, exact) < attention_error(RECIPES[name], n, 50)


@pytest.mark.parametrize("name", ["fp8_rotated", "fp8_explicit", "fp8_token_rotated", "int4_kv_rotated"])
def test_random_signs_are_undone(name: str) -> None:
    recipe = dataclasses.replace(RECIPES[name], sign_seed=7)
    q, k, v = tensors(33, 50)
    y = quantized_attention(q, k, v, recipe=recipe, causal=True)
    assert relative_error(y, exact_attention(q, k, v, causal=True)) < attention_error(recipe, 64, 50)


def test_blocks_of_keys_are_the_kernel_s() -> None:
    """FlashAttention's ``hopper/tile_size.h``, one byte an element; a size that has no kernel uses the next one's."""
    assert [keys_of_a_block(n) for n in SIZES] == [160, 128, 128, 224, 160, 128]


@pytest.mark.parametrize("causal", [False, True])
def test_rows_may_be_cut_anywhere(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    q, k, v = tensors(100, 130)
    whole = quantized_attention(q, k, v, recipe="fp8", causal=causal, window=40 if causal else None)
    monkeypatch.setattr("hadacore.attention.emulated._MOST_SCORES", 1)
    pieces = quantized_attention(q, k, v, recipe="fp8", causal=causal, window=40 if causal else None)
    assert relative_error(pieces, whole.double()) < attention_flips(64, 130)


@pytest.mark.parametrize("n", [64, 80, 128])
def test_fp8_rounds_where_the_kernel_does(n: int) -> None:
    """Codes, probabilities and the order of blocks, one (batch, kv head) at a time."""
    q, k, v = tensors(20, 3 * keys_of_a_block(n) + 7, n=n)
    v = v * 3 + 1
    y = quantized_attention(q * 2, k, v, recipe="fp8")
    for b in range(2):
        for h in range(2):
            stacked = (q[b, :, 2 * h : 2 * h + 2] * 2).transpose(0, 1).reshape(-1, n)
            expected = fp8_attention(stacked, k[b, :, h], v[b, :, h], n**-0.5, keys_of_a_block(n))
            got = y[b, :, 2 * h : 2 * h + 2].transpose(0, 1).reshape(-1, n)
            assert relative_error(got, expected) < attention_flips(n, k.shape[1])
            # Another block has other maxima: the test would see it.
            other = fp8_attention(stacked, k[b, :, h], v[b, :, h], n**-0.5, 64)
            assert relative_error(got, other) > attention_flips(n, k.shape[1])


@given(
    queries=st.integers(1, 40),
    more=st.integers(0, 40),
    group=st.integers(1, 3),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 50),
    block=st.sampled_from([16, 48, 160]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_order_window_and_groups(
    queries: int, more: int, group: int, causal: bool, window: int | None, block: int, seed: int
) -> None:
    q, k, v = tensors(queries, queries + more, heads=2 * group, n=16, seed=seed)
    window = window if causal else None
    y = quantized_attention(q, k, v, recipe="fp16", causal=causal, window=window, engine=EmulatedEngine(block))
    exact = exact_attention(q, k, v, causal=causal, window=window)
    assert relative_error(y, exact) < attention_float32(16, queries + more)


def test_more_queries_than_keys_see_nothing_at_first() -> None:
    q, k, v = tensors(10, 4)
    y = quantized_attention(q, k, v, recipe="fp8_rotated", causal=True)
    assert not y[:, :6].any() and bool(y[:, 6:].any(-1).all())


@given(seed=st.integers(0, 99), name=st.sampled_from(list(RECIPES)), left=st.booleans(), data=st.data())
@settings(deadline=None, max_examples=40)
def test_padding_changes_nothing(seed: int, name: str, left: bool, data: st.DataObject) -> None:
    """The tokens of a padded sequence have the result that they have alone, whatever the padding holds."""
    q, k, v = tensors(24, 24, seed=seed)
    lengths = data.draw(st.lists(st.integers(1, 24), min_size=2, max_size=2))
    position = torch.arange(24)
    there = torch.stack([position >= 24 - n if left else position < n for n in lengths])
    filled = [torch.where(there[:, :, None, None], x, torch.full_like(x, 1e4)) for x in (q, k, v)]
    y = quantized_attention(*filled, recipe=name, causal=True, mask=there)
    for b in range(2):
        alone = quantized_attention(*(x[b : b + 1, there[b]] for x in (q, k, v)), recipe=name, causal=True)
        # The number of rows decides how a matrix product adds.
        assert relative_error(y[b : b + 1, there[b]], alone.double()) < attention_flips(64, 24)
        assert not y[b, ~there[b]].any()


@pytest.mark.parametrize("name", RECIPES)
def test_packed_sequences_are_as_alone(name: str) -> None:
    q, k, v = (x[0] for x in tensors(50, 300, batch=1))
    q_offsets = torch.tensor([0, 20, 20, 50], dtype=torch.int32)
    k_offsets = torch.tensor([0, 140, 150, 300], dtype=torch.int32)
    y = quantized_attention(q, k, v, recipe=name, causal=True, q_offsets=q_offsets, k_offsets=k_offsets)
    for start, stop, k_start, k_stop in ((0, 20, 0, 140), (20, 50, 150, 300)):
        alone = quantized_attention(
            q[None, start:stop], k[None, k_start:k_stop], v[None, k_start:k_stop], recipe=name, causal=True
        )
        assert relative_error(y[start:stop], alone[0].double()) < attention_flips(64, 150)


@pytest.mark.parametrize("granularity", ["tensor", "head", "block", "token"])
@pytest.mark.parametrize("format", ["fp8_e4m3", "int8", "int4"])
def test_scales_are_those_of_their_group(format: str, granularity: str) -> None:
    x = torch.randn(2, 300, 4, 16) * torch.randn(300)[:, None, None].exp()
    maximum = {"fp8_e4m3": 448, "int8": 127, "int4": 7}[format]
    groups = {
        "tensor": lambda b, t, h: x,
        "head": lambda b, t, h: x[b, :, h // 2 * 2 : h // 2 * 2 + 2],
        "block": lambda b, t, h: x[b, t // 128 * 128 : t // 128 * 128 + 128, h],
        "token": lambda b, t, h: x[b, t, h],
    }[granularity]
    operand = quantize_heads(x, format, granularity, 2)
    scales = operand.scale_of_tokens()
    assert scales is not None
    scales = scales.expand(2, 300, 4)
    for b, t, h in ((0, 0, 0), (1, 127, 1), (0, 128, 2), (1, 299, 3), (1, 255, 0)):
        expected = groups(b, t, h).abs().max() * torch.tensor(1 / maximum, dtype=torch.float32)
        assert scales[b, t, h] == expected
        assert (operand.codes[b, t, h].float() * scales[b, t, h] - x[b, t, h]).abs().max() <= 16 * expected
        assert operand.codes[b, t, h].float().abs().max() <= maximum


@given(
    exponent=st.integers(-130, 120),
    mantissa=st.floats(1, 2, exclude_max=True),
    seed=st.integers(0, 99),
    bits=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_nothing_is_beyond_the_largest_code(exponent: int, mantissa: float, seed: int, bits: bool) -> None:
    """Codes without clamping are those with it, whatever the largest magnitude is."""
    x = torch.rand(1, 40, 1, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    x.view(-1)[seed % 320] = 1.0
    x = (x * mantissa).mul(2.0 ** (exponent // 2)).mul(2.0 ** (exponent - exponent // 2))
    x = x.bfloat16() if bits else x
    operand = quantize_heads(x, "fp8_e4m3", "head", 1)
    assert operand.scales is not None
    clamped = rounding.to_float8(x.float() * operand.scales.reciprocal(), E4M3)
    assert torch.equal(operand.codes.view(torch.uint8), clamped.view(torch.uint8))
    if exponent > -110:
        assert operand.codes.float().abs().max() == 448


def test_scales_of_packed_blocks_do_not_cross_sequences() -> None:
    x = torch.randn(1, 400, 2, 16)
    packing = Packing.of(torch.tensor([0, 130, 260, 400], dtype=torch.int32), 400)
    scales = quantize_heads(x, "int8", "block", 2, packing).scales
    assert scales is not None
    for start, stop in ((0, 128), (128, 130), (130, 258), (258, 260), (260, 388), (388, 400)):
        largest = x[0, start:stop].abs().amax((0, 2)) * torch.tensor(1 / 127, dtype=torch.float32)
        assert torch.equal(scales[0, start:stop], largest.expand(stop - start, 2))


@pytest.mark.parametrize("granularity", ["head", "token"])
@pytest.mark.parametrize("n", [64, 96])
def test_composed_codes_are_those_of_quantize_query_key(granularity: str, n: int) -> None:
    q, k, v = tensors(40, 40, n=n)
    done = quantize_query_key(q, k, granularity=granularity)
    value = prepare(q, k, v, AttentionRecipe("fp8_e4m3", granularity, rotate_value=True)).v
    assert value.scales is not None
    for x, codes, scales in ((q, done.q, done.q_descale), (k, done.k, done.k_descale), (v, value.codes, value.scales)):
        operand = quantize_heads(rotate(x, None), "fp8_e4m3", granularity, 2)
        assert torch.equal(operand.codes.view(torch.uint8), codes.view(torch.uint8))
        assert operand.scales is not None and torch.equal(operand.scales, scales)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("seed", [None, 3])
def test_rotation_is_orthogonal_and_undone(n: int, explicit: bool, seed: int | None) -> None:
    x = torch.randn(5, n)
    signs = AttentionRecipe("int8", rotate=True, sign_seed=seed).signs(n, x.device)
    y = rotate(x, signs, explicit)
    exact = oracle.transform(x, signs=signs)
    assert relative_error(y, exact) < attention_float32(n, 1)
    assert relative_error(rotate_back(y, signs, explicit), x.double()) < attention_float32(n, 1)


@pytest.mark.parametrize("recipe", [AttentionRecipe(rotate=True, rotate_value=True, sign_seed=s) for s in (None, 1)])
def test_rotation_alone_changes_nothing(recipe: AttentionRecipe) -> None:
    """Rounded to float32 in between only."""
    q, k, v = tensors(9, 30, n=80)
    y = quantized_attention(q, k, v, recipe=recipe, causal=True)
    assert relative_error(y, exact_attention(q, k, v, causal=True)) < 2 * attention_float32(80, 30)


def test_signs_are_the_same_everywhere_and_matter() -> None:
    recipe = AttentionRecipe("int4", "token", rotate=True, sign_seed=5)
    signs = recipe.signs(64, torch.device("cpu"))
    assert signs is not None and torch.equal(signs, recipe.signs(64, torch.device("cpu")))
    assert set(signs.tolist()) == {1.0, -1.0}
    q, k, v = tensors(9, 30)
    other = quantized_attention(q, k, v, recipe=dataclasses.replace(recipe, sign_seed=None))
    assert not torch.equal(quantized_attention(q, k, v, recipe=recipe), other)


@pytest.mark.parametrize("name", ["fp8", "fp8_rotated", "int4_kv_rotated", "fp16"])
def test_rotary_embedding_comes_first(name: str) -> None:
    q, k, v = tensors(12, 12)
    angle = torch.arange(12)[:, None] * 10000.0 ** -(torch.arange(32) / 32)
    cos, sin = angle.cos(), angle.sin()

    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        c, s = cos[:, None], sin[:, None]
        return torch.cat((a * c - b * s, b * c + a * s), -1)

    y = quantized_attention(q, k, v, recipe=name, causal=True, rope=prologues.rope(cos, sin))
    assert torch.equal(y, quantized_attention(turned(q), turned(k), v, recipe=name, causal=True))


def test_outliers_cost_less_after_a_rotation() -> None:
    """What it is all for: one element in a thousand of q and k is ten times as large, one scale for each head."""
    generator = torch.Generator().manual_seed(1)

    def sparse() -> Tensor:
        shape = (1, 512, 2, 128)
        rare = torch.rand(shape, generator=generator) < 0.001
        return torch.randn(shape, generator=generator) + 10 * torch.randn(shape, generator=generator) * rare

    q, k, v = sparse(), sparse(), sparse()
    exact = exact_attention(q, k, v)
    errors = {name: relative_error(quantized_attention(q, k, v, recipe=name), exact) for name in ("fp8", "fp8_rotated")}
    assert errors["fp8_rotated"] < errors["fp8"] / 1.3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["fp16", "fp8_rotated", "int8_rotated"])
def test_sixteen_bits(name: str, dtype: torch.dtype) -> None:
    q, k, v = tensors(30, 40, dtype=dtype)
    y = quantized_attention(q, k, v, recipe=name)
    # Probabilities, the result, and a rotation of the result are rounded to 16 bits.
    own = 3**0.5 * torch.finfo(dtype).eps / 2
    assert y.dtype == dtype
    assert relative_error(y, exact_attention(q, k, v)) < attention_error(RECIPES[name], 64, 40) + own


def test_values_of_another_size() -> None:
    q, k, _ = tensors(5, 30, n=64)
    v = torch.randn(2, 30, 2, 48)
    y = quantized_attention(q, k, v, recipe="fp8_rotated")
    assert y.shape == (2, 5, 4, 48)
    assert relative_error(y, exact_attention(q, k, v)) < attention_error(RECIPES["fp8_rotated"], 64, 30)


def test_masks_of_queries_and_keys() -> None:
    q, k, v = tensors(20, 33)
    mask = torch.rand(2, 4, 20, 33) < 0.5
    y = quantized_attention(q, k, v, recipe="fp16", mask=mask)
    assert relative_error(y, exact_attention(q, k, v, mask=mask)) < attention_float32(64, 33)
    # What no query sees has no influence.
    mask = mask[:, :1].clone()
    mask[..., 7] = False
    k[:, 7] = 1e4
    v[:, 7] = torch.inf
    y = quantized_attention(q, k, v, recipe="fp8_rotated", mask=mask)
    k[:, 7] = v[:, 7] = 0
    assert relative_error(y, exact_attention(q, k, v, mask=mask)) < attention_error(RECIPES["fp8"], 64, 33)


@given(
    queries=st.integers(1, 12),
    more=st.integers(0, 12),
    unused=st.integers(0, 5),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 14),
    left=st.lists(st.integers(0, 3), min_size=2, max_size=2),
)
@settings(deadline=None)
def test_masks_in_fewer_words(
    queries: int, more: int, unused: int, causal: bool, window: int | None, left: list[int]
) -> None:
    """What :func:`simplify` says gives the same result, wherever it says anything, and it does where padding is at the left."""
    keys = queries + more
    seen = visible(queries, keys, causal, window if causal else None)
    there = torch.stack([torch.arange(keys) >= min(n, keys - 1) for n in left])
    full = (
        seen
        & there[:, None]
        & (there[:, keys - queries :, None] if causal else torch.ones(queries, 1, dtype=torch.bool))
    )
    mask = torch.nn.functional.pad(full, (0, unused))[:, None]
    found = simplify(mask)
    assert found is not None
    q, k, v = tensors(queries, keys + unused, n=16)
    y = quantized_attention(q, k, v, recipe="fp16", mask=mask)
    z = quantized_attention(
        q,
        k[:, : found.keys],
        v[:, : found.keys],
        recipe="fp16",
        causal=found.causal,
        window=found.window,
        mask=found.padding,
    )
    assert torch.allclose(y, z, atol=1e-5)


def test_queries_of_padding_do_not_matter_where_they_are_known_to_be_padding() -> None:
    """Padding at the right, also of the longest sequence: its queries see keys, but nobody cares."""
    there = torch.arange(8) < torch.tensor([[5], [7]])
    mask = (torch.ones(8, 8).tril().bool() & there[:, None])[:, None]
    assert simplify(mask) is None
    found = simplify(mask, skip_padding=True)
    assert found is not None and (found.keys, found.causal, found.window) == (8, True, None)
    assert found.padding is not None and torch.equal(found.padding, there)
    assert simplify(torch.rand(2, 1, 8, 8) < 0.5, skip_padding=True) is None


def test_no_words_for_other_masks() -> None:
    packed = torch.block_diag(torch.ones(3, 3), torch.ones(4, 4)).tril().bool()
    assert simplify(packed[None, None]) is None
    assert simplify(torch.zeros(1, 1, 3, 3, dtype=torch.bool)) is None


def test_nothing_in_nothing_out() -> None:
    q, k, v = tensors(0, 5)
    assert quantized_attention(q, k, v).shape == (2, 0, 4, 64)
    q, k, v = tensors(5, 0)
    assert not quantized_attention(q, k, v).any()


def test_not_a_number_stays_in_its_head() -> None:
    q, k, v = tensors(5, 20)
    k[1, 3, 0, 5] = torch.nan
    for name in ("fp8", "fp8_rotated", "fp8_token"):
        y = quantized_attention(q, k, v, recipe=name)
        assert bool(y[1, :, :2].isnan().all()) and not bool(y[1, :, 2:].isnan().any()) and not bool(y[0].isnan().any())


def test_operands_of_a_cache_are_those_of_keys_and_values_alone() -> None:
    q, k, v = tensors(5, 20)
    operands = prepare(q, k, v, RECIPES["int4_kv"])
    assert torch.equal(operands.q.codes, q) and operands.q.scales is None
    assert operands.k.codes.dtype == torch.int8 and int(operands.k.codes.abs().max()) == 7
