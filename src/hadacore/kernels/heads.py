"""Configurations of ``heads.cu``: two passes that quantize heads with one scale for each (batch, kv head)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from hadacore.elements import BY_CUDA_CODE
from hadacore.kernels.architectures import Architecture
from hadacore.kernels.configurations import AFTER_LOADS, ALONE, NO_SIGNS, TILE_LOG2
from hadacore.kernels.fusion import Fusion
from hadacore.kernels.launchable import Launchable


@dataclass(frozen=True)
class HeadsConfiguration(Launchable):
    """One specialised kernel.

    Attributes:
        element_code: As in ``KernelConfiguration``, and so the last two.
        log2_size: A head has ``2^log2_size`` elements, at most a tile's.
        heads: Heads of a token; whole tiles.
        kv_heads: Groups of them that share a scale.
        measures: The first pass, which finds largest magnitudes, rather than the second, which quantizes.
        fusion: What the second pass does; its prologue is also that of the first.
        programmatic: Programmatic dependent launch.
        signs: ``NO_SIGNS`` or ``SIGNS_BEFORE``.
    """

    kernel: ClassVar[str] = "heads"
    cluster: ClassVar[int] = 1
    strided: ClassVar[bool] = False
    warps: ClassVar[int] = 8
    #: Places that a measured magnitude has (``heads.cu``).
    places: ClassVar[int] = 32

    element_code: int
    log2_size: int
    heads: int
    kv_heads: int
    measures: bool
    fusion: Fusion
    programmatic: int = AFTER_LOADS
    signs: int = NO_SIGNS

    shared_bytes: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.takes(self.heads, 1 << self.log2_size):
            raise ValueError(f"a token of {self.heads} heads must be whole tiles: {self}")

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    @staticmethod
    def takes(heads: int, size: int) -> bool:
        """Whether a token of so many heads is whole tiles."""
        return heads * size % (1 << TILE_LOG2) == 0

    def for_architecture(self, architecture: Architecture) -> HeadsConfiguration:
        """The same without what a GPU of this architecture lacks."""
        return self if architecture.has_programmatic_launch else replace(self, programmatic=ALONE)

    @property
    def minimum_blocks(self) -> int:
        """Blocks that must fit on a multiprocessor; as many are launched, each warp with a range of tokens.

        8192 tokens of 32 and 8 heads of 128 on an H200: 94 us by two blocks with a rotary embedding, 97 by three, 139 by five,
        which spill; and 80 by four without, with the values, 82 by three, 89 by two.
        """
        return 2 if self.holds_more else 4

    @property
    def tiles(self) -> int:
        """Tiles of a token that a warp holds: as many loads as are under way while it rotates the token before.

        Four where angles are loaded for them all (94 us, where two take 99), else two (80 us, where four take 91).
        """
        most = self.vector_elements // (2 if self.holds_more else 4)
        token_tiles = (self.heads << self.log2_size) >> TILE_LOG2
        return next(tiles for tiles in (most, 2, 1) if tiles <= most and token_tiles % tiles == 0)

    @property
    def holds_more(self) -> bool:
        """Whether a thread needs more than 64 registers: for angles, for signs."""
        return self.fusion.prologue is not None or self.signs != NO_SIGNS

    @property
    def vector_elements(self) -> int:
        """Elements of a lane's 16-byte access."""
        return BY_CUDA_CODE[self.element_code].vector_elements

    @property
    def token_warps(self) -> int:
        """Warps that share a token."""
        return (self.heads << self.log2_size) // (self.tiles << TILE_LOG2)

    def grid(self, rows: int, multiprocessors: int) -> int:
        """Blocks to launch for ``rows`` heads of all tokens."""
        ranges = max(1, multiprocessors * self.minimum_blocks * self.warps // self.token_warps)
        return -(-min(rows // self.heads, ranges) * self.token_warps // self.warps)

    def constants(self) -> dict[str, int]:
        """The ``-D`` constants of this kernel, without those of the fusion."""
        return {
            "ELEMENT": self.element_code,
            "OUTPUT": self.element_code,
            "LOG2_SIZE": self.log2_size,
            "LOG2_TILES": 0,
            "WARP_TILES": self.tiles,
            "WARPS": self.warps,
            "MIN_BLOCKS": self.minimum_blocks,
            "MEASURES": int(self.measures),
            "PLACES": self.places,
            "PROGRAMMATIC": self.programmatic,
            "SIGNS": self.signs,
            "STRIDED": 0,
        }

    def __str__(self) -> str:
        does = "largest magnitudes" if self.measures else "codes"
        return f"heads 2^{self.log2_size}, {does} of {self.heads} heads for {self.kv_heads} scales"
