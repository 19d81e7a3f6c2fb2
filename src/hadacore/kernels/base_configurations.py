"""Configurations of the kernel for sizes ``m * 2^k``, and the choice among them.

The kernel (``base_rows.cu``) applies the base matrix as a dense product and contracts the ``2^k`` columns in the registers of
the warp that holds them, which limits them to ``2^8``. More column bits than that are merged into the base:
``kron(H_m, H_2^k) = kron(kron(H_m, H_2^j), H_2^(k-j))``, the same matrix. Merging fewer or more is also how a dense base is
weighed against a product of small ones: a dense order pads to the 16 rows of a fragment and multiplies more, a product
rounds and adds more.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from hadacore.elements import BY_CUDA_CODE
from hadacore.kernels.architectures import MAXIMUM_CLUSTER, Architecture, Capability, architecture_of
from hadacore.kernels.base_table import Row, row_of_table
from hadacore.kernels.configurations import AFTER_LOADS, ALONE, NO_SIGNS
from hadacore.kernels.fragment_configurations import FragmentConfiguration, fragment_configuration
from hadacore.kernels.fusion import Fusion
from hadacore.kernels.launchable import OrderLaunchable
from hadacore.kernels.warpgroup_configurations import WarpgroupConfiguration, warpgroup_candidates
from hadacore.matrices.orders import construction

BASE_SIGNS, BASE_OF_ELEMENTS, BASE_OF_FLOAT32 = 0, 1, 2

#: Column bits that the registers of one warp hold.
MAXIMUM_LOG2_COLUMNS = 8

#: Order of a base, with the column bits that are merged into it, up to which a size is one launch.
LARGEST_ORDER = 2048

# Rows of a base that one block holds, two tiles in each of 16 warps.
_LARGEST_WHOLE = 512

# Of a block that holds a row alone: with 128 accumulators a thread, all the registers there are.
_MOST_WARPS = 14

_FLOAT16, _FLOAT32 = 0, 2  # ELEMENT


@dataclass(frozen=True)
class BaseConfiguration(OrderLaunchable):
    """One specialised kernel for a size ``order * 2^log2_size``.

    Attributes:
        element_code: ``ELEMENT`` of the CUDA text; 2 is float32, the others are 16-bit.
        order: Order of the dense base, merged column bits included.
        log2_merge: Column bits that are merged into it.
        log2_size: Column bits that are left, at most 8.
        tiles: M tiles of 16 result rows that a warp holds.
        order_warps: Warps that share the result rows of one unit.
        units: Units (a row, or the short rows that fill a group of columns) a block works on at a time.
        stages: 0: vectors come from global memory as they are needed; 1: a unit goes to shared memory first; 2: and the
            next one is on its way meanwhile, the block loops over units.
        splits: Blocks that share the result rows of one unit.
        minimum_blocks: Blocks that must fit on a multiprocessor, which caps the registers of a thread.
        wgmma: Products by wgmma, which reads the panel from shared memory; compute capability 9.0 only.
        wide: With wgmma and whole groups of columns: the second product contracts all six column bits by wgmma too, rather than
            four of them by mma.sync.
        halves: ``order`` is half of the matrix's, whose lowest index bit is the highest column bit (``base_halves.cuh``). Of
            Paley's second construction, by wgmma.
        drift: Warps of a block may be at different units (``base_drift.cuh``), by wgmma, with the next unit on its way and no
            quantizer.
        paired: With the narrow second product, lanes exchange halves of their results with a neighbour and store 16 bytes, not 8.
        base: ``BASE_SIGNS`` (this library's matrix, part of the program), ``BASE_OF_ELEMENTS`` or ``BASE_OF_FLOAT32`` (the
            caller's, read from memory).
        transposed: Whether this library's matrix is applied transposed. The caller's is transposed by its strides.
        programmatic: As in ``KernelConfiguration``.
        signs: As in ``KernelConfiguration``.
        strided: Rows lie at two-level strides rather than one after the other.
        fusion: As in ``KernelConfiguration``.
    """

    element_code: int
    order: int
    log2_merge: int
    log2_size: int
    tiles: int = 1
    order_warps: int = 1
    units: int = 1
    stages: int = 0
    splits: int = 1
    minimum_blocks: int = 1
    wgmma: bool = False
    wide: bool = False
    halves: bool = False
    drift: bool = False
    paired: bool = False
    base: int = BASE_SIGNS
    transposed: bool = False
    programmatic: int = AFTER_LOADS
    signs: int = NO_SIGNS
    strided: bool = False
    fusion: Fusion | None = None

    kernel: str = field(default="base_rows", init=False, repr=False, compare=False)
    cluster: int = field(default=1, init=False, repr=False, compare=False)  # of the blocks that share a row's scale
    threads: int = field(init=False, repr=False, compare=False)
    shared_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.log2_size > MAXIMUM_LOG2_COLUMNS:
            raise ValueError(f"a warp holds 2^{MAXIMUM_LOG2_COLUMNS} columns at most: {self}")
        if self.tiles * self.order_warps * self.splits < self.order_tiles:
            raise ValueError(f"the warps must hold all {self.order_tiles} tiles of the order: {self}")
        if self.wgmma and (
            self.element_code == 2
            or self.log2_size < 4
            or self.stages == 0
            or self.order_warps % 4
            or self.base == BASE_OF_FLOAT32
        ):
            raise ValueError(
                f"wgmma takes 16-bit panels of 16 columns and more from shared memory, by groups of 4 warps: {self}"
            )
        if self.wide and not (self.wgmma and self.log2_size >= self.log2_group):
            raise ValueError(f"the wide second product is wgmma's, of whole groups of columns: {self}")
        if self.halves and not (self.wgmma and self.base == BASE_SIGNS and self.log2_merge == 0):
            raise ValueError(f"a base of half the order is this library's, by wgmma, and takes no column bits: {self}")
        if self.drift and not (self.wgmma and self.stages == 2 and self.fusion is None):
            raise ValueError(f"warps drift by wgmma, with two stages and no quantizer: {self}")
        runs_of_four = self.wgmma and not self.wide and self.log2_size >= self.log2_group
        if self.paired and (not runs_of_four or self.signs != NO_SIGNS or self.strided or self.fusion is not None):
            raise ValueError(f"lanes exchange what a narrow second product gives, without options: {self}")
        object.__setattr__(self, "threads", 32 * self.order_warps * self.units)
        stage = self.units * self.groups * 16 * self.order_tiles * 128
        columns = 64 * 64 * (2 if self.fusion is None else 4) if self.wide else 0
        shared = self.stages * stage + columns + (8 if self.drift else 0)
        if self.fusion is not None:
            shared = self._with_fusion(self.fusion, shared, stage)
        object.__setattr__(self, "shared_bytes", shared)

    def _with_fusion(self, fusion: Fusion, shared: int, stage: int) -> int:
        """Check that the quantizer's blocks fit, and return the bytes of shared memory with it."""
        vector = BY_CUDA_CODE[self.element_code].vector_elements
        run = vector // 2 if self.wgmma and not self.wide else vector
        if fusion.prologue is not None:
            if fusion.prologue.rotary or self.stages == 0:
                raise ValueError(
                    f"sizes with a base have gated activations and RMSNorm only, of panels in shared memory: {self}"
                )
            shared += self.stages * stage  # of up, or the residual
            if fusion.prologue.normalises:
                if self.unit_rows > 1 or fusion.prologue.row != self.size:
                    raise ValueError(f"a row that is normalised must fill a group of columns: {self}")
                if self.splits > 1 and fusion.prologue.has_residual:
                    raise ValueError(f"of the blocks that share a row, one would read what another has written: {self}")
                shared += 2 * self.units * self.order * max(1, self.groups // 4) * 4  # sums of squares
        if 1 << self.log2_size < vector:
            raise ValueError(f"a quantizer needs whole vectors of a row: {self}")
        if not fusion.is_row(self.size):
            most = 1 << (self.log2_size + 4)  # the columns of 16 rows of the panel
            if fusion.block and (fusion.block & (fusion.block - 1) or not run <= fusion.block <= most):
                raise ValueError(f"a block must be a row or the elements that a warp holds side by side: {self}")
            return shared
        if self.splits > 1:
            if self.splits > MAXIMUM_CLUSTER or self.units > 1 or self.unit_rows > 4:
                raise ValueError(f"the blocks that share a row must form a cluster: {self}")
            object.__setattr__(self, "cluster", self.splits)
        return fusion.shared_end(shared, self.order_warps * self.units, self.unit_rows, self.cluster, 0)

    @property
    def products(self) -> int:
        """Products of the Tensor Cores, of parts of both, that one with the base takes; without a prologue."""
        three, two = self.element_code == _FLOAT32, self.element_code == _FLOAT16 and self.base == BASE_OF_FLOAT32
        data, base = 3 if three else 2 if two else 1, 3 if self.base == BASE_OF_FLOAT32 else 1
        return sum(p + q <= 2 for p in range(data) for q in range(base))  # kLastOrder of base.cuh

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the Tensor Cores for the base of a row, padding included."""
        return (16 * self.order_tiles) ** 2 * self.products << self.log2_size

    @property
    def least_elements(self) -> int:
        """Elements from which on it may be chosen."""
        return _PAIRED_FROM if self.paired else 0

    @property
    def log2_group(self) -> int:
        """Column bits of a group, 8 vectors of 16 bytes."""
        return 5 if self.element_code == _FLOAT32 else 6

    @property
    def groups(self) -> int:
        """Groups of columns of a unit."""
        return 1 << max(0, self.log2_size - self.log2_group)

    @property
    def unit_rows(self) -> int:
        """Rows of a unit."""
        return 1 << max(0, self.log2_group - self.log2_size)

    @property
    def works_in_place(self) -> bool:
        """Whether all of a row is read before any of it is written."""
        return self.splits == 1 and (self.stages > 0 or self.order_warps == 1)

    def grid(self, rows: int, multiprocessors: int) -> int:
        """Blocks (clusters, where they are some blocks) to launch for ``rows`` rows."""
        units = -(-rows // self.unit_rows)
        blocks = -(-units // self.units)
        if self.stages == 2:
            # No more than find room at once: the others would start their loops anew when those have ended.
            blocks = min(blocks, max(1, multiprocessors * self.minimum_blocks // self.splits))
        return blocks * self.splits // self.cluster

    def with_options(self, signs: int, strided: bool) -> BaseConfiguration:
        """The same kernel with signs or strided rows. They take registers, so fewer blocks have to fit."""
        if signs == NO_SIGNS and not strided:
            return self
        blocks = max(1, self.minimum_blocks - 1)
        return replace(self, signs=signs, strided=strided, minimum_blocks=blocks, paired=False)

    def launched_bytes(self, architecture: Architecture) -> int:
        """Shared memory to launch a block with: so much that no more blocks fit than loop over units.

        Where registers leave room for another, early blocks of a launch take it, and those multiprocessors have more work than
        others: 8960 x 2^25 took 1.87 of a copy by two blocks where three fit, 1.37 where two do.
        """
        if self.stages < 2:
            return self.shared_bytes
        return max(self.shared_bytes, architecture.least_bytes_of(self.minimum_blocks))

    def runs_on(self, architecture: Architecture) -> bool:
        """Whether a GPU of this architecture has the features and the shared memory."""
        if self.programmatic and not architecture.has_programmatic_launch:
            return False
        if self.wgmma and not architecture.has_wgmma:
            return False
        if self.cluster > 1 and not architecture.has_clusters:
            return False
        return self.shared_bytes <= architecture.shared_memory_per_block

    def constants(self) -> dict[str, int]:
        """The ``-D`` constants of this kernel."""
        return {
            "ELEMENT": self.element_code,
            "OUTPUT": self.element_code,
            "ORDER": self.order,
            "LOG2_SIZE": self.log2_size,
            "LOG2_TILES": 0,
            "LOG2_MERGE": self.log2_merge,
            "WARP_TILES": self.tiles,
            "ORDER_WARPS": self.order_warps,
            "UNITS": self.units,
            "STAGES": self.stages,
            "SPLITS": self.splits,
            "CLUSTER": self.cluster,
            "MIN_BLOCKS": self.minimum_blocks,
            "WGMMA": int(self.wgmma),
            "WIDE": int(self.wide),
            "HALVES": int(self.halves),
            "DRIFT": int(self.drift),
            "PAIRED": int(self.paired),
            "BASE": self.base,
            "PROGRAMMATIC": self.programmatic,
            "SIGNS": self.signs,
            "STRIDED": int(self.strided),
        }

    def __str__(self) -> str:
        parts = [f"base_rows {self.order} x 2^{self.log2_size}", f"{self.tiles} tiles/warp"]
        parts.append(f"{self.order_warps} x {self.units} warps/block")
        parts.append(("from global memory", "staged", "staged, next one prefetched")[self.stages])
        if self.wgmma:
            parts.append("wgmma, wide second product" if self.wide else "wgmma")
        if self.drift:
            parts.append("warps drift")
        if self.paired:
            parts.append("lanes store in pairs")
        if self.halves:
            parts.append("half of the base's order")
        if self.splits > 1:
            parts.append(f"{self.splits} blocks/row")
        if self.programmatic:
            parts.append("next kernel from after its loads")
        return ", ".join(parts)


#: Of every kernel for sizes ``m * 2^k``.
OrderConfiguration: TypeAlias = BaseConfiguration | FragmentConfiguration | WarpgroupConfiguration


def base_source(element_code: int, float32_base: bool | None) -> int:
    """``BASE`` of the CUDA text: None is this library's matrix, else whether the caller's is float32."""
    if float32_base is None:
        return BASE_SIGNS
    return BASE_OF_FLOAT32 if float32_base else BASE_OF_ELEMENTS


# 16-bit elements: (order, column bits) -> bits merged into the base. Measured on one H200 against the rule of merged_columns,
# times over a copy at 2^25 elements, bfloat16: 192 1.16 -> 1.01, 5632 1.25 -> 1.17, 9728 1.45 -> 1.40, 10240 1.36 -> 1.28,
# 25600 1.68 -> 1.47, 27648 1.78 -> 1.51, 28672 1.58 -> 1.35. Not where it gains less than 4 % (6144, 6656, 12288, 14336,
# 15360), as fewer tiles of 16 rows are fewer blocks for few rows; nor 36864 with 128 columns (2.25 -> 2.11), of which a row
# with a scale then needs a cluster, and so sm_90.
_FASTER_MERGES: dict[tuple[int, int], int] = {
    (12, 4): 1, (44, 7): 0, (76, 7): 0, (20, 9): 2, (100, 8): 0, (108, 8): 0, (28, 10): 2,
}  # fmt: skip


# (order, column bits) of those where lanes store in pairs from so many elements on, before -> after at 2^25 and 2^26 elements:
# 5632 1.11 -> 1.09, 1.18 -> 1.12, 6912 1.09 -> 1.06, 1.13 -> 1.09, 7168 1.09 -> 1.07, 1.15 -> 1.10, 14336 1.13 -> 1.10,
# 1.17 -> 1.13, 15360 1.16 -> 1.14, 1.20 -> 1.16. Below, the exchange costs more than it gives (2^23: 14336 1.13 -> 1.20), and at
# 2^25 in all other sizes with a narrow product, by 0 to 12 %.
_PAIRED = {(28, 8), (28, 9), (44, 7), (60, 8), (108, 6)}
_PAIRED_FROM = 3 << 23


def merged_columns(order: int, log2_columns: int, element_code: int, base: int) -> int:
    """How many column bits are merged into the base. It decides the order of fp32 sums, so it depends on the size alone.

    The caller's base is read entry by entry, so it grows as little as it can. This library's costs two instructions a
    register: 64 columns of up to 160 rows, or 128 of up to 232, keep most of a multiprocessor's registers busy with
    few instructions (docs/experiments.md has the alternatives); what is left takes 256. Sizes that were faster another way
    are in a table.
    """
    least = max(0, log2_columns - MAXIMUM_LOG2_COLUMNS)
    if base != BASE_SIGNS:
        return least
    if (
        element_code == _FLOAT32
    ):  # 32 accumulators a tile at 64 columns; three parts of everything leave no room for more
        merged = max(0, log2_columns - 6)
        return merged if order << merged <= 1024 else least
    if (order, log2_columns) in _FASTER_MERGES:
        return _FASTER_MERGES[order, log2_columns]
    merged = max(0, log2_columns - 7)
    if order << merged > 232:
        return least
    if log2_columns - merged == 7 and order << merged <= 80:
        return merged + 1
    return merged


def has_halves(order: int, log2_columns: int) -> bool:
    """Whether a kernel may multiply by half of this library's base: ``halves`` of ``BaseConfiguration``."""
    found = construction(order)
    return found is not None and found.conference and 3 <= log2_columns < MAXIMUM_LOG2_COLUMNS


def _row_of_table(c: BaseConfiguration, fusion: Fusion | None) -> Row | None:
    return row_of_table(c.groups, c.log2_size, c.order_tiles, c.size, fusion)


def _generic_row(c: BaseConfiguration) -> Row:
    """For GPUs, types and bases that the table is not for: at most 64 accumulators of products a thread. float32, whose
    three parts take registers, has one tile a warp."""
    limit, accumulators = (16, 16 * c.groups) if c.element_code == _FLOAT32 else (64, 32 * c.groups)
    tiles = max(1, min(limit // accumulators, c.order_tiles))
    warps = -(-c.order_tiles // tiles)
    splits = -(-warps // 8)
    warps = -(-warps // splits)
    if c.order_tiles * c.groups <= 2 and splits == 1:
        return Row(c.groups, c.order_tiles, tiles, warps, max(1, 4 // warps), 0, 1)
    return Row(c.groups, c.order_tiles, tiles, warps, max(1, 4 // warps), 2, 1, splits=splits)


def _with_row(c: BaseConfiguration, row: Row) -> BaseConfiguration:
    return replace(
        c, tiles=row.tiles, order_warps=row.order_warps, units=row.units, stages=row.stages, splits=row.splits,
        minimum_blocks=row.minimum_blocks, wgmma=row.wgmma, wide=row.wgmma and row.wide and c.log2_size >= c.log2_group,
    )  # fmt: skip


def _fewer_rows(c: BaseConfiguration) -> tuple[BaseConfiguration, ...]:
    """The same products by more, smaller blocks: fewest rows first."""
    if c.order_tiles * c.groups <= 2 or (c.stages == 0 and c.units > 1):
        return (replace(c, units=1),) if c.units > 1 else ()
    spread = []
    for warps in (4, 8):
        splits = -(-c.order_tiles // warps)
        if splits > c.splits:
            spread.append(replace(c, tiles=1, order_warps=warps, units=1, stages=1, splits=splits, minimum_blocks=1))
    return tuple(spread)


def _with_quantizer(c: BaseConfiguration, fusion: Fusion, architecture: Architecture) -> BaseConfiguration | None:
    """The configuration with a quantizer, if need be with all of a row in one block; None if there is no such kernel."""
    warps = -(-c.order_tiles // c.tiles)
    if c.wgmma:
        warps = -(-warps // 4) * 4
    alone = ({"splits": 1, "order_warps": warps, "units": 1},) if c.splits > 1 and warps <= _MOST_WARPS else ()
    fewer = ({"stages": 1},) if c.stages != 1 and fusion.prologue is not None else ()
    staged = ({"stages": 2},) if c.stages == 0 and fusion.prologue is not None else ()
    # At 256 columns the addresses of a second stage do not fit the registers beside three parts of a base and two of the input.
    parts_of_both = c.base == BASE_OF_FLOAT32 and c.element_code != _FLOAT32 and fusion.prologue is not None
    first = {"stages": 1} if parts_of_both and c.log2_size == MAXIMUM_LOG2_COLUMNS else {}
    for changes in (first, *staged, *alone, *fewer):
        try:
            found = replace(c, fusion=fusion, **changes)
        except ValueError:
            continue
        if found.runs_on(architecture):
            return found
    return None


def base_candidates(
    element_code: int, order: int, log2_columns: int, architecture: Architecture, *, base: int = BASE_SIGNS,
    transposed: bool = False, fusion: Fusion | None = None,
) -> tuple[OrderConfiguration, ...]:  # fmt: skip
    """The configurations of a size ``order * 2^log2_columns``, fewest rows first; all give the same bits.

    With a quantizer there may be none.
    """
    if base == BASE_SIGNS:
        by_fragments = fragment_configuration(element_code, order, log2_columns, architecture, transposed, fusion)
        if by_fragments is not None:
            return (by_fragments,)
        by_warpgroups = warpgroup_candidates(element_code, order, log2_columns, architecture, transposed, fusion)
        if by_warpgroups:
            return by_warpgroups
    return panel_candidates(
        element_code, order, log2_columns, architecture, base=base, transposed=transposed, fusion=fusion
    )


def panel_candidates(
    element_code: int, order: int, log2_columns: int, architecture: Architecture, *, base: int = BASE_SIGNS,
    transposed: bool = False, fusion: Fusion | None = None,
) -> tuple[BaseConfiguration, ...]:  # fmt: skip
    """Those of ``base_rows.cu``, which takes every size."""
    merged = merged_columns(order, log2_columns, element_code, base)
    tiles = -(-(order << merged) // 16)
    plain = BaseConfiguration(
        element_code, order << merged, merged, log2_columns - merged, tiles, base=base, transposed=transposed,
        programmatic=AFTER_LOADS if architecture.has_programmatic_launch else ALONE,
    )  # fmt: skip
    row, halved = None, False
    if architecture.has_wgmma and base == BASE_SIGNS and element_code != _FLOAT32:
        row = _row_of_table(plain, fusion)
        if order > _LARGEST_WHOLE and has_halves(order, log2_columns):
            of_halves = replace(plain, order=order // 2, log2_size=log2_columns + 1)
            row_of_halves = _row_of_table(of_halves, fusion)
            if row_of_halves is not None and row_of_halves.wgmma:
                plain, row, halved = of_halves, row_of_halves, True
    if row is None or (row.wgmma and plain.log2_size < 4):
        row = _generic_row(plain)
    many = replace(_with_row(plain, row), halves=halved)
    found = []
    for c in (*_fewer_rows(many), many):
        # Where shared memory does not hold two panels, one; where not even one, vectors come from global memory.
        while c.stages > 0 and not c.runs_on(architecture):
            by_wgmma = c.wgmma and c.stages > 1
            c = replace(c, stages=c.stages - 1, wgmma=by_wgmma, wide=c.wide and by_wgmma)
        found.append(c)
    # Products of another kind would give other bits.
    found = [c for c in found if c.wgmma == found[-1].wgmma]
    if fusion is None:
        if many.wgmma and (order, log2_columns) in _PAIRED:
            found.append(replace(many, paired=True))
        alone = (c.wgmma and c.stages == 2 and c.minimum_blocks == 1 for c in found)
        found = [replace(c, drift=drift) for c, drift in zip(found, alone, strict=True)]
    else:
        with_fusion = (_with_quantizer(c, fusion, architecture) for c in found)
        found = list(dict.fromkeys(c for c in with_fusion if c is not None))
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def choose_base(
    element_code: int, order: int, log2_columns: int, rows: int, capability: Capability, multiprocessors: int,
    signs: int = NO_SIGNS, strided: bool = False, *, base: int = BASE_SIGNS, transposed: bool = False,
    fusion: Fusion | None = None,
) -> OrderConfiguration:  # fmt: skip
    """The configuration for ``rows`` rows of size ``order * 2^log2_columns`` on a GPU.

    Spread over more blocks as long as they find room at once.

    Raises:
        LookupError: No configuration takes that size and quantizer.
    """
    architecture = architecture_of(capability)
    found = base_candidates(
        element_code, order, log2_columns, architecture, base=base, transposed=transposed, fusion=fusion
    )
    if not found:
        raise LookupError(f"no configuration of {order} * 2^{log2_columns} with this quantizer for {architecture.name}")
    found = tuple(c for c in found if rows * c.size >= c.least_elements)
    at_once = (c for c in found[:-1] if c.grid(rows, multiprocessors) * c.cluster <= 1.5 * multiprocessors)
    return next(at_once, found[-1]).with_options(signs, strided)
