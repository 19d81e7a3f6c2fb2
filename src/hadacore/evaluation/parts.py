"""The folder of a run in the making: what is in it survives the end of the process, however it comes.

``settings.json`` says what is measured; every other file holds finished results. Files are written aside and renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hadacore.benchmarking.report import write_whole

_SETTINGS = "settings.json"


class Parts:
    """Results on disk.

    Args:
        folder: Where; made if it is not there.
        settings: Everything that decides a result.

    Raises:
        ValueError: The folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        path = folder / _SETTINGS
        wanted = json.loads(json.dumps(settings))  # tuples as lists, as they will be read
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            different = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
            if different:
                changes = "; ".join(f"{name} {found.get(name)!r}, now {wanted.get(name)!r}" for name in different)
                raise ValueError(
                    f"{folder} holds results made with {changes}. Use the same options and packages to continue, name another "
                    f"folder with --out, or delete {folder} to start again"
                )
        else:
            write_whole(path, json.dumps(wanted, indent=2) + "\n")

    def read(self, name: str) -> Any:
        """A stored result, or None."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, name: str, result: Any) -> None:
        """Store a result; it is on disk, whole, when this returns."""
        write_whole(self.folder / f"{name}.json", json.dumps(result) + "\n")

    def names(self, prefix: str) -> list[str]:
        """Stored results whose names begin with a folder, sorted."""
        return sorted(f"{prefix}/{path.stem}" for path in (self.folder / prefix).glob("*.json"))

    def remove(self, prefix: str) -> None:
        """Delete the results of a folder, which another result has made superfluous."""
        folder = self.folder / prefix
        for path in folder.glob("*"):
            path.unlink()
        if folder.is_dir():
            folder.rmdir()
