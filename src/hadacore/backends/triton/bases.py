"""The library's base matrices on a device, one small tensor for each matrix and type, kept."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from hadacore.matrices import Factorization, factor
from hadacore.matrices.orders import base_matrix

_kept: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def padded(order: int) -> int:
    """Rows and columns that kernels read of a base."""
    return -(-order // 16) * 16


def in_zeros(base: Tensor) -> Tensor:
    """A base that lies in zeros up to :func:`padded` of its order, to be read 16 bytes at a time, transposed or not."""
    order = base.shape[0]
    if order == padded(order):
        return base
    stored = base.new_zeros(padded(order), padded(order))
    stored[:order, :order] = base
    return stored[:order, :order]


@functools.lru_cache(maxsize=64)
def base_bits(order: int) -> int:
    """H_m of order m as an integer whose bit ``i * m + k`` says that element (i, k) is -1. The inverse takes the same bits.

    Raises:
        ValueError: H_m is not symmetric.
    """
    found = factor(order)
    if not found.symmetric:
        raise ValueError(f"order must be that of a symmetric base matrix, got {order}")
    return sum(1 << int(position) for position in np.flatnonzero(np.asarray(base_matrix(found)) < 0))


def known_base(found: Factorization, dtype: torch.dtype, device: torch.device, order: int | None = None) -> Tensor:
    """H_m of a factorization in zeros, or with bits of the columns merged into it, ``kron(H_m, Sylvester)`` of ``order``.

    Raises:
        RuntimeError: It would have to be uploaded while a CUDA graph is captured.
    """
    order = order or found.base_order
    key = order, dtype, device
    base = _kept.get(key)
    if base is None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"the base matrix of size {found.n} is not on {device} yet, and cannot be uploaded while a CUDA graph is "
                "captured; transform a row of this size and type once before the capture"
            )
        matrix = np.asarray(base_matrix(found))
        while matrix.shape[0] < order:
            matrix = np.kron(matrix, np.array([[1, 1], [1, -1]], matrix.dtype))
        base = _kept[key] = in_zeros(torch.tensor(matrix, dtype=dtype).to(device))
    return base
