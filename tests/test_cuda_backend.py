"""The CUDA backend's Python, with the emulator in the GPU's place: choice of kernel, strides, copies, arguments."""

from __future__ import annotations

import itertools
import math
import types
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hadacore.backends import cuda
from hadacore.backends.cuda import launch, passes
from hadacore.backends.cuda.strides import RowStrides, row_strides
from hadacore.elements import BY_DTYPE
from hadacore.kernels.architectures import architecture_of
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE, KernelConfiguration, choose
from tests import oracle, tolerances
from tests.emulator import EmulatedKernel, compiler

PROCESSORS = 132

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler for the emulator")


@cache
def _kernel(configuration: KernelConfiguration) -> EmulatedKernel:
    return EmulatedKernel(configuration)


def _from(tensor: torch.Tensor) -> torch.Tensor:
    """All memory from a tensor's first element to the end of its storage."""
    end = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((end - tensor.storage_offset(),), (1,))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[KernelConfiguration]:
    """Route launches to the emulator; the list says which kernels ran."""
    ran: list[KernelConfiguration] = []

    def emulated(
        x: torch.Tensor, out: torch.Tensor, size: int, scale: float, signs: torch.Tensor | None, inverse: bool,
        base: torch.Tensor | None, strides: RowStrides | None,
    ) -> None:  # fmt: skip
        signs_are = NO_SIGNS if signs is None else SIGNS_AFTER if inverse else SIGNS_BEFORE
        rows = x.numel() // size
        code = BY_DTYPE[x.dtype].cuda_code
        configuration = choose(code, size.bit_length() - 1, rows, (9, 0), PROCESSORS, signs_are, strides is not None)
        arguments = list(launch.kernel_arguments(x, out, scale, rows, size, signs, strides))
        assert arguments[:4] == [x.data_ptr(), out.data_ptr(), scale, rows]
        rest = arguments[4:]
        sign_rows = 1
        if signs is not None:
            assert rest[0] == signs.data_ptr()
            sign_rows, rest = rest[1], rest[2:]
        shape = launch.launch_shape(configuration, rows, PROCESSORS, architecture_of((9, 0)))
        ran.append(configuration)
        source = _from(x)
        target = source if out.data_ptr() == x.data_ptr() else _from(out)
        _kernel(configuration).run(
            source, target, scale, rows, signs=signs, sign_rows=sign_rows, strides=tuple(rest) or None,
            grid=shape["grid"],
        )  # fmt: skip

    monkeypatch.setattr(launch, "_launch", emulated)
    monkeypatch.setattr(launch, "_maximum_row", lambda dtype, index: 1 << 16)  # of the GPU above
    return ran


def _check(x: torch.Tensor, size: int, signs: torch.Tensor | None, inverse: bool, in_place: bool) -> None:
    before = x.clone()
    out = x if in_place else torch.full(x.shape, math.nan, dtype=x.dtype)
    cuda.transform(x, out, size, size**-0.5, signs, inverse, None)
    exact = oracle.transform(before, block_size=size, signs=signs, inverse=inverse)
    assert ((out.double() - exact).abs() <= tolerances.element_bound(before, exact, size, size**-0.5, x.dtype)).all()
    assert in_place or torch.equal(x, before)


def _signs(n: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randint(0, 2, (n,)) * 2 - 1).to(dtype)


@needs_compiler
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("size", "blocks", "dtype"),
    [(1, 3, torch.float16), (4, 1, torch.bfloat16), (128, 3, torch.float16), (1024, 1, torch.float32), (4096, 1, torch.bfloat16),
     (65536, 2, torch.float16), (65536, 1, torch.float32)],
)  # fmt: skip
def test_contiguous_rows_take_one_launch(
    size: int, blocks: int, dtype: torch.dtype, in_place: bool, launches: list[KernelConfiguration]
) -> None:
    for signs_are in (NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER):
        signs = None if signs_are == NO_SIGNS else _signs(size * blocks, dtype)
        x = torch.randn(3, blocks * size).to(dtype)
        _check(x, size, signs, signs_are == SIGNS_AFTER, in_place)
    assert [(c.signs, c.strided) for c in launches] == [(NO_SIGNS, False), (SIGNS_BEFORE, False), (SIGNS_AFTER, False)]


@needs_compiler
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("size", [64, 2048, 65536])
def test_strided_rows_are_transformed_where_they_are(
    size: int, in_place: bool, launches: list[KernelConfiguration]
) -> None:
    projection = torch.randn(5, 3, 2, size).half()
    untouched = projection[:, [0, 2]].clone()
    _check(projection[:, 1], size, None, False, in_place)
    _check(projection.permute(0, 2, 1, 3)[:, :, 1], size, _signs(size, torch.float16), True, in_place)
    _check(torch.randn(4, 3 * size + 8).half()[:, 8:], size, _signs(3 * size, torch.float16), False, in_place)
    assert len(launches) == 3 and all(c.strided for c in launches)
    if in_place:
        assert torch.equal(projection[:, [0, 2]], untouched)


@needs_compiler
@pytest.mark.parametrize("in_place", [False, True])
def test_what_vectors_cannot_reach_goes_through_a_copy(in_place: bool, launches: list[KernelConfiguration]) -> None:
    _check(torch.randn(128, 6).half().T, 128, None, False, in_place)  # last dimension not dense
    _check(torch.randn(6 * 128 + 1).half()[1:].view(6, 128), 128, None, False, in_place)  # off by one element
    _check(torch.randn(6, 132).half()[:, :128], 128, None, False, in_place)  # rows 264 bytes apart
    _check(torch.randn(2, 3, 2, 3, 256).half()[:, :2, :, :2, :128], 128, None, False, in_place)  # four strides
    assert len(launches) == 4 and not any(c.strided for c in launches)


@needs_compiler
def test_unaligned_signs_are_copied(launches: list[KernelConfiguration]) -> None:
    storage = _signs(129, torch.float16)
    _check(torch.randn(3, 128).half(), 128, storage[1:], False, False)
    _check(torch.randn(3, 128).half(), 128, _signs(256, torch.float16)[::2], False, False)


@pytest.mark.parametrize(
    ("capability", "dtype", "largest"),
    [
        ((8, 0), torch.bfloat16, 1 << 15), ((8, 9), torch.float32, 1 << 15), ((9, 0), torch.bfloat16, 1 << 16),
        ((9, 0), torch.float32, 1 << 16), ((12, 0), torch.float16, 1 << 15), ((12, 0), torch.float32, 1 << 16),
    ],
)  # fmt: skip
def test_larger_rows_than_the_gpu_holds_take_passes(
    capability: tuple[int, int], dtype: torch.dtype, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ran: list[tuple[str, int]] = []

    def properties(index: int) -> object:
        asked.append(index)
        return types.SimpleNamespace(major=capability[0], minor=capability[1])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(launch, "_launch", lambda x, out, size, *more: ran.append(("launch", size)))
    monkeypatch.setattr(passes, "transform", lambda x, out, size, *more: ran.append(("passes", size)))
    launch._maximum_row.cache_clear()
    sizes = (256, 1 << 15, 1 << 16, 1 << 17)
    x = torch.empty(2, 1 << 17, dtype=dtype)
    for size in sizes * 2:
        cuda.transform(x, x, size, 1.0, None, False, None)
    launch._maximum_row.cache_clear()
    assert ran == [("launch" if size <= largest else "passes", size) for size in sizes] * 2
    assert len(asked) == 1  # a call asks the driver nothing


def test_empty_tensors_launch_nothing(launches: list[KernelConfiguration]) -> None:
    x = torch.empty(0, 128)
    cuda.transform(x, x, 128, 1.0, None, False, None)
    assert not launches


@given(data=st.data())
def test_two_strides_address_every_row(data: st.DataObject) -> None:
    """Against the addresses of the rows themselves."""
    size = data.draw(st.sampled_from([1, 2, 8]))
    shape = (*data.draw(st.lists(st.integers(1, 4), max_size=4)), size * data.draw(st.integers(1, 3)))
    padded = tuple(length + data.draw(st.integers(0, 2)) for length in shape)
    order = data.draw(st.permutations(range(len(shape) - 1)))
    views = []
    for _ in range(2):
        view = torch.empty(padded, device="meta")[tuple(slice(0, length) for length in shape)]
        views.append(view.permute(*order, len(shape) - 1))
    strides = row_strides(views[0], views[1], size)
    leading = [range(length) for length in views[0].shape[:-1]]
    starts = [
        sum(i * s for i, s in zip(index, views[0].stride(), strict=False)) + block * size
        for index in itertools.product(*leading)
        for block in range(shape[-1] // size)
    ]
    if strides is not None:
        found = [
            (row // strides.inner_rows) * strides.x_outer + (row % strides.inner_rows) * strides.x_inner
            for row in range(len(starts))
        ]
        assert found == starts
        assert (strides.out_outer, strides.out_inner) == (strides.x_outer, strides.x_inner)
    else:
        steps = {b - a for a, b in itertools.pairwise(starts)}
        assert len(steps) > 2  # two levels have at most two distances between neighbours


def test_launch_shape() -> None:
    hopper = architecture_of((9, 0))
    few = choose(0, 15, 2, (9, 0), PROCESSORS)
    assert launch.launch_shape(few, 2, PROCESSORS, hopper) == {
        "grid": 2,
        "block": 64,
        "shmem_size": 16392,
        "cluster": 8,
        "programmatic_stream_serialization": True,
    }
    early = choose(0, 7, 8, (9, 0), PROCESSORS)
    expected = {"grid": 1, "block": 128, "shmem_size": 0, "programmatic_stream_serialization": True}
    assert launch.launch_shape(early, 8, PROCESSORS, hopper) == expected
    assert early.runs_on(architecture_of((9, 0))) and not early.runs_on(architecture_of((8, 0)))
    late = {"grid": 1, "block": 128, "shmem_size": 0}
    assert launch.launch_shape(choose(0, 7, 8, (8, 0), PROCESSORS), 8, PROCESSORS, architecture_of((8, 0))) == late


def test_strides_differ_between_input_and_output() -> None:
    x = torch.empty(5, 3, 64)[:, 1]
    assert row_strides(x, torch.empty(5, 64), 64) == RowStrides(5, 0, 192, 0, 64)
    assert row_strides(torch.empty(7, 64).T, torch.empty(64, 7), 7) is None
    assert row_strides(torch.empty(64), torch.empty(64), 64) == RowStrides(1, 0, 0, 0, 0)


def test_repeated_launches_are_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    launched: list[tuple[object, ...]] = []
    stream = object()

    class Core:
        LEGACY_DEFAULT_STREAM = stream

        @staticmethod
        def launch(*arguments: object) -> None:
            launched.append(arguments)

    def prepare(configuration: KernelConfiguration, rows: int, device_index: int) -> launch.PreparedLaunch:
        prepared.append(rows)
        return launch.PreparedLaunch("kernel", "shape")

    monkeypatch.setattr(launch, "_prepared", {})
    monkeypatch.setattr(launch, "_streams", {})
    monkeypatch.setattr(launch, "_PREPARED_LIMIT", 2)
    monkeypatch.setattr(launch, "cuda_core", lambda: Core)
    monkeypatch.setattr(launch, "prepare", prepare)
    monkeypatch.setattr(launch, "choose_for_device", lambda *key: choose(0, 7, 3, (9, 0), PROCESSORS))
    monkeypatch.setattr(launch, "_enter_thread", lambda index: None)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: -1, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0, raising=False)
    x = torch.randn(3, 128).half()
    for _ in range(3):
        cuda.transform(x, x, 128, 0.5, None, False, None)
    assert prepared == [3]
    assert launched[0] == (stream, "shape", "kernel", x.data_ptr(), x.data_ptr(), 0.5, 3)
    for rows in (1, 2, 3):  # the store of prepared launches stays bounded
        cuda.transform(x[:rows], x[:rows], 128, 0.5, None, False, None)
    assert prepared == [3, 1, 2, 3] and len(launch._prepared) <= 2
