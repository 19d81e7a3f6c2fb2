"""Compiles configurations for GPUs that are not here, and reads what the compiler says of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hadacore.backends.triton.configurations import DIRECT, IEEE, THREE_PARTS, Configuration
from hadacore.backends.triton.launch import NO_SIGNS, STORE, TO_E4M3_BY_HARDWARE, TO_INT8
from hadacore.backends.triton.requirements import architecture_refusal, is_interpreted, triton_module
from hadacore.errors import BackendUnavailableError

#: What is checked: NVIDIA's and AMD's GPUs by architecture, with Triton's name, its number or name again, and lanes of a warp.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_89": ("cuda", 89, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
    "gfx1100": ("hip", "gfx1100", 32),
}
#: Bytes of shared memory that a program may have.
SHARED_BYTES = {
    "sm_80": 166912,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "gfx942": 65536,
    "gfx1100": 65536,
}

_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a kernel.

    Attributes:
        registers: Of a thread.
        spilled_bytes: Of a thread, in memory because registers did not suffice.
        shared_bytes: Of a program.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int


def _signature(configuration: Configuration, dtype: torch.dtype, epilogue: int) -> dict[str, str]:
    element = _TYPES[dtype]
    if configuration.kernel == "bits":
        base = "i32"
    else:
        base = {DIRECT: element, THREE_PARTS: "bf16", IEEE: "fp32"}.get(configuration.product, element)
    return {
        "x": f"*{element}",
        "out": f"*{element}" if epilogue == STORE else "*i8",
        "signs": f"*{element}",
        "scales": "*fp32",
        "base": f"*{base}",
        "base_row_stride": "i32",
        "rows": "i32",
        "scale": "fp32",
        "inner_rows": "i32",
        "x_outer": "i32",
        "x_inner": "i32",
        "out_outer": "i32",
        "out_inner": "i32",
        "sign_rows": "i32",
        "amax_factor": "fp32",
    }


def _read_nvidia(assembled: dict[str, Any]) -> tuple[int, int]:
    program = triton_module().knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(assembled["cubin"])
        report = subprocess.run([program, "-res-usage", str(file)], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no registers: {report!r}")
    return int(found[1]), int(found[2])


def _read_amd(assembled: dict[str, Any]) -> tuple[int, int]:
    text = assembled["amdgcn"]
    registers = re.search(r"\.vgpr_count:\s+(\d+)", text)
    stack = re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)
    if registers is None or stack is None:
        raise RuntimeError("the assembly names no registers")
    return int(registers[1]), int(stack[1])


def compile_for(
    target: str,
    configuration: Configuration,
    dtype: torch.dtype,
    *,
    signs: int = NO_SIGNS,
    strided: bool = False,
    epilogue: int = STORE,
) -> Compiled:
    """Compile a configuration for a target; needs no GPU.

    Args:
        target: One of :data:`TARGETS`.
        configuration: Which.
        dtype: Of the input.
        signs: NO_SIGNS, SIGNS_BEFORE or SIGNS_AFTER.
        strided: For rows with gaps.
        epilogue: STORE, or what makes codes.

    Raises:
        BackendUnavailableError: Triton is missing, interprets, or is too old for the target.
        ValueError: There is no such target.
    """
    triton = triton_module()
    if is_interpreted():
        raise BackendUnavailableError("Triton interprets its kernels (TRITON_INTERPRET is set) and compiles none")
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    refusal = architecture_refusal(int(TARGETS[target][1]) // 10) if TARGETS[target][0] == "cuda" else None
    if refusal is not None:
        raise BackendUnavailableError(refusal)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hadacore.backends.triton import kernels

    if signs != NO_SIGNS:
        configuration = configuration.beside_signs()
    nvidia = TARGETS[target][0] == "cuda"
    if not nvidia:
        configuration = configuration.portable()
    kernel = getattr(kernels, configuration.kernel)
    constants = {**configuration.constants(), "SIGNS": signs, "STRIDED": strided, "EPILOGUE": epilogue}
    if configuration.kernel == "panel":
        constants["base_column_stride"] = 1
    if configuration.kernel == "bits":
        constants["PTX"] = nvidia
    types = _signature(configuration, dtype, epilogue)
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name.endswith(("_outer", "_inner", "_row_stride"))
    }
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, aligned)
    options: dict[str, Any] = {"num_warps": configuration.warps, "enable_fp_fusion": False}
    if configuration.registers:
        options["maxnreg"] = configuration.registers
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    read = _read_nvidia if nvidia else _read_amd
    return Compiled(*read(compiled.asm), compiled.metadata.shared)


def epilogues(target: str) -> tuple[int, ...]:
    """Epilogues worth checking on a target."""
    by_hardware = TARGETS[target][0] == "cuda" and int(TARGETS[target][1]) >= 89
    return (STORE, TO_INT8, *((TO_E4M3_BY_HARDWARE,) if by_hardware else ()))
