"""The sizes ``m * 2^k`` for which ``warpgroup_rows.cu`` is the faster kernel, by what follows, and how it runs them.

Times are over a copy of the same bytes on one H200, cold, at 2^25; 2^23 elements, by ``base_rows.cu`` -> here.
"""

from __future__ import annotations

from dataclasses import dataclass

from hadacore.kernels.fusion import Fusion, code_bits


@dataclass(frozen=True)
class Line:
    """How rows of a size run.

    Attributes:
        merge: Column bits that are merged into the base.
        warpgroups: Of a block, where rows are many.
        minimum_blocks: Of a multiprocessor, likewise.
        order_splits: Blocks that share the result rows of the base where rows are few.
        column_splits: Blocks that share the columns then.
        overlap: As of ``WarpgroupConfiguration``.
        refilled: As of ``WarpgroupConfiguration``.
        sharing: Blocks that share the columns even where rows are many.
        producers: As of ``WarpgroupConfiguration``, where rows are many; where they are few, a gated activation has three.
    """

    merge: int
    warpgroups: int
    minimum_blocks: int
    order_splits: int = 1
    column_splits: int = 1
    overlap: bool = False
    refilled: bool = False
    sharing: int = 1
    producers: int = 0


Table = dict[tuple[int, int], Line]  # by order and column bits

# float16: 2304 1.12; 1.15 -> 1.06; 1.06, 2560 1.09; 1.18 -> 1.04; 1.06, 3072 1.05; 1.15 -> 1.04; 1.07,
# 4608 1.12; 1.28 -> 1.07; 1.16, 4864 1.09; 1.26 -> 1.07; 1.19, 5120 1.09; 1.17 -> 1.09; 1.10, 9216 1.17; 1.34 -> 1.13; 1.27,
# 18432 1.24; 1.45 -> 1.19; 1.43, 20480 1.24; 1.53 -> 1.17; 1.50.
PLAIN: Table = {
    (12, 8): Line(2, 1, 6, 3),
    (20, 7): Line(1, 1, 7, 5),
    (20, 8): Line(2, 1, 4, 5),
    (20, 10): Line(1, 2, 2, column_splits=8),
    (36, 6): Line(0, 1, 7, 5),
    (36, 7): Line(1, 1, 4, 3),
    (36, 8): Line(1, 1, 2, 3, 2, overlap=True),
    (36, 9): Line(0, 1, 2, column_splits=8),
    (76, 6): Line(0, 1, 4, 5),
}

# FP8 with a scale for each row, or a given one, bfloat16, by two parts and by 11 bits: 2560 1.24; 1.26 -> 1.10; 1.27,
# 3072 1.17; 1.23 -> 1.08; 1.21, 3584 1.16; 1.24 -> 1.11; 1.26, 4864 1.30; 1.47 -> 1.21; 1.42, 5120 1.14; 1.21 -> 1.08; 1.18,
# 5632 1.18; 1.35 -> 1.10; 1.25, 6144 1.08; 1.27 -> 1.05; 1.18, 7168 1.17; 1.27 -> 1.12; 1.18, 9216 1.31; 1.50 -> 1.14; 1.41,
# 14336 1.25; 1.64 -> 1.16; 1.46, 28672 1.59; 2.03 -> 1.42; 1.73. 3584 was base_rows.cu's.
EIGHT_BITS: Table = {
    (12, 8): Line(2, 1, 6),
    (12, 9): Line(1, 1, 4, column_splits=2),
    (20, 7): Line(1, 1, 7),
    (20, 8): Line(1, 1, 4, column_splits=2),
    (28, 7): Line(1, 1, 5),
    (28, 8): Line(0, 1, 3, column_splits=2),
    (28, 9): Line(1, 1, 2, column_splits=4),
    (28, 10): Line(1, 1, 2, column_splits=8, refilled=True, sharing=2),
    (36, 7): Line(0, 1, 4, column_splits=2),
    (36, 8): Line(0, 1, 3, column_splits=2),
    (44, 7): Line(0, 1, 4, column_splits=2),
    (76, 6): Line(0, 1, 4, refilled=True),
}

# 8-bit codes with a scale for parts of a row; MXFP8: 2560 1.41; 1.49, 3072 1.31; 1.38, 3584 1.35; 1.41, 5120 1.27; 1.35,
# 6144 1.20; 1.35, 7168 1.32; 1.41, 9216 1.41; 1.62, 14336 1.44; 1.65, 28672 1.72; 2.10.
EIGHT_BITS_PARTS: Table = {
    (12, 8): Line(2, 1, 6, refilled=True),
    (12, 9): Line(1, 1, 4, column_splits=2),
    (20, 7): Line(1, 1, 7, refilled=True),
    (20, 8): Line(1, 1, 4),
    (28, 7): Line(1, 1, 5),
    (28, 8): Line(1, 1, 3),
    (28, 9): Line(1, 1, 2, column_splits=2),
    (28, 10): Line(1, 1, 2, column_splits=8, refilled=True, sharing=2),
    (36, 7): Line(0, 1, 4),
    (36, 8): Line(0, 1, 3),
    (44, 7): Line(0, 1, 4),
    (76, 6): Line(0, 1, 4, refilled=True),
}

# 4-bit codes; NVFP4, bfloat16: 5120 2.25; 2.15, 6144 2.16; 2.07, 7168 2.36; 2.20, 9216 2.51; 2.55, 14336 2.47; 2.42,
# 28672 2.78; 3.11 -> 2.73; 2.73.
FOUR_BITS: Table = {
    (12, 9): Line(1, 1, 4),
    (20, 8): Line(1, 1, 4),
    (28, 8): Line(1, 1, 3),
    (28, 9): Line(1, 1, 2, column_splits=2),
    (28, 10): Line(1, 1, 2, column_splits=4, refilled=True, sharing=2),
    (36, 7): Line(0, 1, 4),
    (36, 8): Line(1, 1, 2),
    (44, 7): Line(0, 1, 4),
}

# After a gated activation, which goes to the columns in 11 bits too; silu_mul and FP8 with a scale for each row, bfloat16:
# 2560 1.34; 1.43 -> 1.32; 1.40, 3072 1.26; 1.33 -> 1.22; 1.30, 3584 1.35; 1.43 -> 1.29; 1.37,
# 5120 1.28; 1.39 -> 1.21; 1.35, 5632 1.32; 1.47, 6144 1.23; 1.46 -> 1.21; 1.49,
# 7168 1.34; 1.45 -> 1.26; 1.41, 9216 1.44; 1.70 -> 1.42; 1.70, 14336 1.57; 2.02 -> 1.45; 1.87, 28672 2.08; 2.67 -> 1.86; 2.55.
GATED: Table = {
    (12, 8): Line(2, 1, 5, refilled=True),
    (12, 9): Line(1, 1, 4, column_splits=2, refilled=True),
    (20, 7): Line(1, 1, 5, refilled=True),
    (20, 8): Line(1, 1, 4, column_splits=2, refilled=True),
    (28, 7): Line(0, 1, 5, refilled=True),
    (28, 8): Line(1, 1, 3, column_splits=2, refilled=True),
    (28, 9): Line(1, 1, 2, column_splits=4, refilled=True),
    (28, 10): Line(1, 2, 1, column_splits=8, refilled=True, producers=2),
    (36, 7): Line(1, 1, 3, refilled=True),
    (36, 8): Line(1, 1, 2, column_splits=2, refilled=True),
    (44, 7): Line(0, 1, 3, column_splits=2, refilled=True),
    (76, 6): Line(0, 1, 3, refilled=True),
}


def line_of(order: int, log2_columns: int, fusion: Fusion | None) -> Line | None:
    """How rows of ``order * 2^log2_columns`` run; None where ``base_rows.cu`` is faster."""
    if fusion is None:
        table = PLAIN
    elif fusion.prologue is not None:
        table = GATED
    elif code_bits(fusion) == 4:
        table = FOUR_BITS
    else:
        table = EIGHT_BITS_PARTS if fusion.has_parts(order << log2_columns) else EIGHT_BITS
    return table.get((order, log2_columns))
