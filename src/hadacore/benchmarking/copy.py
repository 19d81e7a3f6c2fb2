"""The denominator of every ratio: the fastest way to copy the bytes that a transform moves."""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.benchmarking.timing import Operation, Workload, time_operation

_VECTOR_BYTES = 16
_THREADS = 256  # as in copy.cu
_UNITS = (1, 2, 4)  # vectors a thread copies

TENSOR_COPY = "Tensor.copy_"


def tensor_copy(x: Tensor, y: Tensor) -> None:
    """PyTorch's own copy."""
    y.copy_(x)


def _vector_copy(elements: int, element_size: int, units: int, device_index: int) -> Operation:
    """The project's copy kernel for tensors of this size. The device must be the current one."""
    from hadacore.backends.cuda.launch import PreparedLaunch, launch_prepared
    from hadacore.backends.cuda.load import load_kernel
    from hadacore.backends.cuda.requirements import cuda_core
    from hadacore.kernels.architectures import architecture_of
    from hadacore.kernels.source import COPY_ENTRY_POINT, copy_source

    core = cuda_core()
    core.Device(device_index).set_current()
    architecture = architecture_of(torch.cuda.get_device_capability(device_index)).name
    kernel = load_kernel(copy_source(), (("UNITS", str(units)),), architecture, COPY_ENTRY_POINT, 0, device_index)
    vectors = elements * element_size // _VECTOR_BYTES
    shape = core.LaunchConfig(grid=-(-vectors // (_THREADS * units)), block=_THREADS)
    prepared = PreparedLaunch(kernel, shape)

    def copy(x: Tensor, y: Tensor) -> None:
        launch_prepared(prepared, device_index, (x.data_ptr(), y.data_ptr(), vectors))

    return copy


def copy_operations(workload: Workload) -> dict[str, Operation]:
    """Ways to copy a workload's tensors, by name: ``Tensor.copy_``, and on a GPU ``copy_vectors`` of copy.cu with
    1, 2 and 4 vectors of 16 bytes a thread, where the bytes divide into whole vectors."""
    operations: dict[str, Operation] = {TENSOR_COPY: tensor_copy}
    x, _ = workload.pairs[0]
    if x.device.type == "cuda" and workload.elements * workload.element_size % _VECTOR_BYTES == 0:
        with torch.cuda.device(x.device):
            for units in _UNITS:
                operations[f"copy_vectors x{units}"] = _vector_copy(
                    workload.elements, workload.element_size, units, x.get_device()
                )
    return operations


def time_copy(workload: Workload) -> tuple[float, str]:
    """Microseconds of the fastest copy, and its name."""
    times = {name: time_operation(copy, workload) for name, copy in copy_operations(workload).items()}
    fastest = min(times, key=times.__getitem__)
    return times[fastest], fastest
