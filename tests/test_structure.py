"""The shape of the code base: imports go one way, facts live once, importing is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hadacore

PACKAGE = Path(hadacore.__file__).parent

# From the public function down. A module imports only modules to its right; `leaves` may be imported from anywhere.
FLOW = [
    "cli", "evaluation", "experiments", "benchmarking", "integrations", "attention", "compat", "modules", "quantization",
    "functional", "plan", "ops", "backends", "kernels", "epilogues",
]  # fmt: skip
LEAVES = {
    "errors": [],
    "elements": [],
    "formats": [],
    "matrices": [],
    "checks": ["matrices", "elements"],
    "prologues": ["checks"],
}


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "hadacore" else [f"hadacore.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("hadacore.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    part = _part(path)
    if part == "__init__":
        return
    imported = _imports(path) - {part, "__version__"}
    if part in LEAVES:
        assert imported <= set(LEAVES[part]), f"{part} is a leaf but imports {imported}"
        return
    allowed = set(FLOW[FLOW.index(part) + 1 :]) | set(LEAVES)
    assert imported <= allowed, f"{part} imports {sorted(imported - allowed)}, which lie before it"


def test_inline_assembly_is_in_one_place() -> None:
    holders = [path.name for path in PACKAGE.rglob("*.cu*") if re.search(r"\basm\b", path.read_text())]
    assert sorted(holders) == ["ptx.cuh", "ptx_hopper.cuh"]
    text = "".join((PACKAGE / "kernels/cuda" / name).read_text() for name in holders)
    for function in re.findall(r"__forceinline__ [\w ]+?\b(\w+)\([^)]*\) \{(.*?)\n\}", text, re.S):
        assert function[1].count("asm") == 1, f"{function[0]} holds more than one instruction"


def test_no_generic_lambdas_in_cuda_text() -> None:
    """NVRTC 13.0 takes the body of one for a host function and refuses it; later versions do not."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in PACKAGE.rglob("*.cu*")
        for line in path.read_text().splitlines()
        if re.search(r"\[[&=]?\]\([^)]*\bauto\b", line)
    ]
    assert not found


def test_files_stay_readable() -> None:
    long = {
        path.name: count
        for path in PACKAGE.rglob("*")
        if path.suffix in (".py", ".cu", ".cuh", ".cpp", ".hpp") and (count := len(path.read_text().splitlines())) > 500
    }
    assert not long


def test_import_is_light() -> None:
    """No GPU, no compiler, no command line packages, and little time beyond torch's own."""
    code = (
        "import sys, time, torch\n"
        "import numpy\n"
        "before = set(sys.modules)\n"
        "start = time.process_time()\n"  # not what other processes take
        "import hadacore\n"
        "spent = time.process_time() - start\n"
        "heavy = ('cuda.core', 'cuda.bindings', 'triton', 'typer', 'rich', 'matplotlib', 'transformers', 'lm_eval')\n"
        "heavy = [m for m in heavy if m in set(sys.modules) - before]\n"
        "assert not heavy, heavy\n"
        "assert not torch.cuda.is_initialized()\n"
        "print(spent)\n"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.2


def test_command_line_reports_missing_packages(tmp_path: Path) -> None:
    """Without typer the command says what to install, and does not show a traceback."""
    code = "import sys; sys.modules['typer'] = None; sys.argv = ['hadacore']; from hadacore.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    assert 'pip install "hadacore[cli]"' in result.stderr and "Traceback" not in result.stderr
