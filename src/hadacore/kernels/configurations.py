"""The one table of kernel configurations, and the choice among them.

A configuration is everything the CUDA text is specialised for. :data:`TABLE` lists, for each element width and
size, the configurations worth running, from few rows to many; :func:`choose` picks by row count and GPU.
All configurations of a size give the same bits, so the choice is about speed only.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace

from hadacore.kernels.architectures import Architecture, Capability, architecture_of

MAXIMUM_LOG2_SIZE = 15
TILE_LOG2 = 8  # a warp's tile is 256 elements
MAXIMUM_GRID = 2**31 - 1  # blocks of a launch

NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER = 0, 1, 2


def signs_placement(present: bool, inverse: bool) -> int:
    """Where the signs of a transform are applied: forward is H D, so its inverse is D H^T."""
    if not present:
        return NO_SIGNS
    return SIGNS_AFTER if inverse else SIGNS_BEFORE


@dataclass(frozen=True)
class KernelConfiguration:
    """One specialised kernel.

    Attributes:
        kernel: ``"warp_rows"`` (a warp holds whole rows) or ``"exchange_rows"`` (one trip through shared memory).
        element_code: ``ELEMENT`` of the CUDA text; 2 is float32, the others are 16-bit.
        log2_size: Transform size ``2^log2_size``.
        log2_tiles: Tiles of 256 elements that one warp holds of a row.
        warps: Warps of a block. In ``exchange_rows`` they share one row.
        units: ``warp_rows`` only: rows (or packed tiles of short rows) a warp loads before it computes.
        cluster: ``exchange_rows`` only: blocks that share one row.
        passes: ``exchange_rows`` only: pieces in which the row goes through the exchange buffer.
        prefetch: ``exchange_rows`` only: copy the next row to shared memory while this one is transformed; blocks
            then loop over rows.
        minimum_blocks: Blocks that must fit on a multiprocessor, which caps the registers of a thread.
        programmatic: Programmatic dependent launch: the kernel's start overlaps the end of the stream's previous kernel.
        signs: ``NO_SIGNS``, ``SIGNS_BEFORE`` or ``SIGNS_AFTER`` the transform.
        strided: Rows lie at two-level strides rather than one after the other.
    """

    kernel: str
    element_code: int
    log2_size: int
    log2_tiles: int = 0
    warps: int = 4
    units: int = 1
    cluster: int = 1
    passes: int = 1
    prefetch: bool = False
    minimum_blocks: int = 1
    programmatic: bool = False
    signs: int = NO_SIGNS
    strided: bool = False

    # Derived values are stored, because a launch reads them and must not recompute them.
    threads: int = field(init=False, repr=False, compare=False)
    shared_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        size, element_bytes = 1 << self.log2_size, 4 if self.element_code == 2 else 2
        shared = 0
        if self.kernel == "exchange_rows":
            held = TILE_LOG2 + self.log2_tiles + int(math.log2(self.warps * self.cluster))
            if held != self.log2_size:
                raise ValueError(
                    f"tiles, warps and blocks hold 2^{held} elements, the row has 2^{self.log2_size}: {self}"
                )
            shared = size * 4 // (self.cluster * self.passes)
            if self.prefetch:
                shared += size * element_bytes // self.cluster
        elif self.log2_tiles != max(0, self.log2_size - TILE_LOG2):
            raise ValueError(f"a warp must hold the whole row: {self}")
        object.__setattr__(self, "threads", 32 * self.warps)
        object.__setattr__(self, "shared_bytes", shared)

    @property
    def size(self) -> int:
        """Elements of a row."""
        return 1 << self.log2_size

    @property
    def tiles(self) -> int:
        """Tiles of 256 elements a warp holds of one row."""
        return 1 << self.log2_tiles

    def units_of(self, rows: int) -> int:
        """Rows, or for packed rows tiles of 256 elements, that a launch works on."""
        return rows if self.log2_size >= TILE_LOG2 else -(-rows * self.size // 256)

    def grid(self, rows: int, multiprocessors: int) -> int:
        """Clusters (blocks, where the cluster is one block) to launch for ``rows`` rows."""
        if self.kernel == "warp_rows":
            return -(-self.units_of(rows) // (self.warps * self.units))
        resident = multiprocessors * self.minimum_blocks if self.prefetch else MAXIMUM_GRID // self.cluster
        return min(rows, resident)  # blocks loop over the rows beyond

    def runs_on(self, architecture: Architecture) -> bool:
        """Whether a GPU of this architecture has the features and the shared memory."""
        if (self.cluster > 1 or self.programmatic) and not architecture.has_clusters:
            return False  # both came with compute capability 9.0
        return self.shared_bytes <= architecture.shared_memory_per_block

    def __str__(self) -> str:
        parts = [f"{self.kernel} 2^{self.log2_size}", f"{self.tiles} tiles/warp", f"{self.warps} warps/block"]
        if self.kernel == "warp_rows":
            parts.append(f"{self.units} units/warp")
        else:
            parts += [f"{self.cluster} blocks/row", f"{self.passes} exchange pass" + ("es" if self.passes > 1 else "")]
            if self.prefetch:
                parts.append("prefetch")
        if self.programmatic:
            parts.append("programmatic launch")
        return ", ".join(parts)


@dataclass(frozen=True)
class Candidate:
    """A configuration, and up to how many rows per multiprocessor it is the one to use."""

    up_to_rows_per_multiprocessor: float
    configuration: KernelConfiguration


def _warp(log2_size: int, warps: int, units: int, minimum_blocks: int, up_to: float = math.inf) -> Candidate:
    tiles = max(0, log2_size - TILE_LOG2)
    return Candidate(
        up_to, KernelConfiguration("warp_rows", 0, log2_size, tiles, warps, units, minimum_blocks=minimum_blocks)
    )


def _exchange(
    log2_size: int, tiles: int, warps: int, minimum_blocks: int, up_to: float = math.inf, *, cluster: int = 1,
    passes: int = 1, prefetch: bool = False,
) -> Candidate:  # fmt: skip
    return Candidate(
        up_to,
        KernelConfiguration(
            "exchange_rows", 0, log2_size, tiles, warps, cluster=cluster, passes=passes, prefetch=prefetch,
            minimum_blocks=minimum_blocks,
        ),
    )  # fmt: skip


def _packed_rows(log2_size: int) -> tuple[Candidate, ...]:
    # Rows per multiprocessor below which one unit a warp spreads the work better than two: 16 units of 256.
    few = 16.0 * 256 / (1 << log2_size)
    return (_warp(log2_size, 4, 1, 4, few), _warp(log2_size, 8, 2, 4))


# Candidates of a size, few rows first. The last of them take any number of rows; of those, the first that the GPU
# has the shared memory for is used. `up_to` of a cluster is 1 / blocks: as long as every block finds a free
# multiprocessor, spreading a row wins; beyond that, one block a row does (2.0x against 1.27x a copy at 32768).
_SIXTEEN_BIT: dict[int, tuple[Candidate, ...]] = {
    **{k: _packed_rows(k) for k in range(9)},
    9: (_warp(9, 4, 1, 4, 16.0), _warp(9, 8, 2, 4)),
    10: (_warp(10, 4, 1, 4),),
    11: (_exchange(11, 2, 2, 8, 1.0), _warp(11, 4, 1, 4)),
    12: (_exchange(12, 2, 4, 6),),
    13: (_exchange(13, 2, 8, 3, 1.0), _exchange(13, 3, 4, 4)),
    14: (
        _exchange(14, 3, 2, 1, 0.25, cluster=4),
        _exchange(14, 3, 4, 1, 0.5, cluster=2),
        _exchange(14, 3, 8, 2, prefetch=True),
        _exchange(14, 3, 8, 2),
    ),
    15: (
        _exchange(15, 3, 2, 1, 0.125, cluster=8),
        _exchange(15, 3, 4, 1, 0.25, cluster=4),
        _exchange(15, 3, 8, 1, 0.5, cluster=2),
        _exchange(15, 3, 16, 1, prefetch=True),
        _exchange(15, 3, 16, 1, passes=2, prefetch=True),
        _exchange(15, 3, 16, 1, passes=2),
    ),
}
_FLOAT32: dict[int, tuple[Candidate, ...]] = {
    **{k: _packed_rows(k) for k in range(9)},
    9: (_warp(9, 4, 1, 4),),
    10: (_warp(10, 4, 1, 4),),
    11: (_exchange(11, 2, 2, 8),),
    12: (_exchange(12, 2, 4, 6),),
    13: (_exchange(13, 2, 8, 3, 1.0), _exchange(13, 3, 4, 4)),
    14: (
        _exchange(14, 3, 2, 1, 0.25, cluster=4),
        _exchange(14, 3, 4, 1, 0.5, cluster=2),
        _exchange(14, 3, 8, 2),
    ),
    15: (
        _exchange(15, 3, 2, 1, 0.125, cluster=8),
        _exchange(15, 3, 4, 1, 0.25, cluster=4),
        _exchange(15, 3, 8, 1, 0.5, cluster=2),
        _exchange(15, 3, 16, 1, passes=2, prefetch=True),
        _exchange(15, 3, 16, 1, passes=2),
    ),
}

#: Candidates by bytes of an element and log2 of the size.
TABLE: dict[tuple[int, int], tuple[Candidate, ...]] = {
    **{(2, k): listed for k, listed in _SIXTEEN_BIT.items()},
    **{
        (4, k): tuple(replace(c, configuration=replace(c.configuration, element_code=2)) for c in listed)
        for k, listed in _FLOAT32.items()
    },
}


def candidates(element_code: int, log2_size: int, architecture: Architecture) -> tuple[Candidate, ...]:
    """The candidates of a size that run on a GPU of this architecture, few rows first."""
    found = []
    for candidate in TABLE[4 if element_code == 2 else 2, log2_size]:
        configuration = replace(candidate.configuration, element_code=element_code)
        if configuration.runs_on(architecture):
            found.append(replace(candidate, configuration=configuration))
            if math.isinf(candidate.up_to_rows_per_multiprocessor):
                break
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def choose(
    element_code: int, log2_size: int, rows: int, capability: Capability, multiprocessors: int, signs: int = NO_SIGNS,
    strided: bool = False,
) -> KernelConfiguration:  # fmt: skip
    """The configuration for ``rows`` rows on a GPU.

    Args:
        element_code: ``ELEMENT`` of the CUDA text.
        log2_size: Transform size ``2^log2_size``.
        rows: Rows to transform.
        capability: Compute capability of the GPU.
        multiprocessors: Multiprocessors of the GPU.
        programmatic: Programmatic dependent launch: the kernel's start overlaps the end of the stream's previous kernel.
        signs: ``NO_SIGNS``, ``SIGNS_BEFORE`` or ``SIGNS_AFTER``.
        strided: Rows lie at two-level strides.
    """
    for candidate in candidates(element_code, log2_size, architecture_of(capability)):
        if rows <= candidate.up_to_rows_per_multiprocessor * multiprocessors:
            return replace(candidate.configuration, signs=signs, strided=strided)
    raise LookupError(f"no configuration of size 2^{log2_size} for compute capability {capability}")
