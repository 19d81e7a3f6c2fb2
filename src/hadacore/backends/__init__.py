"""Backends: who can run a transform on which device, and why not.

Every backend module has two functions:

- ``support(device) -> Support``: whether it can run there, and the reason when it cannot;
- ``transform(x, out, size, scale, signs, inverse, base) -> None``: writes the transform of ``x`` to ``out``, which is ``x``
  itself or does not overlap it; ``base`` is the caller's base matrix, or None for this library's. Arguments are already
  checked.
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
