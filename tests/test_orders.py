"""The transform of every size a model has, and of its shards: against the float64 oracle, and by the laws of the transform."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hadacore
from hadacore.matrices.orders import find
from tests import oracle, tolerances
from tests.test_matrices import MODEL_DIMENSIONS

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DIMENSIONS = sorted(n for dimensions in MODEL_DIMENSIONS.values() for n in dimensions)
SHARDS = {n // ways for n in DIMENSIONS for ways in (2, 4, 8) if n % ways == 0}
KNOWN = [n for n in sorted(SHARDS | set(DIMENSIONS)) if find(n) is not None]
UNKNOWN = sorted(SHARDS - set(KNOWN))
# The smallest size for each base matrix that any of them has.
BASES = {hadacore.factor(n).base_order: n for n in reversed(KNOWN) if n & (n - 1)}


def _input(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if dtype == torch.float64 and device.type != "cpu":
        pytest.skip("float64 is for the CPU")
    return torch.randn(*shape, dtype=torch.float64).to(dtype).to(device)


def _signs(n: int, device: torch.device) -> torch.Tensor:
    return (torch.randint(0, 2, (n,)) * 2 - 1).float().to(device)


def _check(y: torch.Tensor, x: torch.Tensor, exact: torch.Tensor, size: int, scale: float) -> None:
    assert y.dtype == x.dtype and y.shape == x.shape
    assert ((y.double() - exact).abs() <= tolerances.element_bound(x, exact, size, scale, x.dtype)).all()


def test_every_dimension_of_the_table_is_covered() -> None:
    assert len(DIMENSIONS) == 64 and set(DIMENSIONS) <= set(KNOWN)
    assert len(KNOWN) + len(UNKNOWN) == len(SHARDS | set(DIMENSIONS))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", KNOWN)
def test_matches_the_oracle(size: int, dtype: torch.dtype, device: torch.device) -> None:
    x = _input(2, size, dtype=dtype, device=device)
    signs = _signs(size, device)
    for inverse in (False, True):
        y = hadacore.hadamard_transform(x, signs=signs, inverse=inverse)
        _check(y, x, oracle.transform(x, signs=signs, inverse=inverse), size, size**-0.5)


@pytest.mark.parametrize("size", UNKNOWN)
def test_a_shard_that_has_no_transform_names_what_has(size: int) -> None:
    with pytest.raises(ValueError, match=f"no Hadamard matrix of order {size} is known here") as caught:
        hadacore.hadamard_transform(torch.empty(1, size))
    below = max(n for n in range(1, size) if find(n))
    above = next(n for n in range(size + 1, 2 * size) if find(n))
    message = str(caught.value)
    assert f"nearest usable sizes are {below} and {above}" in message
    block = max((b for b in range(2, size) if size % b == 0 and find(b)), default=1)
    assert (f"block_size={block}" in message) if block > 1 else ("no block size but 1" in message)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", BASES.values())
def test_sixteen_bit_error_is_that_of_correct_rounding(size: int, dtype: torch.dtype, device: torch.device) -> None:
    x = _input(max(2, 16384 // size), size, dtype=dtype, device=device)
    exact = oracle.transform(x)
    error = tolerances.relative_error(hadacore.hadamard_transform(x), exact)
    assert error <= tolerances.rounding_error(exact, dtype) * tolerances.CORRECT_ROUNDING_RATIO


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", BASES.values())
def test_float32_error_is_that_of_plain_sums(size: int, inverse: bool, device: torch.device) -> None:
    x = _input(max(2, 8192 // size), size, dtype=torch.float32, device=device)
    exact = oracle.transform(x, inverse=inverse)
    plain = tolerances.base_float32(x, oracle.known_base(size), size, size**-0.5, inverse)
    error = tolerances.relative_error(hadacore.hadamard_transform(x, inverse=inverse), exact)
    allowed = max(tolerances.relative_error(plain, exact), tolerances.rounding_error(exact, torch.float32))
    assert error <= allowed * tolerances.FLOAT32_BUTTERFLY_RATIO


def test_largest_float16_values_do_not_overflow_inside(device: torch.device) -> None:
    for size in BASES.values():
        row = hadacore.hadamard_matrix(size)[3].half().to(device)
        y = hadacore.hadamard_transform((65504 * row)[None], scale=1 / size)[0]
        expected = torch.zeros_like(y)
        expected[3] = 65504
        assert torch.equal(y, expected), size


# ---- laws -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_impulse_gives_a_column_exactly(dtype: torch.dtype, device: torch.device) -> None:
    for size in BASES.values():
        positions = torch.tensor([0, size // 3, size - 1])
        x = torch.zeros_like(_input(3, size, dtype=dtype, device=device))
        x[torch.arange(3), positions] = 1
        h = hadacore.hadamard_matrix(size, dtype=dtype)
        assert torch.equal(hadacore.hadamard_transform(x, scale=1.0).cpu(), h[:, positions].T), size
        assert torch.equal(hadacore.hadamard_transform(x, scale=1.0, inverse=True).cpu(), h[positions]), size


@pytest.mark.parametrize("size", BASES.values())
def test_parseval_and_inverse(size: int, device: torch.device) -> None:
    x = _input(3, size, dtype=torch.float32, device=device)
    signs = _signs(size, device)
    y = hadacore.hadamard_transform(x, signs=signs)
    bound = tolerances.norm_bound(size)
    assert torch.allclose(y.double().norm(dim=-1), x.double().norm(dim=-1), rtol=bound, atol=0)
    back = hadacore.hadamard_transform(y, signs=signs, inverse=True)
    assert tolerances.relative_error(back, x.double()) <= bound
    if not hadacore.factor(size).symmetric:
        twice = hadacore.hadamard_transform(y, signs=signs)
        assert tolerances.relative_error(twice, x.double()) > 0.5


@pytest.mark.parametrize("size", BASES.values())
def test_linearity_is_exact_on_small_integers(size: int, device: torch.device) -> None:
    a = torch.randint(-8, 9, (2, size), device=device).float()
    b = torch.randint(-8, 9, (2, size), device=device).float()
    together = hadacore.hadamard_transform(3 * a - 2 * b, scale=1.0)
    apart = 3 * hadacore.hadamard_transform(a, scale=1.0) - 2 * hadacore.hadamard_transform(b, scale=1.0)
    assert torch.equal(together, apart)
    assert torch.equal(together.double(), oracle.transform(3 * a - 2 * b, 1.0))


# ---- isolation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [12, 20, 28, 44, 80, 172, 180, 576, 856, 924, 1368, 5120, 29568])
def test_a_row_depends_on_itself_alone(size: int, dtype: torch.dtype, inverse: bool, device: torch.device) -> None:
    rows = 41 if size <= 1024 else 9
    x = _input(rows, size, dtype=dtype, device=device)

    def f(x: torch.Tensor) -> torch.Tensor:
        return hadacore.hadamard_transform(x, inverse=inverse)

    together = f(x)
    for count in (1, 2, 3, 7, 8, rows - 1):
        assert torch.equal(f(x[:count]), together[:count]), count
        assert torch.equal(f(x[-count:]), together[-count:]), count
    assert torch.equal(f(x[rows // 2]), together[rows // 2])
    assert torch.equal(f(x.flip(0)), together.flip(0))
    poisoned = x.clone()
    poisoned[1, size // 2], poisoned[5, 0], poisoned[7, size - 1] = math.nan, math.inf, -math.inf
    result = f(poisoned)
    untouched = [r for r in range(rows) if r not in (1, 5, 7)]
    assert torch.equal(result[untouched], together[untouched])
    assert not torch.isfinite(result[[1, 5, 7]]).any()


@pytest.mark.parametrize("size", [12, 28, 80, 172])
def test_blocks_of_a_row_are_isolated(size: int, device: torch.device) -> None:
    x = _input(5, 3 * size, dtype=torch.float16, device=device)
    clean = hadacore.hadamard_transform(x, block_size=size).view(5, 3, size)
    assert torch.equal(clean, hadacore.hadamard_transform(x.view(5, 3, size)))
    x[2, size] = math.nan
    result = hadacore.hadamard_transform(x, block_size=size).view(5, 3, size)
    assert torch.isnan(result[2, 1]).all()
    result[2, 1] = clean[2, 1]
    assert torch.equal(result, clean)


# ---- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 12), (2, 0, 28), (0, 11008)])
def test_empty(shape: tuple[int, ...], device: torch.device) -> None:
    x = torch.empty(shape, device=device, dtype=torch.float16)
    assert hadacore.hadamard_transform(x).shape == shape
    assert hadacore.hadamard_transform_(x) is x


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [12, 20, 28, 56, 172])
def test_gradient_is_the_transpose(size: int, inverse: bool) -> None:
    x = torch.randn(1, size, dtype=torch.float64, requires_grad=True)
    signs = _signs(size, torch.device("cpu")).double()
    g = torch.randn(1, size, dtype=torch.float64)
    hadacore.hadamard_transform(x, signs=signs, inverse=inverse).backward(g)
    assert torch.equal(x.grad, hadacore.hadamard_transform(g, signs=signs, inverse=not inverse))
    if size <= 28:
        f = lambda x: hadacore.hadamard_transform(x, 0.3, signs=signs, inverse=inverse)  # noqa: E731
        assert torch.autograd.gradcheck(f, (x,))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_strides_and_options(data: st.DataObject, device: torch.device) -> None:
    dtype = data.draw(st.sampled_from(DTYPES[: 4 if device.type == "cpu" else 3]))
    order = data.draw(st.sampled_from([12, 20, 28, 36, 44, 52, 60, 100, 172, 180]))
    size = order << data.draw(st.integers(0, 4))
    blocks = data.draw(st.sampled_from([1, 1, 2, 3]))
    n = size * blocks
    leading = data.draw(st.lists(st.integers(0, 4), max_size=3))
    gap = data.draw(st.sampled_from([0, 0, 1, 8]))
    storage = torch.randn(*leading, n + gap).to(dtype).to(device)
    x = storage[..., gap:] if data.draw(st.booleans()) else storage[..., :n]
    if len(leading) >= 2 and data.draw(st.booleans()):
        x = x.transpose(0, 1)
    if len(leading) >= 1 and data.draw(st.booleans()):
        x = x[::2]
    signs = _signs(n, device).to(dtype) if data.draw(st.booleans()) else None
    inverse = data.draw(st.booleans())
    scale = data.draw(st.sampled_from([None, 1.0, -0.25, 0]))
    before = x.clone()
    how = data.draw(st.sampled_from(["new", "out", "in place"]))
    options = {"block_size": size if blocks > 1 else None, "signs": signs, "inverse": inverse}
    if how == "new":
        y = hadacore.hadamard_transform(x, scale, **options)
    elif how == "out":
        out = torch.full_like(x, math.nan)
        y = hadacore.hadamard_transform(x, scale, out=out, **options)
        assert y is out
    else:
        around = storage.clone()
        y = hadacore.hadamard_transform_(x, scale, **options)
        assert y is x
        if gap:  # what lies between the rows stays
            outside = torch.ones_like(storage, dtype=torch.bool)
            outside.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(False)
            assert torch.equal(storage[outside], around[outside])
    if how != "in place":
        assert torch.equal(x, before)
    exact = oracle.transform(before, scale, block_size=size, signs=signs, inverse=inverse)
    _check(y, before, exact, size, size**-0.5 if scale is None else scale)
