"""Builds the native library. Uses the standard library alone and imports nothing of the package.

The package's build runs it (``hatch_build.py``), before the package or torch can be imported.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "sources"
LIBRARY = Path(__file__).parent / ("libhadacore_cpu.dylib" if sys.platform == "darwin" else "libhadacore_cpu.so")
DISABLED = "HADACORE_NO_NATIVE"

# Contraction is off because a fused a + b * c would give other bits than the same without an instruction for it.
FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-ffp-contract=off",
    "-w",
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")
# What kernels.cpp is compiled for, by machine: namespace and flags.
INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"avx512": _AVX512, "avx2": _AVX2, "portable": ()},
    "aarch64": {"neon": ()},
    "other": {"portable": ()},
}
_SAME_MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}


class CannotBuildError(Exception):
    """There is no native library to be had here; the message says why."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the command that runs it, with whatever arguments it was given."""

    command: tuple[str, ...]

    def run(self, *arguments: str) -> None:
        """Run it.

        Raises:
            CannotBuildError: It cannot be run, or reports an error.
        """
        command = [*self.command, *arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise CannotBuildError(f"{self.command[0]} cannot be run: {error}") from error
        if result.returncode:
            last = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
            raise CannotBuildError(f"{shlex.join(command)} failed: {last}")


def find_compiler() -> Compiler:
    """``CXX``, or the first of c++, g++ and clang++ that is found.

    Raises:
        CannotBuildError: None is found, or Python runs on Windows.
    """
    if sys.platform == "win32":
        raise CannotBuildError(
            "the sources need GCC or clang and POSIX threads, which Python on Windows is not built with"
        )
    chosen = os.environ.get("CXX")
    if chosen:
        return Compiler(tuple(shlex.split(chosen)))
    for name in ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found is not None:
            return Compiler((found,))
    raise CannotBuildError("no C++ compiler was found (c++, g++, clang++, or what CXX names)")


def sources_digest() -> str:
    """A digest of all sources, by which a library tells what it was built from."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cpp", ".hpp"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """The instruction sets that a library for this machine has, with the compiler's flags for each."""
    machine = platform.machine().lower()
    return INSTRUCTION_SETS.get(_SAME_MACHINE.get(machine, machine), INSTRUCTION_SETS["other"])


def build(library: Path = LIBRARY) -> None:
    """Compile and link ``library``, replacing what is there only when all has gone well.

    Raises:
        CannotBuildError: ``HADACORE_NO_NATIVE`` is set, or there is no compiler, or it fails.
    """
    if os.environ.get(DISABLED, "0") not in ("", "0"):
        raise CannotBuildError(f"{DISABLED} was set")
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as folder:
        units: dict[str, tuple[str, ...]] = {
            name: ("kernels.cpp", *flags, f"-DHADACORE_ISA={name}") for name, flags in instruction_sets().items()
        }
        present = [f"-DHADACORE_WITH_{name.upper()}" for name in instruction_sets()]
        units["dispatch"] = ("dispatch.cpp", *present, f'-DHADACORE_SOURCES="{sources_digest()}"')
        units["threads"] = ("threads.cpp",)

        def compile_unit(name: str) -> str:
            source, *flags = units[name]
            target = str(Path(folder) / f"{name}.o")
            compiler.run(*FLAGS, *flags, "-c", str(SOURCES / source), "-o", target)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_unit, units))
        made = Path(folder) / library.name
        compiler.run("-shared", "-pthread", *objects, "-o", str(made))
        # A process that has the old one mapped keeps it: the name is given to another file, never rewritten.
        beside = library.with_name(f".{library.name}.{os.getpid()}")
        shutil.copyfile(made, beside)
        beside.replace(library)


if __name__ == "__main__":
    try:
        build()
    except CannotBuildError as error:
        sys.exit(f"no native library was built: {error}")
    print(LIBRARY)
