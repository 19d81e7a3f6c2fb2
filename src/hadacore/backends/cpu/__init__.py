"""The CPU backend: native kernels where they were built, else PyTorch operations."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hadacore.backends import Capabilities, Support
from hadacore.backends.cpu import native, quantized, torch_operations
from hadacore.elements import ELEMENTS
from hadacore.formats import FORMATS, Quantizer
from hadacore.matrices import MAXIMUM_SIZE, factor
from hadacore.matrices.orders import base_matrix

CAPABILITIES = Capabilities(
    "CPUs", "nothing; a C++ compiler when the package is installed makes it fast", tuple(e.name for e in ELEMENTS),
    MAXIMUM_SIZE, None, None, tuple(f.name for f in FORMATS), "any granularity, by the native kernels",
)  # fmt: skip


def support(device: torch.device | None = None) -> Support:
    """The CPU backend always runs; the reason says with what."""
    threads = torch.get_num_threads()
    count = f"{threads} thread{'s' if threads != 1 else ''}"
    missing = native.unavailable_reason()
    if missing is None:
        return Support(True, f"native kernels, {native.instruction_set()}, {count}")
    return Support(True, f"PyTorch operations, {count}; the native library is not used: {missing}")


def _check_signs(signs: Tensor) -> None:
    if not bool((signs.abs() == 1).all()):
        wrong = signs[signs.abs() != 1][0].item()
        raise ValueError(f"signs must hold only +1 and -1, got {wrong}; pass torch.sign(...) of a tensor without zeros")


@functools.lru_cache(maxsize=64)
def _known_base(size: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor(base_matrix(factor(size)), dtype=dtype)


def transform(
    x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, base: Tensor | None
) -> None:
    """Write ``scale * H @ (signs * x)`` (with ``inverse``: ``signs * scale * H.T @ x``) by blocks of ``size`` to ``out``."""
    if x.numel() == 0:
        return
    if signs is not None:
        _check_signs(signs)
    if base is None and size & (size - 1):
        base = _known_base(size, torch.float64 if x.dtype == torch.float64 else torch.float32)
    if native.unavailable_reason() is None:
        order = 1 if base is None else base.shape[0]
        native.transform_native(x, out, order, base, (size // order).bit_length() - 1, scale, signs, inverse)
    else:
        torch_operations.transform(x, out, size, scale, signs, inverse, base)


def composed_reason(size: int, quantizer: Quantizer, base_order: int = 0) -> str | None:
    """Why transforms of ``size`` are not quantized in the same pass, by :func:`quantize`, or None if they are.

    ``base_order`` is the order of the caller's base, or 0.
    """
    log2 = (size // base_order).bit_length() - 1 if base_order else factor(size).log2
    return quantized.unsupported_reason(log2, quantizer)


def quantize(
    x: Tensor,
    codes: Tensor,
    scales: Tensor | None,
    quantizer: Quantizer,
    given: float,
    size: int,
    scale: float,
    signs: Tensor | None,
    inverse: bool,
    base: Tensor | None = None,
) -> None:
    """Write codes and scales of :func:`transform`'s fp32 result, where :func:`composed_reason` has none.

    Arguments are those of :func:`.quantized.quantize_native`, with the known base of ``size`` unless there is the caller's.
    """
    if x.numel() == 0:
        return
    if signs is not None:
        _check_signs(signs)
    if base is None and size & (size - 1):
        base = _known_base(size, torch.float32)
    order = 1 if base is None else base.shape[0]
    log2 = (size // order).bit_length() - 1
    quantized.quantize_native(x, codes, scales, quantizer, given, order, base, log2, scale, signs, inverse)
