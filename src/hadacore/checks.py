"""Argument checks of the public functions. Each error says what was got, what is allowed, and what to do."""

from __future__ import annotations

import numbers

import numpy as np
import torch
from torch import Tensor

from hadacore.elements import BY_DTYPE, ELEMENTS
from hadacore.matrices import check_size


def check_input(x: Tensor) -> int:
    """Check that ``x`` is a tensor of a type and shape that can be transformed; return its last dimension."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}; convert it with torch.as_tensor(x)")
    element = BY_DTYPE.get(x.dtype)
    if element is None:
        allowed = ", ".join(e.name for e in ELEMENTS)
        raise TypeError(f"x must be one of {allowed}, got {x.dtype}; convert it with x.to(torch.float32)")
    if element.cuda_code is None and x.device.type not in ("cpu", "meta"):
        raise TypeError(
            f"{element.name} is transformed on the CPU only, got a tensor on {x.device}; "
            "use x.to(torch.float32) or x.cpu()"
        )
    shape = x.shape
    if not shape:
        raise ValueError("x must have at least one dimension, the one to transform; got a 0-dimensional tensor")
    n = shape[-1]
    if n == 0:
        raise ValueError(
            f"the last dimension of x must be a transform size of 1 or more, got shape {tuple(shape)}; only leading "
            "dimensions may be empty"
        )
    return n


def check_block_size(n: int, block_size: int | None) -> int:
    """The transform size for rows of ``n`` elements."""
    if block_size is None:
        return check_size(n)
    size = check_size(block_size)
    if n % size:
        raise ValueError(
            f"block_size must divide the last dimension of x, got block_size={size} and {n} elements; use a divisor, at most "
            f"{n & -n} for a power of two"
        )
    return size


def check_scale(scale: float | None, size: int) -> float:
    """The scale as a float; None is orthonormal."""
    if scale is None:
        return float(size**-0.5)
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        hint = "; use scale.item()" if isinstance(scale, Tensor) else ""
        raise TypeError(f"scale must be a real number or None for 1/sqrt(size), got {type(scale).__name__}{hint}")
    return float(scale)


def check_signs(signs: Tensor | None, x: Tensor) -> Tensor | None:
    """The signs in ``x``'s dtype."""
    if signs is None:
        return None
    if not isinstance(signs, Tensor):
        raise TypeError(f"signs must be a torch.Tensor of +1 and -1, got {type(signs).__name__}")
    if signs.dtype == torch.bool or signs.is_complex():
        raise TypeError(
            f"signs must hold the numbers +1 and -1, got {signs.dtype}; for booleans use 1 - 2 * mask.to(x.dtype)"
        )
    if signs.shape != x.shape[-1:]:
        raise ValueError(
            f"signs must have one entry for each element of the last dimension, shape {tuple(x.shape[-1:])}, got "
            f"{tuple(signs.shape)}"
        )
    if signs.device != x.device:
        raise ValueError(f"signs must be on x's device {x.device}, got {signs.device}; use signs.to(x.device)")
    if signs.requires_grad and torch.is_grad_enabled():
        raise ValueError("signs are not differentiable, got a tensor that requires grad; use signs.detach()")
    return signs if signs.dtype == x.dtype else signs.to(x.dtype)


def check_base(base: object, x: Tensor, block_size: int | None) -> tuple[Tensor, int]:
    """The base matrix, and the transform size for rows like ``x``'s."""
    if isinstance(base, Tensor) and base.device != x.device:
        raise ValueError(f"base must be on x's device {x.device}, got {base.device}; use base.to(x.device)")
    return check_base_matrix(base, x.dtype, x.shape[-1], block_size)


def check_base_matrix(base: object, dtype: torch.dtype, n: int, block_size: int | None) -> tuple[Tensor, int]:
    """The same for rows of ``n`` elements of a type, wherever they are."""
    if not isinstance(base, Tensor):
        raise TypeError(f"base must be a torch.Tensor of shape (m, m), got {type(base).__name__}")
    allowed = (dtype,) if dtype in (torch.float32, torch.float64) else (dtype, torch.float32)
    if base.dtype not in allowed:
        names = " or ".join(map(str, allowed))
        raise TypeError(
            f"base must be {names} for an x of {dtype}, got {base.dtype}; convert it with base.to({allowed[-1]})"
        )
    if base.dim() != 2 or base.shape[0] != base.shape[1] or base.shape[0] < 1:
        raise ValueError(f"base must be a square matrix of shape (m, m), got shape {tuple(base.shape)}")
    order = base.shape[0]
    size = n if block_size is None else block_size
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"block_size must be an integer, got {size!r} of type {type(size).__name__}")
    columns, rest = divmod(size, order)
    if size < 1 or n % size or rest or columns & (columns - 1):
        what = f"x's last dimension {n}" if block_size is None else f"block_size {size} of rows of {n}"
        raise ValueError(
            f"a base of order {order} goes with sizes {order} * 2^k that divide the last dimension of x, got {what}; use "
            f"block_size={_largest_multiple(n, order)}"
            if n % order == 0
            else f"a base of order {order} goes with sizes {order} * 2^k that divide the last dimension of x, got {what}; pass "
            "a base whose order divides it"
        )
    return base, size


def _largest_multiple(n: int, order: int) -> int:
    """The largest ``order * 2^k`` that divides ``n``, a multiple of ``order``."""
    columns = n // order
    return order * (columns & -columns)


def _byte_range(tensor: Tensor) -> tuple[int, int]:
    reach = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (reach + 1) * tensor.element_size()


class _Addresses:
    """A tensor's addresses for NumPy, on whatever device the tensor is; compared, never read."""

    def __init__(self, tensor: Tensor):
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "typestr": f"|V{tensor.element_size()}",
            "data": (tensor.data_ptr(), False),
            "strides": tuple(stride * tensor.element_size() for stride in tensor.stride()),
        }


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether any element of ``a`` lies at an address of an element of ``b``."""
    if a.numel() == 0 or b.numel() == 0 or a.device != b.device:
        return False
    (a_start, a_end), (b_start, b_end) = _byte_range(a), _byte_range(b)
    if a_end <= b_start or b_end <= a_start:
        return False
    return bool(np.shares_memory(np.asarray(_Addresses(a)), np.asarray(_Addresses(b))))


def check_out(x: Tensor, out: Tensor) -> Tensor:
    """``x`` itself if ``out`` is exactly its memory, else ``out``, which then overlaps neither ``x`` nor itself."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a torch.Tensor, got {type(out).__name__}")
    if out.dtype != x.dtype:
        raise TypeError(f"out must have x's dtype {x.dtype}, got {out.dtype}")
    if out.shape != x.shape:
        raise ValueError(f"out must have x's shape {tuple(x.shape)}, got {tuple(out.shape)}")
    if out.device != x.device:
        raise ValueError(f"out must be on x's device {x.device}, got {out.device}")
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise ValueError(
            "out= and in-place transforms record no gradient, got a tensor that requires grad; leave out= away"
        )
    if any(stride == 0 and length > 1 for stride, length in zip(out.stride(), out.shape, strict=True)):
        raise ValueError(
            "out must not overlap itself, got an expanded tensor; use out.contiguous() or torch.empty_like(x)"
        )
    if out is x or torch.compiler.is_compiling() or x.is_meta:
        return out
    if out.data_ptr() == x.data_ptr() and out.stride() == x.stride() and x.numel() > 0:
        return x
    if share_memory(x, out):
        raise ValueError(
            "out overlaps x without being exactly x; pass out=x for an in-place transform, or a tensor with memory of its own"
        )
    return out


def check_base_beside_out(base: Tensor, out: Tensor) -> None:
    """A base must stay as it is while ``out`` is written, and is not differentiated through ``out=``."""
    if torch.is_grad_enabled() and base.requires_grad:
        raise ValueError(
            "out= and in-place transforms record no gradient, got a base that requires grad; leave out= away"
        )
    if not torch.compiler.is_compiling() and not out.is_meta and share_memory(base, out):
        raise ValueError("out overlaps base; pass a tensor with memory of its own")
