"""Which points are measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hadacore.benchmarking.timing import COLD, HOT, REGIMES
from hadacore.elements import CUDA_ELEMENTS
from hadacore.matrices import check_size

#: Above this, hot and cold are the same: nothing of it stays in a cache.
HOT_MAXIMUM_ELEMENTS = 33_554_432

#: By default: what every GPU takes in one launch. Larger sizes are measured if asked for.
SIZES = tuple(1 << k for k in range(16))
ELEMENT_COUNTS = (4096, 8192, 65_536, 524_288, 2_097_152, 8_388_608, 33_554_432, 134_217_728)
DTYPES = tuple(element.name for element in CUDA_ELEMENTS)


@dataclass(frozen=True)
class Point:
    """One line of the table: rows of ``size`` elements, ``elements`` in all."""

    dtype: str
    size: int
    elements: int
    regime: str


@dataclass(frozen=True)
class Grid:
    """Sizes, element counts, types and regimes, all combinations that make sense.

    Raises:
        TypeError, ValueError: An entry that there is no transform or measurement for; no combination at all.
    """

    sizes: tuple[int, ...] = SIZES
    elements: tuple[int, ...] = ELEMENT_COUNTS
    dtypes: tuple[str, ...] = DTYPES
    regimes: tuple[str, ...] = REGIMES

    def __post_init__(self) -> None:
        for size in self.sizes:
            check_size(size)
        for count in self.elements:
            if count < 1:
                raise ValueError(f"element counts must be 1 or more, got {count}")
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        for regime in self.regimes:
            if regime not in REGIMES:
                raise ValueError(f"regime must be one of {', '.join(REGIMES)}, got {regime!r}")
        if not self.points():
            raise ValueError(
                "no combination is left to measure: element counts must be multiples of a size, and hot is measured "
                f"up to {HOT_MAXIMUM_ELEMENTS} elements"
            )

    def groups(self) -> Iterator[tuple[str, int, str, tuple[Point, ...]]]:
        """``(dtype, elements, regime, points)``: points that share buffers and the time of a copy."""
        for dtype in self.dtypes:
            for elements in self.elements:
                for regime in self.regimes:
                    if regime == HOT and elements > HOT_MAXIMUM_ELEMENTS:
                        continue
                    sizes = [size for size in self.sizes if elements % size == 0]
                    if sizes:
                        yield dtype, elements, regime, tuple(Point(dtype, s, elements, regime) for s in sizes)

    def points(self) -> tuple[Point, ...]:
        """All points, in the order in which they are measured."""
        return tuple(point for *_, points in self.groups() for point in points)

    def arena_elements(self, dtype: str) -> int:
        """Elements of the largest tensor of a type."""
        return max(elements for name, elements, *_ in self.groups() if name == dtype)

    @property
    def has_cold(self) -> bool:
        """Whether any point is cold."""
        return COLD in self.regimes


def default_grid(device_type: str, quick: bool = False) -> Grid:
    """The grid of ``hadacore bench``: every size on a GPU, a few on the CPU, fewer still when ``quick``."""
    if device_type == "cuda":
        if quick:
            return Grid((128, 1024, 4096, 32768), (8192, 2_097_152, 33_554_432), ("float16",))
        return Grid()
    if quick:
        return Grid((128, 4096), (65_536,), ("float32",))
    return Grid((16, 128, 1024, 8192, 32768), (65_536, 524_288, 2_097_152), ("float16", "float32"))
