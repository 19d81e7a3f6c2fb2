"""Rotation and quantization in one launch."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hadacore.backends.cuda.launch import (
    VECTOR_BYTES,
    PreparedLaunch,
    Request,
    aligned,
    enter_device,
    find_prepared,
    kernel_arguments,
    launch_prepared,
    prepare,
    vectors_fit,
)
from hadacore.backends.cuda.strides import row_strides
from hadacore.kernels.configurations import signs_placement
from hadacore.kernels.fusion import Fusion, code_bits
from hadacore.kernels.heads import HeadsConfiguration


@dataclass(frozen=True)
class ScaleMatrix:
    """Where scales go, and what they are made with.

    Attributes:
        scales: Output; any tensor where the scale is given.
        given: One fp32 scale, or None.
        factor: Of a block's largest magnitude.
        rows: Rows of the matrix of scales.
        seed: Of stochastic rounding.
    """

    scales: Tensor
    given: Tensor | None
    factor: float
    rows: int
    seed: int

    def arguments(self) -> tuple[int | float, ...]:
        """In the order of ``QUANTIZE_PARAMETERS`` in ``block_scales.cuh``."""
        given = 0 if self.given is None else self.given.data_ptr()
        return self.scales.data_ptr(), given, self.factor, self.rows, self.seed


@dataclass(frozen=True)
class PrologueOperands:
    """Tensors of a fused prologue, contiguous and aligned to 16 bytes, of x's type but for tables and positions.

    Attributes:
        read: Up to three: up; weight; cos, sin and positions.
        residual: Read and written, or None.
        epsilon: Of a normalisation.
        tokens: Tokens after which positions repeat.
    """

    read: tuple[Tensor, ...] = ()
    residual: Tensor | None = None
    epsilon: float = 0.0
    tokens: int = 1

    def arguments(self) -> tuple[int | float, ...]:
        """In the order of ``PROLOGUE_PARAMETERS`` in ``prologue.cuh``."""
        addresses = [tensor.data_ptr() for tensor in self.read] + [0] * (3 - len(self.read))
        residual = 0 if self.residual is None else self.residual.data_ptr()
        return (*addresses, residual, self.epsilon, self.tokens)


def quantize(
    x: Tensor, codes: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, fusion: Fusion, matrix: ScaleMatrix,
    operands: PrologueOperands | None = None, base: Tensor | None = None,
) -> None:  # fmt: skip
    """Rotate ``x`` by blocks of ``size`` and write codes and scales.

    Rows that two strides address, in whole 16-byte vectors, are read where they are; others are copied first. ``base`` is the
    caller's, in x's type or float32, any strides. With a prologue there are ``matrix.rows`` rows, whatever x holds besides, and
    x must be dense.
    """
    elements = codes.numel() * 8 * codes.element_size() // code_bits(fusion)
    if elements == 0:
        return
    if signs is not None:
        signs = aligned(signs)
    strides = None
    if x.data_ptr() % VECTOR_BYTES:
        x = x.clone(memory_format=torch.contiguous_format)
    elif not x.is_contiguous():
        strides = row_strides(x, x, size)
        if strides is None or not vectors_fit(x, x, size, strides):
            x, strides = x.contiguous(), None
    device_index = x.get_device()
    placement = signs_placement(signs is not None, inverse)
    order, base_dtype = (0, None) if base is None else (base.shape[0], base.dtype)
    request = Request(
        x.dtype, size, elements, device_index, placement, inverse, strides is not None, order, base_dtype, fusion
    )
    with enter_device(device_index):
        arguments = kernel_arguments(x, codes, scale, elements // size, size, signs, strides, base, inverse)
        if operands is not None:
            arguments += operands.arguments()
        launch_prepared(find_prepared(request), device_index, arguments + matrix.arguments())


@functools.lru_cache(maxsize=1024)
def _prepare_pass(configuration: HeadsConfiguration, rows: int, device_index: int) -> PreparedLaunch:
    return prepare(configuration, rows, device_index)


def pass_over_heads(
    x: Tensor, out: Tensor, scale: float, signs: Tensor | None, configuration: HeadsConfiguration, matrix: ScaleMatrix,
    operands: PrologueOperands | None,
) -> None:  # fmt: skip
    """One of the two passes over ``(batch, tokens, heads, n)``. ``out``: codes, or ``(batch, kv heads, places)`` fp32 zeros,
    some of which the pass that measures raises to the largest rotated magnitudes."""
    n = x.shape[-1]
    rows, device_index = x.numel() // n, x.get_device()
    if signs is not None:
        signs = aligned(signs)
    with enter_device(device_index):
        prepared = _prepare_pass(configuration, rows, device_index)
        arguments = kernel_arguments(x, out, scale, rows, n, signs, None)
        if operands is not None:
            arguments += operands.arguments()
        launch_prepared(prepared, device_index, arguments + matrix.arguments())
