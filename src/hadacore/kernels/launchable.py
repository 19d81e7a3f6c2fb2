"""What a launch asks of a configuration, with the answers of most kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod

from hadacore.kernels.architectures import Architecture


class Launchable(ABC):
    """A configuration of a kernel, which also says how it is launched."""

    shared_bytes: int

    @property
    def works_in_place(self) -> bool:
        """Whether all of a row is read before any of it is written."""
        return True

    def launched_bytes(self, architecture: Architecture) -> int:
        """Shared memory to launch a block with, ``shared_bytes`` at least."""
        return self.shared_bytes

    @abstractmethod
    def constants(self) -> dict[str, int]:
        """The ``-D`` constants that specialise the CUDA text, but for those of ``fusion``."""


class OrderLaunchable(Launchable):
    """Of sizes ``order * 2^log2_size``, a base and columns."""

    order: int
    log2_size: int

    @property
    def size(self) -> int:
        """Elements of a row."""
        return self.order << self.log2_size

    @property
    def least_elements(self) -> int:
        """Elements from which on it may be chosen."""
        return 0

    @property
    def order_tiles(self) -> int:
        """Tiles of 16 result rows."""
        return -(-self.order // 16)
