"""Every size, type and option once, with odd row counts, for compute-sanitizer.

    compute-sanitizer --tool memcheck  --report-api-errors no --error-exitcode 1 python -m tests.gpu.sanitize
    compute-sanitizer --tool racecheck --error-exitcode 1 python -m tests.gpu.sanitize
    compute-sanitizer --tool initcheck --error-exitcode 1 python -m tests.gpu.sanitize

Names of parts (rows, orders, passes, quantize) run those alone.

Outputs are allocated exactly, without PyTorch's caching (which would hide an access beyond their end):
PYTORCH_NO_CUDA_MEMORY_CACHING=1 is set here.
"""

from __future__ import annotations

import os
import sys

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch

from hadacore import hadamard_quantize, hadamard_transform, prologues, quantize_query_key
from hadacore.backends.cuda.launch import kernel_arguments, launch_prepared, prepare
from hadacore.backends.cuda.passes import prepare_passes, run_passes
from hadacore.elements import CUDA_ELEMENTS, Element
from hadacore.formats import FORMATS
from hadacore.kernels.architectures import architecture_of
from hadacore.kernels.base_configurations import base_candidates
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE, candidates, maximum_log2_row
from hadacore.kernels.passes import passes_of
from hadacore.matrices import factor


def main(parts: list[str]) -> None:
    """Run some parts, all by default, on the current GPU."""
    torch.cuda.init()
    known = {"rows": _rows, "orders": _orders, "passes": _several_passes, "quantize": _quantize}
    if unknown := [part for part in parts if part not in known]:
        raise SystemExit(f"parts are {', '.join(known)}, got {', '.join(unknown)}")
    launched = sum(known[part](element) for part in parts or known for element in CUDA_ELEMENTS)
    print(f"{launched} launches on {torch.cuda.get_device_name()}")


def _rows(element: Element) -> int:
    """Every candidate of every power of two that one kernel takes."""
    device = torch.cuda.current_device()
    architecture = architecture_of(torch.cuda.get_device_capability(device))
    launched = 0
    for log2_size in range(maximum_log2_row(element.cuda_code, architecture) + 1):
        size = 1 << log2_size
        rows = 3 if log2_size >= 12 else 2 * (512 >> min(log2_size, 9)) + 1
        signs = torch.ones(size, dtype=element.dtype, device="cuda")
        for candidate in candidates(element.cuda_code, log2_size, architecture):
            for signs_are in (NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER):
                x = torch.randn(rows, size, device="cuda").to(element.dtype)
                out = torch.empty_like(x)
                prepared = prepare(candidate.configuration.with_options(signs_are, False), rows, device)
                used = None if signs_are == NO_SIGNS else signs
                launch_prepared(prepared, device, kernel_arguments(x, out, 1.0, rows, size, used, None))
                torch.cuda.synchronize()
                assert torch.isfinite(out).all()
                launched += 1
    return launched


def _quantize(element: Element) -> int:
    """Every format after few and many rows of some sizes, the prologues, bases of the caller's, and queries and keys."""
    launched = 0
    for size in (128, 1024, 4096, 16384, 32768, 448, 5120, 14336, 28672):
        for rows in (3, 301):
            x, up = (torch.randn(rows, size, device="cuda").to(element.dtype) for _ in range(2))
            weight = torch.ones(size, dtype=element.dtype, device="cuda")
            made = [None, prologues.silu_mul(up), prologues.rms_norm(weight, residual=up.clone())]
            for format in FORMATS:
                q = hadamard_quantize(x, format.name, prologue=made[launched % len(made)])
                torch.cuda.synchronize()
                assert torch.isfinite(q.dequantize()).all()
                launched += 1
    for size, block_size in ((2304, 64), (4096, 128), (14336, 512)):
        for rows in (3, 301):
            x, up = (torch.randn(rows, size, device="cuda").to(element.dtype) for _ in range(2))
            for prologue in (None, prologues.silu_mul(up)):
                q = hadamard_quantize(x, "int8", prologue=prologue, block_size=block_size)
                torch.cuda.synchronize()
                assert torch.isfinite(q.dequantize()).all()
                launched += 1
    for order, size in ((5, 320), (28, 3584), (172, 11008)):
        x, up = (torch.randn(7, size, device="cuda").to(element.dtype) for _ in range(2))
        for dtype in dict.fromkeys((element.dtype, torch.float32)):
            base = torch.randn(order, order, device="cuda").to(dtype)
            for name, prologue in (("int8", None), ("nvfp4", None), ("int8", prologues.silu_mul(up))):
                q = hadamard_quantize(x, name, prologue=prologue, base=base, inverse=prologue is None)
                torch.cuda.synchronize()
                assert torch.isfinite(q.dequantize()).all()
                launched += 1
    q, k = (torch.randn(2, 70, heads, 128, device="cuda").to(element.dtype) for heads in (8, 2))
    angles = torch.rand(70, 64, device="cuda")
    for granularity in ("head", "token"):
        found = quantize_query_key(q, k, rope=prologues.rope(angles.cos(), angles.sin()), granularity=granularity)
        torch.cuda.synchronize()
        assert torch.isfinite(found.q_descale).all()
        launched += 1
    return launched


def _orders(element: Element) -> int:
    """Every candidate of some sizes m * 2^k, with signs, and a base of the caller's."""
    device = torch.cuda.current_device()
    architecture = architecture_of(torch.cuda.get_device_capability(device))
    launched = 0
    sizes = dict.fromkeys((20, 360, 768, 1536, 2304, 2880, 5120, 8960, 14336, 29568), 7)
    if element.bytes == 2:
        sizes |= {
            80: 22000,
            960: 2500,
            9216: 300,
            18944: 140,
        }  # rows, more than the blocks that loop over them: by warps, by warpgroups, and by warps that drift
    for size, rows in sizes.items():
        matrix = factor(size)
        signs = torch.ones(size, dtype=element.dtype, device="cuda")
        for candidate in base_candidates(element.cuda_code, matrix.base_order, matrix.log2, architecture):
            for signs_are in (NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER):
                x = torch.randn(rows, size, device="cuda").to(element.dtype)
                out = torch.empty_like(x)
                prepared = prepare(candidate.with_options(signs_are, False), rows, device)
                used = None if signs_are == NO_SIGNS else signs
                launch_prepared(prepared, device, kernel_arguments(x, out, 1.0, rows, size, used, None))
                torch.cuda.synchronize()
                assert torch.isfinite(out).all()
                launched += 1
        base = torch.randn(matrix.base_order, matrix.base_order, device="cuda")
        assert torch.isfinite(hadamard_transform(x, base=base)).all()
    return launched


def _several_passes(element: Element) -> int:
    """The kernels of the passes of a few sizes: three rows, two of them in a group."""
    device = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(device)
    launched = 0
    for log2_size, split in ((16, (11, 5)), (18, (11, 7)), (20, (11, 9)), (22, (11, 6, 5))):
        signs = torch.ones(1 << log2_size, dtype=element.dtype, device="cuda")
        for signs_are in (NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER):
            x = torch.randn(3, 1 << log2_size, device="cuda").to(element.dtype)
            out = torch.empty_like(x)
            passes = passes_of(
                element.cuda_code, log2_size, 3, (properties.major, properties.minor), properties.multi_processor_count,
                signs_are, split=split, group_bytes=8 << log2_size,
            )  # fmt: skip
            run_passes(prepare_passes(passes, device), x, out, 1.0, None if signs_are == NO_SIGNS else signs, device)
            torch.cuda.synchronize()
            assert torch.isfinite(out).all()
            launched += len(passes.launches)
    return launched


if __name__ == "__main__":
    main(sys.argv[1:])
