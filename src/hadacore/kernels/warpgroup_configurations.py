"""Configurations of ``warpgroup_rows.cu``, and the sizes ``m * 2^k`` for which it is the faster kernel.

It contracts the columns first, and the base after them, both by wgmma from shared memory. A warpgroup holds all rows of the
panel for its columns, so bases are small, and there are 64 columns at least. 16-bit types only: the plain transform, or codes
with a scale for each row, for parts of it, or a given one, after a gated activation or none.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hadacore.kernels.architectures import MAXIMUM_CLUSTER, Architecture
from hadacore.kernels.configurations import AFTER_LOADS, NO_SIGNS
from hadacore.kernels.fusion import Fusion, code_bits
from hadacore.kernels.launchable import OrderLaunchable
from hadacore.kernels.warpgroup_table import line_of

_FLOAT32 = 2  # ELEMENT
_REGISTERS = 65536  # of a multiprocessor
_MOST_REGISTERS = 248  # of a thread, and a multiple of 8
PRODUCER_REGISTERS = 64  # with fewer, 28672 spills 8 bytes; with 24 it takes 2.2 instead of 1.86 of a copy
_PRODUCERS = 3  # where rows are few: 1 row of 28672 7.4 -> 6.3 us, 64 rows of 14336 6.5 -> 5.5
_LARGEST_WIDTH = 256  # N of one wgmma
_LARGEST_WIDTH_BESIDE_PRODUCERS = 128  # kWidest of warpgroup_products.cuh


@dataclass(frozen=True)
class WarpgroupConfiguration(OrderLaunchable):
    """One specialised kernel for a size ``order * 2^log2_size``.

    Attributes:
        element_code: ``ELEMENT`` of the CUDA text, a 16-bit type.
        order: Order of the base, merged column bits included.
        log2_merge: Column bits that are merged into it.
        log2_size: Column bits that are left, at least 6.
        warpgroups: Warpgroups of a block that multiply, and share the columns of its row.
        producers: Warpgroups besides, which read and activate rows for them; of gated activations.
        minimum_blocks: Blocks that must fit on a multiprocessor, which caps the registers of a thread.
        overlap: Whether the products of one group of columns run while the results of another are stored; of plain results.
        tensor_shares: Shares of the columns that the first product tells apart. It decides the order of sums.
        column_splits: Blocks that share the columns of a row.
        order_splits: Blocks that share the result rows of the base, for the same columns.
        stages: 2: the next row is on its way meanwhile, the block loops over rows; 1: it has one.
        refilled: The block loops with one stage: the next row takes the panel's place once the first product has read it.
            Codes have a place of their own then, and only they.
        transposed: Whether the base is applied transposed.
        programmatic: As in ``KernelConfiguration``.
        signs: As in ``KernelConfiguration``.
        strided: Rows lie at two-level strides rather than one after the other.
        fusion: A quantizer with a scale for each row, for parts of it within a warpgroup's columns, or a given one, as the
            epilogue; with a gated activation as the prologue, there are two panels.
    """

    element_code: int
    order: int
    log2_merge: int
    log2_size: int
    warpgroups: int = 1
    producers: int = field(default=0, kw_only=True)
    minimum_blocks: int = 1
    overlap: bool = False
    tensor_shares: int = 1
    column_splits: int = 1
    order_splits: int = 1
    stages: int = 2
    refilled: bool = False
    transposed: bool = False
    programmatic: int = AFTER_LOADS
    signs: int = NO_SIGNS
    strided: bool = False
    fusion: Fusion | None = None

    kernel: str = field(default="warpgroup_rows", init=False, repr=False, compare=False)
    cluster: int = field(default=1, init=False, repr=False, compare=False)
    threads: int = field(init=False, repr=False, compare=False)
    shared_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.element_code == _FLOAT32 or self.log2_size < 6 or self.order % 2 or self.panel_rows > _LARGEST_WIDTH:
            raise ValueError(
                f"rows are of 16-bit elements, 64 columns and more, and an even order up to {_LARGEST_WIDTH}: {self}"
            )
        shares = self.warpgroups * self.column_splits
        if shares > self.groups or self.groups % shares or shares % self.tensor_shares:
            raise ValueError(f"warpgroups and blocks must share {self.groups} groups of columns evenly: {self}")
        if self.order_splits > self.panel_rows // 8:
            raise ValueError(f"each block must have some of {self.panel_rows // 8} tiles of rows: {self}")
        object.__setattr__(self, "threads", 128 * (self.warpgroups + self.producers))
        if self.overlap and self.fusion is not None:
            raise ValueError(f"codes are not stored until all products are there: {self}")
        if self.refilled and (self.stages != 1 or self.fusion is None):
            raise ValueError(f"one stage is refilled, where codes follow: {self}")
        panels = 2 if self.fusion is not None and self.fusion.prologue is not None else 1
        if self.producers and (panels == 1 or self.stages != 1):
            raise ValueError(f"producers activate rows, and have one stage: {self}")
        stage = panels * self.groups * self.panel_rows * 128
        # Of bfloat16, or of tf32 where codes follow; and of tf32 where a prologue does not leave elements as they are.
        base = (-(-self.order // 64) if self.fusion is None else -(-self.panel_rows // 32)) * self.own_rows * 128
        matrices = 64 * 128 * (2 if self.tensor_shares > 1 else 1) * panels
        shared = self.stages * stage + base + matrices
        if self.fusion is not None:
            shared = self._with_fusion(self.fusion, shared)
        object.__setattr__(self, "shared_bytes", shared)

    def _with_fusion(self, fusion: Fusion, shared: int) -> int:
        """Check that the kernel makes those codes, and return the bytes of shared memory with the quantizer."""
        bits, columns, own = code_bits(fusion), (1 << self.log2_size) // self.column_splits, 64 * self.own_groups
        parts = fusion.block if fusion.has_parts(self.size) else 0
        if bits == 4 and own < 128:
            raise ValueError(f"4-bit codes of two groups of columns are put together, a warpgroup has one: {self}")
        if parts and (columns % parts or (parts > 64 and own % parts)):
            raise ValueError(f"a warpgroup has no whole parts of {parts} columns, which share a scale: {self}")
        if fusion.prologue is not None and not fusion.prologue.gated:
            raise ValueError(f"a gated activation is the only prologue: {self}")
        if self.order_splits > 1 or self.column_splits > MAXIMUM_CLUSTER:
            raise ValueError(f"up to {MAXIMUM_CLUSTER} blocks share the columns of a row with codes: {self}")
        if self.refilled:
            shared += self.panel_rows * columns * bits // 8
            if parts:
                maxima = 4 * (columns // max(64, parts))
                shared += 4 * self.panel_rows * (maxima + columns // parts)
        shared += 16 if self.producers else 0  # mbarriers
        if not fusion.is_row(self.size):
            return shared
        object.__setattr__(self, "cluster", self.column_splits)
        return fusion.shared_end(shared, 4 * self.warpgroups, 1, self.cluster, 0)

    @property
    def groups(self) -> int:
        """Groups of 64 columns."""
        return 1 << (self.log2_size - 6)

    @property
    def own_groups(self) -> int:
        """Groups of a warpgroup."""
        return self.groups // (self.warpgroups * self.column_splits)

    @property
    def panel_rows(self) -> int:
        """Rows of the panel, a multiple of 8."""
        return -(-self.order // 8) * 8

    @property
    def own_rows(self) -> int:
        """Result rows of a block, likewise."""
        return -(-(self.panel_rows // 8) // self.order_splits) * 8

    @property
    def widths(self) -> tuple[int, int]:
        """N of the first product, of as many groups as it takes together, and of the second one."""
        widest = _LARGEST_WIDTH_BESIDE_PRODUCERS if self.producers else _LARGEST_WIDTH
        joint = 1
        while 2 * joint <= self.own_groups and 2 * joint * self.panel_rows <= widest:
            joint *= 2
        return joint * self.panel_rows, self.own_rows

    @property
    def registers(self) -> tuple[int, int]:
        """Registers that threads have who multiply, and who produce; 0 where all have as many as the kernel has."""
        launched = min(255, _REGISTERS // (self.minimum_blocks * self.threads)) // 8 * 8
        if self.producers == 0 or launched <= PRODUCER_REGISTERS:
            return 0, 0
        spare = (launched - PRODUCER_REGISTERS) * self.producers
        return min(_MOST_REGISTERS, launched + spare // self.warpgroups // 8 * 8), PRODUCER_REGISTERS

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the Tensor Cores for the base of a row, on two parts or at half the rate, padding included."""
        return 2 * (-(-self.order // 16) * 16) * self.panel_rows << self.log2_size

    @property
    def loops(self) -> bool:
        """Whether a block goes on to other rows."""
        return self.stages == 2 or self.refilled

    @property
    def works_in_place(self) -> bool:
        """Whether all of a row is read before any of it is written."""
        return self.column_splits * self.order_splits == 1

    def grid(self, rows: int, multiprocessors: int) -> int:
        """Blocks (clusters, where they share a row's scale) to launch for ``rows`` rows."""
        splits = self.column_splits * self.order_splits
        at_once = max(1, multiprocessors * self.minimum_blocks // splits)
        return (min(rows, at_once) if self.loops else rows) * splits // self.cluster

    def with_options(self, signs: int, strided: bool) -> WarpgroupConfiguration:
        """The same kernel with signs or strided rows. They take registers, so fewer blocks have to fit."""
        if signs == NO_SIGNS and not strided:
            return self
        return replace(self, signs=signs, strided=strided, minimum_blocks=max(1, self.minimum_blocks - 1))

    def launched_bytes(self, architecture: Architecture) -> int:
        """Shared memory to launch a block with: so much that no more blocks fit than loop over rows."""
        least = architecture.least_bytes_of(self.minimum_blocks) if self.loops else 0
        return max(self.shared_bytes, least)

    def runs_on(self, architecture: Architecture) -> bool:
        """Whether a GPU of this architecture has the features and the shared memory."""
        return architecture.has_wgmma and self.shared_bytes <= architecture.shared_memory_per_block

    def constants(self) -> dict[str, int]:
        """The ``-D`` constants of this kernel."""
        return {
            "ELEMENT": self.element_code,
            "OUTPUT": self.element_code,
            "ORDER": self.order,
            "LOG2_SIZE": self.log2_size,
            "LOG2_TILES": 0,
            "WARPGROUPS": self.warpgroups,
            "PRODUCERS": self.producers,
            "REGISTERS": self.registers[0],
            "PRODUCER_REGISTERS": self.registers[1],
            "MIN_BLOCKS": self.minimum_blocks,
            "OVERLAP": int(self.overlap),
            "TENSOR_SHARES": self.tensor_shares,
            "COLUMN_SPLITS": self.column_splits,
            "ORDER_SPLITS": self.order_splits,
            "CLUSTER": self.cluster,
            "STAGES": self.stages,
            "REFILLED": int(self.refilled),
            "WGMMA": 1,
            "PROGRAMMATIC": self.programmatic,
            "SIGNS": self.signs,
            "STRIDED": int(self.strided),
        }

    def __str__(self) -> str:
        parts = [f"warpgroup_rows {self.order} x 2^{self.log2_size}", f"{4 * self.warpgroups} warps/block"]
        parts.append(
            "one row a block" if not self.loops else "next row " + ("refills" if self.refilled else "prefetched")
        )
        if self.producers:
            parts.append(f"{4 * self.producers} warps more activate rows")
        if self.overlap:
            parts.append("products overlap")
        if not self.works_in_place:
            parts.append(f"{self.column_splits * self.order_splits} blocks/row")
        if self.programmatic:
            parts.append("next kernel from after its loads")
        return ", ".join(parts)


def warpgroup_candidates(
    element_code: int,
    order: int,
    log2_columns: int,
    architecture: Architecture,
    transposed: bool,
    fusion: Fusion | None = None,
) -> tuple[WarpgroupConfiguration, ...]:
    """The configurations of a size ``order * 2^log2_columns``, fewest rows first; none where another kernel takes it."""
    line = line_of(order, log2_columns, fusion)
    if line is None or element_code == _FLOAT32 or not architecture.has_wgmma:
        return ()
    plain = WarpgroupConfiguration(
        element_code, order << line.merge, line.merge, log2_columns - line.merge, line.warpgroups, line.minimum_blocks,
        line.overlap, tensor_shares=line.warpgroups * line.sharing, column_splits=line.sharing, transposed=transposed,
    )  # fmt: skip
    # Maxima of parts take the registers that producers would: 28672 with MXFP8 spilled 60 bytes.
    beside = 0 if fusion is not None and fusion.has_parts(plain.size) else line.producers
    many = _fused(plain, fusion, stages=1 if line.refilled else 2, refilled=line.refilled, producers=beside)
    if many is None:
        return ()
    producers = _PRODUCERS if fusion is not None and fusion.prologue is not None else 0
    few = []
    splits = line.column_splits
    while splits > line.sharing or (splits == line.column_splits and splits * line.order_splits > 1):
        few.append(
            _fused(
                plain, fusion, warpgroups=1, minimum_blocks=1, overlap=False, stages=1, column_splits=splits,
                order_splits=line.order_splits, producers=producers,
            )
        )  # fmt: skip
        splits //= 2
    # Where too many blocks share a row, none has all of the columns that share a scale.
    return (*(c for c in few if c is not None), many)


def _fused(plain: WarpgroupConfiguration, fusion: Fusion | None, **changes: Any) -> WarpgroupConfiguration | None:
    """The configuration with a quantizer; None where the kernel has no such one."""
    try:
        return replace(plain, fusion=fusion, **changes)
    except ValueError:
        return None
