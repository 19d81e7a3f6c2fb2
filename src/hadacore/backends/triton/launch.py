"""The Triton backend's transform: picks a configuration for a tensor and launches it on the current stream."""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hadacore.backends.cuda.strides import RowStrides, row_strides
from hadacore.backends.triton.bases import in_zeros, known_base, known_bits
from hadacore.backends.triton.configurations import (
    DIRECT,
    IEEE,
    LARGEST_ORDER,
    LARGEST_SIZE,
    SYLVESTER,
    THREE_PARTS,
    Configuration,
    choose,
    choose_base,
)
from hadacore.backends.triton.requirements import device_refusal, triton_module
from hadacore.elements import BY_DTYPE
from hadacore.matrices import factor

# SIGNS and EPILOGUE of kernels.py.
NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER = range(3)
STORE, TO_INT8, TO_E4M3, TO_E4M3_BY_HARDWARE = range(4)

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)
DTYPES = (*_SIXTEEN_BIT, torch.float32)


def refusal(dtype: torch.dtype, size: int, base_order: int | None = None) -> str | None:
    """Why the backend does not take a problem, or None if it does.

    Args:
        dtype: Of the input.
        size: Elements of a transform.
        base_order: Order of the caller's base matrix; None for the library's.
    """
    if dtype not in DTYPES:
        taken = ", ".join(BY_DTYPE[d].name for d in DTYPES)
        return f"the Triton backend takes {taken}, got {dtype}; convert x or use the CPU"
    if size > LARGEST_SIZE:
        return f"the Triton backend takes sizes up to {LARGEST_SIZE}, got {size}; use a block_size, or another backend"
    order = factor(size).base_order if base_order is None else base_order
    if order > LARGEST_ORDER:
        return (
            f"the Triton backend takes base matrices up to order {LARGEST_ORDER}, got order {order}; use a block_size with a "
            "smaller one (hadacore.describe names it), or the CPU"
        )
    return None


def configuration_for(x: Tensor, size: int, base: Tensor | None, codes: bool = False) -> Configuration:
    """The configuration for a problem that the backend takes, with codes or without; ``base`` is the caller's, or None."""
    sixteen_bit, amd = x.dtype in _SIXTEEN_BIT, torch.version.hip is not None
    if base is not None:
        order, product = base.shape[0], DIRECT if sixteen_bit and base.dtype == x.dtype else IEEE
    elif size & (size - 1) == 0:
        return choose(size.bit_length() - 1, sixteen_bit, amd, shared_bytes(x.device))
    else:
        order, product = factor(size).base_order, DIRECT if sixteen_bit else THREE_PARTS
    log2_columns = (size // order).bit_length() - 1
    return choose_base(order, log2_columns, product, amd, shared_bytes(x.device), base is not None, codes)


def base_for(x: Tensor, configuration: Configuration, base: Tensor | None = None) -> Tensor | None:
    """The base matrix that a configuration reads: the caller's in zeros, the library's, or None where it reads none."""
    if base is not None:
        return in_zeros(base)
    if configuration.kernel == "bits":
        return known_bits(factor(configuration.size), x.device, configuration.order)
    if configuration.kernel != "panel" or configuration.product == SYLVESTER:
        return None
    # +1 and -1 are exact in any type; bfloat16 is that of the parts of a float32.
    dtype = x.dtype if x.dtype in _SIXTEEN_BIT else torch.bfloat16
    return known_base(factor(configuration.size), dtype, x.device, configuration.order)


@functools.lru_cache(maxsize=16)
def shared_bytes(device: torch.device) -> int:
    """Shared memory that a program may have, or 0 where torch does not know."""
    if device.type == "cpu":  # interpreted: as the GPU that the table was measured on
        return 232448
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 0))


@functools.lru_cache(maxsize=16)
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU, or what stands in their place."""
    if device.type == "cpu":  # interpreted: enough that programs loop
        return 1
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(properties, "multi_processor_count", 0) or properties.gpu_subslice_count)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    if device.type == "cpu":
        return contextlib.nullcontext()
    context: AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return context


def launch(
    configuration: Configuration,
    x: Tensor,
    out: Tensor,
    scale: float,
    signs: Tensor | None = None,
    inverse: bool = False,
    base: Tensor | None = None,
    strides: RowStrides | None = None,
    *,
    epilogue: int = STORE,
    scales: Tensor | None = None,
    amax_factor: float = 1.0,
) -> None:
    """Launch a configuration on the current stream of x's device.

    Args:
        configuration: Which.
        x: The rows.
        out: Where they go, of any floating type; codes as int8 with an epilogue that makes them.
        scale: Factor of the result.
        signs: Contiguous, ``(k * size,)``, or None.
        inverse: Whether the base is transposed and the signs come after.
        base: ``(m, m)`` of a panel that reads one, from :func:`base_for`.
        strides: Where rows start; None where x and out are contiguous.
        epilogue: STORE, or what makes codes.
        scales: fp32, one for each row, written by an epilogue that makes codes.
        amax_factor: What a row's largest magnitude is multiplied by for its scale.
    """
    from hadacore.backends.triton import kernels

    if signs is not None:
        configuration = configuration.beside_signs()
    nvidia = x.device.type == "cuda" and torch.version.hip is None
    if not nvidia:
        configuration = configuration.portable()
    rows = x.numel() // configuration.size
    placement = NO_SIGNS if signs is None else SIGNS_AFTER if inverse else SIGNS_BEFORE
    where = strides or RowStrides(1, 0, 0, 0, 0)
    # A pointer that the kernel does not read must still be one.
    arguments: dict[str, Any] = {
        "x": x,
        "out": out,
        "signs": x if signs is None else signs,
        "scales": x if scales is None else scales,
        "rows": rows,
        "scale": scale,
        "inner_rows": where.inner_rows,
        "x_outer": where.x_outer,
        "x_inner": where.x_inner,
        "out_outer": where.out_outer,
        "out_inner": where.out_inner,
        "sign_rows": 1 if signs is None else signs.numel() // configuration.size,
        "amax_factor": amax_factor,
    }
    if configuration.kernel == "panel":
        row_stride, column_stride = (1, 1) if base is None else base.stride()
        if inverse:
            row_stride, column_stride = column_stride, row_stride
        arguments["base"] = x if base is None else base
        arguments["base_row_stride"], arguments["base_column_stride"] = row_stride, column_stride
    elif configuration.kernel == "bits":
        assert base is not None
        arguments["base"] = base[int(inverse)]
        arguments["PTX"] = nvidia
    if configuration.registers:
        arguments["maxnreg"] = configuration.registers
    kernel = getattr(kernels, configuration.kernel)
    grid = configuration.grid(rows, multiprocessors(x.device))
    with _on(x.device):
        kernel[grid](
            **arguments,
            **configuration.constants(),
            SIGNS=placement,
            STRIDED=strides is not None,
            EPILOGUE=epilogue,
            num_warps=configuration.warps,
            enable_fp_fusion=False,  # sums and products round one by one, as docs/quantization.md has them
        )


def transform(
    x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, base: Tensor | None
) -> None:
    """Write ``scale * H @ (signs * x)`` (with ``inverse``: ``signs * scale * H.T @ x``) by blocks of ``size`` to ``out``.

    Rows that two strides address are read and written where they are, others through a contiguous copy.

    Raises:
        BackendUnavailableError: Triton is missing or too old.
        ValueError: The backend does not take the device, type, size or base.
    """
    triton_module()
    why = device_refusal(x.device) or refusal(x.dtype, size, None if base is None else base.shape[0])
    if why is not None:
        raise ValueError(why)
    if x.numel() == 0:
        return
    if signs is not None:
        signs = signs.contiguous()
    configuration = configuration_for(x, size, base)
    base = base_for(x, configuration, base)
    strides = None
    if not (x.is_contiguous() and out.is_contiguous()):
        strides = row_strides(x, out, size)
        if strides is None:
            source = x.contiguous()
            target = torch.empty_like(source)
            launch(configuration, source, target, scale, signs, inverse, base)
            out.copy_(target)
            return
    if not configuration.works_in_place and x.data_ptr() == out.data_ptr():
        x = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)
    launch(configuration, x, out, scale, signs, inverse, base, strides)
