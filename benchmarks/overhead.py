"""Times what a user waits for outside the kernel: the eager call, and the first use of a size.

    python benchmarks/overhead.py

Needs a GPU. The eager call is on 4096 elements, without gradient, beside torch.neg, in microseconds of wall time
averaged over calls that the GPU keeps up with. The first use is timed in fresh processes, with an empty kernel cache
and from disk, after another size was used, so that neither CUDA's nor Python's start-up counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import hadacore

CALLS = 2000
ROUNDS = 15

FIRST_USE = """
import time, torch, hadacore
hadacore.hadamard_transform(torch.randn(1, 2, device="cuda"))
x = torch.randn(2, {size}, device="cuda").half()
torch.cuda.synchronize()
start = time.perf_counter()
hadacore.hadamard_transform(x)
torch.cuda.synchronize()
print((time.perf_counter() - start) * 1e3)
"""


def eager_us(call: Callable[[], object]) -> float:
    """Best of several averages: the host's own noise only ever adds."""
    best = float("inf")
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, (time.perf_counter() - start) / CALLS)
        torch.cuda.synchronize()
    return best * 1e6


def first_use_ms(size: int, cache: str) -> float:
    """Milliseconds of the first call of a size in a new process."""
    environment = {**os.environ, "HADACORE_CACHE_DIR": cache}
    code = FIRST_USE.format(size=size)
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(result.stdout)


def main() -> None:
    x = torch.randn(32, 128, device="cuda", dtype=torch.float16)
    y = torch.empty_like(x)
    neg = eager_us(lambda: torch.neg(x))
    for name, call in (
        ("hadamard_transform(x)", lambda: hadacore.hadamard_transform(x)),
        ("hadamard_transform(x, out=y)", lambda: hadacore.hadamard_transform(x, out=y)),
        ("hadamard_transform_(x)", lambda: hadacore.hadamard_transform_(x)),
    ):
        us = eager_us(call)
        print(f"{name:32} {us:6.2f} us, torch.neg {neg:.2f} us, ratio {us / neg:.2f} (target for the first: 1.60)")
    for size in (128, 4096, 32768):
        with tempfile.TemporaryDirectory() as folder:
            cache = str(Path(folder) / "kernels")
            empty, disk = first_use_ms(size, cache), first_use_ms(size, cache)
        print(
            f"first use of {size:6}: {empty:6.1f} ms with an empty cache (target 500), {disk:5.1f} ms from disk (target 30)"
        )


if __name__ == "__main__":
    main()
