"""Configurations of ``warpgroup_rows.cu``, and the sizes ``m * 2^k`` for which it is the faster kernel.

It contracts the columns first, and the base after them, both by wgmma from shared memory. A warpgroup holds all rows of the
panel for its columns, so bases are small, and there are 64 columns at least. 16-bit types only: the plain transform, and
8-bit codes with a scale for each row or a given one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hadacore.kernels.architectures import MAXIMUM_CLUSTER, Architecture
from hadacore.kernels.configurations import AFTER_LOADS, NO_SIGNS
from hadacore.kernels.fusion import Fusion, code_bits

_FLOAT32 = 2  # ELEMENT
_LARGEST_WIDTH = 256  # N of one wgmma


@dataclass(frozen=True)
class WarpgroupConfiguration:
    """One specialised kernel for a size ``order * 2^log2_size``.

    Attributes:
        element_code: ``ELEMENT`` of the CUDA text, a 16-bit type.
        order: Order of the base, merged column bits included.
        log2_merge: Column bits that are merged into it.
        log2_size: Column bits that are left, at least 6.
        warpgroups: Warpgroups of a block, which share the columns of its row.
        minimum_blocks: Blocks that must fit on a multiprocessor, which caps the registers of a thread.
        overlap: Whether the products of one group of columns run while the results of another are stored.
        tensor_shares: Shares of the columns that the first product tells apart. It decides the order of sums.
        column_splits: Blocks that share the columns of a row.
        order_splits: Blocks that share the result rows of the base, for the same columns.
        stages: 2: the next row is on its way meanwhile, the block loops over rows; 1: it has one.
        transposed: Whether the base is applied transposed.
        programmatic: As in ``KernelConfiguration``.
        signs: As in ``KernelConfiguration``.
        strided: Rows lie at two-level strides rather than one after the other.
        fusion: A quantizer of 8-bit codes, with a scale for each row or a given one, as the epilogue.
    """

    element_code: int
    order: int
    log2_merge: int
    log2_size: int
    warpgroups: int = 1
    minimum_blocks: int = 1
    overlap: bool = False
    tensor_shares: int = 1
    column_splits: int = 1
    order_splits: int = 1
    stages: int = 2
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
        object.__setattr__(self, "threads", 128 * self.warpgroups)
        stage = self.groups * self.panel_rows * 128
        base = -(-self.order // 64) * self.own_rows * 128
        matrices = 64 * 128 * (2 if self.tensor_shares > 1 else 1)
        shared = self.stages * stage + base + matrices
        if self.fusion is not None:
            shared = self._with_fusion(self.fusion, shared)
        object.__setattr__(self, "shared_bytes", shared)

    def _with_fusion(self, fusion: Fusion, shared: int) -> int:
        """Check that the kernel makes those codes, and return the bytes of shared memory with the quantizer."""
        if code_bits(fusion) != 8 or fusion.block not in (0, self.size) or fusion.prologue is not None:
            raise ValueError(f"codes have 8 bits, with a scale for each row or a given one, and no prologue: {self}")
        if self.order_splits > 1 or self.column_splits > MAXIMUM_CLUSTER:
            raise ValueError(f"up to {MAXIMUM_CLUSTER} blocks share the columns of a row with codes: {self}")
        if not fusion.is_row(self.size):
            return shared
        object.__setattr__(self, "cluster", self.column_splits)
        return fusion.shared_end(shared, 4 * self.warpgroups, 1, self.cluster, 0)

    @property
    def size(self) -> int:
        """Elements of a row."""
        return self.order << self.log2_size

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
        joint = 1
        while 2 * joint <= self.own_groups and 2 * joint * self.panel_rows <= _LARGEST_WIDTH:
            joint *= 2
        return joint * self.panel_rows, self.own_rows

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the Tensor Cores for the base of a row, on two parts, padding included."""
        return 2 * (-(-self.order // 16) * 16) * self.panel_rows << self.log2_size

    @property
    def works_in_place(self) -> bool:
        """Whether all of a row is read before any of it is written."""
        return self.column_splits * self.order_splits == 1

    def grid(self, rows: int, multiprocessors: int) -> int:
        """Blocks (clusters, where they share a row's scale) to launch for ``rows`` rows."""
        blocks = min(rows, multiprocessors * self.minimum_blocks) if self.stages == 2 else rows
        return blocks * self.column_splits * self.order_splits // self.cluster

    def with_options(self, signs: int, strided: bool) -> WarpgroupConfiguration:
        """The same kernel with signs or strided rows. They take registers, so fewer blocks have to fit."""
        if signs == NO_SIGNS and not strided:
            return self
        return replace(self, signs=signs, strided=strided, minimum_blocks=max(1, self.minimum_blocks - 1))

    def launched_bytes(self, architecture: Architecture) -> int:
        """Shared memory to launch a block with: so much that no more blocks fit than loop over rows."""
        least = architecture.least_bytes_of(self.minimum_blocks) if self.stages == 2 else 0
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
            "MIN_BLOCKS": self.minimum_blocks,
            "OVERLAP": int(self.overlap),
            "TENSOR_SHARES": self.tensor_shares,
            "COLUMN_SPLITS": self.column_splits,
            "ORDER_SPLITS": self.order_splits,
            "CLUSTER": self.cluster,
            "STAGES": self.stages,
            "WGMMA": 1,
            "PROGRAMMATIC": self.programmatic,
            "SIGNS": self.signs,
            "STRIDED": int(self.strided),
        }

    def __str__(self) -> str:
        parts = [f"warpgroup_rows {self.order} x 2^{self.log2_size}", f"{4 * self.warpgroups} warps/block"]
        parts.append("next row prefetched" if self.stages == 2 else "one row a block")
        if not self.works_in_place:
            parts.append(f"{self.column_splits * self.order_splits} blocks/row")
        if self.programmatic:
            parts.append("next kernel from after its loads")
        return ", ".join(parts)


@dataclass(frozen=True)
class _Line:
    """How many rows of a size run, and the blocks that share one when there are few."""

    merge: int
    warpgroups: int
    minimum_blocks: int
    overlap: bool
    order_splits: int
    column_splits: int = 1


# By order and column bits: the sizes that are faster than by base_rows.cu. Times over a copy at 2^25; 2^23 elements on one H200,
# float16, cold, there and here: 1536 1.13; 1.15 -> 1.11; 1.11, 2304 1.12; 1.15 -> 1.06; 1.06, 2560 1.09; 1.18 -> 1.04; 1.06,
# 3072 1.05; 1.15 -> 1.04; 1.07, 4608 1.12; 1.28 -> 1.07; 1.16, 4864 1.09; 1.26 -> 1.07; 1.19, 5120 1.09; 1.17 -> 1.09; 1.10,
# 9216 1.17; 1.34 -> 1.13; 1.27, 18432 1.24; 1.45 -> 1.19; 1.43, 20480 1.24; 1.53 -> 1.17; 1.50.
_TABLE: dict[tuple[int, int], _Line] = {
    (12, 7): _Line(1, 1, 8, False, 3), (36, 6): _Line(0, 1, 7, False, 5), (20, 7): _Line(1, 1, 7, False, 5),
    (12, 8): _Line(2, 1, 6, False, 3), (36, 7): _Line(1, 1, 4, False, 3), (76, 6): _Line(0, 1, 4, False, 5),
    (20, 8): _Line(2, 1, 4, False, 5), (36, 8): _Line(1, 1, 2, True, 3, 2), (36, 9): _Line(0, 1, 2, False, 1, 8),
    (20, 10): _Line(1, 2, 2, False, 1, 8),
}  # fmt: skip


# The same with 8-bit codes and a scale for each row or a given one, times of FP8 over a copy of the same bytes, bfloat16:
# 2560 1.35; 1.43 -> 1.24; 1.26, 3072 1.22; 1.36 -> 1.17; 1.23, 4608 1.61; 1.73 -> 1.23; 1.37, 4864 1.56; 1.70 -> 1.30; 1.47,
# 5120 1.49; 1.55 -> 1.13; 1.20, 5632 1.63; 1.62 -> 1.39; 1.52, 6144 1.50; 1.61 -> 1.08; 1.27, 7168 1.39; 1.40 -> 1.17; 1.27,
# 9216 1.73; 1.85 -> 1.42; 1.57, 14336 1.48; 1.82 -> 1.30; 1.52. Not 3584, 3840 and 28672, which gain nothing.
_QUANTIZING_TABLE: dict[tuple[int, int], _Line] = {
    (20, 7): _Line(1, 1, 6, False, 1), (12, 8): _Line(2, 1, 5, False, 1), (36, 7): _Line(0, 1, 4, False, 1, 2),
    (76, 6): _Line(0, 1, 4, False, 1), (20, 8): _Line(1, 1, 4, False, 1, 2), (44, 7): _Line(1, 1, 3, False, 1),
    (12, 9): _Line(2, 1, 4, False, 1, 2), (28, 8): _Line(1, 1, 3, False, 1, 2), (36, 8): _Line(1, 1, 2, False, 1, 2),
    (28, 9): _Line(1, 1, 2, False, 1, 4),
}  # fmt: skip


def warpgroup_candidates(
    element_code: int,
    order: int,
    log2_columns: int,
    architecture: Architecture,
    transposed: bool,
    fusion: Fusion | None = None,
) -> tuple[WarpgroupConfiguration, ...]:
    """The configurations of a size ``order * 2^log2_columns``, fewest rows first; none where another kernel takes it."""
    line = (_TABLE if fusion is None else _QUANTIZING_TABLE).get((order, log2_columns))
    if line is None or element_code == _FLOAT32 or not architecture.has_wgmma:
        return ()
    plain = WarpgroupConfiguration(
        element_code, order << line.merge, line.merge, log2_columns - line.merge, line.warpgroups, line.minimum_blocks,
        line.overlap, tensor_shares=line.warpgroups, transposed=transposed,
    )  # fmt: skip
    try:
        many = replace(plain, fusion=fusion)
    except ValueError:
        return ()
    few = replace(
        many, warpgroups=1, minimum_blocks=1, overlap=False, stages=1, column_splits=line.column_splits,
        order_splits=line.order_splits,
    )  # fmt: skip
    return (few, many) if line.column_splits * line.order_splits > 1 else (many,)
