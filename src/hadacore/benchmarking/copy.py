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


def _vector_copy(read_bytes: int, device_index: int, *, units: int = 0, reads: int = 0) -> Operation:
    """The project's copy kernel: ``units`` vectors a thread, or one written for ``reads`` that are read. The device must be
    the current one."""
    from hadacore.backends.cuda.launch import PreparedLaunch, launch_prepared
    from hadacore.backends.cuda.load import load_kernel
    from hadacore.backends.cuda.requirements import cuda_core
    from hadacore.kernels.architectures import architecture_of
    from hadacore.kernels.source import COPY_ENTRY_POINT, NARROWER_COPY_ENTRY_POINT, copy_source

    core = cuda_core()
    core.Device(device_index).set_current()
    architecture = architecture_of(torch.cuda.get_device_capability(device_index)).name
    constant = ("UNITS", str(units)) if units else ("READS", str(reads))
    entry = COPY_ENTRY_POINT if units else NARROWER_COPY_ENTRY_POINT
    kernel = load_kernel(copy_source(), (constant,), architecture, entry, 0, device_index)
    vectors = read_bytes // _VECTOR_BYTES
    shape = core.LaunchConfig(grid=-(-vectors // (_THREADS * (units or reads))), block=_THREADS)
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
                    workload.elements * workload.element_size, x.get_device(), units=units
                )
    return operations


def time_narrower_copy(workload: Workload, reads: int) -> float:
    """Microseconds of a kernel that reads a workload's inputs and writes one vector for each ``reads`` vectors: the bytes
    of a quantizer. Its outputs are the first bytes of the workload's."""
    device_index = workload.pairs[0][0].get_device()
    with torch.cuda.device(device_index):
        copy = _vector_copy(workload.elements * workload.element_size, device_index, reads=reads)
    return time_operation(copy, workload)


def time_copy(workload: Workload) -> tuple[float, str]:
    """Microseconds of the fastest copy, and its name."""
    times = {name: time_operation(copy, workload) for name, copy in copy_operations(workload).items()}
    fastest = min(times, key=times.__getitem__)
    return times[fastest], fastest
