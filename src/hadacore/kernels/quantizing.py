"""Whether one kernel rotates and quantizes, and which quantizer it is then specialised by."""

from __future__ import annotations

import functools

from hadacore.elements import BY_CUDA_CODE
from hadacore.formats import Quantizer
from hadacore.kernels.architectures import Architecture
from hadacore.kernels.base_configurations import base_candidates
from hadacore.kernels.configurations import MAXIMUM_LOG2_ROW, candidates
from hadacore.kernels.fusion import FusedPrologue, Fusion, fusion_of
from hadacore.matrices import factor


@functools.lru_cache(maxsize=1024)
def find_fusion(
    element_code: int, n: int, size: int, quantizer: Quantizer, global_scale: bool, inverse: bool, architecture: Architecture,
    prologue: FusedPrologue | None = None, heads: int = 1,
) -> Fusion | str:  # fmt: skip
    """The epilogue that quantizes rows of ``n`` elements after transforms of ``size``, or why no kernel has it.

    Args:
        element_code: ``ELEMENT`` of the CUDA text.
        n: Elements of a row.
        size: Elements of a transform; divides ``n``.
        quantizer: What follows.
        global_scale: Whether a scale of the whole tensor is given.
        inverse: Whether the transpose is applied.
        architecture: The GPU's.
        prologue: What precedes, or None.
        heads: Rows of a token, for a rotary embedding.
    """
    if size < BY_CUDA_CODE[element_code].vector_elements:
        return f"a transform of {size} elements is shorter than a vector of 16 bytes"
    matrix = factor(size)
    if matrix.base_order == 1 and size > 1 << MAXIMUM_LOG2_ROW:
        return f"a transform of {size} elements takes several passes over memory"
    fusion = fusion_of(quantizer, n, global_scale, prologue, heads)
    if prologue is not None and prologue.normalises and n != size and (n > 256 or n & (n - 1)):
        return f"a row of {n} elements is normalised as a whole, but transformed in parts of {size}"
    if prologue is not None and prologue.rotary and size > 1024:
        return f"a rotary embedding goes with transforms of up to 1024 elements, not {size}"
    found: tuple[object, ...]
    if matrix.base_order == 1:
        found = candidates(element_code, matrix.log2, architecture, fusion)
    else:
        transposed = inverse and not matrix.symmetric
        found = base_candidates(
            element_code, matrix.base_order, matrix.log2, architecture, transposed=transposed, fusion=fusion
        )
    if found:
        return fusion
    if prologue is not None and (matrix.base_order > 1 and not prologue.gated):
        return f"sizes that are no power of two have gated activations only, {size} is {matrix.base_order} * 2^{matrix.log2}"
    if quantizer.block > size:
        return f"{quantizer.block} elements that share a scale are several transforms of {size}"
    return f"{architecture.name} has no kernel that holds the {quantizer.block or size} elements that belong together"
