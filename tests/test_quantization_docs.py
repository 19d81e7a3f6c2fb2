"""The documentation of quantization: its table of formats is the package's, and its example runs."""

from __future__ import annotations

import doctest
from pathlib import Path

from hadacore.formats import FORMATS, Format

ROOT = Path(__file__).parents[1]


def _row(format: Format) -> str:
    blocks = ", ".join(map(str, format.granularities))
    scale = format.scale_name + (" and fp32 for the tensor" if format.has_global_scale else "")
    flags = ["yes" if flag else "no" for flag in (format.can_swizzle, format.stochastic)]
    encoding = format.encoding
    cells = [f"`{format.name}`", encoding.name, encoding.bits, f"{encoding.maximum:g}", blocks, scale, *flags]
    return "| " + " | ".join(map(str, cells)) + " |"


def test_the_table_of_formats() -> None:
    text = (ROOT / "docs/quantization.md").read_text()
    section = text.split("## Formats")[1].split("##")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [_row(format) for format in FORMATS]
    for source in {format.source.split(";")[0] for format in FORMATS if "OCP" in format.source}:
        assert source in " ".join(section.split())


def test_the_example_runs() -> None:
    found = doctest.testfile(str(ROOT / "docs/quantization.md"), module_relative=False)
    assert found.attempted and not found.failed
