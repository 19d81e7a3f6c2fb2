"""Sizes ``m * 2^k`` whose base, with the column bits that a warp cannot hold merged into it, would be too large.

``H_m (x) H_A (x) H_C`` is applied as ``H_m (x) H_C`` on rows with the index of A in front, then ``H_A`` on rows with it last, in
float32, with transposed copies between them: several passes over memory, for rows of hundreds of thousands of elements.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hadacore.kernels.base_configurations import LARGEST_ORDER, MAXIMUM_LOG2_COLUMNS

Transform = Callable[[Tensor, Tensor, int, float, Tensor | None, bool, Tensor | None], None]


def is_composed(order: int, log2_columns: int) -> bool:
    """Whether a size ``order * 2^log2_columns`` takes several passes.

    Raises:
        ValueError: The base alone is larger than the kernel takes.
    """
    if order > LARGEST_ORDER:
        raise ValueError(
            f"the CUDA backend takes base matrices up to order {LARGEST_ORDER}, got order {order}; use a block_size with a "
            "smaller one (hadacore.describe names it), or the CPU"
        )
    return order << max(0, log2_columns - MAXIMUM_LOG2_COLUMNS) > LARGEST_ORDER


def transform_composed(
    transform: Transform, x: Tensor, out: Tensor, order: int, log2_columns: int, scale: float, signs: Tensor | None,
    inverse: bool, base: Tensor | None,
) -> None:  # fmt: skip
    """Write the transform of ``x`` by blocks of ``order * 2^log2_columns`` to ``out``, by ``transform`` of smaller sizes."""
    columns = 1 << MAXIMUM_LOG2_COLUMNS
    outer = (1 << log2_columns) // columns
    values = x.float() if signs is None or inverse else x.float() * signs.float()
    rows = values.reshape(-1, order, outer, columns).transpose(1, 2).contiguous()
    flat = rows.view(-1, order * columns)
    transform(flat, flat, order * columns, 1.0, None, inverse, None if base is None else base.float())
    last = rows.view(-1, outer, order * columns).transpose(1, 2).contiguous()
    transform(last, last, outer, scale, None, False, None)
    result = last.view(-1, order, columns, outer).transpose(2, 3).reshape(x.shape)
    if signs is not None and inverse:
        result = result * signs.float()
    out.copy_(result)
