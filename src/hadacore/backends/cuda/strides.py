"""Finds out how the rows of strided tensors can be addressed by two strides."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RowStrides:
    """Row ``r`` starts at ``(r // inner_rows) * outer + (r % inner_rows) * inner`` elements, for x and for out."""

    inner_rows: int
    x_outer: int
    x_inner: int
    out_outer: int
    out_inner: int

    def arguments(self) -> tuple[int, int, int, int, int]:
        """In the order of the kernel's parameters."""
        return self.inner_rows, self.x_outer, self.x_inner, self.out_outer, self.out_inner


def row_strides(x: Tensor, out: Tensor, size: int) -> RowStrides | None:
    """The two-level strides of the rows of ``size`` elements of ``x`` and ``out``, or None if two do not suffice.

    Two levels cover a slice of a fused projection, a transposed pair of leading dimensions, and a block-diagonal
    transform of rows with gaps.
    """
    if x.stride(-1) != 1 or out.stride(-1) != 1:
        return None
    dimensions = list(zip(x.shape[:-1], x.stride()[:-1], out.stride()[:-1], strict=True))
    dimensions.append((x.shape[-1] // size, size, size))
    merged: list[tuple[int, int, int]] = []
    for length, x_stride, out_stride in dimensions:
        if length == 1:
            continue
        if merged:
            outer_length, outer_x, outer_out = merged[-1]
            if outer_x == x_stride * length and outer_out == out_stride * length:
                merged[-1] = (outer_length * length, x_stride, out_stride)
                continue
        merged.append((length, x_stride, out_stride))
    if len(merged) > 2:
        return None
    if not merged:
        return RowStrides(1, 0, 0, 0, 0)
    if len(merged) == 1:
        length, x_stride, out_stride = merged[0]
        return RowStrides(length, 0, x_stride, 0, out_stride)
    (_, outer_x, outer_out), (length, inner_x, inner_out) = merged
    return RowStrides(length, outer_x, inner_x, outer_out, inner_out)
