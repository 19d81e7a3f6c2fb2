"""What a measurement was made with: GPU, driver, CUDA and package versions, commit."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path

import torch

import hadacore
from hadacore.errors import BackendUnavailableError

_PACKAGES = ("cuda-core", "cuda-bindings", "triton", "numpy")
_TIMEOUT_SECONDS = 20


def _output(command: list[str], folder: Path | None = None) -> str | None:
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        result = subprocess.run(
            [program, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def package_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver_version() -> str | None:
    """The version of the NVIDIA driver, or None."""
    listed = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return listed.splitlines()[0].strip() if listed else None


def commit() -> str | None:
    """The git commit of the checkout the package runs from, ``+`` appended if its sources differ, else None."""
    folder = Path(hadacore.__file__).parent
    top = _output(["git", "rev-parse", "--show-toplevel"], folder)
    # An installed package may lie inside an unrelated repository, as virtual environments often do.
    if top is None or not (Path(top) / "src" / "hadacore").is_dir() or Path(top) / "src" / "hadacore" != folder:
        return None
    found = _output(["git", "rev-parse", "--short=12", "HEAD"], folder)
    if found is None:
        return None
    changed = _output(["git", "status", "--porcelain", "--", "."], folder)
    return found + ("+" if changed else "")


def processor() -> str:
    """The name of the CPU."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads != 1 else ''}"


def nvrtc_version() -> str | None:
    """The version of the run-time compiler, or None."""
    from hadacore.backends.cuda.requirements import compiler_version

    try:
        return ".".join(map(str, compiler_version()))
    except BackendUnavailableError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of everything that decides a result; None where something is missing."""
    return {
        "hadacore": hadacore.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "nvrtc": nvrtc_version(),
        **{name: package_version(name) for name in _PACKAGES},
    }


def provenance(device: torch.device) -> dict[str, str | None]:
    """:func:`versions` and the device."""
    return {"gpu": device_name(device), **versions()}
