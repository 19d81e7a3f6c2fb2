"""Times an operation on a pair of tensors, hot or cold, on a GPU or on the CPU, by one function.

An operation is called as ``operation(x, y)``. It writes its result to ``y`` and returns None, or it returns what it
allocated, a tensor or several, as packages do that have no ``out=``.
"""

from __future__ import annotations

import collections
import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HOT, COLD = "hot", "cold"
REGIMES = (HOT, COLD)

#: Bytes that one round over the cold buffers covers; several times the last-level cache of any GPU.
COLD_BYTES = 300_000_000
#: Most buffer pairs of one round, so that a CUDA graph stays small enough to build in milliseconds.
MAXIMUM_PAIRS = 1024

_ALIGNMENT_ELEMENTS = 256  # pairs start at multiples of this: 512 bytes of a 16-bit type
_HOT_CALLS = 50  # calls in a graph on the same buffers
_COLD_CALLS = 20  # fewest calls in a graph that goes round large buffers
_REPLAYS = 9
_MINIMUM_REPLAYS = 5
_REPLAY_SECONDS = 1.0  # slow operations are replayed less often than _REPLAYS, never less than _MINIMUM_REPLAYS
_CPU_SAMPLES = 7
_CPU_MAXIMUM_SAMPLES = 50
_CPU_SAMPLE_SECONDS = 1e-3
_CPU_SECONDS = 0.1  # sampling goes on for so long

Operation = Callable[[Tensor, Tensor], object]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """The buffers of a measurement.

    Attributes:
        pairs: Input and output tensors; all calls use the first pair when hot, and go round all of them when cold.
        distance_bytes: From one input to the next.
        evict: Empties the caches before each timed round of a cold measurement; None when hot.
    """

    pairs: tuple[Pair, ...]
    distance_bytes: int
    evict: Callable[[], None] | None

    @property
    def elements(self) -> int:
        """Elements of one tensor."""
        return self.pairs[0][0].numel()

    @property
    def element_size(self) -> int:
        """Bytes of one element."""
        return self.pairs[0][0].element_size()

    def rows_of(self, size: int) -> Workload:
        """The same buffers as rows of ``size`` elements."""
        pairs = tuple((x.view(-1, size), y.view(-1, size)) for x, y in self.pairs)
        return Workload(pairs, self.distance_bytes, self.evict)

    def in_place(self) -> Workload:
        """The same buffers, each as input and output at once. When cold there are twice as many such pairs, so that
        one round still covers the same bytes."""
        if self.evict is None:
            x, _ = self.pairs[0]
            return Workload(((x, x),), self.distance_bytes, None)
        pairs = tuple((t, t) for t in (*(x for x, _ in self.pairs), *(y for _, y in self.pairs)))
        return Workload(pairs, self.distance_bytes, self.evict)


class Arena:
    """Random data of one type on one device, from which workloads of any size are cut.

    Args:
        dtype: Element type.
        device: Where.
        maximum_elements: Elements of the largest tensor that will be asked for.
        cold: Whether cold workloads will be asked for.
        cold_bytes: Bytes that a round over the cold buffers covers.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        maximum_elements: int,
        *,
        cold: bool = True,
        cold_bytes: int = COLD_BYTES,
    ) -> None:
        self.device = device
        self.cold_bytes = cold_bytes
        largest = _aligned(maximum_elements)
        # Half of the bytes are inputs, half outputs. Two tensors at least, or there is nothing to go round.
        elements = max(cold_bytes // 2 // dtype.itemsize + largest, 2 * largest) if cold else largest
        self._inputs = torch.empty(elements, dtype=dtype, device=device).normal_()
        self._outputs = torch.empty(elements, dtype=dtype, device=device).normal_()
        # Read, not written, to evict: its lines then leave the cache again without a write to memory.
        self._bystander = torch.ones(cold_bytes // 4, dtype=torch.float32, device=device) if cold else None

    def _evict(self) -> None:
        if self._bystander is not None:
            self._bystander.sum()

    def workload(self, elements: int, regime: str) -> Workload:
        """Buffers of ``elements`` elements for a regime.

        Cold pairs cover ``cold_bytes`` together. Small tensors, of which that would take more than
        :data:`MAXIMUM_PAIRS`, lie spread over as many bytes at regular distances.
        """
        count, distance = 1, elements
        if regime == COLD:
            pair_bytes = 2 * elements * self._inputs.element_size()
            count = min(MAXIMUM_PAIRS, max(2, math.ceil(self.cold_bytes / pair_bytes)))
            distance = self._inputs.numel() // count // _ALIGNMENT_ELEMENTS * _ALIGNMENT_ELEMENTS
            if distance < elements:
                raise ValueError(f"the arena was made for tensors smaller than {elements} elements")
        starts = [i * distance for i in range(count)]
        pairs = tuple((self._inputs[s : s + elements], self._outputs[s : s + elements]) for s in starts)
        return Workload(pairs, distance * self._inputs.element_size(), self._evict if regime == COLD else None)


def _aligned(elements: int) -> int:
    return -(-elements // _ALIGNMENT_ELEMENTS) * _ALIGNMENT_ELEMENTS


def time_operation(operation: Operation, workload: Workload) -> float:
    """Microseconds of one call of ``operation``.

    On a GPU, the time between two events around a replayed CUDA graph of many calls, divided by the calls; median of
    5 to 9 replays. On the CPU, wall time of many calls divided by the calls; the least of 7 to 50 samples. Compilation,
    loading and first touches happen in calls before that are not counted.
    """
    if workload.pairs[0][0].device.type == "cuda":
        with torch.cuda.device(workload.pairs[0][0].device):
            return _time_on_gpu(operation, workload)
    return _time_on_cpu(operation, workload)


def _capture(operation: Operation, workload: Workload, calls: int) -> torch.cuda.CUDAGraph:
    """A CUDA graph of ``calls`` calls that go round the pairs. The current stream must not be the default one."""
    pairs: Sequence[Pair] = workload.pairs
    # A result that the operation allocates lives until the round is over, and the next one lies as far away as the
    # outputs of the others do; otherwise it would always land in the same, hot, buffer. Hot is meant to.
    padding = max(0, workload.distance_bytes - workload.elements * workload.element_size)
    kept: collections.deque[tuple[object, Tensor]] = collections.deque(maxlen=len(pairs))
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        for call in range(calls):
            x, y = pairs[call % len(pairs)]
            result = operation(x, y)
            if workload.evict is not None and result is not None:
                kept.append((result, torch.empty(padding, dtype=torch.uint8, device=x.device)))
            del result
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the capture is invalid by now; what made it so is what matters
            graph.capture_end()
        raise
    graph.capture_end()
    return graph


def _time_on_gpu(operation: Operation, workload: Workload) -> float:
    pairs = workload.pairs
    calls = _HOT_CALLS
    if workload.evict is not None:
        calls = len(pairs) * math.ceil(_COLD_CALLS / len(pairs))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        for _ in range(2):
            operation(*pairs[0])
        stream.synchronize()
        graph = _capture(operation, workload, calls)

        def replay() -> float:
            # Either keeps the GPU busy until the timed replay is queued; on an idle one, the time that the CPU takes to
            # launch the graph would be counted.
            if workload.evict is None:
                graph.replay()
            else:
                workload.evict()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))  # milliseconds

        first = replay()
        replays = min(_REPLAYS, max(_MINIMUM_REPLAYS, int(_REPLAY_SECONDS * 1e3 / max(first, 1e-3))))
        milliseconds = statistics.median(replay() for _ in range(replays))
    torch.cuda.current_stream().wait_stream(stream)
    graph.reset()
    return milliseconds * 1e3 / calls


def _time_on_cpu(operation: Operation, workload: Workload) -> float:
    pairs = workload.pairs

    def timed(chosen: Sequence[Pair]) -> float:
        begin = time.perf_counter()
        for x, y in chosen:
            operation(x, y)
        return time.perf_counter() - begin

    once = max(1e-7, min(timed(pairs[-1:]) for _ in range(3)))
    calls = max(1, math.ceil(_CPU_SAMPLE_SECONDS / once))
    if workload.evict is not None:
        calls = min(calls, len(pairs))  # a second round would find the first one's lines
    samples: list[float] = []
    position = 0
    end = time.perf_counter() + _CPU_SECONDS
    while len(samples) < _CPU_SAMPLES or (len(samples) < _CPU_MAXIMUM_SAMPLES and time.perf_counter() < end):
        if workload.evict is not None:
            workload.evict()
        samples.append(timed([pairs[(position + i) % len(pairs)] for i in range(calls)]) / calls)
        position += calls
    # Not the median: another process delays the threads of a call by whole scheduler intervals, never speeds it up.
    return min(samples) * 1e6
