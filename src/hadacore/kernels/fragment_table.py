"""The sizes ``m * 2^k`` for which ``fragment_rows.cu`` is the faster kernel, and how it runs them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """How rows of a size run.

    Attributes:
        merge: Column bits that are merged into the base.
        warps: Of a block.
        minimum_blocks: Of a multiprocessor.
    """

    merge: int
    warps: int
    minimum_blocks: int


# Times are over a copy of the same bytes on one H200, cold, bfloat16, at 2^25; 2^23 elements, by ``base_rows.cu`` (1536 by
# ``warpgroup_rows.cu``) -> here: 80 1.19; 1.20 -> 1.08; 1.06, 112 1.17; 1.20 -> 1.06; 1.05, 144 1.23; 1.41 -> 1.07; 1.08,
# 160 1.09; 1.08 -> 1.06; 1.04, 176 1.19; 1.33 -> 1.07; 1.06, 208 1.34; 1.44 -> 1.10; 1.11, 240 1.40; 1.48 -> 1.09; 1.09,
# 320 1.36; 1.39 -> 1.08; 1.06, 384 1.32; 1.34 -> 1.05; 1.01, 416 1.21; 1.24 -> 1.12; 1.11, 448 1.17; 1.22 -> 1.06; 1.04,
# 480 1.28; 1.30 -> 1.09; 1.07, 576 1.20; 1.21 -> 1.07; 1.06, 640 1.09; 1.19 -> 1.06; 1.04, 704 1.19; 1.19 -> 1.05; 1.04,
# 768 1.13; 1.13 -> 1.04; 1.01, 832 1.18; 1.16 -> 1.07; 1.07, 896 1.13; 1.16 -> 1.06; 1.01, 960 1.18; 1.14 -> 1.07; 1.05,
# 1152 1.11; 1.16 -> 1.07; 1.08, 1280 1.23; 1.23 -> 1.05; 1.05, 1408 1.05; 1.07 -> 1.05; 1.05, 1536 1.11; 1.10 -> 1.05; 1.04,
# 1792 1.12; 1.15 -> 1.07; 1.09. Not where it is slower: 48, 96, 192, 224, 288, 352, 1664, 1920, by 1 to 17 %.
PLAIN: dict[tuple[int, int], Line] = {  # by order and column bits
    (12, 5): Line(0, 4, 10),
    (12, 6): Line(1, 4, 5),
    (12, 7): Line(2, 4, 3),
    (20, 2): Line(0, 8, 5),
    (20, 3): Line(0, 8, 3),
    (20, 4): Line(0, 8, 5),
    (20, 5): Line(0, 4, 5),
    (20, 6): Line(1, 4, 3),
    (28, 2): Line(0, 8, 4),
    (28, 4): Line(0, 8, 4),
    (28, 5): Line(0, 4, 6),
    (28, 6): Line(1, 4, 2),
    (36, 2): Line(0, 8, 3),
    (36, 4): Line(0, 8, 3),
    (36, 5): Line(0, 4, 3),
    (44, 2): Line(0, 8, 3),
    (44, 4): Line(0, 8, 3),
    (44, 5): Line(0, 4, 3),
    (52, 2): Line(0, 4, 4),
    (52, 3): Line(0, 4, 3),
    (52, 4): Line(0, 4, 4),
    (60, 2): Line(0, 4, 4),
    (60, 3): Line(0, 4, 3),
    (60, 4): Line(0, 4, 4),
}
