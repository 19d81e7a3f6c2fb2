"""Transforms in several passes: the division of index bits, the launches, and their result on the emulator."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hadacore
from hadacore.backends import cuda
from hadacore.backends.cuda import launch as cuda_launch
from hadacore.backends.cuda import passes as cuda_passes
from hadacore.elements import CUDA_ELEMENTS
from hadacore.kernels.architectures import ARCHITECTURES, BY_NAME, Architecture
from hadacore.kernels.columns import COLUMNS, ColumnsConfiguration, PassConfiguration
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE, choose, maximum_log2_row
from hadacore.kernels.passes import GROUP_BYTES, MAXIMUM_LOG2_SIZE, SPLITS, Passes, Place, Split, kernels_of, passes_of
from tests import oracle, tolerances
from tests.emulator import EmulatedColumns, EmulatedKernel, compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler for the emulator")

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # by ELEMENT
LARGE = list(range(16, MAXIMUM_LOG2_SIZE + 1))
each_code = pytest.mark.parametrize("code", range(3), ids=["float16", "bfloat16", "float32"])
each_placement = pytest.mark.parametrize(
    "signs_are", [NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER], ids=["plain", "before", "after"]
)


def _passes(code: int, log2_size: int, transforms: int, *options: int, **more: Any) -> Passes:
    return passes_of(code, log2_size, transforms, (9, 0), 132, *options, **more)


# ---- divisions and launches ------------------------------------------------------------------------


@pytest.mark.parametrize("log2_size", LARGE)
def test_every_size_is_divided_into_few_passes(log2_size: int) -> None:
    for split in SPLITS[log2_size]:
        planned = _passes(0, log2_size, 2, split=split)
        assert [len(stage.bits) > 0 for stage in planned.stages()]
        assert sorted(bit for stage in planned.stages() for bit in stage.bits) == list(range(log2_size))
        assert all(bits in COLUMNS for bits in split[1:])
    assert len(SPLITS[log2_size][0]) == (2 if log2_size <= 26 else 3)


def test_divisions_that_do_not_work_are_refused() -> None:
    for split in ((20,), (12, 7), (12, 8, 0)):
        with pytest.raises(ValueError, match=r"passes must be two or more, with 20 index bits in all, got \("):
            _passes(2, 20, 1, split=split)
    with pytest.raises(LookupError, match=r"size 2\^31 has no division into passes"):
        _passes(2, 31, 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
@pytest.mark.parametrize("element", CUDA_ELEMENTS, ids=lambda e: e.name)
def test_every_size_runs_on_every_architecture(element: Any, architecture: Architecture) -> None:
    assert maximum_log2_row(element.cuda_code, architecture) + 1 in LARGE
    for log2_size in LARGE:
        for signs in (NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER):
            planned = passes_of(element.cuda_code, log2_size, 1, architecture.capability, 60, signs)
            first, last = planned.configurations[0], planned.configurations[-1]
            assert all(c.runs_on(architecture) for c in planned.configurations)
            assert (first.signs == signs) == (signs != SIGNS_AFTER) and (last.signs == signs) == (signs != SIGNS_BEFORE)
            assert first.element_code == element.cuda_code and last.output_code == element.cuda_code


def _check_launches(planned: Passes, transforms: int, signs: int, period: int) -> None:
    """Every pass covers every element once, after the passes below have, and finds its signs."""
    done = [0] * len(planned.split)  # elements, in order
    total, whole = transforms << planned.log2_size, period << planned.log2_size
    for launch in planned.launches:
        number, c = launch.number, launch.configuration
        assert launch.start == done[number] and launch.elements > 0
        done[number] += launch.elements
        row = 1 << sum(planned.split[: number + 1])
        assert launch.start % row == 0 and launch.elements % row == 0
        assert number == 0 or done[number] <= done[number - 1]
        assert launch.workspace_start + launch.elements <= max(planned.workspace_elements, total)
        if isinstance(c, ColumnsConfiguration):
            assert launch.repeats == 1 << sum(planned.split[:number]) and launch.repeats % c.columns == 0
            assert launch.units * c.columns * c.points == launch.elements
            assert c.grid(launch.units, 132) < 2**31
        else:
            assert launch.units == launch.repeats == launch.elements // row
        if signs != NO_SIGNS:
            for first in range(launch.start, launch.start + launch.elements, row):
                row_of_launch = (first - launch.start) // row % launch.sign_rows
                assert launch.sign_start + row_of_launch * row == first % whole
                if first - launch.start > 4 * whole:
                    break
    assert done == [total] * len(done)


@pytest.mark.parametrize(
    ("log2_size", "transforms", "period"),
    [(16, 1, 1), (16, 300, 1), (16, 300, 5), (16, 300, 150), (20, 64, 1),
     (20, 9, 9), (22, 3, 3), (26, 2, 1), (27, 3, 3), (30, 2, 1)],
)  # fmt: skip
@pytest.mark.parametrize("signs", [NO_SIGNS, SIGNS_BEFORE])
def test_launches_cover_everything_once(log2_size: int, transforms: int, period: int, signs: int) -> None:
    for code in (0, 2):
        planned = _passes(code, log2_size, transforms, signs, period)
        _check_launches(planned, transforms, signs, period)
        assert (planned.workspace_elements == 0) == (code == 2)
        assert 4 * planned.workspace_elements <= max(GROUP_BYTES, 4 << log2_size)
        if log2_size > 26:  # passes within the runs of a group's size come group by group
            assert max(launch.elements for launch in planned.of_pass(1)) * 4 <= GROUP_BYTES


def test_groups_of_other_sizes() -> None:
    for group_bytes in (1, 1 << 18, 3 << 18, 1 << 30):
        for period in (1, 2, 7):
            planned = _passes(0, 16, 14, SIGNS_AFTER, period, group_bytes=group_bytes)
            _check_launches(planned, 14, SIGNS_AFTER, period)
    assert len(_passes(2, 20, 64, group_bytes=1 << 30).launches) == 2


def test_no_rows_are_no_launches() -> None:
    planned = _passes(0, 20, 0)
    assert planned.launches == () and planned.workspace_elements == 0 and len(planned.stages()) == 6


def test_bytes() -> None:
    planned = _passes(0, 27, 3)
    assert [planned.bytes_of_pass(number) for number in range(3)] == [3 * 2**27 * each for each in (6, 8, 6)]
    assert _passes(2, 20, 5).bytes_of_pass(1) == 5 * 2**20 * 8


def test_printed_plan() -> None:
    text = str(hadacore.plan(2**20, torch.float16, rows=64, signs=True, inverse=True, architecture="sm_90a"))
    for fragment in (
        "Plan for 64 rows of 1048576, float16, on sm_90a, 132 multiprocessors",
        "H_1048576 = Sylvester(2^20), natural order, symmetric",
        "pass 1   from x to workspace, 402,653,184 bytes",
        "float32 results",
        "pass 2   from workspace to out, 402,653,184 bytes",
        "bits 12 13 14 15",
        "16-bit results",
        "launch   16 times 512 blocks of 256 threads",
        "workspace  16,777,216 bytes, float32",
        "moves    268,435,456 bytes",
    ):
        assert fragment in text, (fragment, text)
    assert "workspace" not in str(hadacore.plan(2**20, torch.float32, architecture="sm_90a"))
    blocks = hadacore.plan(3 << 16, torch.float32, rows=0, block_size=1 << 16, architecture="sm_80")
    assert "3 blocks a row" in str(blocks) and "launch   0 times 0 blocks" in str(blocks)


@each_code
@each_placement
def test_every_kernel_of_a_size_is_listed(code: int, signs_are: int) -> None:
    """What `hadacore compile` compiles is what any number of rows may need."""
    for architecture in (BY_NAME["sm_80"], BY_NAME["sm_90a"]):
        for log2_size in LARGE:
            listed = kernels_of(code, log2_size, architecture, signs_are)
            for transforms in (1, 3, 40) if log2_size < 24 else (1,):
                planned = passes_of(code, log2_size, transforms, architecture.capability, 132, signs_are)
                assert {launch.configuration for launch in planned.launches} <= set(listed)


# ---- results --------------------------------------------------------------------------------------


@functools.cache
def _kernel(configuration: PassConfiguration) -> EmulatedKernel | EmulatedColumns:
    if isinstance(configuration, ColumnsConfiguration):
        return EmulatedColumns(configuration)
    return EmulatedKernel(configuration)


def _run(planned: Passes, x: Tensor, out: Tensor, scale: float, signs: Tensor | None = None, seed: int = 0) -> None:
    """What the backend does, with slices of tensors for pointers; the workspace starts as NaN."""
    workspace = torch.full((planned.workspace_elements,), math.nan)
    flat_x, flat_out = x.view(-1), out.view(-1)
    for launch in planned.launches:
        c = launch.configuration
        places = {
            Place.INPUT: flat_x[launch.start :][: launch.elements],
            Place.OUTPUT: flat_out[launch.start :][: launch.elements],
            Place.WORKSPACE: workspace[launch.workspace_start :][: launch.elements],
        }
        source, target = places[launch.source], places[launch.target]
        factor = scale if launch.last else 1.0
        row_signs = None if c.signs == NO_SIGNS or signs is None else signs.view(-1)[launch.sign_start :]
        options: dict[str, Any] = {"signs": row_signs, "sign_rows": launch.sign_rows, "seed": seed}
        kernel = _kernel(c)
        if isinstance(kernel, EmulatedColumns):
            report = kernel.transform(source, target, factor, launch.elements, launch.repeats, **options)
        else:
            report = kernel.run(source, target, factor, launch.repeats, grid=c.grid(launch.units, 132), **options)
        assert report.written_bytes == target.numel() * target.element_size()
        assert report.extra_wavefronts == 0


def _result(
    planned: Passes, x: Tensor, signs: Tensor | None = None, *, in_place: bool = False, seed: int = 0
) -> Tensor:
    out = x.clone() if in_place else torch.full_like(x, math.nan)
    _run(planned, out if in_place else x, out, 2.0 ** (-planned.log2_size / 2), signs, seed)
    return out


def _assert_close(y: Tensor, exact: Tensor) -> None:
    error = tolerances.relative_error(y, exact)
    if y.dtype == torch.float32:
        assert error < 1e-6
    else:
        assert error <= tolerances.CORRECT_ROUNDING_RATIO * tolerances.rounding_error(exact, y.dtype)


def _random(code: int, rows: int, log2_size: int) -> Tensor:
    return torch.randn(rows, 1 << log2_size, dtype=torch.float64).to(DTYPES[code])


def _signs(blocks: int, log2_size: int, code: int) -> Tensor:
    return (torch.randint(0, 2, (blocks << log2_size,)) * 2 - 1).to(DTYPES[code])


@needs_compiler
@each_code
@pytest.mark.parametrize("log2_size", [16, 18])
def test_matches_the_oracle(log2_size: int, code: int) -> None:
    x = _random(code, 1, log2_size)
    planned = _passes(code, log2_size, 1)
    y = _result(planned, x, seed=1)
    _assert_close(y, oracle.transform(x))
    assert torch.equal(_result(planned, x, in_place=True), y)


@needs_compiler
def test_several_passes_give_the_bits_of_one() -> None:
    """A forced division of a size that one kernel holds."""
    x = _random(2, 2, 15)
    configuration = choose(2, 15, 2, (9, 0), 132)
    whole = torch.empty_like(x)
    EmulatedKernel(configuration).run(
        x.view(-1), whole.view(-1), 2.0**-7.5, 2, grid=configuration.grid(2, 132)
    )  # fmt: skip
    for split in ((10, 5), (9, 6), (5, 5, 5)):
        assert torch.equal(_result(_passes(2, 15, 2, split=split), x), whole)


@needs_compiler
@each_placement
@each_code
def test_the_largest_row_of_one_kernel_has_the_bits_of_two_passes(code: int, signs_are: int) -> None:
    architecture = BY_NAME["sm_90a"]
    log2_size = maximum_log2_row(code, architecture)
    assert log2_size in SPLITS
    x, signs = _random(code, 3, log2_size), None if signs_are == NO_SIGNS else _signs(1, log2_size, code)
    configuration = choose(code, log2_size, 3, architecture.capability, 132, signs_are)
    whole = torch.full_like(x, math.nan)
    EmulatedKernel(configuration).run(
        x.view(-1), whole.view(-1), 2.0 ** (-log2_size / 2), 3, signs=signs, grid=configuration.grid(3, 132), seed=code
    )
    assert torch.equal(_result(_passes(code, log2_size, 3, signs_are), x, signs), whole)


@needs_compiler
@each_code
def test_divisions_of_a_size_agree(code: int) -> None:
    x = _random(code, 1, 18)
    splits: list[Split] = [(12, 6), (11, 7), (13, 5)]
    results = [_result(_passes(code, 18, 1, split=split), x, seed=seed) for seed, split in enumerate(splits)]
    assert all(torch.equal(result, results[0]) for result in results)


@needs_compiler
@each_placement
@each_code
def test_signs_blocks_and_groups(code: int, signs_are: int) -> None:
    """Three blocks a row with signs of their own, rows in groups that hold less than, or more than, a row."""
    x = _random(code, 2, 16).repeat(1, 3) * torch.rand(1, 3 << 16).to(DTYPES[code])
    signs = None if signs_are == NO_SIGNS else _signs(3, 16, code)
    results = []
    for transforms in (1, 2, 6):
        planned = _passes(code, 16, 6, signs_are, 3, group_bytes=transforms << 18)
        results.append(_result(planned, x, signs))
        assert torch.equal(results[-1], results[0])
    inverse = signs_are == SIGNS_AFTER
    _assert_close(results[0], oracle.transform(x, block_size=1 << 16, signs=signs, inverse=inverse))


@needs_compiler
@each_placement
def test_three_passes(signs_are: int) -> None:
    """On a small size, with runs of the first two passes in groups."""
    x = _random(2, 2, 15)
    signs = None if signs_are == NO_SIGNS else _signs(2, 15, 2)
    planned = _passes(2, 15, 2, signs_are, 2, split=(5, 5, 5), group_bytes=4 << 13)
    assert [len(planned.of_pass(number)) for number in range(3)] == [8, 8, 2]
    _check_launches(planned, 2, signs_are, 2)
    y = _result(planned, x.view(1, -1), None if signs is None else signs)
    exact = oracle.transform(x.view(1, -1), block_size=1 << 15, signs=signs, inverse=signs_are == SIGNS_AFTER)
    _assert_close(y, exact)


def _butterflies(values: Tensor) -> Tensor:
    """fp32 butterflies over the middle index."""
    distance, shape = 1, values.shape
    while distance < shape[1]:
        a, b = values.reshape(shape[0], -1, 2, distance, shape[2]).unbind(2)
        values, distance = torch.stack((a + b, a - b), 2).reshape(shape), 2 * distance
    return values


@each_placement
@pytest.mark.parametrize(("code", "split"), [(0, (11, 5, 5)), (1, (11, 5, 5)), (2, (12, 5, 5))])
def test_three_passes_move_what_they_should(code: int, split: Split, signs_are: int) -> None:
    """The launches of a size that is too large for the emulator, each as what it stands for in PyTorch."""
    log2_size = sum(split)
    x, out = _random(code, 1, log2_size).view(-1), torch.full((1 << log2_size,), math.nan, dtype=DTYPES[code])
    signs = None if signs_are == NO_SIGNS else _signs(1, log2_size, code)
    planned = _passes(code, log2_size, 1, signs_are, split=split, group_bytes=4 << (log2_size - 2))
    assert [len(planned.of_pass(number)) for number in range(3)] == [4, 4, 1]
    workspace = torch.full((planned.workspace_elements,), math.nan)
    for launch in planned.launches:
        places = {Place.INPUT: x, Place.OUTPUT: out, Place.WORKSPACE: workspace}
        at = {place: launch.workspace_start if place is Place.WORKSPACE else launch.start for place in places}
        values = places[launch.source][at[launch.source] :][: launch.elements].float()
        its_signs = None
        if launch.configuration.signs != NO_SIGNS and signs is not None:
            its_signs = signs[launch.sign_start :][: launch.elements].float()
        if its_signs is not None and signs_are == SIGNS_BEFORE:
            values = values * its_signs
        inner = 1 << sum(split[: launch.number])
        values = _butterflies(values.view(-1, 1 << split[launch.number], inner)).reshape(-1)
        values = values * (2.0 ** (-log2_size / 2) if launch.last else 1.0)
        if its_signs is not None and signs_are == SIGNS_AFTER:
            values = values * its_signs
        places[launch.target][at[launch.target] :][: launch.elements] = values.to(places[launch.target].dtype)
    exact = oracle.transform(x[None], signs=signs, inverse=signs_are == SIGNS_AFTER)[0]
    _assert_close(out, exact)


@needs_compiler
def test_rows_do_not_leak_into_one_another() -> None:
    for code in (0, 2):
        x = _random(code, 3, 16)
        planned = _passes(code, 16, 3)
        clean = _result(planned, x)
        x[1, 12345] = math.nan
        y = _result(planned, x)
        assert not y[1].isfinite().any() and torch.equal(y[[0, 2]], clean[[0, 2]])


# ---- the backend's Python -------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Passes]:
    """Route launches to the emulator; checks the arguments of each against what the emulator is given."""
    ran: list[Passes] = []

    def prepared_for(dtype: torch.dtype, size: int, elements: int, device: int, signs: int, period: int) -> Any:
        code = DTYPES.index(dtype)
        planned = _passes(code, size.bit_length() - 1, elements // size, signs, period)
        return cuda_passes.PreparedPasses(planned, (None,) * len(planned.launches))  # type: ignore[arg-type]

    def run(
        prepared: cuda_passes.PreparedPasses, x: Tensor, out: Tensor, scale: float, signs: Tensor | None, device: int
    ) -> None:
        ran.append(prepared.passes)
        assert x.is_contiguous() and out.is_contiguous() and x.data_ptr() % 16 == 0
        _run(prepared.passes, x, out, scale, signs)

    class Here:
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(cuda_passes, "_prepared_for", prepared_for)
    monkeypatch.setattr(cuda_passes, "run_passes", run)
    monkeypatch.setattr(cuda_passes, "enter_device", lambda index: Here())
    monkeypatch.setattr(cuda_launch, "_maximum_row", lambda dtype, index: 1 << 15)  # a GPU without clusters
    return ran


@needs_compiler
@pytest.mark.parametrize("in_place", [False, True])
def test_backend(in_place: bool, launches: list[Passes]) -> None:
    size = 1 << 16
    padded = torch.randn(2, 2 * size + 8).half()
    unaligned = torch.randn(2 * size + 1).half()[1:].view(1, 2 * size)
    for x in (torch.randn(1, 2 * size).half(), padded[:, 8:], unaligned, torch.randn(2 * size, 1).half().T):
        signs, before = _signs(2, 16, 0), x.clone()
        for inverse in (False, True):
            x.copy_(before)
            out = x if in_place else torch.full(x.shape, math.nan, dtype=x.dtype)
            cuda.transform(x, out, size, size**-0.5, signs, inverse, None)
            exact = oracle.transform(before, block_size=size, signs=signs, inverse=inverse)
            _assert_close(out, exact)
            assert in_place or torch.equal(x, before)
    assert len(launches) == 8


def test_arguments_of_launches() -> None:
    """Addresses count elements of their own type; the scale comes last, signs where they belong."""
    planned = _passes(0, 20, 16, SIGNS_AFTER, 2, group_bytes=8 << 20)
    bases = {Place.INPUT: 1 << 40, Place.WORKSPACE: 2 << 40, Place.OUTPUT: 3 << 40}
    arguments = [cuda_passes.launch_arguments(launch, bases, 2, 0.25, 4 << 40) for launch in planned.launches]
    assert arguments[:4] == [
        (1 << 40, 2 << 40, 1.0, 512),
        (2 << 40, 3 << 40, 0.25, 4096, 4 << 40, 2),
        ((1 << 40) + (4 << 20), 2 << 40, 1.0, 512),
        (2 << 40, (3 << 40) + (4 << 20), 0.25, 4096, 4 << 40, 2),
    ]
    middle = next(launch for launch in _passes(0, 27, 1).of_pass(1) if launch.start)
    assert cuda_passes.launch_arguments(middle, bases, 2, 0.25, 0) == ((2 << 40) + (16 << 20),) * 2 + (1.0, 4096)
    inside = _passes(0, 20, 2, SIGNS_BEFORE, 2, group_bytes=4 << 20).launches[2]
    assert cuda_passes.launch_arguments(inside, bases, 2, 0.25, 4 << 40)[-2:] == ((4 << 40) + (2 << 20), 256)


def test_kernels_are_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[tuple[PassConfiguration, int]] = []
    launched: list[tuple[Any, ...]] = []

    def prepare(configuration: PassConfiguration, units: int, device_index: int) -> Any:
        prepared.append((configuration, units))
        return configuration.kernel

    monkeypatch.setattr(cuda_passes, "prepare", prepare)
    monkeypatch.setattr(
        cuda_passes, "launch_prepared", lambda kernel, device, arguments: launched.append((kernel, *arguments))
    )
    monkeypatch.setattr(cuda_passes, "_prepared", {})
    monkeypatch.setattr(cuda_passes, "_PREPARED_LIMIT", 2)
    properties = type("Properties", (), {"major": 9, "minor": 0, "multi_processor_count": 132})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    for elements in (7 << 20, 7 << 20, 8 << 20, 9 << 20):
        found = cuda_passes._prepared_for(torch.float16, 1 << 20, elements, 0, NO_SIGNS, 1)
        assert len(cuda_passes._prepared) <= 2
    assert len(prepared) == 4 + 2 + 4  # whole groups of 4 rows, and what is left
    x = torch.zeros(9 << 20, dtype=torch.float16)
    cuda_passes.run_passes(found, x, x, 0.5, None, 0)
    assert [kernel for kernel, *_ in launched] == ["exchange_rows", "columns"] * 3
    assert launched[2][1] == x.data_ptr() + (8 << 20) and launched[-1][2:] == (x.data_ptr() + (16 << 20), 0.5, 4096)
    with pytest.raises(TypeError, match=r"takes float16, bfloat16 and float32, got torch.float64"):
        cuda_passes._prepared_for(torch.float64, 1 << 20, 1 << 20, 0, NO_SIGNS, 1)
