r"""Errors, in units of the error of correct rounding.

With :math:`r` the transform in float64 and :math:`\mathrm{rd}` rounding to the output type,

.. math:: \frac{\lVert y - r \rVert_2}{\lVert \mathrm{rd}(r) - r \rVert_2}

is 1 for a perfect result. The published kernel's is 1.5 to 2.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hadacore.matrices import factor, hadamard_matrix

_SPLIT = 256  # sizes above are transformed as a product of smaller matrices, which is as exact and much faster


def exact_transform(x: Tensor, scale: float | None = None) -> Tensor:
    """The transform of the last dimension in float64, by its definition: products with the matrix.

    Uses :math:`H_{ab} = H_a \\otimes H_b`, the base matrix and one factor of at most 256 at a time.
    """
    n = x.shape[-1]
    order, columns = factor(n).base_order, 1 << factor(n).log2
    values, inner = x.double(), 1
    while inner < n:
        outer = min(columns // inner, _SPLIT) if inner < columns else order
        values = values.reshape(x.numel() // (outer * inner), outer, inner)
        matrix = hadamard_matrix(outer, dtype=torch.float64, device=x.device)
        values = matrix @ values if inner > 1 else values.squeeze(2) @ matrix.T
        inner *= outer
    return values.reshape(x.shape) * (n**-0.5 if scale is None else scale)


def relative_error(y: Tensor, exact: Tensor) -> float:
    """``||y - exact|| / ||exact||`` in float64; the absolute error where ``exact`` is zero."""
    exact = exact.double()
    norm = float(exact.norm())
    difference = float((y.double() - exact).norm())
    return difference / norm if norm else difference


def error_ratio(y: Tensor, exact: Tensor) -> float:
    """The error of ``y`` divided by that of rounding ``exact`` to ``y``'s type.

    Where ``exact`` is representable, 1 if ``y`` is right and infinity if it is not.
    """
    rounding = relative_error(exact.to(y.dtype), exact)
    error = relative_error(y, exact)
    if rounding:
        return error / rounding
    return math.inf if error else 1.0
