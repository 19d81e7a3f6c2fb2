"""The emulator itself: it computes what a GPU does, and reports every fault that is planted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hadacore.kernels.configurations import TABLE, KernelConfiguration
from hadacore.kernels.source import constants, kernel_source
from tests.emulator import EmulatedKernel, EmulationError, Program, Report, compiler
from tests.emulator.build import UCONTEXT
from tests.emulator.launch import _ENTRY

needs_compiler = pytest.mark.skipif(
    compiler() is None, reason="the emulator compiles kernels with g++, which is not installed"
)


def _signatures(text: str) -> set[str]:
    found = re.findall(r"^__device__ __forceinline__ ([^{]*?) \{", text, re.MULTILINE)
    return {re.sub(r"\s+", " ", signature) for signature in found}


def test_host_has_the_functions_of_ptx() -> None:
    ptx = resources.files("hadacore.kernels.cuda").joinpath("ptx.cuh").read_text(encoding="utf-8")
    host = (Path(__file__).parent / "host.hpp").read_text(encoding="utf-8")
    assert len(_signatures(ptx)) == ptx.count("__device__ __forceinline__")
    assert _signatures(host) == _signatures(ptx)


def _snippet(body: str, *, threads: int = 64, shared_bytes: int = 2048, cluster: int = 1) -> Program:
    """A kernel of x and y, with `shared` the start of shared memory and `t` the thread."""
    text = (
        '#line 1 "snippet"\n'
        f'extern "C" __global__ void snippet(const char* x, char* y) {{\n'
        f"const u32 shared = cvta_to_shared_dynamic(), t = threadIdx.x;\n{body}\n}}\n"
    )
    return Program(text, "snippet(a.x, a.y);", threads=threads, shared_bytes=shared_bytes, cluster=cluster)


def _run(program: Program, x: Tensor | None = None, y: Tensor | None = None, *, grid: int = 1, seed: int = 0) -> Report:
    """By default x and y have 4096 bytes each, and as many around them that belong to neither."""
    around_x, around_y = torch.zeros(2, 3072, dtype=torch.int32)
    x, y = around_x[1024:2048] if x is None else x, around_y[1024:2048] if y is None else y
    return program.run(x, y, grid=grid, seed=seed)


# ---- faults ---------------------------------------------------------------------------------------

_STORE = "st_shared_v4_f32(shared + 16 * t, 1, 2, 3, 4);"
_LOAD_OTHER = "ld_shared_v4_f32(shared + 16 * (63 - t));"
_COPY = "cp_async_cg_16(shared + 16 * t, x + 16 * t); cp_async_commit_group();"
_REMOTE_LOAD = "ld_shared_cluster_v4_f32(mapa_shared_cluster(shared + 16 * t, 1 - cluster_ctarank()));"
_CLUSTER_BARRIER = "barrier_cluster_arrive(); barrier_cluster_wait();"
_PRODUCT = "float d[4]; const float c[4] = {}; mma_m16n8k16_f32_f16(d, 0, 0, 0, 0, 0, 0, c);"

FAULTS = {
    "read after write without a barrier": (
        _STORE + "bar_sync();" + _STORE + _LOAD_OTHER,
        "is a race: this (read|write) and the (read|write) by thread",
    ),
    "write after read without a barrier": (
        _STORE + "bar_sync();" + _LOAD_OTHER + _STORE,
        "is a race: this write and the read by thread",
    ),
    "write after write": ("st_shared_v4_f32(shared, 1, 2, 3, 4);", "is a race: this write and the write by thread 0"),
    "shared memory nobody wrote": ("ld_shared_v4(shared + 16 * t);", "shared byte 0 of block 0 was never written"),
    "past shared memory": ("ld_shared_v4(shared + 16 * t + 2048);", "out of bounds: shared byte 2048 of 2048"),
    "before shared memory": ("ld_shared_v4(0);", "out of bounds: shared byte -1024"),
    "misaligned in shared memory": ("ld_shared_v4(shared + 8);", "misaligned: shared byte 8"),
    "past the input": ("ld_global_v4(x + 4096 + 16 * t);", r"out of bounds: x \+ 4096 bytes, which has 4096"),
    "before the input": ("ld_global_u16(x - 2);", r"out of bounds: x \+ -2 bytes"),
    "half past the input": ("ld_global_v4(x + 4088);", r"out of bounds: x \+ 4088"),
    "past the output": ("st_global_v2(y + 4096, make_uint2(1, 2));", r"out of bounds: y \+ 4096"),
    "copy from past the input": ("cp_async_cg_16(shared + 16 * t, x + 4096); cp_async_wait_all();", "out of bounds: x"),
    "misaligned input": ("ld_global_v2(x + 4);", r"misaligned: x \+ 4 bytes is not a multiple of 8"),
    "writes to the input": ("st_global_u32((char*)x + 4 * t, 1);", r"writes to the input: x \+ 0"),
    "reads from the output": ("ld_global_u32(y + 4 * t);", r"reads from the output: y \+ 0"),
    "output written twice": ("st_global_u32(y, 1);", r"y \+ 0 bytes was already written by thread 0"),
    "copy not waited for": (_COPY + "ld_shared_v4(shared + 16 * t);", "the cp.async of thread 0 .* was not waited for"),
    "copy not waited for at the end": (_COPY, "end of kernel: 1 cp.async not waited for"),
    "copy read by another thread": (
        _STORE + "bar_sync();" + _COPY + "cp_async_wait_all();" + _LOAD_OTHER,
        "is a race: this (read|write) and the (read|write) by thread",
    ),
    "copy into a slot that is read": (
        _STORE + "bar_sync();" + _LOAD_OTHER + _COPY + "cp_async_wait_all();",
        "is a race: this write and the read by thread",
    ),
    "barrier not reached by all": ("if (t < 40) bar_sync();", "40 threads wait at bar_sync .*24 threads finished"),
    "different instructions in a warp": (
        f"if (t % 32 < 8) shfl_sync_bfly(1.f, 1); else {{ {_PRODUCT} }}",
        "other lanes of the warp are at (shfl_sync_bfly|mma_m16n8k16_f32_f16)",
    ),
    "lanes missing from a shuffle": (
        "if (t % 32 != 7) shfl_sync_bfly(1.f, 1);",
        "62 threads wait at shfl_sync_bfly .*2 threads finished",
    ),
    "barrier in some lanes, product in others": (
        f"if (t == 5) bar_sync(); else {{ {_PRODUCT} }} if (t != 5) bar_sync();",
        "deadlock: .*wait at mma",
    ),
    "wait without arrive": ("barrier_cluster_wait();", "barrier_cluster_wait: waits without having arrived"),
    "arrive twice": ("barrier_cluster_arrive(); barrier_cluster_arrive();", "arrives twice"),
    "cluster barrier not reached by all": (
        f"if (blockIdx.x == 0) {{ {_CLUSTER_BARRIER} }}",
        "block 0: deadlock: 64 threads wait at barrier_cluster_wait",
    ),
    "another block's memory without a barrier": (
        f"{_STORE} bar_sync(); {_REMOTE_LOAD} {_CLUSTER_BARRIER}",
        "is a race: this (read|write)|was never written",
    ),
    "another block's memory between arrive and wait": (
        f"{_STORE} barrier_cluster_arrive(); {_REMOTE_LOAD} barrier_cluster_wait(); {_CLUSTER_BARRIER}",
        "is a race: this (read|write)|was never written",
    ),
    "another block leaves": (f"{_STORE} {_CLUSTER_BARRIER} {_REMOTE_LOAD}", "may exit while another block reads"),
    "input before the previous grid has ended": (
        "griddepcontrol_launch_dependents(); ld_global_u32(x + 4 * t); griddepcontrol_wait();",
        "global memory is accessed before griddepcontrol_wait",
    ),
    "a rank that does not exist": ("mapa_shared_cluster(shared, 2);", "mapa_shared_cluster: block 2 of 2"),
    "cluster address outside clusters' instructions": (
        "ld_shared_v4(mapa_shared_cluster(shared, 0));",
        "a .shared::cluster address where a .shared address is needed",
    ),
}


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_reported(fault: str) -> None:
    body, message = FAULTS[fault]
    program = _snippet(body, cluster=2 if "cluster" in body else 1)
    with pytest.raises(EmulationError, match=message):
        _run(program)
    whichever_thread = re.sub(r"\d+", r"\\d+", message)
    for seed in range(1, 6):
        with pytest.raises(EmulationError, match=whichever_thread):
            _run(program, seed=seed)


@needs_compiler
def test_in_place_faults_are_reported() -> None:
    """One thread reads what another overwrites: a race in a block, and between blocks whatever they wait for."""
    x = torch.arange(1024, dtype=torch.int32)

    def run(source: str, barrier: str) -> Report:
        body = f"const u32 i = 4 * (64 * blockIdx.x + t); const u32 v = ld_global_u32(x + {source});"
        return _run(_snippet(f"{body} {barrier} st_global_u32(y + i, v);"), x, x, grid=3)

    with pytest.raises(EmulationError, match=r"is a race: this write and the read by|is no longer the input"):
        run("(i ^ 4)", "")
    assert run("(i ^ 4)", "bar_sync();").written_bytes == 3 * 64 * 4
    with pytest.raises(EmulationError, match="is a race: this write and the read by another cluster"):
        run("(i + 256) % 768", "bar_sync();")


CORRECT = {
    "barrier between": f"{_STORE} bar_sync(); {_LOAD_OTHER} bar_sync(); {_STORE}",
    "own slot without a barrier": f"{_COPY} cp_async_wait_all(); ld_shared_v4(shared + 16 * t); {_STORE}",
    "copy shown to others": f"{_COPY} cp_async_wait_all(); bar_sync(); {_LOAD_OTHER}",
    "another block's memory between cluster barriers": f"{_STORE} {_CLUSTER_BARRIER} {_REMOTE_LOAD} {_CLUSTER_BARRIER}",
    "input after the previous grid has ended": (
        "griddepcontrol_launch_dependents(); griddepcontrol_wait(); ld_global_u32(x + 4 * t);"
    ),
    "whole warps apart": "if (t < 32) shfl_sync_bfly(1.f, 1); bar_sync();",
}


@needs_compiler
@pytest.mark.parametrize("name", CORRECT)
def test_correct_code_is_not_reported(name: str) -> None:
    program = _snippet(CORRECT[name], cluster=2 if "cluster" in CORRECT[name] else 1)
    for seed in range(6):
        _run(program, seed=seed)


@needs_compiler
def test_compile_errors_name_the_kernel_line() -> None:
    with pytest.raises(RuntimeError, match=r"snippet:3:\d+: error"):
        _snippet("undeclared();")


# A real kernel with one thing taken out of it.
MUTATIONS: dict[str, tuple[str, dict[str, object], str]] = {
    "block barrier": (r"bar_sync\(\);", {"cluster": 1, "passes": 1}, "is a race|was never written"),
    "cluster barrier": (r"barrier_cluster_(arrive|wait)\(\);", {"cluster": 4}, "is a race|was never written"),
    "wait for copies": (r"cp_async_wait_all\(\);", {"prefetch": True}, "was not waited for"),
}


def _configuration(log2_size: int, **wanted: object) -> KernelConfiguration:
    return next(
        candidate.configuration
        for candidate in TABLE[2, log2_size]
        if all(getattr(candidate.configuration, name) == value for name, value in wanted.items())
    )


def _run_text(configuration: KernelConfiguration, text: str) -> Report:
    c = configuration
    program = Program(text, _ENTRY, constants(c), threads=c.threads, shared_bytes=c.shared_bytes, cluster=c.cluster)
    x = torch.randn(3, c.size).half()
    return program.run(x, torch.empty_like(x), 1.0, len(x), grid=c.grid(len(x), 1))


@needs_compiler
@pytest.mark.parametrize("taken_out", MUTATIONS)
def test_kernel_with_a_part_missing_is_reported(taken_out: str) -> None:
    call, wanted, message = MUTATIONS[taken_out]
    configuration = _configuration(14, **wanted)
    text, count = re.subn(call, ";", kernel_source(configuration.kernel, ptx=False))
    assert count > 0
    with pytest.raises(EmulationError, match=message):
        _run_text(configuration, text)


@needs_compiler
def test_bank_conflicts_are_counted() -> None:
    store = "st_shared_v4_f32(shared + %s, 1, 2, 3, 4);"
    assert _run(_snippet(store % "16 * t", threads=32)).extra_wavefronts == 0
    # All 32 lanes in the same 4 banks: in each of four groups of 8 lanes, 7 wavefronts too many.
    assert _run(_snippet(store % "128 * t", threads=32, shared_bytes=4096)).extra_wavefronts == 28
    # 8-byte reads 16 bytes apart: in each of two groups of 16 lanes, every second bank pair is wanted twice.
    read = f"{store % '16 * t'} ld_shared_v2_f32(shared + 16 * t);"
    assert _run(_snippet(read, threads=32)).extra_wavefronts == 2
    # One word for all lanes is a broadcast.
    read = f"if (t == 0) {store % '0'} bar_sync(); ld_shared_v4(shared);"
    assert _run(_snippet(read, threads=64)).extra_wavefronts == 0


@needs_compiler
def test_exchange_without_its_permutation_conflicts() -> None:
    configuration = _configuration(13, warps=8)  # a thread reads one quad of each part: odd and even ones mix
    text = kernel_source(configuration.kernel, ptx=False)
    assert _run_text(configuration, text).extra_wavefronts == 0
    permuted = "lane ^ (4 * odd)"
    assert permuted in text
    assert _run_text(configuration, text.replace(permuted, "lane")).extra_wavefronts > 0


# ---- arithmetic -----------------------------------------------------------------------------------


def _all_kinds_of_floats() -> Tensor:
    """Every exponent and sign, with fractions that are random, exact in 16 bits, ties, and next to ties."""
    exponents = torch.arange(256, dtype=torch.int64)[:, None]
    random = torch.randint(0, 1 << 23, (256, 48))
    tails = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0x3000, 0x18000, 0x7FFFFF])
    fractions = torch.cat((random, (random[:, :11] & ~0x1FFFF) | tails, tails.expand(256, -1)), 1)[:, :64]
    bits = (exponents << 23) | fractions
    return torch.cat((bits, bits | (1 << 31))).flatten().to(torch.uint32).view(torch.float32)


@needs_compiler
@pytest.mark.parametrize(("function", "dtype"), [("f16x2", torch.float16), ("bf16x2", torch.bfloat16)])
def test_conversion_to_sixteen_bits(function: str, dtype: torch.dtype) -> None:
    x = _all_kinds_of_floats()
    y = torch.zeros(len(x), dtype=dtype)
    body = (
        "const u32 i = 64 * blockIdx.x + t; const uint2 v = ld_global_v2(x + 8 * i);"
        f"st_global_u32(y + 4 * i, cvt_rn_{function}_f32(mov_f32_b32(v.y), mov_f32_b32(v.x)));"
    )
    _run(_snippet(body), x, y, grid=len(x) // 128)
    numbers = ~x.isnan()
    assert torch.equal(y.view(torch.int16)[numbers], x.to(dtype).view(torch.int16)[numbers])
    assert (y.view(torch.int16)[~numbers] == 0x7FFF).all()


@needs_compiler
def test_conversion_from_float16() -> None:
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    y = torch.zeros(len(x))
    body = (
        "const u32 i = 64 * blockIdx.x + t; const u32 bits = ld_global_u16(x + 2 * i);"
        "st_global_u32(y + 4 * i, mov_b32_f32(cvt_f32_f16(bits)));"
    )
    _run(_snippet(body), x, y, grid=len(x) // 64)
    numbers = ~x.isnan()
    assert torch.equal(y.view(torch.int32)[numbers], x.float().view(torch.int32)[numbers])
    assert y[~numbers].isnan().all()


# A (16 x 16), then B (16 x 8), row by row, in x; D (16 x 8) in y. Fragments from the tables of the PTX ISA.
_MATRIX_PRODUCT = """
const u32 group = t / 4, in_group = t % 4;
const char* b = x + 512;
u32 a[4], bf[2];
for (int i = 0; i < 4; ++i) {
  const u32 row = i == 0 || i == 2 ? group : group + 8, column = in_group * 2 + (i >= 2 ? 8 : 0);
  a[i] = ld_global_u32(x + 2 * (16 * row + column));
}
for (int i = 0; i < 2; ++i) {
  const u32 row = in_group * 2 + 8 * i;
  bf[i] = ld_global_u16(b + 2 * (8 * row + group)) | ld_global_u16(b + 2 * (8 * (row + 1) + group)) << 16;
}
float d[4];
const float c[4] = {1, 2, 3, 4};
FUNCTION(d, a[0], a[1], a[2], a[3], bf[0], bf[1], c);
for (int i = 0; i < 4; ++i)
  st_global_u32(y + 4 * (8 * (i < 2 ? group : group + 8) + in_group * 2 + i % 2), mov_b32_f32(d[i] - c[i]));
"""


@needs_compiler
@pytest.mark.parametrize(("format_name", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_matrix_product(format_name: str, dtype: torch.dtype) -> None:
    program = _snippet(_MATRIX_PRODUCT.replace("FUNCTION", f"mma_m16n8k16_f32_{format_name}"), threads=32)
    a, b = torch.randint(-9, 9, (16, 16)).to(dtype), torch.randint(-9, 9, (16, 8)).to(dtype)
    tiny = torch.finfo(dtype).tiny / 2  # subnormal
    for special in (None, float("inf"), float("nan"), tiny):
        if special is not None:
            a[3, 5], b[5, 2], b[5, 4] = special, 0, 1
        d = torch.zeros(16, 8)
        _run(program, torch.cat((a.flatten(), b.flatten())), d)
        exact = (a.double() @ b.double()).float()
        assert torch.equal(d.isnan(), exact.isnan())
        assert torch.equal(d.nan_to_num(), exact.nan_to_num())
        if special == float("inf"):
            assert d[3, 2].isnan() and d[3, 4].isinf()  # 0 times infinity; 1 times infinity


@needs_compiler
def test_shuffle() -> None:
    x = torch.randn(64)
    y = torch.zeros(64)
    body = "st_global_u32(y + 4 * t, mov_b32_f32(shfl_sync_bfly(mov_f32_b32(ld_global_u32(x + 4 * t)), 5)));"
    _run(_snippet(body), x, y)
    assert torch.equal(y, x[torch.arange(64) ^ 5])


# ---- other machines -------------------------------------------------------------------------------

_UCONTEXT_CHECK = """
import torch
from tests.emulator.test_emulator import _configuration
from tests.emulator import EmulatedKernel
c = _configuration(14, cluster=2)
x = torch.randn(2, c.size).half()
y = torch.empty_like(x)
EmulatedKernel(c).run(x, y, c.size**-0.5, 2, grid=c.grid(2, 1), seed=1)
print(float((y.double().norm() / x.double().norm() - 1).abs()))
"""


@needs_compiler
def test_runs_on_swapcontext_too() -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {UCONTEXT: "1", "PYTHONPATH": os.pathsep.join((str(root), *sys.path))}
    command = [sys.executable, "-c", _UCONTEXT_CHECK]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1e-3


@needs_compiler
def test_signs_and_strides_must_go_with_the_configuration() -> None:
    kernel = EmulatedKernel(replace(_configuration(8), strided=True))
    x = torch.zeros(256, dtype=torch.float16)
    with pytest.raises(ValueError, match="strides"):
        kernel.run(x, x, rows=1)
    with pytest.raises(ValueError, match="signs"):
        kernel.run(x, x, rows=1, signs=x, strides=(1, 256, 256, 256, 256))
