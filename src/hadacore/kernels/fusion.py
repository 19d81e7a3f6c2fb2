"""What a kernel does besides the transform: which quantizer its epilogue is, as ``-D`` constants of the CUDA text."""

from __future__ import annotations

from dataclasses import dataclass

from hadacore.formats import Quantizer

# ENCODING and SCALE_TYPE of epilogues/codes.cuh and block_scales.cuh.
_ENCODINGS = {"E4M3": 1, "E5M2": 2, "INT8": 3, "INT4": 4, "E2M1": 5}
_GIVEN_SCALE = 0
_SCALE_TYPES = {"fp32": 1, "E8M0": 2, "E4M3": 3}
_ROW_MAJOR, _BLOCK_MAJOR, _SWIZZLED = 0, 1, 2


def _round_up(shared_bytes: int) -> int:
    """To where a 16-byte access may begin."""
    return -(-shared_bytes // 16) * 16


@dataclass(frozen=True)
class Fusion:
    """An epilogue that quantizes.

    Attributes:
        encoding: ``ENCODING``: how a code is written.
        scale_type: ``SCALE_TYPE``: 0 where the scale is given, else the type of the scales that are made.
        block: ``QUANTIZED_BLOCK``: consecutive elements that share a scale; 0 where it is given.
        scale_layout: ``SCALE_LAYOUT``: row by row, block by block, or swizzled.
        scale_columns: ``SCALE_COLUMNS``: scales of a row, where the layout depends on them; else 0.
        clipped: ``CLIPPED``: whether values may lie beyond the largest code.
        global_scale: Whether block scales are relative to a given one.
        stochastic: Whether codes are rounded stochastically.
    """

    encoding: int
    scale_type: int
    block: int
    scale_layout: int = _ROW_MAJOR
    scale_columns: int = 0
    clipped: bool = False
    global_scale: bool = False
    stochastic: bool = False

    def is_row(self, size: int) -> bool:
        """Whether a whole row shares a scale that is made of it."""
        return self.scale_type != _GIVEN_SCALE and self.block == size

    def shared_end(self, used: int, warps: int, rows: int, blocks: int) -> int:
        """Where shared memory ends with the maxima of ``row_maximum.cuh`` after ``used`` bytes.

        Args:
            used: Bytes of shared memory before them.
            warps: Warps of all sets that share rows.
            rows: Rows of a set.
            blocks: Blocks of a cluster.
        """
        return _round_up(_round_up(used) + 4 * warps * rows) + 2 * (16 * blocks + 8)

    def constants(self) -> dict[str, int]:
        """The ``-D`` constants."""
        return {
            "ENCODING": self.encoding,
            "SCALE_TYPE": self.scale_type,
            "QUANTIZED_BLOCK": self.block,
            "SCALE_LAYOUT": self.scale_layout,
            "SCALE_COLUMNS": max(1, self.scale_columns),
            "CLIPPED": int(self.clipped),
            "GLOBAL_SCALE": int(self.global_scale),
            "STOCHASTIC": int(self.stochastic),
        }


def fusion_of(quantizer: Quantizer, n: int, global_scale: bool) -> Fusion:
    """The epilogue for a quantizer of rows of ``n`` elements."""
    format = quantizer.format
    layout = _ROW_MAJOR
    if quantizer.swizzled:
        layout = _SWIZZLED
    elif quantizer.block and format.is_block_major(n // quantizer.block):
        layout = _BLOCK_MAJOR
    return Fusion(
        _ENCODINGS[format.encoding.name],
        _SCALE_TYPES[format.scale_name] if quantizer.block else _GIVEN_SCALE,
        quantizer.block,
        layout,
        0 if layout == _ROW_MAJOR else n // quantizer.block,
        quantizer.clip_ratio < 1,
        global_scale and quantizer.block > 0,
        quantizer.stochastic,
    )


def scale_factor(quantizer: Quantizer) -> float:
    """What a kernel multiplies a block's largest magnitude by (``block_scales.cuh``)."""
    return quantizer.clip_factor if quantizer.format.scale_name == "E8M0" else quantizer.amax_factor
