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


def known_bits(found: Factorization, device: torch.device, order: int) -> Tensor:
    """The base as bits, and its transpose, ``(2, words, order)``: word w of a row is of its columns from 32 w on.

    A bit says that an element is -1; columns 2 q and 2 q + 1 of 32 are bits 15 - q and 31 - q. Words are whole for any step.
    """
    key = order, torch.int32, device
    base = _kept.get(key)
    if base is None:
        matrix = known_base(found, torch.float16, torch.device("cpu"), order).numpy() < 0
        signs = np.zeros((2, order, 4 * -(-order // 128), 16, 2), np.int64)
        for target, source in zip(signs, (matrix, matrix.T), strict=True):
            target.reshape(order, -1)[:, :order] = source
        shifts = np.arange(15, -1, -1)[:, None] + np.array([0, 16])[None, :]
        packed = (signs << shifts).sum((3, 4)).astype(np.uint32).view(np.int32)
        base = _kept[key] = _uploaded(torch.from_numpy(packed).mT.contiguous(), found, device)
    return base


def _uploaded(matrix: Tensor, found: Factorization, device: torch.device) -> Tensor:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"the base matrix of size {found.n} is not on {device} yet, and cannot be uploaded while a CUDA graph is "
            "captured; transform a row of this size and type once before the capture"
        )
    return matrix.to(device)


def known_base(found: Factorization, dtype: torch.dtype, device: torch.device, order: int | None = None) -> Tensor:
    """H_m of a factorization in zeros, or with bits of the columns merged into it, ``kron(H_m, Sylvester)`` of ``order``.

    Raises:
        RuntimeError: It would have to be uploaded while a CUDA graph is captured.
    """
    order = order or found.base_order
    key = order, dtype, device
    base = _kept.get(key)
    if base is None:
        matrix = np.asarray(base_matrix(found))
        while matrix.shape[0] < order:
            matrix = np.kron(matrix, np.array([[1, 1], [1, -1]], matrix.dtype))
        base = _kept[key] = in_zeros(_uploaded(torch.tensor(matrix, dtype=dtype), found, device))
    return base
