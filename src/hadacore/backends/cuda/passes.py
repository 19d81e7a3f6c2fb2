"""Launches transforms that take several passes over memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hadacore.backends.cuda.launch import (
    VECTOR_BYTES,
    PreparedLaunch,
    cuda_code,
    enter_device,
    launch_prepared,
    prepare,
)
from hadacore.kernels.configurations import NO_SIGNS, signs_placement
from hadacore.kernels.passes import Launch, Passes, Place, passes_of

_PREPARED_LIMIT = 64


@dataclass(frozen=True)
class PreparedPasses:
    """The launches of a transform with their loaded kernels; only pointers and the scale are still missing."""

    passes: Passes
    kernels: tuple[PreparedLaunch, ...]


_prepared: dict[tuple[Any, ...], PreparedPasses] = {}


def prepare_passes(passes: Passes, device_index: int) -> PreparedPasses:
    """Compile and load the kernels of all passes. The device must be the current one.

    Raises:
        BackendUnavailableError: cuda-core, NVRTC or the driver is missing.
    """
    shapes: dict[tuple[Any, int], PreparedLaunch] = {}
    for launch in passes.launches:
        shape = launch.configuration, launch.units
        if shape not in shapes:
            shapes[shape] = prepare(*shape, device_index)
    return PreparedPasses(passes, tuple(shapes[each.configuration, each.units] for each in passes.launches))


def _prepared_for(
    dtype: torch.dtype, size: int, elements: int, device_index: int, signs: int, sign_period: int
) -> PreparedPasses:
    key = (dtype, size, elements, device_index, signs, sign_period)
    found = _prepared.get(key)
    if found is None:
        if len(_prepared) >= _PREPARED_LIMIT:
            _prepared.clear()
        properties = torch.cuda.get_device_properties(device_index)
        passes = passes_of(
            cuda_code(dtype), size.bit_length() - 1, elements // size, (properties.major, properties.minor),
            properties.multi_processor_count, signs, sign_period,
        )  # fmt: skip
        found = _prepared[key] = prepare_passes(passes, device_index)
    return found


def launch_arguments(
    launch: Launch, bases: dict[Place, int], element_bytes: int, scale: float, signs: int
) -> tuple[int | float, ...]:
    """The arguments of a launch, in the order of the kernel's parameters.

    Args:
        launch: Which.
        bases: Where x, the workspace and out start.
        element_bytes: Of x, out and signs.
        scale: Of the whole transform.
        signs: Where the signs start; read only by a configuration with signs.
    """

    def address(place: Place) -> int:
        if place is Place.WORKSPACE:
            return bases[place] + 4 * launch.workspace_start
        return bases[place] + element_bytes * launch.start

    factor = scale if launch.last else 1.0
    arguments = (address(launch.source), address(launch.target), factor, launch.repeats)
    if launch.configuration.signs == NO_SIGNS:
        return arguments
    return (*arguments, signs + element_bytes * launch.sign_start, launch.sign_rows)


def run_passes(
    prepared: PreparedPasses, x: Tensor, out: Tensor, scale: float, signs: Tensor | None, device_index: int
) -> None:
    """Launch all passes over contiguous, aligned x and out, on the current stream of the device, the current one."""
    bases = {Place.INPUT: x.data_ptr(), Place.OUTPUT: out.data_ptr()}
    if prepared.passes.workspace_elements:
        workspace = torch.empty(prepared.passes.workspace_elements, dtype=torch.float32, device=x.device)
        bases[Place.WORKSPACE] = workspace.data_ptr()
    signs_start = 0 if signs is None else signs.data_ptr()
    for launch, kernel in zip(prepared.passes.launches, prepared.kernels, strict=True):
        launch_prepared(kernel, device_index, launch_arguments(launch, bases, x.element_size(), scale, signs_start))


def transform(x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool) -> None:
    """Write the transform of ``x`` by blocks of ``size`` to ``out``; signs are contiguous and aligned.

    Tensors that are not contiguous, or not aligned to 16 bytes, go through a contiguous copy.
    """
    if not (x.is_contiguous() and out.is_contiguous()) or (x.data_ptr() | out.data_ptr()) % VECTOR_BYTES:
        dense = torch.clone(x, memory_format=torch.contiguous_format)
        transform(dense, dense, size, scale, signs, inverse)
        out.copy_(dense)
        return
    device_index = x.get_device()
    with enter_device(device_index):
        signs_are, period = NO_SIGNS, 1
        if signs is not None:
            signs_are, period = signs_placement(True, inverse), signs.numel() // size
        prepared = _prepared_for(x.dtype, size, x.numel(), device_index, signs_are, period)
        run_passes(prepared, x, out, scale, signs, device_index)
