"""``import hadacore.compat.faster_hadamard_transform as faster_hadamard_transform``.

The signature and semantics of the extension published with HadaCore (arXiv 2412.08832): orthonormal, and in place on
request.
"""

from __future__ import annotations

from torch import Tensor

from hadacore.functional import hadamard_transform as _hadamard_transform

__all__ = ["hadamard_transform"]


def hadamard_transform(x: Tensor, inplace: bool = False) -> Tensor:
    r"""Orthonormal Walsh-Hadamard transform of the last dimension, :math:`y = n^{-1/2} H x`.

    Args:
        x: ``(..., n)``, float16 or bfloat16 (and, unlike the original, float32), ``n`` a power of two up to 2^30.
        inplace: Write the result over ``x`` and return ``x``.

    Returns:
        ``x`` itself, or a tensor of its shape and dtype.

    Raises:
        TypeError, ValueError: As :func:`hadacore.hadamard_transform`.

    >>> import torch
    >>> hadamard_transform(torch.tensor([3.0, 1.0, 0.0, 0.0])).tolist()
    [2.0, 1.0, 2.0, 1.0]
    """
    return _hadamard_transform(x, out=x if inplace else None)
