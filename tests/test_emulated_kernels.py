"""The CUDA kernels, run on the CPU by the emulator: every configuration of the table, with every access checked.

The emulator raises where a kernel reads or writes what it must not, races, or waits for nobody; see
``tests/emulator``. What is left to check here is the result, and that it covers the output and nothing else.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from hadacore.kernels.configurations import (
    AFTER_LOADS,
    AFTER_WAIT,
    ALONE,
    BEFORE_EXCHANGE,
    NO_SIGNS,
    SIGNS_AFTER,
    SIGNS_BEFORE,
    TABLE,
    TILE_LOG2,
    KernelConfiguration,
)
from tests import oracle, tolerances
from tests.emulator import EmulatedCopy, EmulatedKernel, Strides, compiler

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="the emulator compiles the kernels with g++, which is not installed"
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # by ELEMENT
MULTIPROCESSORS = 1  # the fewest blocks, so that those of persistent kernels take several rows
GUARD = 64  # elements before and after each buffer
UNTOUCHED = 77.0


def _configurations() -> list[KernelConfiguration]:
    """Everything in the table, whichever GPU it is for."""
    return list(
        dict.fromkeys(
            replace(candidate.configuration, element_code=code)
            for (element_bytes, _), candidates in TABLE.items()
            for code in ((2,) if element_bytes == 4 else (0, 1))
            for candidate in candidates
        )
    )


CONFIGURATIONS = _configurations()


def _name(value: object) -> str | None:
    if not isinstance(value, KernelConfiguration):
        return None
    text = str(value).replace("/", " per ").replace(", ", "-").replace(" ", "_")
    return f"{str(DTYPES[value.element_code]).removeprefix('torch.')}-{text}"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The oracle's matrices are small: with several threads torch spends its time on waking them up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


each_configuration = pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=_name)


@functools.cache
def _kernel(configuration: KernelConfiguration) -> EmulatedKernel:
    return EmulatedKernel(configuration)


def _bits(values: Tensor) -> Tensor:
    """What NaNs compare equal in."""
    return values.contiguous().view(torch.int32 if values.element_size() == 4 else torch.int16)


def _guarded(elements: int, dtype: torch.dtype, fill: float) -> tuple[Tensor, Tensor]:
    """A buffer with guards around it, and its middle, which is aligned to 16 bytes."""
    whole = torch.full((elements + 2 * GUARD,), fill, dtype=dtype)
    return whole, whole[GUARD : GUARD + elements]


def _check_guards(whole: Tensor) -> None:
    assert (whole[:GUARD] == UNTOUCHED).all() and (whole[-GUARD:] == UNTOUCHED).all()


def _random_rows(configuration: KernelConfiguration, rows: int) -> Tensor:
    return torch.randn(rows, configuration.size, dtype=torch.float64).to(DTYPES[configuration.element_code])


def _random_signs(configuration: KernelConfiguration, rows: int) -> Tensor:
    signs = torch.randint(0, 2, (rows, configuration.size)) * 2 - 1
    return signs.to(DTYPES[configuration.element_code])


def _repeated(signs: Tensor, rows: int) -> Tensor:
    return signs.repeat(-(-rows // len(signs)), 1)[:rows]


def _some_rows(configuration: KernelConfiguration) -> int:
    """Few rows, but an odd number, for packed rows an incomplete last unit, and more than one block."""
    if configuration.kernel == "exchange_rows":
        return 3
    units = configuration.warps * configuration.units + 1
    return units * max(1, (1 << TILE_LOG2) // configuration.size) + (configuration.log2_size < TILE_LOG2)


def _transform(
    configuration: KernelConfiguration, x: Tensor, scale: float | None = None, *, signs: Tensor | None = None,
    seed: int = 0, in_place: bool = False,
) -> Tensor:  # fmt: skip
    """Run rows that follow one another, and check that exactly the output was written, without bank conflicts."""
    rows = len(x)
    whole, y = _guarded(x.numel(), x.dtype, UNTOUCHED)
    source = x.flatten()
    if in_place:
        y.copy_(source)
        source = y
    report = _kernel(configuration).run(
        source, y, configuration.size**-0.5 if scale is None else scale, rows, signs=signs,
        sign_rows=1 if signs is None else len(signs), grid=configuration.grid(rows, MULTIPROCESSORS), seed=seed,
    )  # fmt: skip
    assert report.written_bytes == x.numel() * x.element_size()
    assert report.extra_wavefronts == 0
    _check_guards(whole)
    return y.reshape(x.shape)


def _assert_close(y: Tensor, exact: Tensor) -> None:
    """16-bit results are as good as the rounded exact ones; float32 ones are good to 1e-6."""
    error = tolerances.relative_error(y, exact)
    if y.dtype == torch.float32:
        assert error < 1e-6
    else:
        assert error <= tolerances.CORRECT_ROUNDING_RATIO * tolerances.rounding_error(exact, y.dtype)


# ---- rows that follow one another -----------------------------------------------------------------


@each_configuration
def test_matches_the_oracle(configuration: KernelConfiguration) -> None:
    for seed, rows in enumerate((1, 3, _some_rows(configuration))):
        x = _random_rows(configuration, rows)
        _assert_close(_transform(configuration, x, seed=seed), oracle.transform(x))


@each_configuration
def test_in_place(configuration: KernelConfiguration) -> None:
    x = _random_rows(configuration, _some_rows(configuration))
    apart = _transform(configuration, x)
    for seed in range(3):
        assert torch.equal(_transform(configuration, x, seed=seed, in_place=True), apart)


@pytest.mark.parametrize("signs_are", [SIGNS_BEFORE, SIGNS_AFTER], ids=["before", "after"])
@each_configuration
def test_signs(configuration: KernelConfiguration, signs_are: int) -> None:
    rows = _some_rows(configuration) + 2  # so that the signs of a persistent block's next row differ
    x = _random_rows(configuration, rows)
    for sign_rows in (1, 3):
        signs = _random_signs(configuration, sign_rows)
        y = _transform(configuration.with_options(signs_are, False), x, signs=signs)
        _assert_close(y, oracle.transform(x, signs=_repeated(signs, rows), inverse=signs_are == SIGNS_AFTER))


@pytest.mark.parametrize(
    "configuration", [c for c in CONFIGURATIONS if c.element_code == 0 and c.log2_size in (3, 10, 15, 16)], ids=_name
)
def test_programmatic_launch_waits_before_it_reads(configuration: KernelConfiguration) -> None:
    x = _random_rows(configuration, _some_rows(configuration))
    alone = _transform(replace(configuration, programmatic=ALONE), x)
    points = (AFTER_WAIT, AFTER_LOADS, BEFORE_EXCHANGE)
    for point in points if configuration.kernel == "exchange_rows" else points[:2]:
        assert torch.equal(_transform(replace(configuration, programmatic=point), x), alone)


@pytest.mark.parametrize("signs_are", [NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER], ids=["plain", "before", "after"])
@pytest.mark.parametrize(
    "configuration", [c for c in CONFIGURATIONS if c.kernel == "exchange_rows" and c.cluster == 1], ids=_name
)
def test_before_hopper(configuration: KernelConfiguration, signs_are: int) -> None:
    """Without bulk copies and mbarriers the bits are the same."""
    configuration = replace(configuration.with_options(signs_are, False), programmatic=ALONE)
    x = _random_rows(configuration, 3)
    signs = None if signs_are == NO_SIGNS else _random_signs(configuration, 1)
    y = torch.empty_like(x)
    for seed in range(3):
        EmulatedKernel(configuration, cuda_arch=800).run(
            x, y, configuration.size**-0.5, len(x), signs=signs, grid=configuration.grid(len(x), MULTIPROCESSORS),
            seed=seed,
        )  # fmt: skip
        assert torch.equal(y, _transform(configuration, x, signs=signs))


@pytest.mark.parametrize("factor", [6e4, 1e-4])
@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if c.element_code == 0], ids=_name)
def test_extremes_of_float16(configuration: KernelConfiguration, factor: float) -> None:
    """Intermediate sums leave the range of float16 at the top; at the bottom, inputs and results are subnormal."""
    x = (torch.rand(3, configuration.size, dtype=torch.float64) * 2 - 1).mul(factor).half()
    scale = configuration.size**-0.5 / 8  # the results of the large ones must fit
    _assert_close(_transform(configuration, x, scale), oracle.transform(x, scale))


@each_configuration
def test_rows_do_not_leak_into_one_another(configuration: KernelConfiguration) -> None:
    x = _random_rows(configuration, _some_rows(configuration))
    clean = _transform(configuration, x)
    row = len(x) // 2
    others = torch.arange(len(x)) != row
    for planted in (float("inf"), float("-inf"), float("nan")):
        spoilt = x.clone()
        spoilt[row, configuration.size // 3] = planted
        y = _transform(configuration, spoilt)
        assert torch.equal(_bits(y[others]), _bits(clean[others]))
        assert not y[row].isfinite().any()


@pytest.mark.parametrize("signs_are", [NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER], ids=["plain", "before", "after"])
@pytest.mark.parametrize("log2_size", sorted({c.log2_size for c in CONFIGURATIONS}))
@pytest.mark.parametrize("code", range(3), ids=["float16", "bfloat16", "float32"])
def test_configurations_of_a_size_agree(code: int, log2_size: int, signs_are: int) -> None:
    of_size = [c for c in CONFIGURATIONS if (c.element_code, c.log2_size) == (code, log2_size)]
    group = [c.with_options(signs_are, False) for c in of_size]
    rows = max(_some_rows(c) for c in group)
    x, signs = _random_rows(group[0], rows), None if signs_are == NO_SIGNS else _random_signs(group[0], 2)
    results = [_transform(c, x, signs=signs) for c in group]
    for other in results[1:]:
        assert torch.equal(_bits(other), _bits(results[0]))


@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if c.kernel == "exchange_rows"], ids=_name)
def test_order_of_threads_does_not_matter(configuration: KernelConfiguration) -> None:
    x = _random_rows(configuration, 3)
    natural = _transform(configuration, x)
    for seed in range(1, 7):
        assert torch.equal(_transform(configuration, x, seed=seed), natural)


@pytest.mark.parametrize("signs_are", [NO_SIGNS, SIGNS_BEFORE], ids=["plain", "before"])
@pytest.mark.parametrize(
    "configuration", [c for c in CONFIGURATIONS if c.kernel == "exchange_rows" and c.element_code != 2], ids=_name
)
def test_float32_results_of_16_bit_rows(configuration: KernelConfiguration, signs_are: int) -> None:
    """What the first of several passes writes: rounded, it is the 16-bit result."""
    configuration = configuration.with_options(signs_are, False)
    x = _random_rows(configuration, 3)
    signs = None if signs_are == NO_SIGNS else _random_signs(configuration, 2)
    whole, y = _guarded(x.numel(), torch.float32, UNTOUCHED)
    report = _kernel(replace(configuration, output_code=2)).run(
        x.flatten(), y, configuration.size**-0.5, len(x), signs=signs, sign_rows=1 if signs is None else len(signs),
        grid=configuration.grid(len(x), MULTIPROCESSORS), seed=signs_are,
    )  # fmt: skip
    assert report.written_bytes == x.numel() * 4 and report.extra_wavefronts == 0
    _check_guards(whole)
    assert torch.equal(y.view_as(x).to(x.dtype), _transform(configuration, x, signs=signs))


# ---- rows at strides ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where rows (outer, inner) of one side lie, in elements."""

    outer: int
    inner: int
    elements: int

    def starts(self, outer_rows: int, inner_rows: int) -> list[int]:
        return [o * self.outer + i * self.inner for o, i in itertools.product(range(outer_rows), range(inner_rows))]


def _nested(size: int, outer_rows: int, inner_rows: int) -> Layout:
    """A slice of a slice: a gap after each row, and a larger one after each group."""
    inner = size + 16
    outer = inner_rows * inner + 48
    return Layout(outer, inner, outer_rows * outer)


def _transposed(size: int, outer_rows: int, inner_rows: int) -> Layout:
    """Leading dimensions exchanged: consecutive rows are far apart."""
    outer = size + 32
    inner = outer_rows * outer + 16
    return Layout(outer, inner, inner_rows * inner)


def _strided(configuration: KernelConfiguration, x: Layout, y: Layout, inner_rows: int) -> Strides:
    return inner_rows, x.outer, x.inner, y.outer, y.inner


@pytest.mark.parametrize("signs_are", [NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER], ids=["plain", "before", "after"])
@pytest.mark.parametrize(
    "configuration",
    [c for c in CONFIGURATIONS if c.size * DTYPES[c.element_code].itemsize >= 16],
    ids=_name,
)
def test_strided_rows(configuration: KernelConfiguration, signs_are: int) -> None:
    configuration = configuration.with_options(signs_are, True)
    inner_rows, size, dtype = 3, configuration.size, DTYPES[configuration.element_code]
    outer_rows = -(-_some_rows(configuration) // inner_rows) + 1
    rows = outer_rows * inner_rows - 1  # the last group is incomplete
    layout_x, layout_y = _nested(size, outer_rows, inner_rows), _transposed(size, outer_rows, inner_rows)
    starts_x, starts_y = (layout.starts(outer_rows, inner_rows)[:rows] for layout in (layout_x, layout_y))
    x, signs = _random_rows(configuration, rows), None if signs_are == NO_SIGNS else _random_signs(configuration, 2)
    _, source = _guarded(layout_x.elements, dtype, float("nan"))
    whole, target = _guarded(layout_y.elements, dtype, UNTOUCHED)
    for row, start in zip(x, starts_x, strict=True):
        source[start : start + size] = row
    report = _kernel(configuration).run(
        source, target, size**-0.5, rows, signs=signs, sign_rows=1 if signs is None else len(signs),
        strides=_strided(configuration, layout_x, layout_y, inner_rows),
        grid=configuration.grid(rows, MULTIPROCESSORS), seed=signs_are,
    )  # fmt: skip
    assert report.written_bytes == x.numel() * x.element_size()
    assert report.extra_wavefronts == 0
    y = torch.stack([target[start : start + size].clone() for start in starts_y])
    repeated = None if signs is None else _repeated(signs, rows)
    _assert_close(y, oracle.transform(x, signs=repeated, inverse=signs_are == SIGNS_AFTER))
    for start in starts_y:
        target[start : start + size] = UNTOUCHED
    assert (whole == UNTOUCHED).all()


@pytest.mark.parametrize(
    "configuration",
    [c.with_options(NO_SIGNS, True) for c in CONFIGURATIONS if c.log2_size in (5, 8, 11, 15, 16)],
    ids=_name,
)
def test_strided_rows_in_place(configuration: KernelConfiguration) -> None:
    inner_rows, outer_rows, size = 2, 2, configuration.size
    layout = _nested(size, outer_rows, inner_rows)
    starts = layout.starts(outer_rows, inner_rows)
    x = _random_rows(configuration, len(starts))
    whole, target = _guarded(layout.elements, x.dtype, UNTOUCHED)
    for row, start in zip(x, starts, strict=True):
        target[start : start + size] = row
    _kernel(configuration).run(
        target, target, size**-0.5, len(x), strides=_strided(configuration, layout, layout, inner_rows),
        grid=configuration.grid(len(x), MULTIPROCESSORS), seed=2,
    )  # fmt: skip
    y = torch.stack([target[start : start + size].clone() for start in starts])
    assert torch.equal(y, _transform(replace(configuration, strided=False), x))
    for start in starts:
        target[start : start + size] = UNTOUCHED
    assert (whole == UNTOUCHED).all()


# ---- the copy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [1, 2, 4])
@pytest.mark.parametrize("vectors", [1, 255, 256, 1023, 1025])
def test_copy(units: int, vectors: int) -> None:
    x = torch.randn(vectors * 4)
    whole, y = _guarded(x.numel(), x.dtype, UNTOUCHED)
    report = EmulatedCopy(units).copy(x, y, vectors, seed=vectors % 2)
    assert report.written_bytes == vectors * 16
    assert torch.equal(y, x)
    _check_guards(whole)
