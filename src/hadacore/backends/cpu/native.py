"""The native kernels: finds the library, and calls it.

The library is plain C++ behind six exported functions, called through ctypes, which lets go of Python's lock for the
time of the call. It knows nothing of Python or torch: it gets addresses, lengths and strides.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hadacore.backends.cpu import building

# For tests: the name of the instruction set to use instead of the best one, or "none" for the PyTorch path.
INSTRUCTION_SET_VARIABLE = "HADACORE_CPU_ISA"

# The codes of problem.hpp.
_ELEMENT_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_OUT_OF_MEMORY = 1
# Columns are transformed where they are up to the size of which 32 fit into a second-level cache, or nearly, in fp32.
_LARGEST_COLUMN_SIZE = 1 << 14
_FEWEST_COLUMNS = 16


class Problem(ctypes.Structure):
    """``struct Problem`` of problem.hpp."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("element", ctypes.c_int64),
        ("row_length", ctypes.c_int64),
        ("order", ctypes.c_int64),
        ("log2", ctypes.c_int64),
        ("dimensions", ctypes.c_int64),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("x_strides", ctypes.POINTER(ctypes.c_int64)),
        ("out_strides", ctypes.POINTER(ctypes.c_int64)),
        ("base", ctypes.c_void_p),
        ("signs", ctypes.c_void_p),
        ("signs_after", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("threads", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("x_step", ctypes.c_int64),
        ("out_step", ctypes.c_int64),
        ("instruction_set", ctypes.c_int64),
    ]


class Quantization(ctypes.Structure):
    """``struct Quantization`` of problem.hpp."""

    _fields_ = [
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("encoding", ctypes.c_int64),
        ("scale_type", ctypes.c_int64),
        ("block", ctypes.c_int64),
        ("blocks", ctypes.c_int64),
        ("scale_row_stride", ctypes.c_int64),
        ("scale_block_stride", ctypes.c_int64),
        ("swizzled", ctypes.c_int64),
        ("largest_exponent", ctypes.c_int64),
        ("amax_factor", ctypes.c_float),
        ("given", ctypes.c_float),
    ]


@dataclass(frozen=True)
class Library:
    """The loaded library and what this CPU can run of it.

    Attributes:
        handle: The library for ctypes.
        instruction_sets: Code of each instruction set that this CPU has, by name, best first.
        chosen: Name of the one in use.
    """

    handle: ctypes.CDLL
    instruction_sets: dict[str, int]
    chosen: str


class NativeUnavailableError(Exception):
    """The native kernels cannot be used; the message says why."""


def _open(path: Path) -> ctypes.CDLL:
    if not path.is_file():
        raise NativeUnavailableError("it was not built when the package was installed, which needs a C++ compiler")
    try:
        handle = ctypes.CDLL(str(path))
        handle.hadacore_sources.restype = ctypes.c_char_p
        handle.hadacore_instruction_set_name.argtypes = [ctypes.c_int64]
        handle.hadacore_instruction_set_name.restype = ctypes.c_char_p
        handle.hadacore_instruction_set_supported.argtypes = [ctypes.c_int64]
        handle.hadacore_instruction_set_supported.restype = ctypes.c_int64
        handle.hadacore_transform.argtypes = [ctypes.POINTER(Problem)]
        handle.hadacore_transform.restype = ctypes.c_int64
        handle.hadacore_quantize.argtypes = [ctypes.POINTER(Problem), ctypes.POINTER(Quantization)]
        handle.hadacore_quantize.restype = ctypes.c_int64
    except (OSError, AttributeError) as error:
        raise NativeUnavailableError(f"it does not load: {error}") from error
    if handle.hadacore_sources().decode() != building.sources_digest():
        raise NativeUnavailableError("it was built from other sources than these; install the package again")
    return handle


def _share_openmp(handle: ctypes.CDLL) -> None:
    """Give the library the threads of torch's OpenMP, if torch has loaded one; threads.cpp says what for."""
    folder = Path(torch.__file__).parent
    bundled = [
        str(path) for place in (folder / "lib", folder.parent / "torch.libs") for path in place.glob("lib*omp*.so*")
    ]
    for name in [*bundled, "libgomp.so.1", "libiomp5.so", "libomp.so"]:
        with contextlib.suppress(OSError, AttributeError):  # not loaded, or without GCC's interface
            openmp = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            handle.hadacore_use_openmp.argtypes = [ctypes.c_void_p]
            handle.hadacore_use_openmp(ctypes.cast(openmp.GOMP_parallel, ctypes.c_void_p))
            return


def load(path: Path = building.LIBRARY, wanted: str | None = None) -> Library:
    """The library at ``path``, with the instruction set ``wanted``, or the best of this CPU.

    Raises:
        NativeUnavailableError: There is no library, or not of these sources, or without that instruction set.
    """
    if wanted == "none":
        raise NativeUnavailableError(f"{INSTRUCTION_SET_VARIABLE} is none")
    handle = _open(path)
    supported: dict[str, int] = {}
    code = 0
    while (name := handle.hadacore_instruction_set_name(code)) is not None:
        if handle.hadacore_instruction_set_supported(code):
            supported[name.decode()] = code
        code += 1
    if wanted is not None and wanted not in supported:
        raise NativeUnavailableError(
            f"{INSTRUCTION_SET_VARIABLE} is {wanted!r}, and this CPU runs {', '.join(supported)} or none"
        )
    _share_openmp(handle)
    return Library(handle, supported, wanted or next(iter(supported)))


@functools.cache
def _loaded() -> Library | str:
    """The library, or why there is none. Looked for once, at the first use."""
    try:
        return load(wanted=os.environ.get(INSTRUCTION_SET_VARIABLE) or None)
    except NativeUnavailableError as error:
        return str(error)


def unavailable_reason() -> str | None:
    """Why the native kernels are not used, or None if they are."""
    found = _loaded()
    return found if isinstance(found, str) else None


def instruction_set() -> str | None:
    """The instruction set in use, or None without native kernels."""
    found = _loaded()
    return None if isinstance(found, str) else found.chosen


def _dimensions(x: Tensor, out: Tensor) -> tuple[list[int], list[int], list[int]]:
    """Lengths and both strides of all dimensions but the last, with as few dimensions as describe them."""
    if x.is_contiguous() and out.is_contiguous():
        n = x.shape[-1]
        return [x.numel() // n], [n], [n]
    shape: list[int] = []
    x_strides: list[int] = []
    out_strides: list[int] = []
    for length, x_stride, out_stride in zip(x.shape[:-1], x.stride()[:-1], out.stride()[:-1], strict=True):
        if length == 1:
            continue
        if shape and x_strides[-1] == length * x_stride and out_strides[-1] == length * out_stride:
            shape[-1] *= length
            x_strides[-1], out_strides[-1] = x_stride, out_stride
        else:
            shape.append(length)
            x_strides.append(x_stride)
            out_strides.append(out_stride)
    return shape, x_strides, out_strides


def _columns_dimension(x: Tensor, out: Tensor, size: int) -> int | None:
    """A dimension other than the last along which both tensors are dense, if transforming across it is worth while."""
    if size > _LARGEST_COLUMN_SIZE:
        return None
    for dimension in range(x.dim() - 1):
        if x.stride(dimension) == 1 == out.stride(dimension) and x.shape[dimension] >= _FEWEST_COLUMNS:
            return dimension
    return None


def transform_native(
    x: Tensor,
    out: Tensor,
    order: int,
    base: Tensor | None,
    log2: int,
    scale: float,
    signs: Tensor | None,
    inverse: bool,
    *,
    instruction_set: str | None = None,
) -> None:
    """Write ``scale * (base (x) H_2^log2) @ (signs * x)``, or with ``inverse`` the transpose, to ``out``.

    Blocks of ``order << log2`` elements of the last dimension are transformed separately.

    Args:
        x: ``(..., n)`` on the CPU, of an accepted dtype, not empty.
        out: ``x`` itself, or of its shape and dtype in memory apart from it.
        order: Order m of ``base``.
        base: ``(m, m)``, or None for the powers of two, whose order is 1.
        log2: k of the Sylvester factor.
        scale: Factor of the result.
        signs: ``(n,)`` of +1 and -1, or None.
        inverse: Apply the transpose, and the signs after it.
        instruction_set: Name of the one to use, for tests; None is the one in use.

    Raises:
        NativeUnavailableError: There is no native library; :func:`unavailable_reason` says so beforehand.
        MemoryError: There is no memory for a scratch row.
    """
    chosen = library()
    columns, source, target = 0, x, out
    if not (is_dense(x) and is_dense(out)):
        dimension = _columns_dimension(x, out, order << log2) if base is None else None
        if dimension is not None:
            columns = x.shape[dimension]
            source, target = x.select(dimension, 0), out.select(dimension, 0)
        else:
            source = x if is_dense(x) else x.contiguous()
            if not is_dense(out):
                target = source if out is x else torch.empty(out.shape, dtype=out.dtype)
    with problem_of(source, target, order, base, log2, scale, signs, inverse, instruction_set, columns) as problem:
        check_status(chosen.handle.hadacore_transform(ctypes.byref(problem)), problem)
    if not columns and target is not out:
        out.copy_(target)


def library() -> Library:
    """The library in use.

    Raises:
        NativeUnavailableError: There is none; :func:`unavailable_reason` says so beforehand.
    """
    found = _loaded()
    if isinstance(found, str):
        raise NativeUnavailableError(found)
    return found


def is_dense(x: Tensor) -> bool:
    """Whether the elements of a row are neighbours."""
    return x.shape[-1] == 1 or x.stride(-1) == 1


@contextlib.contextmanager
def problem_of(
    x: Tensor,
    out: Tensor,
    order: int,
    base: Tensor | None,
    log2: int,
    scale: float,
    signs: Tensor | None,
    inverse: bool,
    instruction_set: str | None = None,
    columns: int = 0,
) -> Iterator[Problem]:
    """The arguments of :func:`transform_native` as the kernels take them, for as long as the memory they name is held."""
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    if base is not None:
        base = (base.T if inverse else base).to(work).contiguous()
    if signs is not None:
        signs = signs.to(work).contiguous()
    shape, x_strides, out_strides = _dimensions(x, out)
    array = ctypes.c_int64 * max(1, len(shape))
    found = library()
    yield Problem(
        x.data_ptr(),
        out.data_ptr(),
        _ELEMENT_CODES[x.dtype],
        x.shape[-1],
        order,
        log2,
        len(shape),
        array(*shape),
        array(*x_strides),
        array(*out_strides),
        None if base is None else base.data_ptr(),
        None if signs is None else signs.data_ptr(),
        inverse,
        scale,
        torch.get_num_threads(),
        columns,
        x.stride(-1),
        out.stride(-1),
        found.instruction_sets[instruction_set or found.chosen],
    )


def check_status(status: int, problem: Problem) -> None:
    """Raise what a call's status says, if it is not that all is done."""
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"no memory for a scratch row of {problem.order << problem.log2} elements")
    if status:
        raise RuntimeError(f"the native kernels returned {status}")
