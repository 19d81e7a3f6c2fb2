"""What is computed: against the float64 oracle, and by the laws of the transform."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hadacore
from tests import oracle, tolerances

SIZES = [2**k for k in range(16)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def _rows(size: int) -> int:
    """Odd, and more than a tile of 256 elements, but little enough for a CPU."""
    return max(3, 513 // size * 2 + 1)


def _normal(*shape: int, dtype: torch.dtype, device: torch.device, factor: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * factor).to(dtype).to(device)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_matches_the_oracle_element_by_element(size: int, dtype: torch.dtype, device: torch.device) -> None:
    if dtype == torch.float64 and device.type != "cpu":
        pytest.skip("float64 is for the CPU")
    x = _normal(_rows(size), size, dtype=dtype, device=device)
    y = hadacore.hadamard_transform(x)
    assert y.dtype == dtype and y.shape == x.shape and y.is_contiguous()
    exact = oracle.transform(x)
    assert ((y.double() - exact).abs() <= tolerances.element_bound(x, exact, size, size**-0.5, dtype)).all()


@pytest.mark.parametrize("factor", [1.0, 6e4, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_sixteen_bit_error_is_that_of_correct_rounding(
    size: int, dtype: torch.dtype, factor: float, device: torch.device
) -> None:
    rows = max(4, 65536 // size)
    if factor > 1:  # uniform, so that every element is a finite float16
        x = ((torch.rand(rows, size, dtype=torch.float64) * 2 - 1) * factor).to(dtype).to(device)
    else:
        x = _normal(rows, size, dtype=dtype, device=device, factor=factor)
    scale = 1 / size if factor > 1 else None  # keeps every result finite
    y = hadacore.hadamard_transform(x, scale)
    exact = oracle.transform(x, scale)
    best = tolerances.rounding_error(exact, dtype)
    assert torch.isfinite(y).all()
    assert tolerances.relative_error(y, exact) <= best * tolerances.CORRECT_ROUNDING_RATIO


@pytest.mark.parametrize("size", SIZES)
def test_float32_error_is_that_of_a_butterfly(size: int, device: torch.device) -> None:
    x = _normal(max(4, 65536 // size), size, dtype=torch.float32, device=device)
    exact = oracle.transform(x)
    plain = tolerances.relative_error(tolerances.butterfly_float32(x, size, size**-0.5), exact)
    ours = tolerances.relative_error(hadacore.hadamard_transform(x), exact)
    assert ours <= max(plain, tolerances.rounding_error(exact, torch.float32)) * tolerances.FLOAT32_BUTTERFLY_RATIO


def test_largest_float16_values_do_not_overflow_inside(device: torch.device) -> None:
    for size in SIZES:
        x = torch.full((3, size), 65504.0, dtype=torch.float16, device=device)
        y = hadacore.hadamard_transform(x, scale=1 / size)
        assert y[:, 0].tolist() == [65504.0] * 3
        assert not y[:, 1:].any()


def test_overflow_is_infinity_where_the_exact_result_overflows(device: torch.device) -> None:
    x = torch.full((1, 4), 65504.0, dtype=torch.float16, device=device)
    assert hadacore.hadamard_transform(x, scale=1.0)[0].tolist() == [math.inf, 0.0, 0.0, 0.0]


# ---- laws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 8, 64, 512, 1024])
def test_matrix_is_hadamard_and_is_what_is_applied(size: int, device: torch.device) -> None:
    h = hadacore.hadamard_matrix(size, dtype=torch.float64)
    assert torch.equal(h, oracle.sylvester(size))
    assert torch.equal(h @ h.T, size * torch.eye(size, dtype=torch.float64))
    applied = hadacore.hadamard_transform(torch.eye(size, device=device), scale=1.0)
    assert torch.equal(applied.cpu().double(), h)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_impulse_gives_a_column_exactly(size: int, dtype: torch.dtype, device: torch.device) -> None:
    positions = torch.tensor([0, size // 3, size - 1])
    x = torch.zeros(3, size, dtype=dtype)
    x[torch.arange(3), positions] = 1
    y = hadacore.hadamard_transform(x.to(device), scale=1.0).cpu()
    parity = torch.tensor([[(int(p) & j).bit_count() & 1 for j in range(size)] for p in positions])
    assert torch.equal(y, (1 - 2 * parity).to(dtype))


@pytest.mark.parametrize("size", SIZES)
def test_parseval_and_involution(size: int, device: torch.device) -> None:
    x = _normal(5, size, dtype=torch.float32, device=device)
    y = hadacore.hadamard_transform(x)
    bound = (size.bit_length() + 1) * tolerances.FLOAT32_ROUNDOFF * 4
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), rtol=bound, atol=0)
    back = hadacore.hadamard_transform(y, inverse=True)
    assert tolerances.relative_error(back, x.double()) <= bound


@pytest.mark.parametrize("size", [2, 128, 1024, 4096])
def test_linearity_is_exact_on_small_integers(size: int, device: torch.device) -> None:
    a = torch.randint(-8, 9, (3, size), device=device).float()
    b = torch.randint(-8, 9, (3, size), device=device).float()
    together = hadacore.hadamard_transform(3 * a - 2 * b, scale=1.0)
    apart = 3 * hadacore.hadamard_transform(a, scale=1.0) - 2 * hadacore.hadamard_transform(b, scale=1.0)
    assert torch.equal(together, apart)


# ---- options ----------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_strides_and_options(data: st.DataObject, device: torch.device) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    log2_size = data.draw(st.integers(0, 12))
    size = 2**log2_size
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
    signs = (torch.randint(0, 2, (n,)) * 2 - 1).to(dtype).to(device) if data.draw(st.booleans()) else None
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
        y = hadacore.hadamard_transform_(x, scale, **options)
        assert y is x
    if how != "in place":
        assert torch.equal(x, before)
    exact = oracle.transform(before, scale, block_size=size, signs=signs, inverse=inverse)
    factor = size**-0.5 if scale is None else scale
    assert ((y.double() - exact).abs() <= tolerances.element_bound(before, exact, size, factor, dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 4, 32, 256, 2048, 32768])
def test_randomized_transform_is_undone(size: int, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randint(-4, 5, (3, size), device=device).to(dtype)
    signs = (torch.randint(0, 2, (size,), device=device) * 2 - 1).to(torch.int8)
    y = hadacore.hadamard_transform(x.float(), scale=1.0, signs=signs)
    back = hadacore.hadamard_transform(y, scale=1 / size, signs=signs, inverse=True)
    assert torch.equal(back.to(dtype), x)
    assert size < 4 or not torch.equal(y, hadacore.hadamard_transform(x.float(), scale=1.0))


def test_in_place_of_a_view_leaves_the_rest_alone(device: torch.device) -> None:
    storage = torch.randn(6, 3, 128, device=device)
    before = storage.clone()
    hadacore.hadamard_transform_(storage[:, 1])
    assert torch.equal(storage[:, 0], before[:, 0]) and torch.equal(storage[:, 2], before[:, 2])
    assert torch.allclose(storage[:, 1].double(), oracle.transform(before[:, 1]), atol=1e-6)


def test_out_is_written_wholly(device: torch.device) -> None:
    for size in (1, 2, 4, 128, 4096):
        x = torch.randn(7, size, device=device)
        out = torch.full_like(x, math.nan)
        assert hadacore.hadamard_transform(x, out=out) is out
        assert torch.equal(out, hadacore.hadamard_transform(x))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 64), (0, 1)])
def test_empty(shape: tuple[int, ...], device: torch.device) -> None:
    x = torch.empty(shape, device=device, dtype=torch.float16)
    assert hadacore.hadamard_transform(x).shape == shape
    assert hadacore.hadamard_transform_(x) is x


def test_size_one_is_the_scale(device: torch.device) -> None:
    x = torch.randn(5, 1, device=device)
    assert torch.equal(hadacore.hadamard_transform(x), x)
    assert torch.equal(hadacore.hadamard_transform(x, scale=3.0), 3 * x)


# ---- isolation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_a_row_depends_on_itself_alone(size: int, dtype: torch.dtype, device: torch.device) -> None:
    rows = 41 if size <= 4096 else 9
    x = _normal(rows, size, dtype=dtype, device=device)
    together = hadacore.hadamard_transform(x)
    for count in {1, 2, 3, 7, 8, 33, rows} - {c for c in (33,) if c > rows}:
        assert torch.equal(hadacore.hadamard_transform(x[:count]), together[:count]), count
    assert torch.equal(hadacore.hadamard_transform(x[rows // 2]), together[rows // 2])
    poisoned = x.clone()
    poisoned[1, size // 2] = math.nan
    poisoned[5, 0] = math.inf
    poisoned[7, size - 1] = -math.inf
    untouched = [r for r in range(rows) if r not in (1, 5, 7)]
    result = hadacore.hadamard_transform(poisoned)
    assert torch.equal(result[untouched], together[untouched])
    assert not torch.isfinite(result[[1, 5, 7]]).any()


@pytest.mark.parametrize("size", [64, 128, 512])
def test_blocks_of_a_row_are_isolated(size: int, device: torch.device) -> None:
    x = _normal(5, 4 * size, dtype=torch.float16, device=device)
    clean = hadacore.hadamard_transform(x, block_size=size)
    x[2, size] = math.nan
    result = hadacore.hadamard_transform(x, block_size=size).view(5, 4, size)
    assert torch.isnan(result[2, 1]).all()
    result[2, 1] = clean.view(5, 4, size)[2, 1]
    assert torch.equal(result.view(5, -1), clean)
