"""Compiles kernels with NVRTC through cuda.core, for the GPU at hand or for another."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from hadacore.backends.cuda.cache import cache_folder, open_cache
from hadacore.backends.cuda.requirements import compiler_version, cuda_core
from hadacore.errors import BackendUnavailableError
from hadacore.kernels.source import Configuration, constants, kernel_source


@dataclass(frozen=True)
class CompiledKernel:
    """Machine code (``cubin``) or, for a GPU that NVRTC does not know yet, PTX that the driver finishes."""

    code: bytes
    code_type: str


@dataclass(frozen=True)
class Resources:
    """What the assembler reports of a kernel."""

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int

    @property
    def stays_in_registers(self) -> bool:
        """Whether nothing went to local memory."""
        return self.stack_bytes == self.spill_store_bytes == self.spill_load_bytes == 0


@functools.lru_cache(maxsize=1)
def _known_architectures() -> tuple[int, ...]:
    from cuda.bindings import nvrtc

    status, count = nvrtc.nvrtcGetNumSupportedArchs()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendUnavailableError(f"NVRTC did not report its architectures ({status.name})")
    status, architectures = nvrtc.nvrtcGetSupportedArchs()
    return tuple(architectures[:count])


def _target(architecture: str) -> tuple[str, str]:
    """What to ask NVRTC for: the architecture itself, or PTX of the newest one it knows below it."""
    compiler_version()
    wanted = int(re.sub(r"\D", "", architecture))
    known = _known_architectures()
    if wanted in known:
        return architecture, "cubin"
    below = [a for a in known if a < wanted]
    if not below:
        raise BackendUnavailableError(
            f"NVRTC {compiler_version()} compiles for sm_{min(known)} and newer, not for {architecture}"
        )
    return f"compute_{max(below)}", "ptx"


@functools.lru_cache(maxsize=64)
def _source_digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def cache_key(source: str, macros: tuple[tuple[str, str], ...], architecture: str) -> str:
    """The text key of a kernel: everything that decides its machine code except the compiler's version."""
    return "|".join((architecture, _source_digest(source), *(f"{name}={value}" for name, value in macros)))


def compile_source(
    source: str, macros: tuple[tuple[str, str], ...], architecture: str, *, log: StringIO | None = None
) -> CompiledKernel:
    """Compile, without any cache.

    Raises:
        BackendUnavailableError: cuda-core or NVRTC is missing.
    """
    core = cuda_core()
    target, code_type = _target(architecture)
    options = core.ProgramOptions(
        arch=target, std="c++17", define_macro=list(macros), ptxas_options=["-v"] if log is not None else None
    )
    program = core.Program(source, "c++", options)
    try:
        compiled = program.compile(code_type, logs=log)
        return CompiledKernel(bytes(compiled.code), code_type)
    finally:
        program.close()


def parse_report(report: str) -> Resources:
    """The assembler's report, as :func:`compile_source` writes it to ``log``.

    Raises:
        ValueError: The text is not such a report.
    """

    def number(pattern: str) -> int:
        found = re.search(pattern, report)
        if found is None:
            raise ValueError(f"the assembler's report has no {pattern!r}: {report!r}")
        return int(found.group(1))

    return Resources(
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes spill stores"),
        number(r"(\d+) bytes spill loads"),
    )


def resources_of(configuration: Configuration, architecture: str) -> Resources:
    """Compile a configuration and return what the assembler reports of it."""
    log = StringIO()
    compile_source(kernel_source(configuration), constants(configuration), architecture, log=log)
    return parse_report(log.getvalue())


def cached_compile(
    source: str,
    macros: tuple[tuple[str, str], ...],
    architecture: str,
    *,
    folder: Path | None = None,
    refresh: bool = False,
    log: StringIO | None = None,
) -> tuple[CompiledKernel, bool]:
    """Compile, or take from the cache folder.

    Args:
        source: CUDA text.
        macros: ``-D`` constants.
        architecture: Such as ``"sm_90a"``.
        folder: Cache folder; the user's by default.
        refresh: Compile even if the cache has it, and replace what it has.
        log: Receives the assembler's report if the kernel is compiled.

    Returns:
        The kernel, and whether it came from the cache.
    """
    cache = open_cache(folder or cache_folder())
    key = cache_key(source, macros, architecture)
    stored = None if refresh else cache.get(key)
    if stored is not None:
        code_type, _, code = stored.partition(b"\n")
        return CompiledKernel(code, code_type.decode()), True
    compiled = compile_source(source, macros, architecture, log=log)
    cache.put(key, compiled.code_type.encode() + b"\n" + compiled.code)
    return compiled, False


def object_code(kernel: CompiledKernel) -> Any:
    """The kernel as cuda.core loads it."""
    core = cuda_core()
    load = core.ObjectCode.from_cubin if kernel.code_type == "cubin" else core.ObjectCode.from_ptx
    return load(kernel.code)
