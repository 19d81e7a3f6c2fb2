"""Where a scale lies in memory.

Plain scales are row-major ``(rows, blocks)``, but for one: FP8 scales of 1x128 blocks are stored block by block, stride
``(1, rows)``, as ``torch.nn.functional.scaled_mm`` takes them. MXFP8, MXFP4 and NVFP4 scales may be swizzled: tiles of
128 rows by 4 blocks, 512 bytes each, in the order that block-scaled Tensor Core products load them.

Source: NVIDIA cuBLAS documentation, scaling factors layout of 1D block scaling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.formats import Format

TILE_ROWS = 128
TILE_COLUMNS = 4


def swizzled_size(rows: int, columns: int) -> int:
    """Entries of the swizzled buffer of ``(rows, columns)`` scales: both rounded up, to 128 and 4."""
    return -(-rows // TILE_ROWS) * TILE_ROWS * (-(-columns // TILE_COLUMNS) * TILE_COLUMNS)


def swizzle(scales: Tensor) -> Tensor:
    """``(rows, columns)`` one-byte scales in the 32x4x4 order, as one dimension of ``swizzled_size`` entries.

    The scale of row r and column c lies at ``((r // 128) * ncb + c // 4) * 512 + (r % 32) * 16 + ((r % 128) // 32) * 4 +
    c % 4``, with ``ncb = ceil(columns / 4)``. Entries beyond the matrix are zero bytes.
    """
    rows, columns = scales.shape
    row_tiles, column_tiles = -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)
    padded = scales.new_zeros((row_tiles * TILE_ROWS, column_tiles * TILE_COLUMNS), dtype=torch.uint8)
    padded[:rows, :columns] = scales.view(torch.uint8)
    tiles = padded.view(row_tiles, 4, 32, column_tiles, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(-1).view(scales.dtype)


def unswizzle(swizzled: Tensor, rows: int, columns: int) -> Tensor:
    """Undo :func:`swizzle`."""
    row_tiles, column_tiles = -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)
    tiles = swizzled.view(torch.uint8).view(row_tiles, column_tiles, 32, 4, 4).permute(0, 3, 2, 1, 4)
    padded = tiles.reshape(row_tiles * TILE_ROWS, column_tiles * TILE_COLUMNS)
    return padded[:rows, :columns].contiguous().view(swizzled.dtype)


def block_major(scales: Tensor) -> Tensor:
    """``(rows, blocks)`` with stride ``(1, rows)``."""
    return scales.new_empty((scales.shape[1], scales.shape[0])).copy_(scales.t()).t()


def clear_padding(scales: Tensor, count: int) -> None:
    """Make the padding of an uninitialised swizzled buffer zeros; without any, each of its ``count`` bytes gets written."""
    if scales.numel() > count:
        scales.view(torch.uint8).zero_()


def new_outputs(x: Tensor, n: int, format: Format, block: int, swizzled: bool) -> tuple[Tensor, Tensor]:
    """Uninitialised codes and scales of rows of ``n`` rotated values with x's leading dimensions, on its device."""
    codes = x.new_empty((*x.shape[:-1], n // format.packed), dtype=format.codes_dtype)
    if block == 0:
        return codes, x.new_empty((), dtype=torch.float32)
    rows, blocks = x.numel() // x.shape[-1], n // block
    if swizzled:
        return codes, x.new_empty((swizzled_size(rows, blocks),), dtype=format.scale_dtype)
    if format.is_block_major(blocks):
        return codes, x.new_empty((blocks, rows), dtype=format.scale_dtype).t()
    return codes, x.new_empty((rows, blocks), dtype=format.scale_dtype)
