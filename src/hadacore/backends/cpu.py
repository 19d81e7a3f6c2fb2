"""The CPU backend: butterflies in PyTorch operations.

16-bit input is transformed in fp32 and rounded once; float32 and float64 in their own type. Each index bit is one
butterfly ``(a, b) -> (a + b, a - b)``, the same arithmetic as on the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.backends import Support

# Elements transformed at a time. Two fp32 buffers of this many stay in a 2 MiB second-level cache: 3.6x faster than
# whole-tensor passes at size 4096 on 4M elements, 2 cores.
_CHUNK_ELEMENTS = 1 << 17


def support(device: torch.device | None = None) -> Support:
    """The CPU backend always runs."""
    return Support(True, f"PyTorch operations, {torch.get_num_threads()} threads")


def _butterflies(values: Tensor, spare: Tensor, size: int) -> Tensor:
    """Transform the rows of ``values`` (rows, size) bit by bit, going back and forth between two buffers."""
    distance = 1
    while distance < size:
        source = values.view(-1, size // (2 * distance), 2, distance)
        target = spare.view_as(source)
        a, b = source[:, :, 0], source[:, :, 1]
        torch.add(a, b, out=target[:, :, 0])
        torch.sub(a, b, out=target[:, :, 1])
        values, spare = spare, values
        distance *= 2
    return values


def _check_signs(signs: Tensor) -> None:
    if not bool((signs.abs() == 1).all()):
        wrong = signs[signs.abs() != 1][0].item()
        raise ValueError(f"signs must hold only +1 and -1, got {wrong}; pass torch.sign(...) of a tensor without zeros")


def transform(x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool) -> None:
    """Write ``scale * H @ (signs * x)`` (with ``inverse``: ``signs * scale * H.T @ x``) by blocks of ``size`` to ``out``."""
    if x.numel() == 0:
        return
    work_dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    blocks = x.shape[-1] // size
    if signs is not None:
        _check_signs(signs)
        signs = signs.to(work_dtype).view(blocks, size)
    rows = x.reshape(-1, blocks, size)
    result = out.view(rows.shape) if out.is_contiguous() else torch.empty(rows.shape, dtype=out.dtype)
    step = max(1, _CHUNK_ELEMENTS // (blocks * size))
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step]
        values = part.to(work_dtype, copy=True, memory_format=torch.contiguous_format)
        if signs is not None and not inverse:
            values *= signs
        values = _butterflies(values, torch.empty_like(values), size).view(part.shape)
        values *= scale
        if signs is not None and inverse:
            values *= signs
        result[start : start + step].copy_(values)
    if not out.is_contiguous():
        out.copy_(result.view(out.shape))
