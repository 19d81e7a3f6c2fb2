"""The rows of the table: one for each attention recipe, with what the publication measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A way to compute attention.

    Attributes:
        name: Of the recipe in :data:`hadacore.attention.RECIPES`.
        title: What tables call it.
        published: MMLU (5-shot, %) of Llama-3.1-8B in the HadaCore paper, arXiv 2412.08832, table 1; None if it is not there.
    """

    name: str
    title: str
    published: float | None = None


#: What every other row is compared with.
REFERENCE = "fp16"

#: In the order of the table. Rotated rows follow the one they differ from.
ROWS = (
    Row(REFERENCE, "FP16 attention", 65.38),
    Row("fp8", "FP8, no rotation", 64.40),
    Row("fp8_rotated", "FP8 + rotation (hadacore)", 65.09),
    Row("fp8_explicit", "FP8 + explicit Hadamard product, fp32", 65.45),
    Row("fp8_token", "FP8, scale per token, no rotation"),
    Row("fp8_token_rotated", "FP8, scale per token + rotation"),
    Row("int8", "INT8, scale per token, no rotation"),
    Row("int8_rotated", "INT8, scale per token + rotation"),
    Row("int4_kv", "INT4 KV, scale per token, no rotation"),
    Row("int4_kv_rotated", "INT4 KV, scale per token + rotation"),
)

#: Standard error of the published accuracies, in points: sqrt(p (1 - p) / 14042).
PUBLISHED_ERROR = 0.40


def rows_named(names: Sequence[str] | None) -> tuple[Row, ...]:
    """The rows with these names, in the order of the table, and always the reference; all of them for None.

    Raises:
        ValueError: There is no row with a name.

    >>> [row.name for row in rows_named(["int8", "fp8"])]
    ['fp16', 'fp8', 'int8']
    """
    if names is None:
        return ROWS
    known = [row.name for row in ROWS]
    for name in names:
        if name not in known:
            raise ValueError(f"rows must be some of {', '.join(known)}, got {name!r}")
    return tuple(row for row in ROWS if row.name in names or row.name == REFERENCE)
