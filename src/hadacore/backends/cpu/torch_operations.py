"""The transform in PyTorch operations, for where there is no native library.

Butterflies, after a matrix product where there is a base matrix.

16-bit input is transformed in fp32 and rounded once; float32 and float64 in their own type. Each index bit is one
butterfly ``(a, b) -> (a + b, a - b)``, the same arithmetic as on the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Elements transformed at a time: two fp32 buffers of this many stay in the caches.
_CHUNK_ELEMENTS = 1 << 18
# Index bits below this size are contracted with the elements transposed, see _butterflies: 1.3 to 1.65x less processor
# time than butterflies in natural order at sizes 128 to 32768 (4M elements, float32 and float16, one thread).
_TRANSPOSED_SIZE = 128


def _butterfly(source: Tensor, target: Tensor, run: int) -> None:
    """(a, b) -> (a + b, a - b) for all pairs of runs of ``run`` consecutive elements."""
    pairs, results = source.view(-1, 2, run), target.view(-1, 2, run)
    torch.add(pairs[:, 0], pairs[:, 1], out=results[:, 0])
    torch.sub(pairs[:, 0], pairs[:, 1], out=results[:, 1])


def _butterflies(values: Tensor, size: int) -> Tensor:
    """Transform consecutive blocks of ``size`` elements bit by bit, lowest first; ``values`` is overwritten.

    PyTorch is fast on long contiguous runs only, and the runs of index bit k are 2^k long. So the lowest bits are
    contracted with the matrix of (groups, 128 elements) transposed, where the run of bit k is 2^k times the groups.
    """
    low = min(size, _TRANSPOSED_SIZE)
    groups = values.numel() // low
    spare = torch.empty_like(values)
    spare.view(low, groups).copy_(values.view(groups, low).T)
    values, spare = spare, values
    distance = 1
    while distance < low:
        _butterfly(values, spare, distance * groups)
        values, spare = spare, values
        distance *= 2
    spare.view(groups, low).copy_(values.view(low, groups).T)
    values, spare = spare, values
    while distance < size:
        _butterfly(values, spare, distance)
        values, spare = spare, values
        distance *= 2
    return values


def _base_product(values: Tensor, matrix: Tensor, columns: int) -> Tensor:
    """``matrix`` times each consecutive (order, columns) block, column of the matrix by column of it.

    Not one matrix product: how a BLAS orders its sums depends on how many columns there are, and a row's result must not.
    Product and sum round separately, so that vectors and their remainders round alike.
    """
    order = matrix.shape[0]
    rows = values.view(-1, order, columns).transpose(0, 1).reshape(order, -1)
    result, term = torch.zeros_like(rows), torch.empty_like(rows)
    for i in range(order):
        torch.mul(rows[i], matrix[:, i, None], out=term)
        result += term
    return result.view(order, -1, columns).transpose(0, 1).reshape(-1)


def transform(
    x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, matrix: Tensor | None
) -> None:
    """Write ``scale * H @ (signs * x)`` (with ``inverse``: ``signs * scale * H.T @ x``) by blocks of ``size`` to ``out``."""
    work_dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    columns = size if matrix is None else size // matrix.shape[0]
    if matrix is not None:
        matrix = (matrix.T if inverse else matrix).to(work_dtype)
    blocks = x.shape[-1] // size
    if signs is not None:
        signs = signs.to(work_dtype).view(blocks, size)
    rows = x.reshape(-1, blocks, size)
    result = out.view(rows.shape) if out.is_contiguous() else torch.empty(rows.shape, dtype=out.dtype)
    step = max(1, _CHUNK_ELEMENTS // (blocks * size))
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step]
        values = part.to(work_dtype, copy=True, memory_format=torch.contiguous_format)
        if signs is not None and not inverse:
            values *= signs
        values = values.view(-1)
        if matrix is not None:
            values = _base_product(values, matrix, columns)
        values = _butterflies(values, columns).view(part.shape)
        values *= scale
        if signs is not None and inverse:
            values *= signs
        result[start : start + step].copy_(values)
    if not out.is_contiguous():
        out.copy_(result.view(out.shape))
