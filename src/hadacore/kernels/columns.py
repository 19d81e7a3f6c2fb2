"""The table of configurations of ``columns.cu``, which contracts index bits that lie above others.

It is the second half of the one table of configurations (:mod:`hadacore.kernels.configurations` has the first, of kernels
that hold whole rows), for rows that are too large for one pass over memory: see :mod:`hadacore.kernels.passes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from hadacore.kernels.architectures import Architecture
from hadacore.kernels.configurations import (
    AFTER_LOADS,
    AFTER_WAIT,
    ALONE,
    BEFORE_EXCHANGE,
    NO_SIGNS,
    KernelConfiguration,
)
from hadacore.kernels.launchable import Launchable

FLOAT32_CODE = 2
_BANKS = 32
_LARGEST_ACCESS_ELEMENTS = 4  # fp32 values of a 16-byte access to shared memory


@dataclass(frozen=True)
class ColumnsConfiguration(Launchable):
    """One specialised kernel that contracts the middle index of ``(outer, 2^log2_points, inner)``.

    Attributes:
        log2_points: Index bits contracted.
        lower_bits: Those contracted before the exchange; a thread then holds ``2^lower_bits`` points.
        columns: Neighbouring columns of a block's tile; ``inner`` must be a multiple.
        warps: Warps of a block.
        minimum_blocks: Blocks that must fit on a multiprocessor, which caps the registers of a thread.
        programmatic: As of :class:`KernelConfiguration`.
        element_code: ``ELEMENT`` of the CUDA text, the type of the input.
        output_code: ``OUTPUT``, the type of the results.
        signs: ``NO_SIGNS``, ``SIGNS_BEFORE`` or ``SIGNS_AFTER``.
    """

    kernel: ClassVar[str] = "columns"
    cluster: ClassVar[int] = 1
    strided: ClassVar[bool] = False
    fusion: ClassVar[None] = None

    log2_points: int
    lower_bits: int
    columns: int
    warps: int
    minimum_blocks: int = 1
    programmatic: int = BEFORE_EXCHANGE
    element_code: int = FLOAT32_CODE
    output_code: int = FLOAT32_CODE
    signs: int = NO_SIGNS

    threads: int = field(init=False, repr=False, compare=False)
    shared_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "threads", 32 * self.warps)
        upper = 1 << (self.log2_points - self.lower_bits)
        gap = self.columns if self.columns < _BANKS else 0
        object.__setattr__(self, "shared_bytes", 4 * (self.columns * self.points + upper * gap))
        if not 0 < self.lower_bits < self.log2_points:
            raise ValueError(f"some bits must be contracted before the exchange and some after it: {self}")
        for points, what in ((1 << self.lower_bits, "loads"), (upper, "stores")):
            held = self.columns * self.points / (self.threads * points)
            if held not in (1, 2, _LARGEST_ACCESS_ELEMENTS) or self.columns % held:
                raise ValueError(f"a thread must hold 1, 2 or 4 columns of the points it {what}, not {held:g}: {self}")
        if self.output_code != FLOAT32_CODE and self.stored_columns == 1:
            raise ValueError(f"a thread must store whole 32-bit words, two columns of 16 bits or more: {self}")

    @property
    def points(self) -> int:
        """Points of the transform."""
        return 1 << self.log2_points

    @property
    def log2_size(self) -> int:
        """As of :class:`KernelConfiguration`, for reports."""
        return self.log2_points

    @property
    def values(self) -> int:
        """Values of a thread."""
        return self.columns * self.points // self.threads

    @property
    def loaded_columns(self) -> int:
        """Neighbouring columns of a thread before the exchange."""
        return self.values >> self.lower_bits

    @property
    def stored_columns(self) -> int:
        """Neighbouring columns of a thread after the exchange."""
        return self.values >> (self.log2_points - self.lower_bits)

    def tiles(self, elements: int) -> int:
        """Tiles of a tensor of ``elements`` elements."""
        return elements // (self.points * self.columns)

    def grid(self, tiles: int, multiprocessors: int) -> int:
        """Blocks to launch for ``tiles`` tiles: each has one, whatever the GPU."""
        return tiles

    def runs_on(self, architecture: Architecture) -> bool:
        """Whether a GPU of this architecture has the shared memory."""
        if self.programmatic and not architecture.has_programmatic_launch:
            return False
        return self.shared_bytes <= architecture.shared_memory_per_block

    def with_signs(self, signs: int) -> ColumnsConfiguration:
        """The same kernel with signs. They take registers, so fewer blocks have to fit."""
        if signs == NO_SIGNS:
            return self
        return replace(self, signs=signs, minimum_blocks=max(1, self.minimum_blocks * 3 // 4))

    def constants(self) -> dict[str, int]:
        """The ``-D`` constants of this kernel."""
        return {
            "ELEMENT": self.element_code,
            "OUTPUT": self.output_code,
            "LOG2_POINTS": self.log2_points,
            "LOWER_BITS": self.lower_bits,
            "COLUMNS": self.columns,
            "WARPS": self.warps,
            "MIN_BLOCKS": self.minimum_blocks,
            "PROGRAMMATIC": self.programmatic,
            "SIGNS": self.signs,
        }

    def __str__(self) -> str:
        parts = [
            f"columns 2^{self.log2_points} x {self.columns}",
            f"{self.warps} warps/block",
            f"{self.lower_bits} + {self.log2_points - self.lower_bits} bits",
            f"{self.values} values/thread",
        ]
        if self.output_code != FLOAT32_CODE:
            parts.append("16-bit results")
        if self.programmatic:
            where = {AFTER_WAIT: "its wait", AFTER_LOADS: "its loads", BEFORE_EXCHANGE: "its exchange"}
            parts.append(f"next kernel from after {where[self.programmatic]}")
        return ", ".join(parts)


#: What the backend launches.
PassConfiguration = KernelConfiguration | ColumnsConfiguration


def _of(log2_points: int, *listed: tuple[int, int, int, int]) -> tuple[ColumnsConfiguration, ...]:
    """``listed``: lower bits, columns, warps, minimum blocks."""
    return tuple(
        ColumnsConfiguration(log2_points, lower, columns, warps, blocks) for lower, columns, warps, blocks in listed
    )


#: Configurations by number of bits; the first that the GPU has the shared memory for is used, and the others are there
#: to be measured against it. Chosen by arithmetic: a row of the tile is a whole line of 128 bytes where two tiles fit on a
#: multiprocessor, and the tiles on a multiprocessor hold 64 KiB or more, of which half are loads in flight.
COLUMNS: dict[int, tuple[ColumnsConfiguration, ...]] = {
    5: _of(5, (3, 32, 2, 16), (3, 64, 4, 8), (3, 128, 8, 4)),
    6: _of(6, (3, 32, 4, 10), (3, 64, 8, 5), (3, 64, 4, 10), (3, 128, 8, 5)),
    7: _of(7, (4, 32, 4, 10), (4, 32, 8, 6), (4, 64, 8, 5)),
    8: _of(8, (4, 32, 8, 5), (4, 16, 4, 10), (4, 64, 16, 2)),
    9: _of(9, (5, 32, 16, 2), (5, 16, 8, 5), (5, 32, 8, 2)),
    10: _of(10, (5, 16, 8, 2), (5, 32, 16, 1), (6, 16, 8, 2)),
    11: _of(11, (6, 16, 16, 1), (6, 8, 8, 2)),
}


def column_candidates(
    log2_points: int, element_code: int, output_code: int, architecture: Architecture, signs: int = NO_SIGNS
) -> tuple[ColumnsConfiguration, ...]:
    """The configurations of the table that run on a GPU of this architecture; the first is the one to use.

    Args:
        log2_points: Index bits to contract.
        element_code: ``ELEMENT`` of the CUDA text.
        output_code: ``OUTPUT``.
        architecture: Of the GPU.
        signs: ``NO_SIGNS``, ``SIGNS_BEFORE`` or ``SIGNS_AFTER``.

    Raises:
        LookupError: The table has none.
    """
    found = []
    for listed in COLUMNS.get(log2_points, ()):
        programmatic = listed.programmatic if architecture.has_programmatic_launch else ALONE
        c = replace(listed, element_code=element_code, output_code=output_code, programmatic=programmatic)
        c = c.with_signs(signs)
        if c.runs_on(architecture):
            found.append(c)
    if not found:
        raise LookupError(f"no configuration of columns.cu contracts {log2_points} bits on {architecture.name}")
    return tuple(found)
