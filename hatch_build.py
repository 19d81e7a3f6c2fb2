"""The wheel's build: compiles the native CPU kernels where there is a compiler, and leaves them away where there is none.

With them a wheel carries the tag of its platform, without them it is pure Python; ``HADACORE_NO_NATIVE=1`` forces the
latter. An editable install gets the library beside its sources, where git ignores it.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE_FOLDER = "hadacore/backends/cpu"


def load_building(root: Path) -> ModuleType:
    """The package's own ``building`` module, without importing the package, which needs torch."""
    path = root / "src" / PACKAGE_FOLDER / "building.py"
    spec = importlib.util.spec_from_file_location("hadacore_building", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def platform_tag() -> str:
    """The wheel tag of this platform. The library is called through ctypes, so that any Python 3 can load it."""
    if sys.platform == "darwin":  # sysconfig names what Python was built for, which may be two machines
        system = platform.mac_ver()[0].split(".")[0]
        return f"py3-none-macosx_{system}_0_{platform.machine()}"
    return f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


class NativeKernels(BuildHookInterface):
    """Adds the native library to a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library, in place for an editable wheel."""
        building = load_building(Path(self.root))
        if version == "editable":
            library = building.LIBRARY
        else:
            self.folder = tempfile.TemporaryDirectory()
            library = Path(self.folder.name) / building.LIBRARY.name
        try:
            building.build(library)
        except building.CannotBuildError as error:
            self.app.display_warning(f"hadacore is built without native CPU kernels: {error}")
            if version == "editable":
                library.unlink(missing_ok=True)
            return
        if version != "editable":
            build_data["force_include"][str(library)] = f"{PACKAGE_FOLDER}/{library.name}"
            build_data["pure_python"] = False
            build_data["tag"] = platform_tag()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built for the wheel."""
        if hasattr(self, "folder"):
            self.folder.cleanup()
