"""Configurations of ``head_maxima.cu``: the first of two passes that quantize heads with one scale for each (batch, kv head)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from hadacore.kernels.architectures import Architecture
from hadacore.kernels.configurations import AFTER_LOADS, ALONE, NO_SIGNS, TILE_LOG2
from hadacore.kernels.fusion import Fusion


@dataclass(frozen=True)
class HeadMaxima:
    """One specialised kernel.

    Attributes:
        element_code: As in ``KernelConfiguration``, and so the last two.
        log2_size: A head has ``2^log2_size`` elements, at most a tile's.
        heads: Heads of a token; whole tiles.
        kv_heads: Groups of them that share a scale.
        tokens: Of a sequence; the same kernel for any number, in another launch.
        fusion: What the second pass does; its prologue is also this kernel's.
        programmatic: Programmatic dependent launch.
        signs: ``NO_SIGNS`` or ``SIGNS_BEFORE``.
    """

    kernel: ClassVar[str] = "head_maxima"
    cluster: ClassVar[int] = 1
    strided: ClassVar[bool] = False
    shared_bytes: ClassVar[int] = 0
    warps: ClassVar[int] = 8
    #: Tokens a warp works through: 4 loads under way, as many warps as multiprocessors hold, few atomic maxima at the end.
    tokens_at_once: ClassVar[int] = 4
    chunk: ClassVar[int] = 32

    element_code: int
    log2_size: int
    heads: int
    kv_heads: int
    tokens: int
    fusion: Fusion
    programmatic: int = AFTER_LOADS
    signs: int = NO_SIGNS

    threads: int = field(default=32 * 8, init=False, repr=False, compare=False)

    def for_architecture(self, architecture: Architecture) -> HeadMaxima:
        """The same without what a GPU of this architecture lacks."""
        return self if architecture.has_programmatic_launch else replace(self, programmatic=ALONE)

    @property
    def token_tiles(self) -> int:
        """Tiles of a token."""
        return (self.heads << self.log2_size) >> TILE_LOG2

    def grid(self, rows: int, multiprocessors: int) -> int:
        """Blocks to launch for ``rows`` heads of all tokens."""
        batch = rows // (self.heads * self.tokens)
        workers = batch * -(-self.tokens // self.chunk) * self.token_tiles
        return -(-workers // self.warps)

    def constants(self) -> dict[str, int]:
        """The ``-D`` constants of this kernel, without those of the fusion."""
        return {
            "ELEMENT": self.element_code,
            "OUTPUT": self.element_code,
            "LOG2_SIZE": self.log2_size,
            "LOG2_TILES": 0,
            "WARPS": self.warps,
            "CHUNK": self.chunk,
            "TOKENS_AT_ONCE": self.tokens_at_once,
            "PROGRAMMATIC": self.programmatic,
            "SIGNS": self.signs,
            "STRIDED": 0,
        }

    def __str__(self) -> str:
        return f"head_maxima 2^{self.log2_size}, {self.heads} heads for {self.kv_heads} scales"
