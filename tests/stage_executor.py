"""Executes a plan's stages in plain PyTorch: the plan as the specification of the kernel, rounding included."""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.kernels.stages import TENSOR_CORES_SPLIT, Stage


def _butterfly(values: Tensor, bit: int) -> Tensor:
    """(a, b) -> (a + b, a - b) over one index bit of the last dimension, in the dtype of ``values``."""
    n = values.shape[-1]
    pairs = values.reshape(-1, n >> (bit + 1), 2, 1 << bit)
    a, b = pairs[:, :, 0], pairs[:, :, 1]
    return torch.stack((a + b, a - b), 2).reshape(values.shape)


def _split(values: Tensor) -> Tensor:
    """What the second product sees: bfloat16 high + low."""
    high = values.bfloat16().float()
    low = (values - high).bfloat16().float()
    return high + low


def execute(stages: tuple[Stage, ...], x: Tensor, scale: float, base: Tensor | None = None) -> Tensor:
    """The transform of the rows of ``x`` as the stages prescribe it, rounded once at the end.

    ``base`` is applied to the index above all bits.
    """
    values = x.float()
    for stage in stages:
        if stage.unit == TENSOR_CORES_SPLIT:
            values = _split(values)
        if stage.base_order > 1:
            assert base is not None and base.shape == (stage.base_order, stage.base_order)
            values = (base.float() @ values.reshape(x.shape[0], stage.base_order, -1)).reshape(x.shape)
        for bit in stage.bits:
            values = _butterfly(values, bit)
    return (values * scale).to(x.dtype)
