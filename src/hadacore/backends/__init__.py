"""Backends: who can run a transform on which device, and why not.

Every backend module has two functions and a value:

- ``support(device) -> Support``: whether it can run there, and the reason when it cannot;
- ``CAPABILITIES``: what it takes, for the table in ``docs/backends.md``;
- ``transform(x, out, size, scale, signs, inverse, base) -> None``: writes the transform of ``x`` to ``out``, which is ``x``
  itself or does not overlap it; ``base`` is the caller's base matrix, or None for this library's. Arguments are already
  checked.

:mod:`.selection` says which of them a tensor goes to.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Support:
    """Whether a backend can run, and a sentence that says why or with what."""

    available: bool
    reason: str

    def __bool__(self) -> bool:
        return self.available


@dataclass(frozen=True)
class Capabilities:
    """What a backend takes, in general; an error says so for each problem.

    Attributes:
        devices: Where.
        needs: What must be installed.
        dtypes: Names of element types.
        largest_power: Largest power of two.
        largest_order: Largest order of a base matrix, or None where any is taken.
        largest_size: Largest ``m * 2^k``, or None where any is taken.
        fused_formats: Formats that are rotated to and quantized in one pass.
        fused_granularity: What may share a scale there, in words.
    """

    devices: str
    needs: str
    dtypes: tuple[str, ...]
    largest_power: int
    largest_order: int | None
    largest_size: int | None
    fused_formats: tuple[str, ...] = ()
    fused_granularity: str = ""
