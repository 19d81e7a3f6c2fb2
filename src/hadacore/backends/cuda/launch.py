"""The CUDA backend's transform: picks a kernel for a tensor and launches it on the current stream.

What a call needs is worked out once per (type, size, rows, options) and kept, so that a repeated call costs little
more than the launch itself.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hadacore.backends import Support
from hadacore.backends.cuda.composed import is_composed, transform_composed
from hadacore.backends.cuda.load import load_kernel
from hadacore.backends.cuda.requirements import compiler_version, cuda_core
from hadacore.backends.cuda.strides import RowStrides, row_strides
from hadacore.elements import BY_DTYPE
from hadacore.errors import BackendUnavailableError
from hadacore.kernels.architectures import Architecture, architecture_of
from hadacore.kernels.base_configurations import LARGEST_ORDER, base_source, choose_base
from hadacore.kernels.configurations import NO_SIGNS, choose, maximum_log2_row, signs_placement
from hadacore.kernels.fusion import Fusion
from hadacore.kernels.source import ENTRY_POINT, Configuration, constants, kernel_source
from hadacore.matrices import factor

VECTOR_BYTES = 16
_PREPARED_LIMIT = 4096
_LARGEST_SINGLE = LARGEST_ORDER  # up to it one launch takes every size, as the base fits the kernel, whatever its order


@dataclass(frozen=True)
class PreparedLaunch:
    """A loaded kernel with its launch shape; only pointers, scale and strides are still missing."""

    kernel: Any
    shape: Any  # cuda.core.LaunchConfig
    works_in_place: bool = True  # a row is read as a whole before any of it is written


_prepared: dict[tuple[Any, ...], PreparedLaunch] = {}  # by the fields of Request
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


def launch_shape(
    configuration: Configuration, rows: int, multiprocessors: int, architecture: Architecture
) -> dict[str, Any]:
    """The launch of ``rows`` rows (of ``columns.cu``, tiles) as keyword arguments of ``cuda.core.LaunchConfig``."""
    shape: dict[str, Any] = {
        "grid": configuration.grid(rows, multiprocessors),
        "block": configuration.threads,
        "shmem_size": configuration.launched_bytes(architecture),
    }
    if configuration.cluster > 1:
        shape["cluster"] = configuration.cluster
    if configuration.programmatic:
        shape["programmatic_stream_serialization"] = True
    return shape


@dataclass(frozen=True)
class Request:
    """What a launch is prepared for, and found again by."""

    dtype: torch.dtype
    size: int
    elements: int
    device_index: int
    signs: int  # NO_SIGNS, SIGNS_BEFORE or SIGNS_AFTER
    inverse: bool
    strided: bool
    base_order: int  # of the caller's base, or 0
    base_dtype: torch.dtype | None
    fusion: Fusion | None = None


def cuda_code(dtype: torch.dtype) -> int:
    """``ELEMENT`` of the CUDA text.

    Raises:
        TypeError: The CUDA kernels do not take ``dtype``.
    """
    code = BY_DTYPE[dtype].cuda_code
    if code is None:
        raise TypeError(f"the CUDA backend takes float16, bfloat16 and float32, got {dtype}; convert x or use the CPU")
    return code


def choose_for_device(request: Request) -> Configuration:
    """The configuration for a problem on its GPU.

    Raises:
        TypeError: The CUDA kernels do not take the dtype.
        ValueError: The GPU is older than sm_80, or the base is too large for the kernel.
        LookupError: No kernel does what is asked besides the transform.
    """
    r = request
    code = cuda_code(r.dtype)
    properties = torch.cuda.get_device_properties(r.device_index)
    capability = (properties.major, properties.minor)
    processors = properties.multi_processor_count
    rows = r.elements // r.size
    if r.base_order == 0 and r.size & (r.size - 1) == 0:
        return choose(code, r.size.bit_length() - 1, rows, capability, processors, r.signs, r.strided, r.fusion)
    order, transposed = r.base_order, False
    if order == 0:
        found = factor(r.size)
        order, transposed = found.base_order, r.inverse and not found.symmetric
    base = base_source(code, None if r.base_dtype is None else r.base_dtype == torch.float32)
    log2_columns = (r.size // order).bit_length() - 1
    return choose_base(
        code, order, log2_columns, rows, capability, processors, r.signs, r.strided, base=base, transposed=transposed,
        fusion=r.fusion,
    )  # fmt: skip


def prepare(configuration: Configuration, rows: int, device_index: int) -> PreparedLaunch:
    """Compile and load a configuration, and work out its launch. The device must be the current one.

    Raises:
        BackendUnavailableError: cuda-core, NVRTC or the driver is missing.
    """
    core = cuda_core()
    properties = torch.cuda.get_device_properties(device_index)
    architecture = architecture_of((properties.major, properties.minor))
    shape = launch_shape(configuration, rows, properties.multi_processor_count, architecture)
    kernel = load_kernel(
        kernel_source(configuration),
        constants(configuration),
        architecture.name,
        ENTRY_POINT,
        shape["shmem_size"],
        device_index,
    )
    return PreparedLaunch(kernel, core.LaunchConfig(**shape), configuration.works_in_place)


def kernel_arguments(
    x: Tensor, out: Tensor, scale: float, rows: int, size: int, signs: Tensor | None, strides: RowStrides | None,
    base: Tensor | None = None, inverse: bool = False,
) -> tuple[int | float, ...]:  # fmt: skip
    """The arguments of a launch, in the order of ``HADAMARD_PARAMETERS`` in ``rows.cuh`` up to those of a prologue.
    ``inverse`` reads the base transposed."""
    arguments: tuple[int | float, ...] = (x.data_ptr(), out.data_ptr(), scale, rows)
    if signs is not None:
        arguments += (signs.data_ptr(), signs.numel() // size)
    if strides is not None:
        arguments += strides.arguments()
    if base is not None:
        row_stride, column_stride = base.stride()
        arguments += (
            (base.data_ptr(), column_stride, row_stride) if inverse else (base.data_ptr(), row_stride, column_stride)
        )
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


def find_prepared(request: Request) -> PreparedLaunch:
    """The launch for a problem, prepared once. The device must be the current one."""
    return _prepared.get(_key_of(request)) or _prepare_for(request)


def _key_of(request: Request) -> tuple[Any, ...]:
    return tuple(vars(request).values())


def _prepare_for(request: Request) -> PreparedLaunch:
    """Choose and prepare the launch for a problem, and keep it."""
    if len(_prepared) >= _PREPARED_LIMIT:
        _prepared.clear()
    prepared = prepare(choose_for_device(request), request.elements // request.size, request.device_index)
    _prepared[_key_of(request)] = prepared
    return prepared


def _launch(
    x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, base: Tensor | None,
    strides: RowStrides | None,
) -> None:  # fmt: skip
    device_index = x.get_device()
    if torch._C._cuda_getDevice() != device_index:
        with torch.cuda.device(device_index):
            _launch(x, out, size, scale, signs, inverse, base, strides)
        return
    if device_index not in getattr(_thread, "devices", ()):
        _enter_thread(device_index)
    signs_are = NO_SIGNS if signs is None else signs_placement(True, inverse)
    elements = x.numel()
    order, base_dtype = (0, None) if base is None else (base.shape[0], base.dtype)
    key = (x.dtype, size, elements, device_index, signs_are, inverse, strides is not None, order, base_dtype, None)
    prepared = _prepared.get(key) or _prepare_for(Request(*key))
    if not prepared.works_in_place and x.data_ptr() == out.data_ptr():
        x = _copy_of(x)
    # As launch_prepared, two calls shorter.
    stream = _streams.get(torch._C._cuda_getCurrentRawStream(device_index)) or current_stream(device_index)
    arguments = kernel_arguments(x, out, scale, elements // size, size, signs, strides, base, inverse)
    cuda_core().launch(stream, prepared.shape, prepared.kernel, *arguments)


def is_aligned(tensor: Tensor) -> bool:
    """Whether a kernel can read it in vectors as one flat array."""
    return tensor.is_contiguous() and tensor.data_ptr() % VECTOR_BYTES == 0


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or, where a kernel cannot read it in vectors, a copy that it can."""
    return tensor if is_aligned(tensor) else tensor.clone(memory_format=torch.contiguous_format)


@functools.lru_cache(maxsize=64)
def _maximum_row(dtype: torch.dtype, device_index: int) -> int:
    """Elements of the largest power of two that a GPU takes in one launch.

    Raises:
        TypeError: The CUDA kernels do not take ``dtype``.
        ValueError: The GPU is older than sm_80.
    """
    properties = torch.cuda.get_device_properties(device_index)
    return 1 << maximum_log2_row(cuda_code(dtype), architecture_of((properties.major, properties.minor)))


def _copy_of(x: Tensor) -> Tensor:
    """A copy with x's strides. Configurations that spread a row over blocks are for few rows, which are quick to copy."""
    copy = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return copy.copy_(x)


def transform(
    x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, base: Tensor | None
) -> None:
    """Write ``scale * H @ (signs * x)`` (with ``inverse``: ``signs * scale * H.T @ x``) by blocks of ``size`` to ``out``.

    Rows that two strides address, in whole 16-byte vectors, are read and written where they are. Anything else
    (a last dimension that is not dense, an odd offset into a buffer) goes through a contiguous copy.
    """
    if x.numel() == 0:
        return
    if signs is not None:
        signs = aligned(signs)
    if size > _LARGEST_SINGLE:
        if base is None and size & (size - 1) == 0:
            if size > _maximum_row(x.dtype, x.get_device()):
                from hadacore.backends.cuda import passes  # which imports this module

                passes.transform(x, out, size, scale, signs, inverse)
                return
        else:
            order = factor(size).base_order if base is None else base.shape[0]
            log2_columns = (size // order).bit_length() - 1
            if is_composed(order, log2_columns):
                transform_composed(transform, x, out, order, log2_columns, scale, signs, inverse, base)
                return
    strides = None
    direct = (x.data_ptr() | out.data_ptr()) % VECTOR_BYTES == 0  # without a copy
    if direct and not (x.is_contiguous() and out.is_contiguous()):
        strides = row_strides(x, out, size)
        direct = strides is not None and vectors_fit(x, out, size, strides)
    if direct:
        _launch(x, out, size, scale, signs, inverse, base, strides)
    else:
        dense = torch.clone(x, memory_format=torch.contiguous_format)
        _launch(dense, dense, size, scale, signs, inverse, base, None)
        out.copy_(dense)
