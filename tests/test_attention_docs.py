"""The documentation of attention: its table of recipes is the package's, its engines are, and its example runs."""

from __future__ import annotations

import doctest
from pathlib import Path

from hadacore.attention import RECIPES
from hadacore.attention.emulated import keys_of_a_block
from hadacore.attention.engines import known_engines

PAGE = Path(__file__).parents[1] / "docs/attention.md"


def _rows(title: str) -> list[list[str]]:
    section = PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]


def test_the_table_of_recipes() -> None:
    assert _rows("Recipes") == [[f"`{name}`", str(recipe)] for name, recipe in RECIPES.items()]


def test_the_table_of_engines() -> None:
    assert [row[0] for row in _rows("Engines")] == [f"`{engine.name}`" for engine in known_engines()]


def test_the_blocks_of_keys() -> None:
    blocks = [str(keys_of_a_block(n)) for n in (64, 96, 128, 192, 256)]
    assert f"A block has {', '.join(blocks[:-1])} or {blocks[-1]} keys" in PAGE.read_text()


def test_the_example_runs() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted and not found.failed
