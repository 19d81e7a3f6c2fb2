"""Small kernels for the emulator's own tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.emulator import Program, Report, compiler

needs_compiler = pytest.mark.skipif(
    compiler() is None, reason="the emulator compiles kernels with g++, which is not installed"
)


def snippet(
    body: str, *, threads: int = 64, shared_bytes: int = 2048, cluster: int = 1, programmatic: bool = False
) -> Program:
    """A kernel of x and y, with `shared` the start of shared memory and `t` the thread."""
    text = (
        '#line 1 "snippet"\n'
        f'extern "C" __global__ void snippet(const char* x, char* y) {{\n'
        f"const u32 shared = cvta_to_shared_dynamic(), t = threadIdx.x;\n{body}\n}}\n"
    )
    constants = [("WGMMA", "1")] if "wgmma" in body else []
    return Program(
        text, "snippet(a.x, a.y);", constants, threads=threads, shared_bytes=shared_bytes, cluster=cluster,
        programmatic=programmatic,
    )  # fmt: skip


def program_of(body: str) -> Program:
    """A snippet launched as the instructions in it need."""
    return snippet(body, cluster=2 if "cluster" in body else 1, programmatic="griddepcontrol" in body)


def run(program: Program, x: Tensor | None = None, y: Tensor | None = None, *, grid: int = 1, seed: int = 0) -> Report:
    """By default x and y have 4096 bytes each, and as many around them that belong to neither."""
    around_x, around_y = torch.zeros(2, 3072, dtype=torch.int32)
    x, y = around_x[1024:2048] if x is None else x, around_y[1024:2048] if y is None else y
    return program.run(x, y, grid=grid, seed=seed)
