"""Runs emulated kernels on arrays of numpy and CPU tensors of torch."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeAlias

import numpy as np
import torch

from hadacore.kernels.base_configurations import OrderConfiguration
from hadacore.kernels.columns import ColumnsConfiguration
from hadacore.kernels.configurations import NO_SIGNS, KernelConfiguration
from hadacore.kernels.source import constants, kernel_source
from tests.emulator.build import build_kernel, load_kernel, runtime

Array: TypeAlias = "torch.Tensor | np.ndarray[Any, Any]"

#: inner_rows, x_outer, x_inner, y_outer, y_inner, in elements.
Strides: TypeAlias = "tuple[int, int, int, int, int]"

_CONTIGUOUS_ROWS: Strides = (1, 0, 0, 0, 0)
_ENTRY = """hadamard_transform(a.x, a.y, a.scale, a.rows
#if SIGNS != 0
  , a.signs, a.sign_rows
#endif
#if STRIDED
  , a.inner_rows, a.x_outer, a.x_inner, a.y_outer, a.y_inner
#endif
#if defined(BASE) && BASE != 0
  , a.base, a.base_row_stride, a.base_column_stride
#endif
#if PROLOGUE
  , a.operand, a.second_operand, a.positions, a.residual, a.epsilon, a.tokens
#endif
#if ENCODING
  , a.scales, a.given_scale, a.scale_factor, a.scale_rows, a.seed
#endif
);"""
# Constants of the program may be read as well.
_PROGRAM_CONSTANTS = re.compile(r"const u32 (base_signs|base_row_signs)\[(\d+)\]")
_COLUMNS_ENTRY = """hadamard_transform(a.x, a.y, a.scale, a.inner
#if SIGNS != 0
  , a.signs, a.sign_rows
#endif
);"""
_COPY_ENTRY = "copy_vectors(a.x, a.y, a.rows);"
_COPY_THREADS = 256


class EmulationError(Exception):
    """What the emulator found wrong, one finding a line."""


@dataclass(frozen=True)
class Report:
    """What a launch without errors did.

    Attributes:
        written_bytes: Bytes of the output that were written, each once.
        extra_wavefronts: Wavefronts that shared-memory bank conflicts added.
    """

    written_bytes: int
    extra_wavefronts: int


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        ("rows", ctypes.c_int64),
        ("signs", ctypes.c_void_p),
        ("sign_rows", ctypes.c_int64),
        ("strides", ctypes.c_int64 * 5),
        ("base", ctypes.c_void_p),
        ("base_strides", ctypes.c_int64 * 2),
        ("inner", ctypes.c_int64),
        ("operands", ctypes.c_void_p * 3),
        ("residual", ctypes.c_void_p),
        ("epsilon", ctypes.c_double),
        ("tokens", ctypes.c_int64),
        ("scales", ctypes.c_void_p),
        ("given_scale", ctypes.c_void_p),
        ("scale_factor", ctypes.c_double),
        ("scale_rows", ctypes.c_int64),
        ("quantizer_seed", ctypes.c_int64),
    )


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("begin", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("readable", ctypes.c_int),
        ("writable", ctypes.c_int),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(_Arguments)),
        ("clusters", ctypes.c_int64),
        ("cluster_blocks", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("shared_bytes", ctypes.c_uint32),
        ("buffer_count", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("programmatic", ctypes.c_int64),
        ("buffers", _Buffer * 8),
        ("written_bytes", ctypes.c_int64),
        ("extra_wavefronts", ctypes.c_int64),
        ("error_count", ctypes.c_int64),
        ("errors", ctypes.c_char * 4096),
    )


_one_launch_at_a_time = threading.Lock()


def _extent(array: Array) -> tuple[int, int]:
    """Where the elements begin and end."""
    if isinstance(array, torch.Tensor):
        if not array.is_contiguous() or array.device.type != "cpu":
            raise ValueError("buffers must be contiguous tensors in host memory")
        return array.data_ptr(), array.data_ptr() + array.numel() * array.element_size()
    if not array.flags.c_contiguous:
        raise ValueError("buffers must be contiguous arrays")
    return array.ctypes.data, array.ctypes.data + array.nbytes


def _buffers(x: Array, y: Array, **read: Array | None) -> list[_Buffer]:
    (x_begin, x_end), (y_begin, y_end) = _extent(x), _extent(y)
    if (x_begin, x_end) == (y_begin, y_end):
        found = [_Buffer(b"x = y", x_begin, x_end, 1, 1)]
    elif x_begin < y_end and y_begin < x_end:
        raise ValueError("x and y overlap but are not the same")
    else:
        found = [_Buffer(b"x", x_begin, x_end, 1, 0), _Buffer(b"y", y_begin, y_end, 0, 1)]
    found += [_Buffer(name.encode(), *_extent(array), 1, 0) for name, array in read.items() if array is not None]
    return found


@dataclass(frozen=True)
class Scales:
    """What a kernel that quantizes takes besides: the last parameters, in their order.

    Attributes:
        scales: Output.
        given: One fp32 scale, or None.
        factor: Of a block's largest magnitude.
        rows: Rows of the matrix of scales.
        seed: Of stochastic rounding.
    """

    scales: Array
    given: Array | None
    factor: float
    rows: int
    seed: int = 0


@dataclass(frozen=True)
class Operands:
    """What a kernel with a prologue takes besides, in the order of its parameters.

    Attributes:
        read: Up to three tensors: up, weight, or cos, sin and positions.
        residual: Read and written, or None.
        epsilon: Of a normalisation.
        tokens: Tokens after which positions repeat.
    """

    read: Sequence[Array] = ()
    residual: Array | None = None
    epsilon: float = 0.0
    tokens: int = 1


class Program:
    """Compiled kernel text with its launch shape."""

    def __init__(
        self, text: str, entry: str, constants: Sequence[tuple[str, str]] = (), *, threads: int, shared_bytes: int = 0,
        cluster: int = 1, programmatic: bool = False,
    ) -> None:  # fmt: skip
        library = load_kernel(build_kernel(text, entry, constants))
        self._entry = ctypes.cast(library.emulated_entry, ctypes.c_void_p).value
        found = _PROGRAM_CONSTANTS.search(text)
        self._constants = None
        if found is not None:
            table = (ctypes.c_uint32 * int(found.group(2))).in_dll(library, found.group(1))
            self._constants = np.frombuffer(table, dtype=np.uint32)
        self._threads, self._shared_bytes, self._cluster = threads, shared_bytes, cluster
        self._programmatic = programmatic

    def run(
        self, x: Array, y: Array, scale: float = 1.0, rows: int = 0, *, signs: Array | None = None, sign_rows: int = 1,
        strides: Strides = _CONTIGUOUS_ROWS, base: Array | None = None, base_strides: tuple[int, int] = (0, 0),
        inner: int = 1, grid: int = 1, seed: int = 0, scales: Scales | None = None,
        operands: Operands | None = None,
    ) -> Report:  # fmt: skip
        """Launch ``grid`` clusters. The kernel may touch exactly the memory of ``x``, ``y``, ``signs`` and ``base``.

        Args:
            x: Input.
            y: Output; may be ``x``.
            scale: Passed to the kernel, as are ``rows``, ``sign_rows`` and ``strides``.
            rows: Rows to transform.
            signs: Signs of a randomized transform.
            sign_rows: Rows of signs.
            strides: Two-level strides of the rows.
            base: Base matrix, with the strides of its rows and columns in ``base_strides``.
            base_strides: Likewise.
            inner: Elements between two values of a contracted index, where it is not the lowest.
            grid: Clusters; blocks, where the cluster is one block.
            scales: Of a kernel that quantizes.
            operands: Of a kernel with a prologue.
            seed: 0 runs threads in their natural order and lands asynchronous copies as late as it can. Others
                shuffle the threads, and land copies at once (1 mod 3), at any moment (2 mod 3) or late (0 mod 3).

        Raises:
            EmulationError: The kernel did something that a GPU would not forgive.
        """
        given = None if scales is None else scales.given
        buffers = _buffers(x, y, signs=signs, base=base, constants=self._constants, given_scale=given)
        if scales is not None:
            buffers.append(_Buffer(b"scales", *_extent(scales.scales), 0, 1))
        signs_address = None if signs is None else _extent(signs)[0]
        arguments = _Arguments(
            _extent(x)[0], _extent(y)[0], scale, rows, signs_address, sign_rows, (ctypes.c_int64 * 5)(*strides),
            None if base is None else _extent(base)[0], (ctypes.c_int64 * 2)(*base_strides), inner,
        )  # fmt: skip
        if scales is not None:
            arguments.scales, arguments.given_scale = (
                _extent(scales.scales)[0],
                None if given is None else _extent(given)[0],
            )
            arguments.scale_factor, arguments.quantizer_seed = scales.factor, scales.seed
            arguments.scale_rows = scales.rows
        if operands is not None:
            for i, operand in enumerate(operands.read):
                buffers.append(_Buffer(f"operand {i}".encode(), *_extent(operand), 1, 0))
                arguments.operands[i] = _extent(operand)[0]
            if operands.residual is not None:
                buffers.append(_Buffer(b"residual", *_extent(operands.residual), 1, 1))
                arguments.residual = _extent(operands.residual)[0]
            arguments.epsilon = operands.epsilon
            arguments.tokens = operands.tokens
        launch = _Launch(
            entry=self._entry, arguments=ctypes.pointer(arguments), clusters=grid, cluster_blocks=self._cluster,
            threads=self._threads, shared_bytes=self._shared_bytes, buffer_count=len(buffers), seed=seed,
            programmatic=self._programmatic,
        )  # fmt: skip
        launch.buffers[: len(buffers)] = buffers
        with _one_launch_at_a_time:
            runtime().emulator_launch(ctypes.byref(launch))
        if launch.error_count:
            raise EmulationError(f"{launch.error_count} errors, the first are:\n{launch.errors.decode()}")
        return Report(launch.written_bytes, launch.extra_wavefronts)


class EmulatedKernel(Program):
    """A configuration of the transform, compiled from the package's own text, or another, for an ``__CUDA_ARCH__``."""

    def __init__(
        self, configuration: KernelConfiguration | OrderConfiguration, *, cuda_arch: int = 900, text: str | None = None
    ) -> None:
        c = configuration
        # The compiler's own erff is not known without a header.
        defined = (*constants(c), ("__CUDA_ARCH__", str(cuda_arch)), ("erff", "emulator::error_function"))
        super().__init__(
            text or kernel_source(c, ptx=False), _ENTRY, defined, threads=c.threads, shared_bytes=c.shared_bytes,
            cluster=c.cluster, programmatic=bool(c.programmatic),
        )  # fmt: skip
        self.configuration = c

    def run(
        self, x: Array, y: Array, scale: float = 1.0, rows: int = 0, *, signs: Array | None = None, sign_rows: int = 1,
        strides: Strides | None = None, grid: int = 1, seed: int = 0, **more: Any,
    ) -> Report:  # fmt: skip
        """As :meth:`Program.run`, ``base``, ``base_strides`` and ``scales`` included; signs and strides must be given
        exactly where the configuration has them."""
        if (signs is None) != (self.configuration.signs == NO_SIGNS):
            raise ValueError("signs do not go with the configuration")
        if (strides is None) == self.configuration.strided:
            raise ValueError("strides do not go with the configuration")
        return super().run(
            x, y, scale, rows, signs=signs, sign_rows=sign_rows, strides=strides or _CONTIGUOUS_ROWS, grid=grid,
            seed=seed, **more,
        )  # fmt: skip


class EmulatedColumns(Program):
    """A configuration of ``columns.cu``, compiled from the package's own text."""

    def __init__(self, configuration: ColumnsConfiguration) -> None:
        c = configuration
        super().__init__(
            kernel_source(c, ptx=False), _COLUMNS_ENTRY, constants(c), threads=c.threads,
            shared_bytes=c.shared_bytes, programmatic=bool(c.programmatic),
        )  # fmt: skip
        self.configuration = c

    def transform(
        self, x: Array, y: Array, scale: float, elements: int, inner: int, *, signs: Array | None = None,
        sign_rows: int = 1, seed: int = 0,
    ) -> Report:  # fmt: skip
        """Contract the middle index of ``(outer, points, inner)``; signs are ``(sign_rows, points, inner)``."""
        if (signs is None) != (self.configuration.signs == NO_SIGNS):
            raise ValueError("signs do not go with the configuration")
        return self.run(
            x,
            y,
            scale,
            signs=signs,
            sign_rows=sign_rows,
            inner=inner,
            grid=self.configuration.tiles(elements),
            seed=seed,
        )


class EmulatedCopy(Program):
    """The copy kernel, ``units`` 16-byte vectors a thread."""

    def __init__(self, units: int) -> None:
        text = resources.files("hadacore.kernels.cuda").joinpath("copy.cu").read_text(encoding="utf-8")
        super().__init__(f'#line 1 "copy.cu"\n{text}', _COPY_ENTRY, [("UNITS", str(units))], threads=_COPY_THREADS)
        self._vectors_per_block = _COPY_THREADS * units

    def copy(self, x: Array, y: Array, vectors: int, *, seed: int = 0) -> Report:
        """Copy ``vectors`` vectors of 16 bytes."""
        return self.run(x, y, rows=vectors, grid=-(-vectors // self._vectors_per_block), seed=seed)
