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

from hadacore.kernels.architectures import Architecture, Capability, architecture_of
from hadacore.kernels.configurations import AFTER_LOADS, ALONE, NO_SIGNS

BASE_SIGNS, BASE_OF_ELEMENTS, BASE_OF_FLOAT32 = 0, 1, 2

#: Column bits that the registers of one warp hold.
MAXIMUM_LOG2_COLUMNS = 8

_REGISTERS = 65536  # of a multiprocessor


@dataclass(frozen=True)
class BaseConfiguration:
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
        base: ``BASE_SIGNS`` (this library's matrix, part of the program), ``BASE_OF_ELEMENTS`` or ``BASE_OF_FLOAT32`` (the
            caller's, read from memory).
        transposed: Whether this library's matrix is applied transposed. The caller's is transposed by its strides.
        programmatic: As in ``KernelConfiguration``.
        signs: As in ``KernelConfiguration``.
        strided: Rows lie at two-level strides rather than one after the other.
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
    base: int = BASE_SIGNS
    transposed: bool = False
    programmatic: int = AFTER_LOADS
    signs: int = NO_SIGNS
    strided: bool = False

    kernel: str = field(default="base_rows", init=False, repr=False, compare=False)
    cluster: int = field(default=1, init=False, repr=False, compare=False)
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
        object.__setattr__(self, "threads", 32 * self.order_warps * self.units)
        stage = self.units * self.groups * 16 * self.order_tiles * 128
        columns = 64 * 64 * 2 if self.wgmma and self.log2_size >= self.log2_group else 0
        object.__setattr__(self, "shared_bytes", self.stages * stage + columns)

    @property
    def size(self) -> int:
        """Elements of a row."""
        return self.order << self.log2_size

    @property
    def order_tiles(self) -> int:
        """Tiles of 16 result rows."""
        return -(-self.order // 16)

    @property
    def log2_group(self) -> int:
        """Column bits of a group, 8 vectors of 16 bytes."""
        return 5 if self.element_code == 2 else 6

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
        """Blocks to launch for ``rows`` rows."""
        units = -(-rows // self.unit_rows)
        blocks = -(-units // self.units)
        if self.stages == 2:
            blocks = min(blocks, multiprocessors * self.minimum_blocks)
        return blocks * self.splits

    def runs_on(self, architecture: Architecture) -> bool:
        """Whether a GPU of this architecture has the features and the shared memory."""
        if self.programmatic and not architecture.has_programmatic_launch:
            return False
        return self.shared_bytes <= architecture.shared_memory_per_block

    def constants(self) -> dict[str, int]:
        """The ``-D`` constants of this kernel."""
        return {
            "ELEMENT": self.element_code,
            "ORDER": self.order,
            "LOG2_SIZE": self.log2_size,
            "LOG2_TILES": 0,
            "LOG2_MERGE": self.log2_merge,
            "WARP_TILES": self.tiles,
            "ORDER_WARPS": self.order_warps,
            "UNITS": self.units,
            "STAGES": self.stages,
            "SPLITS": self.splits,
            "MIN_BLOCKS": self.minimum_blocks,
            "WGMMA": int(self.wgmma),
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
            parts.append("wgmma")
        if self.splits > 1:
            parts.append(f"{self.splits} blocks/row")
        if self.programmatic:
            parts.append("next kernel from after its loads")
        return ", ".join(parts)


def base_source(element_code: int, float32_base: bool | None) -> int:
    """``BASE`` of the CUDA text: None is this library's matrix, else whether the caller's is float32."""
    if float32_base is None:
        return BASE_SIGNS
    return BASE_OF_FLOAT32 if float32_base else BASE_OF_ELEMENTS


def merged_columns(order: int, log2_columns: int, base: int) -> int:
    """How many column bits are merged into the base. It decides the rounding of fp32 sums, so it depends on the size alone."""
    least = max(0, log2_columns - MAXIMUM_LOG2_COLUMNS)
    if base != BASE_SIGNS:
        return least
    wanted = max(0, log2_columns - 7)
    return wanted if order << wanted <= 240 else least


def _many_rows(c: BaseConfiguration, accumulators: int) -> BaseConfiguration:
    tiles = max(1, min(128 // accumulators, c.order_tiles))
    warps = -(-c.order_tiles // tiles)
    splits = -(-warps // 8)
    warps = -(-warps // splits)
    if warps == 1 and c.order_tiles * c.groups <= 4 and splits == 1:
        return replace(c, tiles=tiles, units=4, minimum_blocks=2)
    c = replace(c, tiles=tiles, order_warps=warps, splits=splits)
    return replace(c, stages=1)


@functools.lru_cache(maxsize=4096)
def choose_base(
    element_code: int, order: int, log2_columns: int, rows: int, capability: Capability, multiprocessors: int,
    signs: int = NO_SIGNS, strided: bool = False, *, base: int = BASE_SIGNS, transposed: bool = False,
) -> BaseConfiguration:  # fmt: skip
    """The configuration for ``rows`` rows of size ``order * 2^log2_columns`` on a GPU."""
    architecture = architecture_of(capability)
    merged = merged_columns(order, log2_columns, base)
    tiles = -(-(order << merged) // 16)
    plain = BaseConfiguration(
        element_code, order << merged, merged, log2_columns - merged, tiles, base=base, transposed=transposed,
        signs=signs, strided=strided,
        programmatic=AFTER_LOADS if architecture.has_programmatic_launch else ALONE,
    )  # fmt: skip
    accumulators = plain.groups * (16 if element_code == 2 else 32)
    chosen = _many_rows(plain, accumulators)
    if not chosen.runs_on(architecture):
        chosen = replace(chosen, stages=0)
    return chosen
