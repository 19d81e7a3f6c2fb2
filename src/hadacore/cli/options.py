"""Turns the text of options into values, with errors that name the option."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import typer

from hadacore.elements import BY_NAME
from hadacore.errors import BackendUnavailableError


def names(text: str, option: str) -> tuple[str, ...]:
    """The entries of a comma-separated list, each once, in order."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise typer.BadParameter("expected a comma-separated list, got nothing", param_hint=option)
    return found


def integers(text: str, option: str) -> tuple[int, ...]:
    """The whole numbers of a comma-separated list."""
    numbers = []
    for part in names(text, option):
        try:
            numbers.append(int(part.replace("_", "")))
        except ValueError:
            raise typer.BadParameter(f"expected whole numbers, got {part!r}", param_hint=option) from None
    return tuple(numbers)


def choices(text: str, allowed: Sequence[str], option: str) -> tuple[str, ...]:
    """The entries of a comma-separated list that must all be ``allowed``."""
    found = names(text, option)
    for name in found:
        if name not in allowed:
            raise typer.BadParameter(f"expected some of {', '.join(allowed)}, got {name!r}", param_hint=option)
    return found


def element_dtype(name: str, allowed: Sequence[str], option: str = "--dtype") -> torch.dtype:
    """The torch dtype of an element type's name."""
    if name not in allowed:
        raise typer.BadParameter(f"expected one of {', '.join(allowed)}, got {name!r}", param_hint=option)
    return BY_NAME[name].dtype


def chosen_device(name: str | None, backend: str | None = None) -> torch.device:
    """The device to run on: the GPU where there is one, unless told otherwise.

    Args:
        name: ``"cpu"``, ``"cuda"`` or None.
        backend: The backend that is to run there; None is the device's default.

    Raises:
        BackendUnavailableError: A GPU is there or asked for, but the backend cannot run.
    """
    from hadacore.backends import triton
    from hadacore.backends.selection import BACKENDS, default_backend, supports

    if name not in (None, "cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu or cuda, got {name!r}", param_hint="--device")
    if backend is not None and backend not in BACKENDS:
        raise typer.BadParameter(f"expected one of {', '.join(BACKENDS)}, got {backend!r}", param_hint="--backend")
    if (backend == "cpu" and name == "cuda") or (backend == "cuda" and name == "cpu"):
        raise typer.BadParameter(f"does not go with --device {name}", param_hint="--backend")
    if backend == "cpu" or (backend is None and (name == "cpu" or (name is None and not torch.cuda.is_available()))):
        return torch.device("cpu")
    chosen = backend or (default_backend("cuda") if torch.cuda.is_available() else "cuda")
    support = supports()[chosen]
    if not support:
        raise BackendUnavailableError(f"cannot run on the GPU: {support.reason}. Use --device cpu to run on the CPU.")
    if not torch.cuda.is_available() and triton.is_interpreted():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextlib.contextmanager
def user_errors(option: str | None = None) -> Iterator[None]:
    """Turn a :class:`ValueError` or :class:`TypeError` about what the user asked for into a message and exit code 2."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
