"""The element types a transform accepts: one table, from which everything else is derived."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Element:
    """An element type.

    Attributes:
        name: The name in commands, tables and cache files, such as ``"float16"``.
        dtype: The torch dtype.
        bytes: Size of one element in memory.
        unit_roundoff: Largest relative error of rounding to this type, ``2^-p`` for ``p`` significand bits.
        cuda_code: ``ELEMENT`` in the CUDA sources, or None where the CUDA kernels do not take it.
    """

    name: str
    dtype: torch.dtype
    bytes: int
    unit_roundoff: float
    cuda_code: int | None

    @property
    def vector_elements(self) -> int:
        """Elements of one 16-byte access."""
        return 16 // self.bytes


ELEMENTS: tuple[Element, ...] = (
    Element("float16", torch.float16, 2, 2.0**-11, 0),
    Element("bfloat16", torch.bfloat16, 2, 2.0**-8, 1),
    Element("float32", torch.float32, 4, 2.0**-24, 2),
    Element("float64", torch.float64, 8, 2.0**-53, None),
)

BY_DTYPE: dict[torch.dtype, Element] = {e.dtype: e for e in ELEMENTS}
BY_NAME: dict[str, Element] = {e.name: e for e in ELEMENTS}
CUDA_ELEMENTS: tuple[Element, ...] = tuple(e for e in ELEMENTS if e.cuda_code is not None)
BY_CUDA_CODE: dict[int, Element] = {e.cuda_code: e for e in ELEMENTS if e.cuda_code is not None}
