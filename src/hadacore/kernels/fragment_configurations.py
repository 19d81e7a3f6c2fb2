"""Configurations of ``fragment_rows.cu``, and the sizes ``m * 2^k`` for which it is the faster kernel.

A warp keeps all of the base in registers, as fragments, and goes from row to row. So bases are of 64 rows at most, merged column
bits included, and 32 columns at most are left. 16-bit types and this library's bases only, without a quantizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hadacore.kernels.architectures import HOPPER, Architecture
from hadacore.kernels.configurations import AFTER_LOADS, ALONE, NO_SIGNS
from hadacore.kernels.fragment_table import PLAIN
from hadacore.kernels.fusion import Fusion
from hadacore.kernels.launchable import OrderLaunchable

_FLOAT32 = 2  # ELEMENT

#: Rows of a base whose fragments fit: 64 registers of a thread.
LARGEST_ORDER_IN_FRAGMENTS = 64


@dataclass(frozen=True)
class FragmentConfiguration(OrderLaunchable):
    """One specialised kernel for a size ``order * 2^log2_size``.

    Attributes:
        element_code: ``ELEMENT`` of the CUDA text, a 16-bit type.
        order: Order of the base, merged column bits included.
        log2_merge: Column bits that are merged into it.
        log2_size: Column bits that are left, 2 to 5.
        warps: Of a block; each works on its own.
        minimum_blocks: Blocks that must fit on a multiprocessor, which caps the registers of a thread.
        transposed: Whether the base is applied transposed.
        programmatic: As in ``KernelConfiguration``.
        signs: As in ``KernelConfiguration``.
        strided: Rows lie at two-level strides rather than one after the other.
    """

    element_code: int
    order: int
    log2_merge: int
    log2_size: int
    warps: int = 4
    minimum_blocks: int = 1
    transposed: bool = False
    programmatic: int = AFTER_LOADS
    signs: int = NO_SIGNS
    strided: bool = False

    kernel: str = field(default="fragment_rows", init=False, repr=False, compare=False)
    fusion: Fusion | None = field(default=None, init=False, repr=False, compare=False)
    cluster: int = field(default=1, init=False, repr=False, compare=False)
    threads: int = field(init=False, repr=False, compare=False)
    shared_bytes: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.element_code == _FLOAT32 or self.order % 4 or self.order > LARGEST_ORDER_IN_FRAGMENTS:
            raise ValueError(
                f"rows are of 16-bit elements, and the base of an order up to {LARGEST_ORDER_IN_FRAGMENTS}, a multiple of 4: "
                f"{self}"
            )
        if not 2 <= self.log2_size <= 5:
            raise ValueError(f"a warp holds 2^2 to 2^5 columns: {self}")
        object.__setattr__(self, "threads", 32 * self.warps)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the Tensor Cores for the base of a row, padding included."""
        return (16 * self.order_tiles) ** 2 << self.log2_size

    @property
    def unit_rows(self) -> int:
        """Rows that stand side by side."""
        return (16 if self.log2_size % 2 == 0 else 32) >> self.log2_size

    def grid(self, rows: int, multiprocessors: int) -> int:
        """Blocks to launch for ``rows`` rows: no more than find room at once, as they loop over units."""
        units = -(-rows // self.unit_rows)
        return min(-(-units // self.warps), multiprocessors * self.minimum_blocks)

    def with_options(self, signs: int, strided: bool) -> FragmentConfiguration:
        """The same kernel with signs or strided rows. They take registers, so fewer blocks have to fit."""
        if signs == NO_SIGNS and not strided:
            return self
        return replace(self, signs=signs, strided=strided, minimum_blocks=max(1, self.minimum_blocks - 1))

    def launched_bytes(self, architecture: Architecture) -> int:
        """Shared memory to launch a block with: none is used, but no more blocks may fit than loop over units."""
        return architecture.least_bytes_of(self.minimum_blocks)

    def runs_on(self, architecture: Architecture) -> bool:
        """Whether a GPU of this architecture has the features."""
        return not self.programmatic or architecture.has_programmatic_launch

    def constants(self) -> dict[str, int]:
        """The ``-D`` constants of this kernel."""
        return {
            "ELEMENT": self.element_code,
            "OUTPUT": self.element_code,
            "ORDER": self.order,
            "LOG2_SIZE": self.log2_size,
            "LOG2_TILES": 0,
            "WARPS": self.warps,
            "MIN_BLOCKS": self.minimum_blocks,
            "WGMMA": 0,
            "BASE": 0,
            "PROGRAMMATIC": self.programmatic,
            "SIGNS": self.signs,
            "STRIDED": int(self.strided),
        }

    def __str__(self) -> str:
        parts = [f"fragment_rows {self.order} x 2^{self.log2_size}", f"{self.warps} warps/block"]
        if self.programmatic:
            parts.append("next kernel from after its loads")
        return ", ".join(parts)


def fragment_configuration(
    element_code: int,
    order: int,
    log2_columns: int,
    architecture: Architecture,
    transposed: bool,
    fusion: Fusion | None = None,
) -> FragmentConfiguration | None:
    """The configuration of a size ``order * 2^log2_columns``; None where another kernel takes it.

    It is for any number of rows: blocks of one warp, which spread 64 to 500 of them over more multiprocessors, were up to a
    tenth slower.
    """
    line = PLAIN.get((order, log2_columns))
    if line is None or element_code == _FLOAT32 or fusion is not None:
        return None
    blocks = line.minimum_blocks
    if architecture.capability != HOPPER:
        # Not measured, and from 10.0 on the compiler takes more registers: 832 spilled 72 bytes.
        blocks = -(-2 * blocks // 3)
    return FragmentConfiguration(
        element_code, order << line.merge, line.merge, log2_columns - line.merge, line.warps, blocks, transposed,
        AFTER_LOADS if architecture.has_programmatic_launch else ALONE,
    )  # fmt: skip
