"""The emulator itself: it computes what a GPU does, and reports what is taken out of a real kernel."""

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
from hadacore.kernels.wgmma import wgmma_text
from tests.emulator import EmulatedKernel, EmulationError, Program, Report
from tests.emulator.build import UCONTEXT
from tests.emulator.launch import _ENTRY
from tests.emulator.snippets import needs_compiler, run, snippet


def _signatures(text: str) -> set[str]:
    found = re.findall(r"^__device__ __forceinline__ ([^{]*?) \{", text, re.MULTILINE)
    return {re.sub(r"\s+", " ", signature) for signature in found}


def test_host_has_the_functions_of_ptx() -> None:
    files = (resources.files("hadacore.kernels.cuda").joinpath(name) for name in ("ptx.cuh", "ptx_hopper.cuh"))
    ptx = "".join(file.read_text(encoding="utf-8") for file in files)
    host = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("host*.hpp"))
    assert len(_signatures(ptx)) == ptx.count("__device__ __forceinline__")
    of_any_width = {signature.replace("[8]", "[TILES]") for signature in _signatures(wgmma_text([64]))}
    assert len(of_any_width) == 6
    assert _signatures(host) == _signatures(ptx) | of_any_width


@needs_compiler
def test_compile_errors_name_the_kernel_line() -> None:
    with pytest.raises(RuntimeError, match=r"snippet:3:\d+: error"):
        snippet("undeclared();")


# A real kernel with one thing taken out of it: what, of which configuration for which __CUDA_ARCH__, and the report.
MUTATIONS: dict[str, tuple[str, dict[str, object], int, str]] = {
    "block barrier": (
        r"bar_sync\(\);",
        {"cluster": 1, "passes": 1},
        900,
        "is a race|was never written",
    ),
    "barrier before the next row": (
        r"(?<=\) )bar_sync\(\);",
        {"prefetch": True},
        900,
        "is a race: this write and the read by thread",
    ),
    "cluster barrier": (
        r"barrier_cluster_(arrive|wait)\(\);",
        {"cluster": 4},
        900,
        "may not have started",
    ),
    "fence of the cluster's mbarriers": (
        r"fence_mbarrier_init\(\);",
        {"cluster": 4},
        900,
        "is a race: this use and the mbarrier_init by thread",
    ),
    "expectation of other blocks' bytes": (
        r"if \(threadIdx.x == 0\) mbarrier_arrive_expect_tx\([^;]*;",
        {"cluster": 4},
        900,
        "threads wait at mbarrier_try_wait_parity",
    ),
    "wait for other blocks' bytes": (
        r"while \(!mbarrier_try_wait_parity\(shared[^;{]*\{\}",
        {"cluster": 4},
        900,
        "counts was not waited for|was never written",
    ),
    "wait for bulk copies": (
        r"while \(!mbarrier_try_wait_parity\(barrier[^;{]*\{\}",
        {"prefetch": True},
        900,
        "counts was not waited for|was never written",
    ),
    "parity of bulk copies": (
        r"parity \^= 1;",
        {"prefetch": True},
        900,
        "counts was not waited for|threads wait at mbarrier_try_wait_parity",
    ),
    # Without it the next copy overwrites what lanes still read, or completes a phase that they never saw begin.
    "barrier of a warp before the next bulk copy": (
        r"staging\.release\(\);",
        {"prefetch": True},
        900,
        "is a race: this write and the read by thread|threads wait at mbarrier_try_wait_parity",
    ),
    "barrier of a warp after its mbarrier's initialisation": (
        r"bar_warp_sync\(\);(?=\n#endif\n  \}\n\n  // Ask for)",
        {"prefetch": True},
        900,
        "is a race: this use and the mbarrier_init by thread|is not an mbarrier",
    ),
    "fence of a warp's mbarrier": (
        r"fence_mbarrier_init\(\);",
        {"prefetch": True},
        900,
        "no fence_mbarrier_init",
    ),
    "wait for copies": (
        r"cp_async_wait_all\(\);",
        {"prefetch": True},
        800,
        "was not waited for",
    ),
}


def _configuration(log2_size: int, **wanted: object) -> KernelConfiguration:
    return next(
        candidate.configuration
        for candidate in TABLE[2, log2_size]
        if all(getattr(candidate.configuration, name) == value for name, value in wanted.items())
    )


def _run_text(configuration: KernelConfiguration, text: str, *, cuda_arch: int = 900, seed: int = 0) -> Report:
    c = configuration
    program = Program(
        text, _ENTRY, (*constants(c), ("__CUDA_ARCH__", str(cuda_arch))), threads=c.threads,
        shared_bytes=c.shared_bytes, cluster=c.cluster,
    )  # fmt: skip
    x = torch.randn(3, c.size).half()
    return program.run(x, torch.empty_like(x), 1.0, len(x), grid=c.grid(len(x), 1), seed=seed)


@needs_compiler
@pytest.mark.parametrize("taken_out", MUTATIONS)
def test_kernel_with_a_part_missing_is_reported(taken_out: str) -> None:
    call, wanted, cuda_arch, message = MUTATIONS[taken_out]
    configuration = _configuration(14, **wanted)
    text, count = re.subn(call, ";", kernel_source(configuration, ptx=False))
    assert count > 0
    for seed in range(3):
        with pytest.raises(EmulationError, match=message):
            _run_text(configuration, text, cuda_arch=cuda_arch, seed=seed)


@needs_compiler
def test_bank_conflicts_are_counted() -> None:
    store = "st_shared_v4_f32(shared + %s, 1, 2, 3, 4);"
    assert run(snippet(store % "16 * t", threads=32)).extra_wavefronts == 0
    # All 32 lanes in the same 4 banks: in each of four groups of 8 lanes, 7 wavefronts too many.
    assert run(snippet(store % "128 * t", threads=32, shared_bytes=4096)).extra_wavefronts == 28
    # 8-byte reads 16 bytes apart: in each of two groups of 16 lanes, every second bank pair is wanted twice.
    read = f"{store % '16 * t'} ld_shared_v2_f32(shared + 16 * t);"
    assert run(snippet(read, threads=32)).extra_wavefronts == 2
    # One word for all lanes is a broadcast.
    read = f"if (t == 0) {store % '0'} bar_sync(); ld_shared_v4(shared);"
    assert run(snippet(read, threads=64)).extra_wavefronts == 0


@needs_compiler
def test_exchange_without_its_permutation_conflicts() -> None:
    configuration = _configuration(13, warps=8)  # a thread reads one quad of each part: odd and even ones mix
    text = kernel_source(configuration, ptx=False)
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
    run(snippet(body), x, y, grid=len(x) // 128)
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
    run(snippet(body), x, y, grid=len(x) // 64)
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
    program = snippet(_MATRIX_PRODUCT.replace("FUNCTION", f"mma_m16n8k16_f32_{format_name}"), threads=32)
    a, b = torch.randint(-9, 9, (16, 16)).to(dtype), torch.randint(-9, 9, (16, 8)).to(dtype)
    tiny = torch.finfo(dtype).tiny / 2  # subnormal
    for special in (None, float("inf"), float("nan"), tiny):
        if special is not None:
            a[3, 5], b[5, 2], b[5, 4] = special, 0, 1
        d = torch.zeros(16, 8)
        run(program, torch.cat((a.flatten(), b.flatten())), d)
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
    run(snippet(body), x, y)
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
