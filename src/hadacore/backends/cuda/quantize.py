"""Rotation and quantization in one launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hadacore.backends.cuda.launch import (
    VECTOR_BYTES,
    Request,
    enter_device,
    find_prepared,
    kernel_arguments,
    launch_prepared,
    vectors_fit,
)
from hadacore.backends.cuda.strides import row_strides
from hadacore.kernels.configurations import signs_placement
from hadacore.kernels.fusion import Fusion


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


def quantize(
    x: Tensor, codes: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, fusion: Fusion, matrix: ScaleMatrix
) -> None:  # fmt: skip
    """Rotate ``x`` by blocks of ``size`` and write codes and scales.

    Rows that two strides address, in whole 16-byte vectors, are read where they are; others are copied first.
    """
    if x.numel() == 0:
        return
    if signs is not None and (not signs.is_contiguous() or signs.data_ptr() % VECTOR_BYTES):
        signs = signs.clone(memory_format=torch.contiguous_format)
    strides = None
    if x.data_ptr() % VECTOR_BYTES:
        x = x.clone(memory_format=torch.contiguous_format)
    elif not x.is_contiguous():
        strides = row_strides(x, x, size)
        if strides is None or not vectors_fit(x, x, size, strides):
            x, strides = x.contiguous(), None
    device_index = x.get_device()
    placement = signs_placement(signs is not None, inverse)
    request = Request(x.dtype, size, x.numel(), device_index, placement, inverse, strides is not None, 0, None, fusion)
    with enter_device(device_index):
        arguments = kernel_arguments(x, codes, scale, x.numel() // size, size, signs, strides)
        launch_prepared(find_prepared(request), device_index, arguments + matrix.arguments())
