"""Compiled kernels on disk.

Files are written by cuda.core's ``FileStreamProgramCache``: aside, then renamed, so concurrent processes and a kill
at any moment leave whole files or none. Each entry starts with its own SHA-256, so a truncated or foreign file is
recognised and compiled again, never loaded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import warnings
from pathlib import Path
from typing import Any

_MAGIC = b"hadacore kernel 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size

CACHE_VARIABLE = "HADACORE_CACHE_DIR"


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$HADACORE_CACHE_DIR``, else ``hadacore`` in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "hadacore"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hadacore"


def refusal(folder: Path) -> str | None:
    """Why kernels from ``folder`` must not be trusted, or None. Code in it runs on the GPU as this user."""
    if os.name == "nt":
        return None
    try:
        status = folder.stat()
    except FileNotFoundError:
        return None
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        return f"cache folder {folder} can be written by other users (mode {mode:o}); run: chmod go-w {folder}"
    if status.st_uid not in (os.getuid(), 0):
        return f"cache folder {folder} belongs to user {status.st_uid}, not to you ({os.getuid()}) or root"
    return None


class KernelCache:
    """Compiled kernels by text key, in a folder and always in a state that may be read.

    A folder that cannot be written is still read; one that cannot be trusted is not used, with a warning.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: Any = None
        reason = refusal(folder)
        if reason is not None:
            warnings.warn(
                f"hadacore does not use its kernel cache: {reason}. Kernels are compiled in every process.",
                stacklevel=3,
            )
            return
        from cuda.core.utils import FileStreamProgramCache

        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._files = FileStreamProgramCache(folder)
        except OSError:
            self._files = None  # a read-only home: compile in every process

    def get(self, key: str) -> bytes | None:
        """The kernel of ``key``, or None if there is none, or what is there is not what was written."""
        if self._files is None:
            return None
        try:
            entry: bytes | None = self._files.get(key)
        except OSError:
            return None
        head = len(_MAGIC) + _DIGEST_BYTES
        if entry is None or len(entry) <= head or not entry.startswith(_MAGIC):
            return None
        if hashlib.sha256(entry[head:]).digest() != entry[len(_MAGIC) : head]:
            return None
        return entry[head:]

    def put(self, key: str, code: bytes) -> bool:
        """Keep ``code`` under ``key``. Returns whether it is on disk."""
        if self._files is None:
            return False
        try:
            self._files[key] = _MAGIC + hashlib.sha256(code).digest() + code
        except OSError:
            return False  # a folder that is read-only or full serves what it has
        return True

    def __len__(self) -> int:
        return 0 if self._files is None else len(self._files)

    def size_in_bytes(self) -> int:
        """Bytes of all files in the folder."""
        if self._files is None:
            return 0
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


@functools.lru_cache(maxsize=8)
def open_cache(folder: Path) -> KernelCache:
    """The cache in ``folder``, opened once a process."""
    return KernelCache(folder)
