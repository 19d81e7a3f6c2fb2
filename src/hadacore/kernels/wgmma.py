"""The CUDA text of ``wgmma`` instructions, one function each, for the widths that a kernel multiplies.

An instruction of N columns has N / 2 accumulators as operands, so its text is written out for each N.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

_TYPES = ("f16", "bf16", "tf32")


def wgmma_text(widths: Iterable[int]) -> str:
    """Functions ``wgmma_m64k16_f32_f16`` and ``_bf16``, overloaded by the number of accumulators and by where A is.

    wgmma.mma_async.m64nNk16, ``D = A B`` (``START``) or ``D = A B + D``. Each of the four warps has 16 rows of A and D, fragments
    as those of mma.m16n8k16: ``d[n]`` are columns 8 n .. 8 n + 7. A is in registers, or in shared memory, 64 rows of 16 elements
    (K), which ``a`` describes; B is there, N rows of 16 elements, described by ``b``. K is the contiguous dimension of both.
    """
    variants = itertools.product(sorted(set(widths)), _TYPES, (True, False))
    functions = (_function(width, kind, in_registers) for width, kind, in_registers in variants)
    return '#line 1 "wgmma"\n' + "".join(functions)


def _function(width: int, kind: str, in_registers: bool) -> str:
    count, depth = width // 2, 8 if kind == "tf32" else 16
    operands = ["a0", "a1", "a2", "a3"] if in_registers else ["a"]
    parameters = "u32 a0, u32 a1, u32 a2, u32 a3" if in_registers else "u64 a"
    sums = ",".join(f"%{i}" for i in range(count))
    left = ",".join(f"%{count + i}" for i in range(len(operands)))
    # Which dimension of shared memory is contiguous can be said of 16-bit types only.
    transposed = "" if kind == "tf32" else ", 0" if in_registers else ", 0, 0"
    inputs = ", ".join(f'"{"r" if in_registers else "l"}"({name})' for name in operands)

    def instruction(start: bool) -> str:
        outputs = ", ".join(f'"{"=" if start else "+"}f"(d[{i // 4}][{i % 4}])' for i in range(count))
        # That nothing is added must be a constant: no register of D is then read.
        return (
            f'asm volatile("wgmma.mma_async.sync.aligned.m64n{width}k{depth}.f32.{kind}.{kind} {{{sums}}}, '
            f'{"{" + left + "}" if in_registers else left}, %{count + len(operands)}, {int(not start)}, 1, 1{transposed};"\n'
            f'    : {outputs} : {inputs}, "l"(b));'
        )

    sums_type = f"float (&d)[{width // 8}][4]"
    return (
        "template <bool START>\n"
        f"__device__ __forceinline__ void wgmma_m64k{depth}_f32_{kind}({sums_type}, {parameters}, u64 b) {{\n"
        f"  if (START) {instruction(True)}\n  else {instruction(False)}\n}}\n"
    )
