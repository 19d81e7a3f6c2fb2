"""Whether one kernel rotates and quantizes, and which quantizer it is then specialised by."""

from __future__ import annotations

import functools

from hadacore.elements import BY_CUDA_CODE
from hadacore.formats import Quantizer
from hadacore.kernels.architectures import Architecture
from hadacore.kernels.base_configurations import (
    LARGEST_ORDER,
    base_candidates,
    base_source,
    merged_columns,
)
from hadacore.kernels.configurations import MAXIMUM_LOG2_FUSED_ROW, candidates
from hadacore.kernels.fusion import FusedPrologue, Fusion, fusion_of
from hadacore.matrices import factor


@functools.lru_cache(maxsize=1024)
def find_fusion(
    element_code: int, n: int, size: int, quantizer: Quantizer, global_scale: bool, inverse: bool, architecture: Architecture,
    prologue: FusedPrologue | None = None, heads: int = 1, base_order: int = 0, float32_base: bool | None = None,
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
        base_order: Order of the caller's base, or 0.
        float32_base: Whether it is float32 rather than of the input's type; None without one.
    """
    vector = BY_CUDA_CODE[element_code].vector_elements
    if size < vector:
        return f"a transform of {size} elements is shorter than a vector of 16 bytes"
    order, transposed = base_order, False
    if base_order == 0:
        matrix = factor(size)
        order, transposed = matrix.base_order, inverse and not matrix.symmetric
    if quantizer.block and quantizer.block % size and size % quantizer.block:
        return f"a transform of {size} elements ends within {quantizer.block} that share a scale"
    has_base = base_order > 0 or order > 1
    log2 = (size // order).bit_length() - 1
    largest = 1 << MAXIMUM_LOG2_FUSED_ROW
    if not has_base and size > largest:
        return f"a quantizer goes with powers of two up to {largest}, not {size}"
    fusion = fusion_of(quantizer, n, global_scale, prologue, heads)
    if prologue is not None and prologue.normalises and n != size and (n > 256 or n & (n - 1)):
        return f"a row of {n} elements is normalised as a whole, but transformed in parts of {size}"
    if prologue is not None and prologue.rotary and size > 1024:
        return f"a rotary embedding goes with transforms of up to 1024 elements, not {size}"
    found: tuple[object, ...]
    if not has_base:
        found = candidates(element_code, log2, architecture, fusion)
    else:
        base = base_source(element_code, float32_base)
        merged = order << merged_columns(order, log2, element_code, base)
        if base_order > 0 and merged > LARGEST_ORDER:
            return f"a base of {merged} rows, merged columns included, is more than the {LARGEST_ORDER} of one launch"
        if 1 << log2 < vector:
            return f"{size} is {order} * 2^{log2}, and 2^{log2} columns are fewer than a vector of {vector}"
        found = base_candidates(
            element_code, order, log2, architecture, base=base, transposed=transposed, fusion=fusion
        )
    if found:
        return fusion
    if prologue is not None and has_base and prologue.rotary:
        kind = "a caller's base goes" if base_order > 0 else "sizes that are no power of two go"
        return f"{kind} with gated activations and RMSNorm only, {size} is {order} * 2^{log2}"
    if prologue is not None and has_base and prologue.normalises and 1 << log2 < 8 * vector:
        return f"a kernel that normalises holds rows of {8 * vector} columns and more, {size} is {order} * 2^{log2}"
    if quantizer.block > size:
        return f"{quantizer.block} elements that share a scale are several transforms of {size}"
    return f"{architecture.name} has no kernel that holds the {quantizer.block or size} elements that belong together"
