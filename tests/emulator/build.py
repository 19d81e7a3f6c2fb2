"""Compiles kernel text and the emulator's runtime with g++, once for every content."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
RUNTIME = FOLDER / "runtime.cpp"

#: Environment variable; set to 1, threads switch by swapcontext, as on machines other than x86-64.
UCONTEXT = "HADACORE_EMULATOR_UCONTEXT"

# Neither fused multiply-adds nor reassociation: fp32 operations round one by one, as on the GPU.
_COMMON = ("-std=c++17", "-shared", "-fPIC", "-ffp-contract=off")
# The kernel text is warned about by nvcc; g++ knows neither its pragmas nor which branches are specialised away.
_KERNEL = (*_COMMON, "-O1", "-w")
_RUNTIME = (*_COMMON, "-O2", "-Wall", "-Wextra", "-Werror")


def compiler() -> str | None:
    """Where g++ is, or None."""
    return shutil.which("g++")


def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"hadacore-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.cache
def _compiler_version() -> str:
    return subprocess.run([compiler() or "g++", "--version"], capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A name to write to; it becomes `target` at once, so that no other process sees half a file."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / target.name
        yield partial
        partial.replace(target)


def _build(text: str, flags: Sequence[str], dependencies: Sequence[Path]) -> Path:
    """A shared library made of C++ text that includes the files in `dependencies`."""
    parts = [_compiler_version(), platform.machine(), *flags, text, *(path.read_text() for path in dependencies)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    target = _cache() / f"{digest}.so"
    if not target.exists():
        with _partial(target) as partial:
            command = [compiler() or "g++", *flags, f"-I{FOLDER}", "-x", "c++", "-", "-o", str(partial)]
            result = subprocess.run(command, input=text, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return target


@functools.cache
def runtime() -> ctypes.CDLL:
    """The loaded runtime. Its names are global: kernels are linked to it as they are loaded."""
    flags = [*_RUNTIME] + ([f"-D{UCONTEXT}"] if os.environ.get(UCONTEXT) == "1" else [])
    headers = sorted(FOLDER.glob("*.hpp"))
    return ctypes.CDLL(str(_build(f'#include "{RUNTIME}"\n', flags, [RUNTIME, *headers])), mode=ctypes.RTLD_GLOBAL)


def build_kernel(text: str, entry: str, constants: Sequence[tuple[str, str]] = ()) -> Path:
    """The library of a kernel.

    Args:
        text: CUDA text without ``ptx.cuh``.
        entry: A C++ statement that calls the kernel with what it needs of ``emulator::Arguments a``.
        constants: ``-D`` constants.
    """
    whole = (
        f'#include "host.hpp"\n{text}\n#line 1 "entry"\n'
        f'extern "C" void emulated_entry(const emulator::Arguments& a) {{\n{entry}\n}}\n'
    )
    flags = [*_KERNEL, *(f"-D{name}={value}" for name, value in constants)]
    return _build(whole, flags, sorted(FOLDER.glob("host*.hpp")))


@functools.cache
def load_kernel(path: Path) -> ctypes.CDLL:
    """The loaded library of a kernel."""
    runtime()
    return ctypes.CDLL(str(path))
