"""``columns.cu``, run on the CPU by the emulator: every configuration of its table, with every access checked."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hadacore.kernels.architectures import BY_NAME, CHECKED
from hadacore.kernels.columns import COLUMNS, ColumnsConfiguration, column_candidates
from hadacore.kernels.configurations import (
    AFTER_LOADS,
    AFTER_WAIT,
    ALONE,
    BEFORE_EXCHANGE,
    NO_SIGNS,
    SIGNS_AFTER,
    SIGNS_BEFORE,
)
from tests import oracle, tolerances
from tests.emulator import EmulatedColumns, compiler

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="the emulator compiles the kernels with g++, which is not installed"
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # by ELEMENT
TYPES = [(2, 2), (2, 0), (2, 1), (0, 2), (1, 2), (0, 0), (1, 1)]
GUARD = 64  # elements before and after the output
UNTOUCHED = 77.0
CONFIGURATIONS = [configuration for listed in COLUMNS.values() for configuration in listed]
# What is not about sizes is tested where the emulator is quick.
SMALL = [listed for bits, listed in COLUMNS.items() if bits <= 7]

each_configuration = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
each_type = pytest.mark.parametrize(
    ("code", "output"), TYPES, ids=lambda code: str(DTYPES[code]).removeprefix("torch.")
)
each_placement = pytest.mark.parametrize(
    "signs_are", [NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER], ids=["plain", "before", "after"]
)


@functools.cache
def _kernel(configuration: ColumnsConfiguration) -> EmulatedColumns:
    return EmulatedColumns(configuration)


def _transform(
    configuration: ColumnsConfiguration, x: Tensor, scale: float | None = None, *, signs: Tensor | None = None,
    seed: int = 0, in_place: bool = False,
) -> Tensor:  # fmt: skip
    """Contract the middle index of x, and check that exactly the output was written, without bank conflicts."""
    dtype = DTYPES[configuration.output_code]
    whole = torch.full((x.numel() + 2 * GUARD,), UNTOUCHED, dtype=dtype)
    y = whole[GUARD : GUARD + x.numel()]
    source = x.flatten()
    if in_place:
        y.copy_(source)
        source = y
    report = _kernel(configuration).transform(
        source, y, configuration.points**-0.5 if scale is None else scale, x.numel(), x.shape[-1], signs=signs,
        sign_rows=1 if signs is None else len(signs), seed=seed,
    )  # fmt: skip
    assert report.written_bytes == x.numel() * dtype.itemsize
    assert report.extra_wavefronts == 0
    assert (whole[:GUARD] == UNTOUCHED).all() and (whole[-GUARD:] == UNTOUCHED).all()
    return y.reshape(x.shape)


def _random(configuration: ColumnsConfiguration, outer: int, inner: int) -> Tensor:
    shape = (outer, configuration.points, inner)
    return torch.randn(shape, dtype=torch.float64).to(DTYPES[configuration.element_code])


def _signs(x: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    return (torch.randint(0, 2, (rows, *x.shape[1:])) * 2 - 1).to(dtype)


def _exact(x: Tensor, signs: Tensor | None = None, *, inverse: bool = False) -> Tensor:
    """The float64 oracle over the middle index."""
    repeated = None if signs is None else signs.repeat(-(-len(x) // len(signs)), 1, 1)[: len(x)].transpose(1, 2)
    return oracle.transform(x.transpose(1, 2), signs=repeated, inverse=inverse).transpose(1, 2)


def _assert_close(y: Tensor, exact: Tensor) -> None:
    error = tolerances.relative_error(y, exact)
    if y.dtype == torch.float32:
        assert error < 1e-6
    else:
        assert error <= tolerances.CORRECT_ROUNDING_RATIO * tolerances.rounding_error(exact, y.dtype)


def _butterflies(x: Tensor, scale: float) -> Tensor:
    """The same sums in the same order: what every configuration must give bit for bit, before it rounds."""
    values, distance = x.float(), 1
    while distance < x.shape[1]:
        pairs = values.reshape(x.shape[0], -1, 2, distance, x.shape[-1])
        values = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), 2).reshape(x.shape)
        distance *= 2
    return values * torch.tensor(scale, dtype=torch.float32)


@each_configuration
def test_matches_the_oracle(configuration: ColumnsConfiguration) -> None:
    for seed, (outer, tiles) in enumerate(((1, 1), (2, 3))):
        x = _random(configuration, outer, tiles * configuration.columns)
        y = _transform(configuration, x, seed=seed)
        _assert_close(y, _exact(x))
        assert torch.equal(y, _butterflies(x, configuration.points**-0.5))


@each_type
@each_placement
@pytest.mark.parametrize("listed", SMALL, ids=lambda listed: f"2^{listed[0].log2_points}")
def test_configurations_give_the_same_bits(
    listed: tuple[ColumnsConfiguration, ...], code: int, output: int, signs_are: int
) -> None:
    """In every combination of types, with signs that repeat over the outer index."""
    inner = max(configuration.columns for configuration in listed)
    x = _random(replace(listed[0], element_code=code, output_code=output), 3, inner)
    signs = None if signs_are == NO_SIGNS else _signs(x, 2, DTYPES[output if signs_are == SIGNS_AFTER else code])
    results = []
    for seed, configuration in enumerate(listed):
        typed = replace(configuration, element_code=code, output_code=output).with_signs(signs_are)
        results.append(_transform(typed, x, signs=signs, seed=seed))
        assert torch.equal(results[-1], results[0])
    _assert_close(results[0], _exact(x, signs, inverse=signs_are == SIGNS_AFTER))


@pytest.mark.parametrize("listed", SMALL, ids=lambda listed: f"2^{listed[0].log2_points}")
def test_in_place(listed: tuple[ColumnsConfiguration, ...]) -> None:
    for configuration in listed:
        x = _random(configuration, 2, 2 * configuration.columns)
        apart = _transform(configuration, x)
        for seed in range(3):
            assert torch.equal(_transform(configuration, x, seed=seed, in_place=True), apart)


@pytest.mark.parametrize("listed", SMALL, ids=lambda listed: f"2^{listed[0].log2_points}")
def test_columns_do_not_leak_into_one_another(listed: tuple[ColumnsConfiguration, ...]) -> None:
    for configuration in listed:
        x = _random(configuration, 3, configuration.columns)
        clean = _transform(configuration, x)
        x[1, configuration.points // 3, 5] = float("nan")
        y = _transform(configuration, x)
        assert y[1, :, 5].isnan().all()
        y[1, :, 5] = clean[1, :, 5]
        assert torch.equal(y, clean)


@pytest.mark.parametrize("point", [ALONE, AFTER_WAIT, AFTER_LOADS, BEFORE_EXCHANGE])
def test_programmatic_launch_waits_before_it_reads(point: int) -> None:
    configuration = COLUMNS[6][0]
    x = _random(configuration, 2, configuration.columns)
    assert torch.equal(
        _transform(replace(configuration, programmatic=point), x), _butterflies(x, configuration.points**-0.5)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((5, 5, 32, 4), "some bits must be contracted before the exchange and some after it"),
        ((5, 0, 32, 4), "some bits must be contracted before the exchange and some after it"),
        ((8, 5, 32, 4), r"1, 2 or 4 columns of the points it stores, not 8"),
        ((8, 4, 8, 8), r"1, 2 or 4 columns of the points it loads, not 0.5"),
    ],
)
def test_configurations_that_do_not_work_are_refused(values: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColumnsConfiguration(*values)


def test_half_words_are_not_stored() -> None:
    with pytest.raises(ValueError, match="a thread must store whole 32-bit words"):
        ColumnsConfiguration(8, 4, 16, 8, output_code=0)


@pytest.mark.parametrize("name", CHECKED)
def test_every_architecture_has_a_configuration(name: str) -> None:
    for bits in COLUMNS:
        for code, output in TYPES[:3]:
            for signs in (NO_SIGNS, SIGNS_AFTER):
                first = column_candidates(bits, code, output, BY_NAME[name], signs)[0]
                assert first.shared_bytes <= BY_NAME[name].shared_memory_per_block
                assert (first.element_code, first.output_code, first.signs) == (code, output, signs)
    with pytest.raises(LookupError, match=r"contracts 4 bits on sm_"):
        column_candidates(4, 2, 2, BY_NAME[name])
