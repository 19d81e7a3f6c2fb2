"""What a kernel does besides the transform: which quantizer its epilogue is, as ``-D`` constants of the CUDA text."""

from __future__ import annotations

from dataclasses import dataclass

from hadacore.formats import Quantizer
from hadacore.prologues import SEPARATE, Description, GatedActivation, RMSNorm

# ENCODING and SCALE_TYPE of epilogues/codes.cuh and block_scales.cuh.
_ENCODINGS = {"E4M3": 1, "E5M2": 2, "INT8": 3, "INT4": 4, "E2M1": 5}
_GIVEN_SCALE = 0
_SCALE_TYPES = {"fp32": 1, "E8M0": 2, "E4M3": 3}
_HEAD_SCALES, _GIVEN_HEAD_SCALES = 4, 5
_ROW_MAJOR, _BLOCK_MAJOR, _SWIZZLED = 0, 1, 2

# PROLOGUE and GATED_LAYOUT of prologue.cuh.
_ACTIVATIONS = {"silu": 1, "gelu_tanh": 2, "gelu_erf": 3}
_RMS_NORM, _RMS_NORM_RESIDUAL, _ROPE_HALF, _ROPE_INTERLEAVED = 4, 5, 6, 7
_GATED_LAYOUTS = {SEPARATE: 0, "gate_up": 1, "up_gate": 2}


@dataclass(frozen=True)
class FusedPrologue:
    """A prologue that is part of a kernel.

    Attributes:
        kind: ``PROLOGUE``.
        row: ``ROW_ELEMENTS``: elements of a rotated row.
        gated_layout: ``GATED_LAYOUT``.
        rotary_pairs: ``ROTARY_PAIRS``.
        table_float32: Whether the tables of a rotary embedding are float32.
        position_bytes: Of an entry of the positions.
    """

    kind: int
    row: int
    gated_layout: int = 0
    rotary_pairs: int = 0
    table_float32: bool = False
    position_bytes: int = 8

    @property
    def normalises(self) -> bool:
        """Whether a row's factor is made of all of it."""
        return self.kind in (_RMS_NORM, _RMS_NORM_RESIDUAL)

    @property
    def has_residual(self) -> bool:
        """Whether it reads a tensor that it writes."""
        return self.kind == _RMS_NORM_RESIDUAL

    @property
    def gated(self) -> bool:
        """Whether it is a gated activation."""
        return self.kind in _ACTIVATIONS.values()

    @property
    def rotary(self) -> bool:
        """Whether it is a rotary embedding."""
        return self.kind in (_ROPE_HALF, _ROPE_INTERLEAVED)

    def constants(self) -> dict[str, int]:
        """The ``-D`` constants."""
        return {
            "PROLOGUE": self.kind,
            "ROW_ELEMENTS": self.row,
            "GATED_LAYOUT": self.gated_layout,
            "ROTARY_PAIRS": self.rotary_pairs,
            "TABLE_FLOAT32": int(self.table_float32),
            "POSITION_BYTES": self.position_bytes,
        }


def fused_prologue(
    description: Description, row: int, rotary_pairs: int = 0, table_float32: bool = False, position_bytes: int = 8
) -> FusedPrologue:
    """The prologue of rows of ``row`` elements that a description stands for; the rest is a rotary embedding's."""
    if isinstance(description, GatedActivation):
        return FusedPrologue(_ACTIVATIONS[description.activation], row, _GATED_LAYOUTS[description.layout])
    if isinstance(description, RMSNorm):
        return FusedPrologue(_RMS_NORM_RESIDUAL if description.has_residual else _RMS_NORM, row)
    kind = _ROPE_INTERLEAVED if description.interleaved else _ROPE_HALF
    return FusedPrologue(kind, row, 0, rotary_pairs, table_float32, position_bytes)


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
        heads: ``HEADS``: rows of a token, where a rotary embedding or a scale depends on it; else 1.
        kv_heads: ``KV_HEADS``: groups of them that share a scale.
        clipped: ``CLIPPED``: whether values may lie beyond the largest code.
        global_scale: Whether block scales are relative to a given one.
        stochastic: Whether codes are rounded stochastically.
        prologue: What comes before the transform, or None.
        rotates: ``ROTATES``: whether there is a transform at all; heads of values may be quantized without.
    """

    encoding: int
    scale_type: int
    block: int
    scale_layout: int = _ROW_MAJOR
    scale_columns: int = 0
    heads: int = 1
    kv_heads: int = 1
    clipped: bool = False
    global_scale: bool = False
    stochastic: bool = False
    prologue: FusedPrologue | None = None
    rotates: bool = True

    @property
    def makes_scales(self) -> bool:
        """Whether scales are made of the rows themselves."""
        return self.scale_type in _SCALE_TYPES.values()

    def is_row(self, size: int) -> bool:
        """Whether a whole row shares a scale that is made of it."""
        return self.makes_scales and self.block == size

    def has_parts(self, size: int) -> bool:
        """Whether parts of a row have scales that are made of them."""
        return self.makes_scales and self.block != size

    def shared_end(self, used: int, warps: int, rows: int, blocks: int, parts: int) -> int:
        """Where shared memory ends with the maxima of ``row_maximum.cuh`` after ``used`` bytes.

        Args:
            used: Bytes of shared memory before them.
            warps: Warps of all sets that share rows.
            rows: Rows of a set.
            blocks: Blocks of a cluster.
            parts: Parts of a row whose squares are summed.
        """
        if self.prologue is not None and self.prologue.normalises:
            used = _round_up(used) + 16 * parts
        return _round_up(_round_up(used) + 4 * warps * rows) + 2 * (16 * blocks + 8)

    def constants(self) -> dict[str, int]:
        """The ``-D`` constants."""
        prologue = {} if self.prologue is None else self.prologue.constants()
        return {
            **prologue,
            "ROTATES": int(self.rotates),
            "ENCODING": self.encoding,
            "SCALE_TYPE": self.scale_type,
            "QUANTIZED_BLOCK": self.block,
            "SCALE_LAYOUT": self.scale_layout,
            "SCALE_COLUMNS": max(1, self.scale_columns),
            "HEADS": self.heads,
            "KV_HEADS": self.kv_heads,
            "CLIPPED": int(self.clipped),
            "GLOBAL_SCALE": int(self.global_scale),
            "STOCHASTIC": int(self.stochastic),
        }


def fusion_of_heads(
    quantizer: Quantizer, given: bool, heads: int, kv_heads: int, prologue: FusedPrologue | None, rotates: bool = True
) -> Fusion:
    """What the second pass over queries or keys does: fp32 scales for each (batch, kv head), given or of measured magnitudes."""
    return Fusion(
        _ENCODINGS[quantizer.format.encoding.name],
        _GIVEN_HEAD_SCALES if given else _HEAD_SCALES,
        0,
        heads=heads,
        kv_heads=kv_heads,
        clipped=quantizer.clip_ratio < 1,
        prologue=prologue,
        rotates=rotates,
    )


def fusion_of(
    quantizer: Quantizer, n: int, global_scale: bool, prologue: FusedPrologue | None = None, heads: int = 1
) -> Fusion:
    """What a kernel for a quantizer of rows of ``n`` elements does besides the transform."""
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
        heads,
        1,
        quantizer.clip_ratio < 1,
        global_scale and quantizer.block > 0,
        quantizer.stochastic,
        prologue,
    )


def code_bits(fusion: Fusion) -> int:
    """Bits of a code."""
    return 4 if fusion.encoding in (_ENCODINGS["INT4"], _ENCODINGS["E2M1"]) else 8


def scale_factor(quantizer: Quantizer) -> float:
    """What a kernel multiplies a block's largest magnitude by (``block_scales.cuh``)."""
    return quantizer.clip_factor if quantizer.format.scale_name == "E8M0" else quantizer.amax_factor
