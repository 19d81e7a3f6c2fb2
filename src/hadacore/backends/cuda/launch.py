"""The CUDA backend's transform: picks a kernel for a tensor and launches it on the current stream.

What a call needs is worked out once per (type, size, rows, options) and kept, so that a repeated call costs little
more than the launch itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hadacore.backends import Support
from hadacore.backends.cuda.load import load_kernel
from hadacore.backends.cuda.requirements import compiler_version, cuda_core
from hadacore.backends.cuda.strides import RowStrides, row_strides
from hadacore.elements import BY_DTYPE
from hadacore.errors import BackendUnavailableError
from hadacore.kernels.architectures import architecture_of
from hadacore.kernels.columns import Configuration
from hadacore.kernels.configurations import MAXIMUM_LOG2_ROW, NO_SIGNS, KernelConfiguration, choose, signs_placement
from hadacore.kernels.source import ENTRY_POINT, constants, kernel_source

VECTOR_BYTES = 16
_PREPARED_LIMIT = 4096
_MAXIMUM_ROW = 1 << MAXIMUM_LOG2_ROW


@dataclass(frozen=True)
class PreparedLaunch:
    """A loaded kernel with its launch shape; only pointers, scale and strides are still missing."""

    kernel: Any
    shape: Any  # cuda.core.LaunchConfig


_prepared: dict[tuple[Any, ...], PreparedLaunch] = {}
_streams: dict[int, Any] = {}
_thread = threading.local()


def support(device: torch.device | None = None) -> Support:
    """Whether the CUDA backend can run on ``device`` (the current one by default)."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "no NVIDIA GPU or driver was found" if built else "this build of torch has no CUDA support"
        return Support(False, why)
    try:
        core = cuda_core()
        compiler = compiler_version()
        architecture = architecture_of(torch.cuda.get_device_capability(device))
    except (BackendUnavailableError, ValueError) as error:
        return Support(False, str(error))
    versions = f"cuda-core {core.__version__}, NVRTC {compiler[0]}.{compiler[1]}"
    return Support(True, f"{torch.cuda.get_device_name(device)} ({architecture.name}), {versions}")


def launch_shape(configuration: Configuration, rows: int, multiprocessors: int) -> dict[str, Any]:
    """The launch of ``rows`` rows (of ``columns.cu``, tiles) as keyword arguments of ``cuda.core.LaunchConfig``."""
    shape: dict[str, Any] = {
        "grid": configuration.grid(rows, multiprocessors),
        "block": configuration.threads,
        "shmem_size": configuration.shared_bytes,
    }
    if configuration.cluster > 1:
        shape["cluster"] = configuration.cluster
    if configuration.programmatic:
        shape["programmatic_stream_serialization"] = True
    return shape


def choose_for_device(
    dtype: torch.dtype, size: int, rows: int, device_index: int, signs: int, strided: bool
) -> KernelConfiguration:
    """The configuration that the table has for a problem on a GPU.

    Raises:
        TypeError: The CUDA kernels do not take ``dtype``.
        ValueError: The GPU is older than sm_80.
    """
    code = BY_DTYPE[dtype].cuda_code
    if code is None:
        raise TypeError(f"the CUDA backend takes float16, bfloat16 and float32, got {dtype}; convert x or use the CPU")
    properties = torch.cuda.get_device_properties(device_index)
    capability = (properties.major, properties.minor)
    processors = properties.multi_processor_count
    return choose(code, size.bit_length() - 1, rows, capability, processors, signs, strided)


def prepare(configuration: Configuration, rows: int, device_index: int) -> PreparedLaunch:
    """Compile and load a configuration, and work out its launch. The device must be the current one.

    Raises:
        BackendUnavailableError: cuda-core, NVRTC or the driver is missing.
    """
    core = cuda_core()
    properties = torch.cuda.get_device_properties(device_index)
    kernel = load_kernel(
        kernel_source(configuration.kernel),
        constants(configuration),
        architecture_of((properties.major, properties.minor)).name,
        ENTRY_POINT,
        configuration.shared_bytes,
        device_index,
    )
    shape = core.LaunchConfig(**launch_shape(configuration, rows, properties.multi_processor_count))
    return PreparedLaunch(kernel, shape)


def kernel_arguments(
    x: Tensor, out: Tensor, scale: float, rows: int, size: int, signs: Tensor | None, strides: RowStrides | None
) -> tuple[int | float, ...]:
    """The arguments of a launch, in the order of ``HADAMARD_PARAMETERS`` in ``rows.cuh``."""
    arguments: tuple[int | float, ...] = (x.data_ptr(), out.data_ptr(), scale, rows)
    if signs is not None:
        arguments += (signs.data_ptr(), signs.numel() // size)
    if strides is not None:
        arguments += strides.arguments()
    return arguments


def launch_prepared(prepared: PreparedLaunch, device_index: int, arguments: tuple[int | float, ...]) -> None:
    """Launch on the current stream of the device, which must be the current one."""
    cuda_core().launch(current_stream(device_index), prepared.shape, prepared.kernel, *arguments)


def current_stream(device_index: int) -> Any:
    """PyTorch's current stream of a device as cuda.core's. Handle 0 is the legacy default stream."""
    handle = torch._C._cuda_getCurrentRawStream(device_index)
    stream = _streams.get(handle)
    if stream is None:
        core = cuda_core()
        stream = core.LEGACY_DEFAULT_STREAM if handle == 0 else core.Stream.from_handle(handle)
        _streams[handle] = stream
    return stream


def _enter_thread(device_index: int) -> None:
    """Make the device's primary context current in a thread that has not used the GPU yet."""
    cuda_core().Device(device_index).set_current()
    _thread.devices = {*getattr(_thread, "devices", ()), device_index}


@contextlib.contextmanager
def enter_device(device_index: int) -> Iterator[None]:
    """Make a device the current one, in a thread that has used it or not."""
    with torch.cuda.device(device_index):
        if device_index not in getattr(_thread, "devices", ()):
            _enter_thread(device_index)
        yield


def vectors_fit(x: Tensor, out: Tensor, size: int, strides: RowStrides) -> bool:
    """Whether rows at strides can be read and written in aligned 16-byte vectors, if the first ones can."""
    item = x.element_size()
    starts = (size, strides.x_outer, strides.x_inner, strides.out_outer, strides.out_inner)
    return all(start * item % VECTOR_BYTES == 0 for start in starts)


def _prepare_for(
    dtype: torch.dtype, size: int, elements: int, device_index: int, signs: int, strided: bool
) -> PreparedLaunch:
    """Choose and prepare the launch for a problem, and keep it."""
    if len(_prepared) >= _PREPARED_LIMIT:
        _prepared.clear()
    rows = elements // size
    configuration = choose_for_device(dtype, size, rows, device_index, signs, strided)
    prepared = prepare(configuration, rows, device_index)
    _prepared[dtype, size, elements, device_index, signs, strided] = prepared
    return prepared


def _launch(
    x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, strides: RowStrides | None
) -> None:
    device_index = x.get_device()
    if torch._C._cuda_getDevice() != device_index:
        with torch.cuda.device(device_index):
            _launch(x, out, size, scale, signs, inverse, strides)
        return
    if device_index not in getattr(_thread, "devices", ()):
        _enter_thread(device_index)
    signs_are = NO_SIGNS if signs is None else signs_placement(True, inverse)
    elements = x.numel()
    key = (x.dtype, size, elements, device_index, signs_are, strides is not None)
    prepared = _prepared.get(key) or _prepare_for(*key)
    # As launch_prepared, two calls shorter.
    stream = _streams.get(torch._C._cuda_getCurrentRawStream(device_index)) or current_stream(device_index)
    arguments = kernel_arguments(x, out, scale, elements // size, size, signs, strides)
    cuda_core().launch(stream, prepared.shape, prepared.kernel, *arguments)


def transform(x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool) -> None:
    """Write ``scale * H @ (signs * x)`` (with ``inverse``: ``signs * scale * H.T @ x``) by blocks of ``size`` to ``out``.

    Rows that two strides address, in whole 16-byte vectors, are read and written where they are. Anything else
    (a last dimension that is not dense, an odd offset into a buffer) goes through a contiguous copy.
    """
    if x.numel() == 0:
        return
    if signs is not None and (not signs.is_contiguous() or signs.data_ptr() % VECTOR_BYTES):
        signs = signs.clone(memory_format=torch.contiguous_format)
    if size > _MAXIMUM_ROW:
        from hadacore.backends.cuda import passes  # which imports this module

        passes.transform(x, out, size, scale, signs, inverse)
        return
    strides = None
    direct = (x.data_ptr() | out.data_ptr()) % VECTOR_BYTES == 0  # without a copy
    if direct and not (x.is_contiguous() and out.is_contiguous()):
        strides = row_strides(x, out, size)
        direct = strides is not None and vectors_fit(x, out, size, strides)
    if direct:
        _launch(x, out, size, scale, signs, inverse, strides)
    else:
        _through_contiguous(x, out, size, scale, signs, inverse)


def _through_contiguous(x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool) -> None:
    dense = torch.clone(x, memory_format=torch.contiguous_format)
    _launch(dense, dense, size, scale, signs, inverse, None)
    out.copy_(dense)
