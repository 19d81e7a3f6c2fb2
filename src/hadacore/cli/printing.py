"""What commands print with."""

from __future__ import annotations

from rich import box
from rich.table import Table


def table(title: str, *columns: str, left: int = 1) -> Table:
    """An empty table, the first ``left`` columns to the left, numbers to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < left else "right", no_wrap=True)
    return made


def coloured(before: float, after: float) -> str:
    """An error after a rotation in per cent, green or red where it changed by more than 3 %."""
    style = "green" if after < 0.97 * before else "red" if after > 1.03 * before else "default"
    return f"[{style}]{100 * after:5.2f}[/]"
