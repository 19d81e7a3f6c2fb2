"""Measuring: errors, buffers, times, the grid, peers."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
import types
import weakref
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from hadacore.benchmarking import (
    accuracy,
    copy,
    grid,
    measure,
    peers,
    timing,
)
from hadacore.benchmarking.grid import Grid, Point
from hadacore.benchmarking.peers import Peer, find_peers
from hadacore.functional import hadamard_transform
from tests import oracle

SMALL = 1 << 20  # bytes of a cold round in tests


def test_error_ratio_is_one_for_correct_rounding(device: torch.device) -> None:
    x = torch.randn(64, 512, device=device).half()
    exact = accuracy.exact_transform(x)
    assert accuracy.error_ratio(exact.half(), exact) == 1.0


def test_error_ratio_formula() -> None:
    exact = torch.tensor([1.0, 2.0, 3.0 + 2.0**-10], dtype=torch.float64)
    y = torch.tensor([1.0, 2.0 + 2.0**-8, 3.0], dtype=torch.float16)
    rounding = (exact.half().double() - exact).norm()
    assert accuracy.error_ratio(y, exact) == pytest.approx(float((y.double() - exact).norm() / rounding), rel=1e-12)
    assert accuracy.relative_error(y, exact) == pytest.approx(
        float((y.double() - exact).norm() / exact.norm()), rel=1e-12
    )


def test_error_ratio_of_representable_results() -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert accuracy.error_ratio(exact.half(), exact) == 1.0
    assert accuracy.error_ratio(exact.half() + 1, exact) == math.inf
    assert accuracy.relative_error(torch.ones(2), torch.zeros(2)) == pytest.approx(2**0.5)


@pytest.mark.parametrize("size", [1, 2, 64, 256, 512, 4096, 12, 28 * 16, 428 * 2, 148 * 512, 20 * 1024])
def test_exact_transform_is_the_definition(size: int) -> None:
    x = torch.randn(3, size, dtype=torch.float64)
    torch.testing.assert_close(accuracy.exact_transform(x), oracle.transform(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(accuracy.exact_transform(x, 2.0), oracle.transform(x, 2.0), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("elements", [4, 100, 4096, 1 << 16, 1 << 18])
def test_cold_buffers_cover_the_bytes_and_do_not_overlap(elements: int) -> None:
    arena = timing.Arena(torch.float16, torch.device("cpu"), 1 << 18, cold_bytes=SMALL)
    workload = arena.workload(elements, timing.COLD)
    starts = [x.data_ptr() for x, _ in workload.pairs]
    assert len(workload.pairs) >= 2
    assert {b - a for a, b in itertools.pairwise(starts)} == {workload.distance_bytes}
    assert workload.distance_bytes >= elements * 2 and workload.distance_bytes % 512 == 0
    touched = 2 * len(workload.pairs) * elements * 2
    assert touched >= SMALL or len(workload.pairs) == timing.MAXIMUM_PAIRS
    assert 2 * len(workload.pairs) * workload.distance_bytes >= 0.9 * SMALL
    for tensor in (t for pair in workload.pairs[:3] for t in pair):
        assert float(tensor.float().abs().mean()) > 0.3  # random data, never zeros
    assert arena.workload(elements, timing.HOT).pairs[0][0].data_ptr() == starts[0]
    assert workload.in_place().pairs[0][0] is workload.in_place().pairs[0][1]
    assert len(workload.in_place().pairs) == 2 * len(workload.pairs)


def test_arena_refuses_more_than_it_was_made_for() -> None:
    arena = timing.Arena(torch.float32, torch.device("cpu"), 256, cold_bytes=1 << 12)
    with pytest.raises(ValueError, match="made for tensors smaller than 65536 elements"):
        arena.workload(65536, timing.COLD)


@pytest.mark.parametrize("regime", timing.REGIMES)
def test_cpu_time_is_that_of_the_operation(regime: str) -> None:
    arena = timing.Arena(torch.float32, torch.device("cpu"), 4096, cold_bytes=SMALL)
    seen = set()

    def sleep(x: Tensor, y: Tensor) -> None:
        seen.add(x.data_ptr())
        time.sleep(2e-3)

    measured = timing.time_operation(sleep, arena.workload(4096, regime))
    assert 2000 <= measured < 4000
    assert (len(seen) == 1) == (regime == timing.HOT)


class FakeGraph:
    """Stands in for a CUDA graph and keeps the log."""

    log: ClassVar[list[str]] = []

    def capture_begin(self, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        FakeGraph.log.append("capture")

    def capture_end(self) -> None:
        FakeGraph.log.append("captured")

    def replay(self) -> None:
        FakeGraph.log.append("replay")

    def reset(self) -> None:
        FakeGraph.log.append("reset")


class FakeEvent:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeGraph.log.append("event")

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return 300.0  # milliseconds


class FakeStream(contextlib.nullcontext[None]):
    def wait_stream(self, stream: object) -> None:
        pass

    synchronize = FakeEvent.synchronize


@pytest.mark.parametrize("regime", timing.REGIMES)
def test_gpu_method(regime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls in a graph, what goes before a timed replay, and where results that are allocated lie."""
    for name, fake in (("CUDAGraph", FakeGraph), ("Event", FakeEvent), ("Stream", FakeStream),
                       ("stream", lambda s: s), ("current_stream", FakeStream)):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(FakeGraph, "log", [])
    elements = 1 << 14
    whole = timing.Arena(torch.float16, torch.device("cpu"), elements, cold_bytes=SMALL).workload(elements, regime)
    evict = None if whole.evict is None else lambda: FakeGraph.log.append("evict")
    workload = timing.Workload(whole.pairs, whole.distance_bytes, evict)
    seen: list[int] = []
    alive: set[int] = set()
    most = 0

    def allocates(x: Tensor, y: Tensor) -> Tensor:
        nonlocal most
        seen.append(x.data_ptr())
        result = x.clone()
        alive.add(id(result))
        weakref.finalize(result, alive.discard, id(result))
        most = max(most, len(alive))
        return result

    time_us = timing._time_on_gpu(allocates, workload)
    calls = len(seen) - 2  # after two to warm up
    assert time_us == pytest.approx(300e3 / calls)
    before = "replay" if regime == timing.HOT else "evict"
    assert FakeGraph.log == ["capture", "captured", *([before, "event", "replay", "event"] * 6), "reset"]
    if regime == timing.HOT:
        assert calls == 50 and len(set(seen)) == 1 and most <= 2
    else:
        assert calls == 32 and len(whole.pairs) == 16 and most >= 16  # twice round; a round's results live together
        assert seen[2:] == [x.data_ptr() for x, _ in whole.pairs] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("regime", timing.REGIMES)
def test_gpu_times_are_plausible(regime: str) -> None:
    """A copy of 134 MB takes as long as memory allows; operations that allocate are timed like those that do not."""
    elements = 33_554_432
    arena = timing.Arena(torch.float16, torch.device("cuda"), elements)
    workload = arena.workload(elements, regime).rows_of(1024)
    copied, name = copy.time_copy(workload)
    assert name in copy.copy_operations(workload) and len(copy.copy_operations(workload)) == 4
    assert 10e9 < 4 * elements / (copied * 1e-6) < 20e12
    cloned = timing.time_operation(lambda x, y: x.clone(), workload)
    assert 0.8 * copied < cloned < 3 * copied
    assert measure.measure_error_ratio(workload) < 1.002
    timing.time_operation(measure.transform_out, workload.in_place())
    assert bool(workload.pairs[0][0].isfinite().all())


@pytest.mark.gpu
def test_gpu_copy_kernels_copy() -> None:
    arena = timing.Arena(torch.float16, torch.device("cuda"), 1 << 15, cold=False)
    workload = arena.workload((1 << 15) - 8, timing.HOT)
    x, y = workload.pairs[0]
    for name, operation in copy.copy_operations(workload).items():
        y.zero_()
        operation(x, y)
        assert torch.equal(x, y), name


@pytest.mark.gpu
def test_gpu_failure_of_a_peer_does_not_spoil_what_follows() -> None:
    workload = timing.Arena(torch.float16, torch.device("cuda"), 4096, cold=False).workload(4096, timing.HOT)

    def fails_in_capture(x: Tensor, y: Tensor) -> None:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("no capture here")

    with pytest.raises(RuntimeError, match="no capture here"):
        timing.time_operation(fails_in_capture, workload)
    assert timing.time_operation(copy.tensor_copy, workload) > 0


def test_copy_kernel_compiles_without_a_gpu() -> None:
    compiler = pytest.importorskip("hadacore.backends.cuda.compiler")
    pytest.importorskip("cuda.core")
    from hadacore.kernels.source import copy_source

    for units in copy._UNITS:
        compiled = compiler.compile_source(copy_source(), (("UNITS", str(units)),), "sm_90a")
        assert len(compiled.code) > 500


def test_grid_is_that_of_the_published_table() -> None:
    full = Grid()
    points = full.points()
    assert full.sizes[0] == 1 and full.sizes[-1] == 32768 and full.elements[-1] == 134_217_728
    assert all(p.elements % p.size == 0 for p in points)
    assert not [p for p in points if p.regime == "hot" and p.elements > grid.HOT_MAXIMUM_ELEMENTS]
    assert len(set(points)) == len(points) == 3 * (13 + 14 + 6 * 16 + 13 + 14 + 5 * 16)
    assert full.arena_elements("float16") == 134_217_728
    assert len(grid.default_grid("cuda", quick=True).points()) < len(grid.default_grid("cuda").points()) / 10
    assert len(grid.default_grid("cpu", quick=True).points()) < len(grid.default_grid("cpu").points())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (3,)}, "no Hadamard matrix of order 3"),
        ({"elements": (0,)}, "element counts must be 1 or more, got 0"),
        ({"dtypes": ("float64",)}, "dtype must be one of float16, bfloat16, float32, got 'float64'"),
        ({"regimes": ("warm",)}, "regime must be one of hot, cold, got 'warm'"),
        ({"sizes": (256,), "elements": (128,)}, "no combination is left to measure"),
    ],
)
def test_grid_errors(options: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(**options)  # type: ignore[arg-type]


def fake_peer(name: str, factory: peers.Factory = peers._scaled, maximum_size: int = 64) -> Peer:
    return Peer(name, (name,), factory, (torch.float16,), 2, maximum_size, f"the package {name}", ("cpu",))


@pytest.fixture
def fake_modules(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("fake_peer")
    module.hadamard_transform = lambda x, scale: hadamard_transform(x, scale)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_peer", module)
    return module


def test_peers_found_and_missing(
    fake_modules: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_peer.py").write_text("raise OSError('undefined symbol')")
    (tmp_path / "needy_peer.py").write_text("import something_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    table = tuple(fake_peer(name) for name in ("fake_peer", "absent_peer", "broken_peer", "needy_peer"))
    found, reasons = find_peers("cpu", table)
    assert [p.name for p in found] == ["fake_peer"]
    assert reasons["absent_peer"] == "not installed (the package absent_peer)"
    assert reasons["broken_peer"] == "import failed: OSError: undefined symbol"
    assert "something_that_is_not_there" in reasons["needy_peer"] and "import failed" in reasons["needy_peer"]
    assert find_peers("cuda", table)[1]["fake_peer"] == "runs on cpu, not on cuda"
    assert found[0].operation(torch.float16, 128) is None and found[0].operation(torch.float32, 64) is None


def test_peer_table_calls_each_package_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale of each is orthonormal, so that all compute the same."""
    calls: dict[str, tuple[object, ...]] = {}

    def recorder(name: str) -> types.ModuleType:
        module = types.ModuleType(name)
        for function in ("hadamard_transform", "hadamard_transform_fwd"):
            setattr(module, function, lambda *args, f=function: calls.__setitem__(name, (f, *args[1:])))
        return module

    for package in ("quack", "quack.transform"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    for name in ("fast_hadamard_transform", "quack.transform.hadamard", "faster_hadamard_transform"):
        monkeypatch.setitem(sys.modules, name, recorder(name))
    found, reasons = find_peers("cuda")
    assert not reasons
    for installed in found:
        operation = installed.operation(torch.float16, 64)
        assert operation is not None
        operation(torch.zeros(1), torch.zeros(1))
    assert calls == {
        "fast_hadamard_transform": ("hadamard_transform", 0.125),
        "quack.transform.hadamard": ("hadamard_transform_fwd", 0.125),
        "faster_hadamard_transform": ("hadamard_transform",),
    }


def test_older_place_of_a_peer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("quack")
    package.__path__ = []  # type: ignore[attr-defined]
    module = types.ModuleType("quack.hadamard")
    module.hadamard_transform_fwd = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quack", package)
    monkeypatch.setitem(sys.modules, "quack.hadamard", module)
    found, _ = find_peers("cuda", tuple(p for p in peers.PEERS if p.name == "quack"))
    assert [p.module for p in found] == [module]


def test_measure_grid(fake_modules: types.ModuleType) -> None:
    def failing(module: object, size: int) -> timing.Operation:
        def fails(x: Tensor, y: Tensor) -> None:
            raise RuntimeError("unsupported shape")

        return fails

    bad = Peer("bad", ("fake_peer",), failing, (torch.float16,), 2, 64, "", ("cpu",))
    found, _ = find_peers("cpu", (fake_peer("fake_peer"), bad))
    small = Grid((1, 64, 128), (4096,), ("float16", "float32"))
    failures: dict[str, str] = {}
    done = {Point("float16", 64, 4096, "cold")}
    measured = list(
        measure.measure_grid(
            small,
            torch.device("cpu"),
            found,
            in_place=True,
            done=done,
            cold_bytes=SMALL,
            report_failure=failures.__setitem__,
        )
    )
    assert [m.point for m in measured] == [p for p in small.points() if p not in done]
    assert "unsupported shape" in failures["bad"] and "size=64" in failures["bad"]
    for m in measured:
        assert m.copy_us > 0 and m.hadacore_us > 0 and m.hadacore_inplace_us is not None
        assert m.copy_kernel == "Tensor.copy_" and m.ratio == m.hadacore_us / m.copy_us
        assert 1.0 <= m.hadacore_error_ratio <= (1.002 if m.point.dtype == "float16" else 5)
        assert set(m.peers_us) == ({"fake_peer"} if (m.point.dtype, m.point.size) == ("float16", 64) else set())
