"""Transforms in several passes over memory, for rows that no single kernel holds.

A row's index bits are divided among passes, lowest first: ``(12, 8)`` for 2^20 means that a row kernel contracts bits 0 to
11 of contiguous runs of 4096 elements, and ``columns.cu`` then bits 12 to 19. Three passes are a row kernel and twice
``columns.cu``. Between passes values are fp32, so that 16-bit results are rounded once: float32 results take shape in
the output itself, 16-bit ones in a workspace.

Rows go through the passes in groups whose fp32 values the GPU's L2 cache holds, so that a pass finds there what the one
before has written; only what a cache cannot hold pays for another trip to memory. Of a row larger than a group, the passes
that stay within runs of a group's size are grouped alike.

Bits are contracted upwards in fp32 whatever the division, so it does not change a single bit of the result, and neither
does grouping: both are about speed only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from hadacore.kernels.architectures import Architecture, Capability, architecture_of
from hadacore.kernels.columns import FLOAT32_CODE, ColumnsConfiguration, PassConfiguration, column_candidates
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE, candidates, choose
from hadacore.kernels.stages import Stage, check_bits, column_stages, stages_of
from hadacore.matrices import MAXIMUM_SIZE

MAXIMUM_LOG2_SIZE = MAXIMUM_SIZE.bit_length() - 1

#: Most fp32 bytes between two passes at a time, as long as that is a row or more: a third of the 50 MB of L2 cache of an
#: H100 or H200, which the group's input and output go through as well. It also bounds the workspace of 16-bit transforms.
GROUP_BYTES = 16 << 20

Split = tuple[int, ...]

#: Index bits of the passes by log2 of the size, lowest first. The first is used; the others are there to be measured
#: against it. Row kernels up to 8192 run at the speed of a copy, and columns.cu is the better the fewer bits it contracts.
SPLITS: dict[int, tuple[Split, ...]] = {
    16: ((11, 5),),
    17: ((11, 6), (12, 5)),
    18: ((12, 6), (11, 7)),
    19: ((12, 7), (13, 6)),
    20: ((12, 8), (13, 7), (11, 9)),
    21: ((13, 8), (12, 9)),
    22: ((13, 9), (12, 10)),
    23: ((13, 10), (12, 6, 5)),
    24: ((13, 11), (14, 10), (12, 6, 6)),
    25: ((15, 10), (14, 11), (12, 7, 6)),
    26: ((15, 11), (12, 7, 7)),
    27: ((12, 8, 7), (13, 8, 6)),
    28: ((12, 8, 8), (13, 8, 7)),
    29: ((13, 8, 8), (12, 9, 8)),
    30: ((13, 9, 8), (12, 9, 9)),
}


class Place(Enum):
    """Where a pass reads or writes."""

    INPUT = "x"
    WORKSPACE = "workspace"
    OUTPUT = "out"


@dataclass(frozen=True)
class Launch:
    """One kernel launch of a pass over part of the rows. Counts and starts are in elements unless they say otherwise.

    Attributes:
        number: The pass, from 0.
        last: Whether it is the last pass, which scales.
        configuration: The kernel.
        units: What the launch's grid is for: rows of a row kernel, tiles of ``columns.cu``.
        repeats: The kernel's own count: rows of a row kernel; of ``columns.cu``, elements between two values of the index.
        start: Where the part starts in x and out.
        workspace_start: Where it starts in the workspace.
        elements: Its length.
        source: Where the kernel reads.
        target: Where it writes.
        sign_start: Where its signs start.
        sign_rows: Rows of signs, in the kernel's own rows, after which they repeat.
    """

    number: int
    last: bool
    configuration: PassConfiguration
    units: int
    repeats: int
    start: int
    workspace_start: int
    elements: int
    source: Place
    target: Place
    sign_start: int
    sign_rows: int


@dataclass(frozen=True)
class Passes:
    """A transform in several passes.

    Attributes:
        log2_size: Transform size ``2^log2_size``.
        element_code: ``ELEMENT`` of the CUDA text, the type of x and out.
        split: Index bits of each pass, lowest first.
        configurations: The kernel of each pass over a whole group.
        launches: In order.
        workspace_elements: fp32 values of the workspace; 0 where out serves.
    """

    log2_size: int
    element_code: int
    split: Split
    configurations: tuple[PassConfiguration, ...]
    launches: tuple[Launch, ...]
    workspace_elements: int

    def of_pass(self, number: int) -> tuple[Launch, ...]:
        """The launches of one pass."""
        return tuple(launch for launch in self.launches if launch.number == number)

    def stages_of_pass(self, number: int) -> tuple[Stage, ...]:
        """The stages of one pass; bits are those of the whole row."""
        configuration = self.configurations[number]
        if isinstance(configuration, ColumnsConfiguration):
            return column_stages(configuration, sum(self.split[:number]))
        return stages_of(configuration)

    def stages(self) -> tuple[Stage, ...]:
        """The stages of all passes, in order, which contract every index bit exactly once."""
        stages = tuple(stage for number in range(len(self.split)) for stage in self.stages_of_pass(number))
        check_bits(stages, self.log2_size, f"passes of {self.split} bits")
        return stages

    def places_of_pass(self, number: int) -> tuple[Place, Place]:
        """Where a pass reads and writes."""
        return _places(self.element_code, number, number == len(self.split) - 1)

    def bytes_of_pass(self, number: int) -> int:
        """Bytes that a pass reads and writes, whether in memory or in a cache; signs not counted."""
        element_bytes = 4 if self.element_code == FLOAT32_CODE else 2
        reads = element_bytes if number == 0 else 4
        writes = element_bytes if number == len(self.split) - 1 else 4
        return (reads + writes) * sum(launch.elements for launch in self.of_pass(number))


def _places(element_code: int, number: int, last: bool) -> tuple[Place, Place]:
    """Where a pass reads and writes: between passes, float32 is in out already."""
    between = Place.OUTPUT if element_code == FLOAT32_CODE else Place.WORKSPACE
    return Place.INPUT if number == 0 else between, Place.OUTPUT if last else between


def _groups(transforms: int, most: int, period: int) -> Iterator[tuple[int, int]]:
    """First and count of each group of transforms: whole periods of signs, or parts of one."""
    if most >= period:
        step = most // period * period
        for first in range(0, transforms, step):
            yield first, min(step, transforms - first)
        return
    for begin in range(0, transforms, period):
        for first in range(begin, begin + period, most):
            yield first, min(most, begin + period - first)


def _steps(split: Split, number: int, start: int, elements: int, group: int) -> Iterator[tuple[int, int, int]]:
    """``(pass, start, elements)`` of passes 0 to ``number`` over ``elements`` elements, in order.

    Passes below ``number`` stay within runs of 2^(their bits) elements, so two or more of them go group by group.
    """
    run = 1 << sum(split[:number])
    step = max(1, group // run) * run if number > 1 else elements
    if number > 0:
        for first in range(start, start + elements, step):
            yield from _steps(split, number - 1, first, min(step, start + elements - first), group)
    yield number, start, elements


@functools.lru_cache(maxsize=1024)
def _configuration(
    split: Split, number: int, element_code: int, elements: int, capability: Capability, multiprocessors: int, signs: int
) -> PassConfiguration:  # fmt: skip
    """The kernel of a pass over ``elements`` elements."""
    last = number == len(split) - 1
    if number > 0:
        output = element_code if last else FLOAT32_CODE
        placed = SIGNS_AFTER if last and signs == SIGNS_AFTER else NO_SIGNS
        return column_candidates(split[number], FLOAT32_CODE, output, architecture_of(capability), placed)[0]
    placed = SIGNS_BEFORE if signs == SIGNS_BEFORE else NO_SIGNS
    rows = elements >> split[0]
    chosen = choose(element_code, split[0], rows, capability, multiprocessors, placed, False)
    return chosen if element_code == FLOAT32_CODE else replace(chosen, output_code=FLOAT32_CODE)


def kernels_of(
    element_code: int, log2_size: int, architecture: Architecture, signs: int = NO_SIGNS
) -> tuple[PassConfiguration, ...]:
    """Every kernel that could be chosen for a pass of a size, whatever the number of rows."""
    split = SPLITS[log2_size][0]
    placed = SIGNS_BEFORE if signs == SIGNS_BEFORE else NO_SIGNS
    found: list[PassConfiguration] = []
    for candidate in candidates(element_code, split[0], architecture):
        c = candidate.configuration.with_options(placed, False)
        found.append(c if element_code == FLOAT32_CODE else replace(c, output_code=FLOAT32_CODE))
    for number, bits in enumerate(split[1:], 2):
        last = number == len(split)
        output = element_code if last else FLOAT32_CODE
        placed = SIGNS_AFTER if last and signs == SIGNS_AFTER else NO_SIGNS
        found.append(column_candidates(bits, FLOAT32_CODE, output, architecture, placed)[0])
    return tuple(found)


def check_split(split: Split, log2_size: int) -> None:
    """Check that a division into passes is one.

    Raises:
        ValueError: It has one pass only, or its bits are not those of the size.
    """
    if len(split) < 2 or min(split) < 1 or sum(split) != log2_size:
        raise ValueError(f"passes must be two or more, with {log2_size} index bits in all, got {split}")


@functools.lru_cache(maxsize=256)
def passes_of(
    element_code: int, log2_size: int, transforms: int, capability: Capability, multiprocessors: int,
    signs: int = NO_SIGNS, sign_period: int = 1, *, split: Split | None = None, group_bytes: int = GROUP_BYTES,
) -> Passes:  # fmt: skip
    """How ``transforms`` transforms of size ``2^log2_size``, one after another in memory, are computed in passes.

    Args:
        element_code: ``ELEMENT`` of the CUDA text.
        log2_size: Transform size ``2^log2_size``.
        transforms: How many; a multiple of ``sign_period``.
        capability: Compute capability of the GPU.
        multiprocessors: Multiprocessors of the GPU.
        signs: ``NO_SIGNS``, ``SIGNS_BEFORE`` or ``SIGNS_AFTER``.
        sign_period: Transforms after which the signs repeat.
        split: Another division of the index bits than the table's.
        group_bytes: Another size of groups.

    Raises:
        ValueError: ``split`` is no division of the index bits.
        LookupError: The table has no division, or no kernel, for this size.
    """
    if split is None:
        if log2_size not in SPLITS:
            raise LookupError(f"size 2^{log2_size} has no division into passes; the table has 2^{list(SPLITS)}")
        split = SPLITS[log2_size][0]
    check_split(split, log2_size)
    group, final = group_bytes // 4, len(split) - 1
    period = sign_period << log2_size
    most = max(1, group >> log2_size)
    launches, workspace = [], 0
    for first, count in _groups(transforms, most, sign_period):
        group_start, group_elements = first << log2_size, count << log2_size
        workspace = max(workspace, group_elements)
        for number, start, elements in _steps(split, final, group_start, group_elements, group):
            c = _configuration(split, number, element_code, elements, capability, multiprocessors, signs)
            row = 1 << sum(split[: number + 1])  # what signs are counted in
            columns = isinstance(c, ColumnsConfiguration)
            source, target = _places(element_code, number, number == final)
            launches.append(
                Launch(
                    number=number,
                    last=number == final,
                    configuration=c,
                    units=c.tiles(elements) if isinstance(c, ColumnsConfiguration) else elements // row,
                    repeats=1 << sum(split[:number]) if columns else elements // row,
                    start=start,
                    workspace_start=start - group_start,
                    elements=elements,
                    source=source,
                    target=target,
                    sign_start=start % period,
                    sign_rows=min(period, elements) // row,
                )
            )
    whole = [step for step in launches if step.start + step.elements <= most << log2_size]
    if not whole:  # nothing to do, but how it would be done can still be said
        whole = list(passes_of(element_code, log2_size, sign_period, capability, multiprocessors, signs, sign_period,
                               split=split, group_bytes=group_bytes).launches)  # fmt: skip
    configurations = tuple(next(s.configuration for s in whole if s.number == number) for number in range(len(split)))
    needed = workspace if _places(element_code, 0, False)[1] is Place.WORKSPACE else 0
    return Passes(log2_size, element_code, split, configurations, tuple(launches), needed)
