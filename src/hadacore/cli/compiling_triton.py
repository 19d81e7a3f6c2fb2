"""``hadacore compile --backend triton``: compiles the table of Triton configurations for GPUs that are not here."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from hadacore.backends.triton.compiling import SHARED_BYTES, TARGETS, Compiled, compile_for
from hadacore.backends.triton.configurations import (
    DIRECT,
    LARGEST_SIZE,
    THREE_PARTS,
    Configuration,
    choose,
    choose_base,
)
from hadacore.backends.triton.launch import DTYPES as TORCH_DTYPES
from hadacore.backends.triton.requirements import triton_module
from hadacore.cli.compiling import worker_count
from hadacore.elements import BY_DTYPE, BY_NAME
from hadacore.matrices import check_size, factor

DTYPES = tuple(BY_DTYPE[dtype].name for dtype in TORCH_DTYPES)
ALL_SIZES = (*(1 << k for k in range(LARGEST_SIZE.bit_length())), 12, 768, 5120, 11008, 14336, 28672)


@dataclass(frozen=True)
class Kernel:
    """One kernel to compile."""

    target: str
    dtype: str
    configuration: Configuration


@dataclass(frozen=True)
class Checked:
    """What became of a kernel: what the compiler says, or why there is none."""

    kernel: Kernel
    compiled: Compiled | None
    failure: str | None = None

    @property
    def does_not_fit(self) -> bool:
        """Whether it needs more shared memory than a program may have."""
        return self.compiled is not None and self.compiled.shared_bytes > SHARED_BYTES[self.kernel.target]


def kernels_for(
    sizes: Iterable[int] = ALL_SIZES, dtypes: Iterable[str] = DTYPES, targets: Iterable[str] = tuple(TARGETS)
) -> tuple[Kernel, ...]:
    """The kernels that these sizes, types and targets use.

    Raises:
        TypeError, ValueError: There is no such size, type or target.
    """
    sizes, dtypes = tuple(sizes), tuple(dtypes)
    kernels = []
    for target in targets:
        if target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
        amd = TARGETS[target][0] == "hip"
        for dtype in dtypes:
            if dtype not in DTYPES:
                raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
            for size in sizes:
                if check_size(size) > LARGEST_SIZE:
                    raise ValueError(f"the Triton backend takes sizes up to {LARGEST_SIZE}, got {size}")
                matrix, sixteen_bit = factor(size), dtype != "float32"
                shared = SHARED_BYTES[target]
                if matrix.base_order == 1:
                    c = choose(matrix.log2, sixteen_bit, amd, shared)
                else:
                    product = DIRECT if sixteen_bit else THREE_PARTS
                    c = choose_base(matrix.base_order, matrix.log2, product, amd, shared)
                kernels.append(Kernel(target, dtype, c))
    return tuple(dict.fromkeys(kernels))


def check_one(kernel: Kernel) -> Checked:
    """Compile one kernel; a failure is part of the result."""
    try:
        return Checked(kernel, compile_for(kernel.target, kernel.configuration, BY_NAME[kernel.dtype].dtype))
    except Exception as error:  # the compiler's own error types differ between releases; report it, go on with the rest
        return Checked(kernel, None, f"{type(error).__name__}: {error}")


def check_all(
    kernels: Sequence[Kernel], jobs: int | None = None, progress: Callable[[Checked], None] = lambda checked: None
) -> list[Checked]:
    """Compile kernels, in several processes.

    Raises:
        BackendUnavailableError: Triton is missing.
    """
    triton_module()
    workers = worker_count(jobs, len(kernels))
    results = []
    if workers == 1:
        for checked in map(check_one, kernels):
            progress(checked)
            results.append(checked)
        return results
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for checked in pool.map(check_one, kernels, chunksize=2):
            progress(checked)
            results.append(checked)
    return results
