"""The command ``hadacore``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without the packages that it needs, say what to install and exit with 1."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        print(
            f"the command line needs the packages typer and rich, which could not be imported ({error}). "
            'Install them with: pip install "hadacore[cli]"',
            file=sys.stderr,
        )
        sys.exit(1)
    from hadacore.cli.app import app

    app()
