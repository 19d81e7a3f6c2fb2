"""``python -m hadacore.cli``."""

from hadacore.cli import main

if __name__ == "__main__":
    main()
