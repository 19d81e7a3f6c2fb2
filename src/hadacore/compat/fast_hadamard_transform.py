"""``from hadacore.compat.fast_hadamard_transform import hadamard_transform``, and ``hadamard_transform_12N`` to ``_40N``.

The signatures and semantics of ``fast_hadamard_transform`` 1.0 and 1.1: not normalised, and a dimension that the transform
does not have is padded with zeros. Where the original is no linear map or not differentiated as one, this is:
``docs/migration.md`` lists the differences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.checks import check_input
from hadacore.compat.bases import base_matrix
from hadacore.functional import hadamard_transform as _hadamard_transform
from hadacore.matrices import MAXIMUM_SIZE

__all__ = [
    "base_matrix",
    "hadamard_transform",
    "hadamard_transform_12N",
    "hadamard_transform_20N",
    "hadamard_transform_28N",
    "hadamard_transform_40N",
]

_LARGEST = MAXIMUM_SIZE
_COLUMNS = (4, 1024)  # fewest and most columns beside a base matrix

_BASES: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    r"""Multiply each row of ``x`` by the Hadamard matrix of the next power of two, and by ``scale``.

    .. math:: y = \mathrm{scale} \cdot (H_N \, \mathrm{pad}_N(x))_{0 \ldots n-1}, \qquad N = 2^{\lceil \log_2 n \rceil}

    A padded transform is not orthogonal: it cannot be undone, and does not preserve norms.
    :func:`hadacore.hadamard_transform` raises an error there instead.

    Args:
        x: ``(..., n)``, float16, bfloat16, float32 (float64 on the CPU), ``n`` at most 2^30 (32768 in the original).
        scale: Factor of the result; 1.0, not orthonormal, by default.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        TypeError: ``x`` is no tensor of such a type.
        ValueError: ``x`` has no dimension, or one that is empty or larger than 2^30.

    >>> hadamard_transform(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [6.0, 2.0, 0.0]
    """
    n = check_input(x)
    if n > _LARGEST:
        raise ValueError(f"the last dimension of x may have at most {_LARGEST} elements, got {n}")
    return _padded(x, scale, 1 << (n - 1).bit_length(), None)


def hadamard_transform_12N(x: Tensor, scale: float = 1.0) -> Tensor:
    r"""Multiply each row of ``x`` by :math:`B_{12} \otimes H_{2^k}`, and by ``scale``.

    .. math:: y = \mathrm{scale} \cdot ((B_{12} \otimes H_{2^k}) \, \mathrm{pad}(x))_{0 \ldots n-1}

    with :math:`B_{12}` = :func:`base_matrix` ``(12)``, H Sylvester's matrix, and the smallest k of 2 to 10 for which
    :math:`12 \cdot 2^k \ge n`. Where n is smaller than that, x is padded with zeros and the transform is not orthogonal;
    so it is at 12 and 24, which are padded to 48 (:func:`hadacore.hadamard_transform` with ``base=`` pads nothing).

    Args:
        x: ``(..., n)``, float16, bfloat16, float32 (float64 on the CPU), ``n`` at most 12288.
        scale: Factor of the result; 1.0, not orthonormal, by default.

    Returns:
        A tensor of x's shape and dtype. Its gradient is by the transposed matrix.

    Raises:
        TypeError: ``x`` is no tensor of such a type.
        ValueError: ``x`` has no dimension, or one that is empty or larger than 12288.

    >>> hadamard_transform_12N(torch.eye(48))[0, :24:4].tolist()
    [1.0, -1.0, 1.0, 1.0, 1.0, 1.0]
    """
    return _with_base(12, x, scale)


def hadamard_transform_20N(x: Tensor, scale: float = 1.0) -> Tensor:
    r"""As :func:`hadamard_transform_12N`, with :math:`B_{20}`, which is not symmetric, and ``n`` at most 20480.

    >>> x = torch.randn(2, 80)
    >>> y = hadamard_transform_20N(x, 80**-0.5)
    >>> torch.allclose(y.norm(dim=-1), x.norm(dim=-1))
    True
    """
    return _with_base(20, x, scale)


def hadamard_transform_28N(x: Tensor, scale: float = 1.0) -> Tensor:
    r"""As :func:`hadamard_transform_12N`, with :math:`B_{28}`, which is not symmetric, and ``n`` at most 28672.

    >>> x = torch.randn(2, 112)
    >>> y = hadamard_transform_28N(x, 112**-0.5)
    >>> torch.allclose(y.norm(dim=-1), x.norm(dim=-1))
    True
    """
    return _with_base(28, x, scale)


def hadamard_transform_40N(x: Tensor, scale: float = 1.0) -> Tensor:
    r"""As :func:`hadamard_transform_12N`, with :math:`B_{40}`, which is not symmetric, and ``n`` at most 40960.

    >>> x = torch.randn(2, 160)
    >>> y = hadamard_transform_40N(x, 160**-0.5)
    >>> torch.allclose(y.norm(dim=-1), x.norm(dim=-1))
    True
    """
    return _with_base(40, x, scale)


def _with_base(order: int, x: Tensor, scale: float) -> Tensor:
    n = check_input(x)
    fewest, most = _COLUMNS
    if n > order * most:
        raise ValueError(
            f"the last dimension of x may have at most {order * most} elements for hadamard_transform_{order}N, got {n}; use "
            f"hadacore.hadamard_transform(x, scale, base=base_matrix({order}))"
        )
    columns = max(fewest, 1 << (-(-n // order) - 1).bit_length())
    return _padded(x, scale, order * columns, _base(order, x.dtype, x.device))


def _padded(x: Tensor, scale: float, size: int, base: Tensor | None) -> Tensor:
    n = x.shape[-1]
    if size == n:
        return _hadamard_transform(x, scale, base=base)
    return _hadamard_transform(torch.nn.functional.pad(x, (0, size - n)), scale, base=base)[..., :n]


@torch.compiler.assume_constant_result
def _base(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The base matrix, made once for each type and device."""
    key = (order, dtype, device)
    base = _BASES.get(key)
    if base is None:
        with torch.inference_mode(False):
            base = base_matrix(order, dtype=dtype, device=device)
        if type(base) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(base):  # outlives this call
            _BASES[key] = base
    return base
