"""Which configuration of ``base_rows.cu`` many rows of 16-bit elements take on a Hopper GPU: a table, by measurement."""

from __future__ import annotations

from dataclasses import dataclass

from hadacore.kernels.fusion import Fusion


@dataclass(frozen=True)
class Row:
    """A line of the table: for ``groups`` of columns and up to ``order_tiles`` tiles."""

    groups: int
    order_tiles: int
    tiles: int  # a warp
    order_warps: int
    units: int
    stages: int
    minimum_blocks: int
    wgmma: bool = False
    splits: int = 1
    from_tiles: int = 1
    log2_sizes: tuple[int, int] = (0, 8)  # from, to
    wide: bool = True  # with wgmma, and columns enough


# Many rows, measured on one H200 (2^25 and 2^23 elements, bfloat16, cold; docs/performance.md). One warp a row, or a few,
# straight from global memory while the base is small; then panels in shared memory, one tile of 16 rows a warp and as many
# blocks as fit, since blocks that are at different steps overlap products, additions and memory (60 x 64: 1.05 by five
# blocks of 4 warps, 1.19 by two from global memory); then by as many warps as it takes. The second product is wide where the
# Tensor Cores have time, for lanes store more elements side by side (docs/experiments.md).
_SIXTEEN_BIT_HOPPER = (
    Row(1, 1, 1, 1, 8, 0, 2),
    Row(1, 2, 2, 1, 4, 2, 4, log2_sizes=(5, 5)), Row(1, 2, 1, 2, 2, 0, 3),
    Row(1, 4, 1, 4, 1, 2, 4, True, from_tiles=4, log2_sizes=(4, 4)),
    Row(1, 4, 1, 4, 1, 2, 6, True, from_tiles=3, log2_sizes=(4, 5)),
    Row(1, 4, 1, 4, 1, 2, 5, True, from_tiles=4, log2_sizes=(6, 6)),
    Row(1, 3, 3, 1, 4, 0, 2), Row(1, 4, 2, 2, 2, 0, 2),
    Row(1, 5, 3, 2, 1, 2, 4), Row(1, 8, 2, 4, 1, 2, 3, True, wide=False),
    Row(1, 12, 3, 4, 1, 2, 2, True, log2_sizes=(4, 4)), Row(1, 12, 3, 4, 1, 2, 3, True, wide=False),
    Row(1, 16, 2, 8, 1, 2, 1, True), Row(1, 32, 1, 16, 1, 2, 1, True, 2), Row(1, 48, 1, 16, 1, 2, 1, True, 3),
    Row(1, 64, 2, 16, 1, 1, 1, True, 2),
    Row(2, 1, 1, 1, 4, 0, 2), Row(2, 2, 1, 2, 2, 0, 2), Row(2, 4, 1, 4, 1, 2, 4, True, wide=False),
    Row(2, 8, 1, 8, 1, 2, 2, True, wide=False),
    Row(2, 10, 1, 12, 1, 2, 1, True), Row(2, 12, 1, 12, 1, 2, 1, True, wide=False),
    Row(2, 16, 2, 8, 1, 2, 1, True), Row(2, 24, 1, 12, 1, 2, 1, True, 2), Row(2, 32, 1, 16, 1, 2, 1, True, 2),
    Row(4, 4, 1, 4, 1, 2, 2, True), Row(4, 8, 1, 8, 1, 2, 1, True, wide=False),
    Row(4, 12, 1, 12, 1, 2, 1, True, wide=False), Row(4, 16, 1, 8, 1, 2, 1, True, 2, wide=False),
)  # fmt: skip

# With a quantizer, measured with FP8 codes and a scale per row; all else is as above.
_QUANTIZING_HOPPER = (
    Row(1, 4, 1, 4, 1, 2, 4, True, from_tiles=4, log2_sizes=(6, 6), wide=False),
    Row(1, 12, 3, 4, 1, 2, 3, True, from_tiles=9, wide=False),
    Row(2, 5, 1, 5, 1, 2, 3, from_tiles=5), Row(2, 8, 2, 4, 1, 2, 2, True, from_tiles=6),
    Row(2, 12, 1, 12, 1, 2, 1, True, from_tiles=9, wide=False),
    Row(4, 8, 1, 8, 1, 2, 1, True, from_tiles=5), Row(4, 16, 1, 8, 1, 2, 1, True, 2, from_tiles=13),
)  # fmt: skip

# With scales of parts of a row. Each lane makes the scales of what it stores, so runs of 8 elements side by side count more than
# the time of the Tensor Cores.
_QUANTIZING_PARTS_HOPPER = (
    Row(1, 4, 1, 4, 1, 2, 4, True, from_tiles=4, log2_sizes=(6, 6)),
    Row(1, 12, 3, 4, 1, 2, 3, True, from_tiles=9, log2_sizes=(6, 6)), Row(2, 12, 1, 12, 1, 2, 1, True, from_tiles=9),
)  # fmt: skip

# With a gated activation, whose result is two panels. One stage where more blocks then fit: 14336 took 130 us with two stages of
# one block, 82 with one of two (2^25 elements).
_PROLOGUE_HOPPER = (
    Row(1, 2, 2, 1, 4, 2, 3, log2_sizes=(5, 5)),
    Row(1, 4, 1, 4, 1, 1, 4, True, from_tiles=3, log2_sizes=(4, 5)),
    Row(1, 4, 1, 4, 1, 2, 4, True, from_tiles=4, log2_sizes=(6, 6)),
    Row(1, 4, 2, 2, 1, 1, 4, from_tiles=3), Row(1, 5, 3, 2, 1, 1, 4, from_tiles=5),
    Row(1, 8, 2, 4, 1, 2, 3, True, from_tiles=6), Row(1, 12, 3, 4, 1, 1, 3, True, from_tiles=9, wide=False),
    Row(2, 4, 1, 4, 1, 1, 4, True, from_tiles=3, wide=False), Row(2, 8, 1, 8, 1, 1, 2, True, from_tiles=5, wide=False),
    Row(4, 4, 1, 4, 1, 1, 2, True), Row(4, 8, 1, 8, 1, 1, 1, True, from_tiles=5, wide=False),
    Row(4, 12, 1, 12, 1, 1, 1, True, from_tiles=9, wide=False),
    Row(1, 32, 2, 16, 1, 1, 1, True, from_tiles=17, log2_sizes=(6, 6), wide=False),
)  # fmt: skip


def row_of_table(groups: int, log2_size: int, order_tiles: int, size: int, fusion: Fusion | None) -> Row | None:
    """The line for so many groups of columns, columns and tiles, of rows of ``size`` elements."""
    lines: tuple[Row, ...] = _SIXTEEN_BIT_HOPPER
    if fusion is not None and fusion.prologue is not None:
        lines = _PROLOGUE_HOPPER + lines
    elif fusion is not None:
        of_parts = _QUANTIZING_PARTS_HOPPER if fusion.block and not fusion.is_row(size) else ()
        lines = of_parts + _QUANTIZING_HOPPER + lines
    for row in lines:
        has_columns = row.groups == groups and row.log2_sizes[0] <= log2_size <= row.log2_sizes[1]
        if has_columns and row.from_tiles <= order_tiles <= row.order_tiles:
            return row
    return None
