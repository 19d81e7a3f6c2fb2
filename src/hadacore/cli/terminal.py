"""What the commands share of the terminal: consoles, progress bars, errors, and the options that all have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hadacore.benchmarking.pictures import PicturesUnavailableError, check_matplotlib
from hadacore.cli.options import chosen_device
from hadacore.errors import BackendUnavailableError

Out = Annotated[Path, typer.Option("--out", help="Folder to write to.", file_okay=False)]
Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda; by default the GPU where there is one.")]


def new_console(stderr: bool = False) -> Console:
    """A console, made for each command: the streams may have been replaced since this module was imported."""
    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def new_progress() -> Progress:
    """A progress bar on the error stream, gone when it is done."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=new_console(stderr=True), transient=True,
    )  # fmt: skip


def failure(message: str) -> typer.Exit:
    """Print what went wrong; to be raised, so that the command ends with exit code 1."""
    new_console(stderr=True).print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)
    return typer.Exit(1)


def device_or_exit(name: str | None, backend: str | None = None) -> torch.device:
    """The device that ``--device`` names, or the error of why it cannot be used."""
    try:
        return chosen_device(name, backend)
    except BackendUnavailableError as error:
        raise failure(str(error)) from error


def need_matplotlib(advice: str = "") -> None:
    """End the command with advice where matplotlib is missing."""
    try:
        check_matplotlib()
    except PicturesUnavailableError as error:
        raise failure(f"{error}{advice}") from error


def print_files(console: Console, files: tuple[Path, ...]) -> None:
    """Say what was written."""
    for file in files:
        console.print(f"wrote {escape(str(file))}", soft_wrap=True)
