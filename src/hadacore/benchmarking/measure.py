"""Measures a grid: copy, this package and its peers, back to back on the same buffers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hadacore.benchmarking.accuracy import error_ratio, exact_transform
from hadacore.benchmarking.copy import time_copy
from hadacore.benchmarking.grid import Grid, Point
from hadacore.benchmarking.peers import InstalledPeer
from hadacore.benchmarking.timing import COLD_BYTES, Arena, Workload, time_operation
from hadacore.elements import BY_NAME
from hadacore.functional import hadamard_transform

_CHECKED_ELEMENTS = 1 << 20  # errors are taken over the first rows, at least one, of about so many elements
_CHECKED_ELEMENTS_CPU = 1 << 17


def transform_out(x: Tensor, y: Tensor, backend: str | None = None) -> None:
    """This package's transform as an operation; in place where both are the same tensor."""
    hadamard_transform(x, out=y, backend=backend)


@dataclass(frozen=True)
class Measurement:
    """One line of the table.

    Attributes:
        point: What was measured.
        copy_us: Microseconds of the fastest copy.
        copy_kernel: Which copy that was.
        hadacore_us: Microseconds of this package's transform to another buffer.
        hadacore_error_ratio: Its error over that of correct rounding.
        hadacore_inplace_us: The same in place, or None if not asked for.
        peers_us: Microseconds by peer; a peer that has no such transform, or failed, is left out.
    """

    point: Point
    copy_us: float
    copy_kernel: str
    hadacore_us: float
    hadacore_error_ratio: float
    hadacore_inplace_us: float | None = None
    peers_us: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Time over that of a copy of the same bytes."""
        return self.hadacore_us / self.copy_us


def measure_error_ratio(workload: Workload, backend: str | None = None) -> float:
    """The transform's error on the workload's first rows, over that of correct rounding."""
    x, y = workload.pairs[0]
    limit = _CHECKED_ELEMENTS if x.device.type == "cuda" else _CHECKED_ELEMENTS_CPU
    count = min(x.shape[0], max(1, limit // x.shape[1]))
    rows = x[:count]
    transform_out(rows, y[:count], backend)
    return error_ratio(y[:count], exact_transform(rows))


def _measure_point(
    point: Point,
    workload: Workload,
    copy: tuple[float, str],
    peers: Sequence[InstalledPeer],
    in_place: bool,
    backend: str | None,
    report_failure: Callable[[str, str], None],
) -> Measurement:
    workload = workload.rows_of(point.size)
    transform = functools.partial(transform_out, backend=backend)
    error = measure_error_ratio(workload, backend)
    time_us = time_operation(transform, workload)
    peers_us = {}
    for peer in peers:
        operation = peer.operation(BY_NAME[point.dtype].dtype, point.size)
        if operation is None:
            continue
        try:
            peers_us[peer.name] = time_operation(operation, workload)
        except torch.OutOfMemoryError:
            raise
        except Exception as error_of_peer:  # foreign code may fail in any way; the others are still worth measuring
            report_failure(peer.name, f"failed at {point}: {type(error_of_peer).__name__}: {error_of_peer}")
    # Last, because it overwrites the inputs (with their rotation, which is as random).
    in_place_us = time_operation(transform, workload.in_place()) if in_place else None
    return Measurement(point, copy[0], copy[1], time_us, error, in_place_us, peers_us)


def measure_grid(
    grid: Grid,
    device: torch.device,
    peers: Sequence[InstalledPeer] = (),
    *,
    in_place: bool = False,
    backend: str | None = None,
    done: Collection[Point] = (),
    report_failure: Callable[[str, str], None] = lambda name, reason: None,
    cold_bytes: int = COLD_BYTES,
) -> Iterator[Measurement]:
    """Measure every point of a grid that is not yet ``done``, one after the other.

    Args:
        grid: The points.
        device: Where.
        peers: Other packages to measure beside.
        in_place: Measure the transform in place, too.
        backend: Which one runs the transform; None is the device's.
        done: Points to leave out.
        report_failure: Called with a peer's name and the reason when it fails at a point.
        cold_bytes: Bytes that a round over the cold buffers covers.
    """
    arena, arena_dtype = None, None
    for dtype, elements, regime, points in grid.groups():
        wanted = [point for point in points if point not in done]
        if not wanted:
            continue
        if arena is None or arena_dtype != dtype:
            arena = None  # free the old one before the new one is made
            arena = Arena(
                BY_NAME[dtype].dtype, device, grid.arena_elements(dtype), cold=grid.has_cold, cold_bytes=cold_bytes
            )
            arena_dtype = dtype
        workload = arena.workload(elements, regime)
        copy = time_copy(workload)
        for point in wanted:
            yield _measure_point(point, workload, copy, peers, in_place, backend, report_failure)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # outputs that peers allocated in their graphs
