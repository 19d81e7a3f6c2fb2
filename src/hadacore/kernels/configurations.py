"""The one table of kernel configurations, and the choice among them.

A configuration is everything the CUDA text is specialised for. :data:`TABLE` lists, for each element width and
size, the configurations worth running, from few rows to many; :func:`choose` picks by row count and GPU.
All configurations of a size give the same bits, so the choice is about speed only.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace

from hadacore.elements import BY_CUDA_CODE
from hadacore.kernels.architectures import Architecture, Capability, architecture_of
from hadacore.kernels.fusion import Fusion
from hadacore.kernels.launchable import Launchable

MAXIMUM_LOG2_FUSED_ROW = 15  # of one kernel that quantizes; larger rows are quantized after the transform
TILE_LOG2 = 8  # a warp's tile is 256 elements

NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER = 0, 1, 2

# Programmatic dependent launch: off, or from where on the stream's next kernel may start (rows.cuh).
ALONE, AFTER_WAIT, AFTER_LOADS, BEFORE_EXCHANGE = 0, 1, 2, 3


def signs_placement(present: bool, inverse: bool) -> int:
    """Where the signs of a transform are applied: forward is H D, so its inverse is D H^T."""
    if not present:
        return NO_SIGNS
    return SIGNS_AFTER if inverse else SIGNS_BEFORE


def _unit_elements(log2_size: int) -> int:
    return 1 << max(TILE_LOG2, log2_size)


@dataclass(frozen=True)
class KernelConfiguration(Launchable):
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
        prefetch: ``exchange_rows`` of one block a row only: copy the next row to shared memory while this one is
            transformed; blocks then loop over rows, where otherwise each has one.
        minimum_blocks: Blocks that must fit on a multiprocessor, which caps the registers of a thread.
        programmatic: Programmatic dependent launch: the kernel's start overlaps the end of the stream's previous kernel,
            and the next one may start from the point given (``AFTER_WAIT``, ``AFTER_LOADS``, ``BEFORE_EXCHANGE``);
            ``ALONE`` is an ordinary launch.
        signs: ``NO_SIGNS``, ``SIGNS_BEFORE`` or ``SIGNS_AFTER`` the transform.
        strided: Rows lie at two-level strides rather than one after the other.
        shared_row: ``warp_rows`` only: elements of a row of several transforms that the warps of a block share, for its scale;
            0 where a warp needs no others.
        output_code: ``exchange_rows`` only: ``OUTPUT`` of the CUDA text, the type of the results, where it is not the
            element's.
        fusion: The quantizer that takes the results, or None.
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
    programmatic: int = ALONE
    signs: int = NO_SIGNS
    strided: bool = False
    shared_row: int = 0
    output_code: int | None = None
    fusion: Fusion | None = None

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
            if self.log2_tiles < 1 or self.tiles % (self.cluster * self.passes):
                raise ValueError(f"a warp's tiles must divide into passes and, of each, one share a block: {self}")
            shared = size * 4 // (self.cluster * self.passes)
            if self.cluster > 1 and (self.prefetch or self.passes > 1):
                raise ValueError(f"a cluster writes one row to its exchange buffer, once: {self}")
            if self.prefetch:
                shared += size * element_bytes + 8 * self.warps  # with an mbarrier for each warp
            if self.cluster > 1:
                shared += 8  # the mbarrier of the exchange
            if self.fusion is not None:
                if self.passes > 1:
                    raise ValueError(f"a quantizer needs a thread's share of the row at once: {self}")
                if self.prefetch and self.fusion.prologue is not None:
                    raise ValueError(f"a prologue reads rows when it needs them: {self}")
                shared = self.fusion.shared_end(shared, self.warps, 1, self.cluster, self.warps * self.cluster)
        elif self.log2_tiles != max(0, self.log2_size - TILE_LOG2):
            raise ValueError(f"a warp must hold the whole row: {self}")
        elif self.output != self.element_code:
            raise ValueError(f"warp_rows stores what it loads, elements of one type: {self}")
        elif self.shared_row:
            if self.fusion is None or self.fusion.block != self.shared_row:
                raise ValueError(f"warps share a row for its scale: {self}")
            if self.shared_row % self.unit_elements or self.shared_row > self.warps * self.units * self.unit_elements:
                raise ValueError(f"a block has all of a row, in whole units of {self.unit_elements}: {self}")
            shared = self.fusion.shared_end(0, self.warps, 1, 1, 0)
        object.__setattr__(self, "threads", 32 * self.warps)
        object.__setattr__(self, "shared_bytes", shared)
        if self.fusion is not None:
            self._check_fusion(self.fusion)

    def _check_fusion(self, fusion: Fusion) -> None:
        whole = self.unit_elements if self.kernel == "warp_rows" else self.size
        in_lanes = self.group <= fusion.block <= 32 * self.group and fusion.block & (fusion.block - 1) == 0
        if fusion.block and not in_lanes and fusion.block not in (whole, self.shared_row):
            raise ValueError(f"a block must be a row or the elements that some of a warp's lanes hold: {self}")

    @property
    def size(self) -> int:
        """Elements of a row."""
        return 1 << self.log2_size

    @property
    def output(self) -> int:
        """``OUTPUT`` of the CUDA text: the element type of the results."""
        return self.element_code if self.output_code is None else self.output_code

    @property
    def tiles(self) -> int:
        """Tiles of 256 elements a warp holds of one row."""
        return 1 << self.log2_tiles

    @property
    def group(self) -> int:
        """Consecutive elements that a thread stores at a time."""
        vector = min(BY_CUDA_CODE[code].vector_elements for code in (self.element_code, self.output))
        if self.kernel == "warp_rows":
            return vector
        return min(vector, 8 * self.tiles // (self.passes * self.warps * self.cluster))

    @property
    def unit_elements(self) -> int:
        """``warp_rows``: a row, or 256 elements of packed rows."""
        return _unit_elements(self.log2_size)

    def units_of(self, rows: int) -> int:
        """Rows, or for packed rows tiles of 256 elements, that a launch works on."""
        return -(-rows * self.size // self.unit_elements)

    def grid(self, rows: int, multiprocessors: int) -> int:
        """Clusters (blocks, where the cluster is one block) to launch for ``rows`` rows."""
        if self.shared_row:
            return rows * self.size // self.shared_row
        if self.kernel == "warp_rows":
            return -(-self.units_of(rows) // (self.warps * self.units))
        return min(rows, multiprocessors * self.minimum_blocks) if self.prefetch else rows

    def runs_on(self, architecture: Architecture) -> bool:
        """Whether a GPU of this architecture has the features and the shared memory."""
        if self.cluster > 1 and not architecture.has_clusters:
            return False
        if self.programmatic and not architecture.has_programmatic_launch:
            return False
        return self.shared_bytes <= architecture.shared_memory_per_block

    def constants(self) -> dict[str, int]:
        """The ``-D`` constants of this kernel."""
        values = {
            "ELEMENT": self.element_code,
            "OUTPUT": self.output,
            "LOG2_SIZE": self.log2_size,
            "LOG2_TILES": self.log2_tiles,
            "WARPS": self.warps,
            "MIN_BLOCKS": self.minimum_blocks,
            "PROGRAMMATIC": self.programmatic,
            "SIGNS": self.signs,
            "STRIDED": int(self.strided),
        }
        if self.kernel == "warp_rows":
            values |= {"UNITS": self.units, "SHARED_ROW": self.shared_row}
        else:
            values |= {"CLUSTER": self.cluster, "PASSES": self.passes, "PREFETCH": int(self.prefetch)}
        return values

    def with_options(self, signs: int, strided: bool) -> KernelConfiguration:
        """The same kernel with signs or strided rows. They take registers, so fewer blocks have to fit."""
        if signs == NO_SIGNS and not strided:
            return self
        return replace(self, signs=signs, strided=strided, minimum_blocks=max(1, self.minimum_blocks * 3 // 4))

    def __str__(self) -> str:
        parts = [f"{self.kernel} 2^{self.log2_size}", f"{self.tiles} tiles/warp", f"{self.warps} warps/block"]
        if self.kernel == "warp_rows":
            parts.append(f"{self.units} units/warp")
            if self.shared_row:
                parts.append(f"a row of {self.shared_row} a block")
        else:
            parts += [f"{self.cluster} blocks/row", f"{self.passes} exchange pass" + ("es" if self.passes > 1 else "")]
            if self.prefetch:
                parts.append("prefetch")
            if self.output != self.element_code:
                parts.append("float32 results" if self.output == 2 else "16-bit results")
        if self.programmatic:
            where = {AFTER_WAIT: "its wait", AFTER_LOADS: "its loads", BEFORE_EXCHANGE: "its transform"}
            parts.append(f"next kernel from after {where[self.programmatic]}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Candidate:
    """A configuration, and up to how many elements per multiprocessor it is the one to use."""

    up_to_elements_per_multiprocessor: float
    configuration: KernelConfiguration


# Limits of candidates, in elements per multiprocessor: powers of two above the benchmark's element counts on 132 of them.
_2_17, _2_20, _2_22, _2_24 = 1024, 8192, 32768, 131072


def _warp(log2_size: int, warps: int, units: int, minimum_blocks: int, up_to: float = math.inf) -> Candidate:
    tiles = max(0, log2_size - TILE_LOG2)
    # A warp with several loads lets the next kernel start once they are under way.
    programmatic = AFTER_LOADS if units << tiles > 1 else AFTER_WAIT
    configuration = KernelConfiguration(
        "warp_rows", 0, log2_size, tiles, warps, units, minimum_blocks=minimum_blocks, programmatic=programmatic
    )
    return Candidate(up_to, configuration)


def _exchange(
    log2_size: int, tiles: int, warps: int, minimum_blocks: int, up_to: float = math.inf, *, cluster: int = 1,
    passes: int = 1, prefetch: bool = False, programmatic: int = AFTER_WAIT,
) -> Candidate:  # fmt: skip
    """``tiles`` is log2 of the tiles of a warp."""
    configuration = KernelConfiguration(
        "exchange_rows", 0, log2_size, tiles, warps, cluster=cluster, passes=passes, prefetch=prefetch,
        minimum_blocks=minimum_blocks, programmatic=programmatic,
    )  # fmt: skip
    return Candidate(up_to, configuration)


# Candidates of a size, few rows first. The last of them take any number of rows; of those, the first that the GPU has
# the shared memory for is used. Measured on one H200 (docs/performance.md): few elements want many small blocks, and
# rows that are spread over a cluster; many want blocks that need not be started often. 65536 always takes a cluster.
_SIXTEEN_BIT: dict[int, tuple[Candidate, ...]] = {
    **{
        k: (_warp(k, 4, 1, 8, _2_20), _warp(k, 8, 1, 4, _2_22), _warp(k, 8, 2, 4, _2_24), _warp(k, 8, 1, 4))
        for k in range(9)
    },
    9: (_warp(9, 2, 1, 16, _2_22), _warp(9, 8, 1, 4, _2_24), _warp(9, 4, 1, 8)),
    10: (_warp(10, 2, 1, 8, _2_22), _warp(10, 4, 1, 4, _2_24), _warp(10, 2, 1, 8)),
    11: (
        _exchange(11, 1, 4, 8, _2_22, programmatic=AFTER_LOADS),
        _exchange(11, 2, 2, 16, programmatic=AFTER_LOADS),
    ),
    12: (
        _exchange(12, 1, 8, 4, _2_22, programmatic=BEFORE_EXCHANGE),
        _exchange(12, 2, 4, 8, programmatic=BEFORE_EXCHANGE),
    ),
    13: (
        _exchange(13, 2, 2, 8, _2_17, cluster=4),
        _exchange(13, 2, 4, 8, _2_20, cluster=2),
        _exchange(13, 2, 8, 4, programmatic=BEFORE_EXCHANGE),
    ),
    14: (
        _exchange(14, 2, 4, 4, _2_17, cluster=4),
        _exchange(14, 2, 8, 4, _2_22, cluster=2),
        _exchange(14, 3, 8, 2, _2_24, prefetch=True),
        _exchange(14, 3, 4, 2, cluster=2),
        _exchange(14, 3, 8, 2, prefetch=True),
        _exchange(14, 3, 8, 2),
    ),
    15: (
        _exchange(15, 3, 2, 8, _2_17, cluster=8),
        _exchange(15, 3, 4, 4, _2_20, cluster=4),
        _exchange(15, 3, 8, 2, _2_22, cluster=2),
        _exchange(15, 3, 16, 1, prefetch=True),
        _exchange(15, 3, 16, 1, passes=2, prefetch=True),
        _exchange(15, 3, 16, 1, passes=2),
    ),
    # Two passes 3.26 at 2^26 elements; two blocks 1.62, eight 1.61, at 2^22 1.49 and 1.81, for 8 rows 2.9 and 1.51 (passes 1.76).
    16: (
        _exchange(16, 3, 4, 4, _2_20, cluster=8, programmatic=AFTER_LOADS),
        _exchange(16, 3, 16, 1, cluster=2, programmatic=BEFORE_EXCHANGE),
    ),
}
_FLOAT32: dict[int, tuple[Candidate, ...]] = {
    **{k: (_warp(k, 4, 1, 8),) for k in range(9)},
    9: (_warp(9, 4, 1, 8),),
    10: (_exchange(10, 1, 2, 12, programmatic=AFTER_LOADS),),
    11: (_exchange(11, 1, 4, 8, programmatic=AFTER_LOADS),),
    12: (_exchange(12, 1, 4, 8, cluster=2, programmatic=BEFORE_EXCHANGE), _exchange(12, 1, 8, 3)),
    13: (_exchange(13, 2, 2, 8, _2_17, cluster=4), _exchange(13, 2, 4, 4, cluster=2), _exchange(13, 2, 8, 2)),
    14: (
        _exchange(14, 2, 4, 4, _2_20, cluster=4),
        _exchange(14, 2, 8, 2, _2_22, cluster=2),
        _exchange(14, 2, 8, 2, cluster=2, programmatic=BEFORE_EXCHANGE),
        _exchange(14, 2, 16, 1),
    ),
    15: (
        _exchange(15, 3, 2, 8, _2_20, cluster=8),
        _exchange(15, 3, 8, 2, _2_22, cluster=2),
        _exchange(15, 3, 16, 1, passes=2, prefetch=True),
        _exchange(15, 3, 16, 1, passes=2),
    ),
    # Two passes 1.93 at 2^26 elements; eight blocks 1.09, four 1.14, two 1.20; for 1 row 1.97 (passes 1.56), for 16 1.86 (1.92).
    16: (_exchange(16, 3, 4, 4, cluster=8, programmatic=AFTER_LOADS),),
}

#: Candidates by bytes of an element and log2 of the size.
TABLE: dict[tuple[int, int], tuple[Candidate, ...]] = {
    **{(2, k): listed for k, listed in _SIXTEEN_BIT.items()},
    **{
        (4, k): tuple(replace(c, configuration=replace(c.configuration, element_code=2)) for c in listed)
        for k, listed in _FLOAT32.items()
    },
}


# Kernels that quantize write half of what the others do or less, and have more instructions outside of the transform: many rows
# a warp. 16-bit elements, measured on one H200 with FP8 codes and a scale per row (2^25 elements, times over a copy: 128 1.19 ->
# 1.08, 512 1.11 -> 1.00, 4096 1.12 -> 1.03, 8192 1.19 -> 1.08, 16384 1.39 -> 1.16); what is not listed is the table's. Candidates
# that the quantizer's blocks do not fit are passed over, so the table's follow.
_QUANTIZING: dict[int, tuple[Candidate, ...]] = {
    **{k: (_warp(k, 4, 1, 8, _2_20), _warp(k, 2, 4, 12)) for k in range(9)},
    9: (_warp(9, 2, 1, 16, _2_20), _warp(9, 2, 2, 16)),
    11: (
        *_SIXTEEN_BIT[11][:1],
        _exchange(11, 2, 2, 16, _2_24, programmatic=BEFORE_EXCHANGE),
        _exchange(11, 2, 2, 12, prefetch=True, programmatic=AFTER_LOADS),
    ),
    12: (
        *_SIXTEEN_BIT[12][:1],
        _exchange(12, 2, 4, 8, _2_24, programmatic=BEFORE_EXCHANGE),
        _exchange(12, 2, 4, 6, prefetch=True, programmatic=AFTER_LOADS),
    ),
    13: (*_SIXTEEN_BIT[13][:2], _exchange(13, 3, 4, 4, prefetch=True, programmatic=AFTER_LOADS)),
    14: (*_SIXTEEN_BIT[14][:2], _exchange(14, 3, 8, 2, prefetch=True, programmatic=AFTER_LOADS)),
    15: (*_SIXTEEN_BIT[15][:3], _exchange(15, 3, 16, 1, prefetch=True, programmatic=BEFORE_EXCHANGE)),
}
# With scales for parts of a row: MXFP8 8192 1.23 -> 1.11, 16384 1.41 -> 1.20; NVFP4 2048 1.76 -> 1.66, 8192 2.09 -> 1.94,
# 16384 2.85 -> 2.18, 32768 2.35 -> 2.25.
_WITH_PARTS: dict[int, tuple[Candidate, ...]] = {
    11: (*_SIXTEEN_BIT[11][:1], _exchange(11, 2, 2, 16, programmatic=BEFORE_EXCHANGE)),
    13: (
        *_SIXTEEN_BIT[13][:2],
        _exchange(13, 3, 4, 4, _2_24, programmatic=BEFORE_EXCHANGE),
        _exchange(13, 3, 4, 4, prefetch=True, programmatic=BEFORE_EXCHANGE),
    ),
    14: (*_SIXTEEN_BIT[14][:2], _exchange(14, 3, 8, 2, prefetch=True, programmatic=BEFORE_EXCHANGE)),
    15: (*_SIXTEEN_BIT[15][:3], _exchange(15, 3, 16, 1, prefetch=True, programmatic=BEFORE_EXCHANGE)),
}
# The same with a gated activation before: twice the loads, all under way before the next kernel starts.
_WITH_PROLOGUE: dict[int, tuple[Candidate, ...]] = {
    **{k: (_warp(k, 4, 2, 8),) for k in range(9)},
    9: (_warp(9, 2, 1, 16, _2_22), _warp(9, 4, 2, 8)),
    12: (_exchange(12, 1, 8, 4, _2_24, programmatic=AFTER_LOADS), _exchange(12, 2, 4, 8, programmatic=AFTER_LOADS)),
    13: (*_SIXTEEN_BIT[13][:2], _exchange(13, 2, 8, 4, programmatic=AFTER_LOADS)),
    14: (
        *_SIXTEEN_BIT[14][:1],
        _exchange(14, 2, 8, 4, _2_22, cluster=2, programmatic=AFTER_LOADS),
        _exchange(14, 2, 16, 2, programmatic=AFTER_LOADS),
    ),
    15: (
        *_SIXTEEN_BIT[15][:2],
        _exchange(15, 3, 8, 2, _2_24, cluster=2, programmatic=BEFORE_EXCHANGE),
        _exchange(15, 3, 4, 4, cluster=4, programmatic=AFTER_LOADS),
    ),
}
# Where nothing else is left: more of a row in each thread, so that blocks of 128 float32 lie within a warp; or a whole row in the
# exchange buffer, and nothing beside it.
_LAST: dict[int, tuple[Candidate, ...]] = {
    12: (_exchange(12, 2, 4, 4),),
    14: (_exchange(14, 3, 8, 2),),
    15: (_exchange(15, 3, 16, 1),),
}


def _of_shared_row(element_code: int, log2_size: int, fusion: Fusion) -> tuple[Candidate, ...]:
    """Of rows of several transforms that share a scale: as few warps as hold a row, up to 16 of 32 elements a lane, then 64."""
    unit = _unit_elements(log2_size)
    if not fusion.makes_scales or fusion.block <= unit or fusion.block % unit or log2_size > 11:
        return ()
    units_of_row, tiles = fusion.block // unit, unit >> TILE_LOG2
    for most, per_lane in ((16, 4), (32, 8)):
        units = max(1, per_lane // tiles)
        warps = -(-units_of_row // units)
        if warps <= most:
            registers = 64 if units * tiles <= 4 else 112
            plain = _warp(log2_size, warps, units, max(1, min(32, 65536 // (32 * warps * registers)))).configuration
            return (Candidate(math.inf, replace(plain, shared_row=fusion.block, fusion=fusion)),)
    return ()


def _listed(element_code: int, log2_size: int, fusion: Fusion | None) -> tuple[Candidate, ...]:
    table = TABLE[4 if element_code == 2 else 2, log2_size]
    if fusion is None:
        return table
    if log2_size > MAXIMUM_LOG2_FUSED_ROW:
        return ()
    if of_shared_row := _of_shared_row(element_code, log2_size, fusion):
        return of_shared_row
    first: tuple[Candidate, ...] = ()
    if element_code != 2 and fusion.prologue is not None:
        first = _WITH_PROLOGUE.get(log2_size, ())
    elif element_code != 2:
        whole = fusion.block in (0, 1 << log2_size) or log2_size <= 9
        first = (_QUANTIZING if whole else _WITH_PARTS).get(log2_size, ())
    return (*first, *table, *_LAST.get(log2_size, ()))


def _with_fusion(configuration: KernelConfiguration, fusion: Fusion | None) -> KernelConfiguration | None:
    if fusion is None:
        return configuration
    blocks = configuration.minimum_blocks
    if fusion.prologue is not None and fusion.prologue.normalises:
        blocks = max(1, blocks * 3 // 4)  # weights, residuals and squares take registers
    try:
        return replace(configuration, fusion=fusion, minimum_blocks=blocks)
    except ValueError:
        return None  # it holds a row in a way that the quantizer's blocks do not fit


@functools.lru_cache(maxsize=4096)
def candidates(
    element_code: int, log2_size: int, architecture: Architecture, fusion: Fusion | None = None
) -> tuple[Candidate, ...]:
    """The candidates of a size that run on a GPU of this architecture and take the quantizer, few rows first."""
    found = []
    for candidate in _listed(element_code, log2_size, fusion):
        configuration = _with_fusion(replace(candidate.configuration, element_code=element_code), fusion)
        if configuration is None:
            continue
        if not architecture.has_programmatic_launch:
            configuration = replace(configuration, programmatic=ALONE)
        if configuration.runs_on(architecture):
            if configuration.prefetch:
                # Blocks that loop over rows are as many as fit, and have the registers of as many.
                fitting = architecture.blocks_that_fit(configuration.shared_bytes)
                configuration = replace(configuration, minimum_blocks=min(configuration.minimum_blocks, fitting))
            found.append(replace(candidate, configuration=configuration))
            if math.isinf(candidate.up_to_elements_per_multiprocessor):
                break
    return tuple(found)


@functools.lru_cache(maxsize=256)
def maximum_log2_row(element_code: int, architecture: Architecture) -> int:
    """Index bits of the largest row that one kernel holds; larger transforms take several passes (passes.py)."""
    listed = ((k, candidates(element_code, k, architecture)) for _, k in TABLE)
    return max(k for k, found in listed if found and math.isinf(found[-1].up_to_elements_per_multiprocessor))


@functools.lru_cache(maxsize=4096)
def choose(
    element_code: int, log2_size: int, rows: int, capability: Capability, multiprocessors: int, signs: int = NO_SIGNS,
    strided: bool = False, fusion: Fusion | None = None,
) -> KernelConfiguration:  # fmt: skip
    """The configuration for ``rows`` rows on a GPU.

    Args:
        element_code: ``ELEMENT`` of the CUDA text.
        log2_size: Transform size ``2^log2_size``.
        rows: Rows to transform.
        capability: Compute capability of the GPU.
        multiprocessors: Multiprocessors of the GPU.
        signs: ``NO_SIGNS``, ``SIGNS_BEFORE`` or ``SIGNS_AFTER``.
        strided: Rows lie at two-level strides.
        fusion: The quantizer, or None.

    Raises:
        LookupError: No configuration takes that size and quantizer.
    """
    for candidate in candidates(element_code, log2_size, architecture_of(capability), fusion):
        if rows << log2_size <= candidate.up_to_elements_per_multiprocessor * multiprocessors:
            return candidate.configuration.with_options(signs, strided)
    raise LookupError(f"no configuration of size 2^{log2_size} for compute capability {capability}")
