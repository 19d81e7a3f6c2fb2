"""``hadacore info``: versions, GPUs, backends and attention engines with reasons, the kernel cache, peers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch

from hadacore.attention import engines
from hadacore.backends import Support
from hadacore.backends.cuda.cache import cache_folder, refusal
from hadacore.backends.selection import supports
from hadacore.benchmarking import provenance
from hadacore.benchmarking.peers import find_peers


@dataclass(frozen=True)
class CacheState:
    """The kernel cache: where, how many files, bytes, and why it is not used if it is not."""

    folder: Path
    files: int
    bytes: int
    refusal: str | None

    def __str__(self) -> str:
        if self.refusal is not None:
            return f"{self.folder}, not used: {self.refusal}"
        if not self.files:
            return f"{self.folder}, empty"
        kernels = "1 kernel" if self.files == 1 else f"{self.files} kernels"
        return f"{self.folder}, {kernels}, {self.bytes / 1e6:.1f} MB"


def cache_state(folder: Path | None = None) -> CacheState:
    """The state of a cache folder, the user's by default. Creates nothing."""
    folder = folder or cache_folder()
    sizes: list[int] = []
    with contextlib.suppress(OSError):  # it may be unreadable, or be filled and emptied by another process meanwhile
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return CacheState(folder, len(sizes), sum(sizes), refusal(folder))


def gpu_lines() -> list[str]:
    """Each GPU in words."""
    lines = []
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        lines.append(
            f"{p.name}, compute capability {p.major}.{p.minor}, {p.multi_processor_count} multiprocessors, "
            f"{p.total_memory / 2**30:.0f} GiB"
        )
    return lines


def _reasons(found: dict[str, Support]) -> list[tuple[str, str]]:
    return [(name, ("available: " if s else "unavailable: ") + s.reason) for name, s in found.items()]


def sections() -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything, as titled lists of name and value."""
    found, missing = find_peers("cuda" if torch.cuda.is_available() else "cpu")
    devices = [(f"gpu {index}", line) for index, line in enumerate(gpu_lines())] or [("gpu", "none")]
    devices.append(("cpu", provenance.device_name(torch.device("cpu"))))
    return [
        ("versions", [(name, value or "not found") for name, value in provenance.versions().items()]),
        ("devices", devices),
        ("backends", _reasons(supports())),
        ("attention engines", _reasons(engines())),
        ("kernel cache", [("folder", str(cache_state()))]),
        ("peers for bench", [(p.name, "installed") for p in found] + list(missing.items())),
    ]
