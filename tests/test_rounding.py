"""Conversions between fp32 and codes, packing, swizzling and random numbers, each against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hadacore.formats import E2M1, E4M3, E5M2, FORMATS, INT4, INT8
from hadacore.quantization import layouts, rounding
from tests import quantization_oracle as oracle

KINDS = {"e4m3": E4M3, "e5m2": E5M2}


def _critical_values(kind: str) -> torch.Tensor:
    """All values, all midpoints, what lies next to both in fp32, and what is beyond."""
    table = torch.from_numpy(oracle.values_of(kind)).float()
    points = torch.cat((table, (table[1:] + table[:-1]) / 2, torch.tensor([table[-1] * 1.1, 1e30, 2.0**-149])))
    around = torch.cat(
        (points, torch.nextafter(points, torch.tensor(0.0)), torch.nextafter(points, torch.tensor(1e38)))
    )
    return torch.cat((around, -around, torch.randn(2000) * table[-1] / 3, torch.randn(2000) * table[3]))


@pytest.mark.parametrize("kind", KINDS)
def test_float8_is_the_nearest_value(kind: str, device: torch.device) -> None:
    x = _critical_values(kind)
    x = torch.cat((x, torch.tensor([torch.inf, -torch.inf, torch.nan])))
    x = torch.cat((x, torch.tensor([-0x400001], dtype=torch.int32).view(torch.float32)))  # a negative NaN
    codes = rounding.to_float8(x.to(device), KINDS[kind]).view(torch.uint8).cpu().numpy()
    assert np.array_equal(codes, oracle.nearest_float(x.numpy(), kind))


def test_e2m1_is_the_nearest_value(device: torch.device) -> None:
    x = torch.cat((_critical_values("e2m1"), torch.tensor([torch.inf, -torch.inf])))
    codes = rounding.to_e2m1(x.to(device)).cpu().numpy()
    assert np.array_equal(codes, oracle.nearest_float(x.numpy(), "e2m1"))


@pytest.mark.parametrize("encoding", [INT8, INT4], ids=str)
def test_integers_are_the_nearest(encoding: object, device: torch.device) -> None:
    maximum = int(encoding.maximum)  # type: ignore[attr-defined]
    halves = torch.arange(-2 * maximum - 9, 2 * maximum + 9) / 2
    x = torch.cat((halves, torch.nextafter(halves, torch.tensor(99.0)), torch.nextafter(halves, torch.tensor(-99.0))))
    codes = rounding.to_integer(x.to(device), encoding).cpu().numpy()  # type: ignore[arg-type]
    assert np.array_equal(codes, oracle.nearest_integer(x.numpy(), maximum))


@pytest.mark.parametrize("kind", KINDS)
def test_all_float8_codes_round_trip(kind: str, device: torch.device) -> None:
    every = torch.arange(256, dtype=torch.uint8, device=device)
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[kind]
    values = every.view(dtype).float()
    finite = values.isfinite()
    again = rounding.to_float8(values, KINDS[kind]).view(torch.uint8)
    assert torch.equal(again[finite], every[finite])
    assert (again[values.isnan()] == 0x7F).all()
    assert values[finite].max().item() == KINDS[kind].maximum
    assert values[values > 0].min().item() == KINDS[kind].smallest


def test_all_4_bit_codes_round_trip(device: torch.device) -> None:
    every = torch.arange(16, dtype=torch.uint8, device=device)
    values = rounding.from_e2m1(every)
    assert values.tolist()[:8] == oracle.values_of("e2m1").tolist() and values.tolist()[8:] == (-values[:8]).tolist()
    assert torch.equal(rounding.to_e2m1(values), every)
    assert values[7].item() == E2M1.maximum and values[1].item() == E2M1.smallest
    assert rounding.sign_extend(every).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1]


def test_all_e8m0_codes(device: torch.device) -> None:
    every = torch.arange(256, dtype=torch.int32, device=device)
    values = rounding.from_e8m0_bits(every)
    assert values[255].isnan()
    assert np.array_equal(values[:255].cpu().numpy(), oracle.e8m0_value(np.arange(255)))
    assert torch.equal(rounding.to_e8m0_bits(values[1:255], 0), every[1:255])
    assert rounding.to_e8m0_bits(torch.tensor([0.0, 2.0**-149, 2.0**-127, 2.0**-126, 1.9, 2.0, 3.4e38]), 0).tolist() == [
        0, 0, 0, 1, 127, 128, 254,
    ]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=2, max_size=64).filter(lambda c: len(c) % 2 == 0))
def test_packing_round_trip(codes: list[int]) -> None:
    unpacked = torch.tensor(codes, dtype=torch.uint8)
    packed = rounding.pack(unpacked)
    assert packed[0].item() == codes[0] | codes[1] << 4
    assert torch.equal(rounding.unpack(packed), unpacked)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(0, 300), columns=st.integers(1, 20))
def test_swizzle_is_the_formula_and_a_bijection(rows: int, columns: int, device: torch.device) -> None:
    scales = torch.randint(1, 255, (rows, columns), dtype=torch.uint8, device=device)
    buffer = layouts.swizzle(scales)
    assert buffer.numel() == layouts.swizzled_size(rows, columns) == -(-rows // 128) * -(-columns // 4) * 512
    r, c = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    ncb = -(-columns // 4)
    where = ((r // 128) * ncb + c // 4) * 512 + (r % 32) * 16 + ((r % 128) // 32) * 4 + c % 4
    assert where.unique().numel() == rows * columns
    assert torch.equal(buffer.cpu()[where], scales.cpu())
    filled = torch.zeros_like(buffer, dtype=torch.bool).cpu()
    filled[where.flatten()] = True
    assert not buffer.cpu()[~filled].any()
    assert torch.equal(layouts.unswizzle(buffer, rows, columns), scales)


def test_swizzle_of_a_full_buffer_is_a_permutation() -> None:
    index = torch.arange(256 * 8)
    low, high = (
        layouts.swizzle((index & 255).to(torch.uint8).view(256, 8)),
        layouts.swizzle((index >> 8).to(torch.uint8).view(256, 8)),
    )
    assert torch.equal((low.int() | high.int() << 8).sort().values, index.int())


def test_philox_known_answers() -> None:
    """Of the authors' Random123 library, for counter and key zero."""
    zero = rounding.philox(torch.tensor([0]), 0)
    assert [f"{w:08x}" for w in zero[0].tolist()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def _philox(counter: list[int], key: list[int]) -> list[int]:
    """In Python's integers."""
    for _ in range(10):
        a, b = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [b >> 32 ^ counter[1] ^ key[0], b % 2**32, a >> 32 ^ counter[3] ^ key[1], a % 2**32]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def test_philox_against_python_integers(device: torch.device) -> None:
    counters = torch.randint(0, 2**62, (50,), dtype=torch.int64, device=device)
    for seed in (0, 1, 2**32 - 1, 2**32, 2**63 - 1):
        expected = [_philox([c % 2**32, c >> 32, 0, 0], [seed % 2**32, seed >> 32]) for c in counters.tolist()]
        assert rounding.philox(counters, seed).tolist() == expected
    uniform = rounding.uniform_of(7, 5, device)
    words = _philox([0] * 4, [5, 0]) + _philox([1, 0, 0, 0], [5, 0])
    assert uniform.tolist() == [(w >> 8) / 2**24 for w in words[:7]]


def test_stochastic_rounding_is_unbiased_and_stays_between_neighbours(device: torch.device) -> None:
    table = oracle.values_of("e2m1")
    for value in (0.0, 0.1, 0.5, 0.6, 1.4, 2.25, 3.9, 4.5, 5.9, 6.0, 7.0):
        x = torch.full((20000,), value, device=device)
        got = rounding.from_e2m1(rounding.to_e2m1(x, rounding.uniform_of(20000, 3, device))).cpu()
        clamped = min(value, 6.0)
        below, above = table[table <= clamped].max(), table[table >= clamped].min()
        assert set(got.tolist()) <= {below, above}
        # Five standard deviations of the mean of 20000 draws from two neighbours.
        assert abs(got.mean().item() - clamped) <= 5 * (above - below) / 2 / 20000**0.5
        assert torch.equal(
            rounding.to_e2m1(-x, rounding.uniform_of(20000, 3, device)) & 7,
            rounding.to_e2m1(x, rounding.uniform_of(20000, 3, device)),
        )


def test_stochastic_rounding_goes_up_only_above_the_random_number() -> None:
    half = torch.tensor([0.0, 0.25, 0.75, -2.5, 5.0])  # 0 and 0.5 steps above a code
    assert rounding.to_e2m1(half, torch.tensor([0.0, 0.5, 0.5, 0.5, 0.5])).tolist() == [0, 0, 1, 8 | 4, 6]
    just_below = torch.full((5,), 0.5 - 2.0**-24)
    assert rounding.to_e2m1(half, just_below).tolist() == [0, 1, 2, 8 | 5, 7]


def test_the_table_agrees_with_torch() -> None:
    for format in FORMATS:
        if format.codes_dtype.is_floating_point:
            assert torch.finfo(format.codes_dtype).max == format.encoding.maximum
        assert (
            2.0**format.encoding.largest_exponent
            <= format.encoding.maximum
            < 2.0 ** (format.encoding.largest_exponent + 1)
        )
