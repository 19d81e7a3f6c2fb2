"""What the emulator knows of warpgroups: wgmma's and stmatrix's layouts, and the faults that they can have."""

from __future__ import annotations

import re

import pytest
import torch

from tests.emulator import EmulationError
from tests.emulator.snippets import needs_compiler, run, snippet

# Copies `bytes` of x, rows of 128 bytes, to shared memory as the 128-byte swizzle has them.
_COPY = """
for (u32 i = t; i < BYTES / 16; i += THREADS)
  st_shared_v4_b32(shared + 128 * (i / 8) + 16 * ((i ^ (i / 8)) & 7), ld_global_v4(x + 16 * i));
fence_proxy_async();
bar_sync();
"""
_DESCRIBE = "(1ull << 62 | 64ull << 32 | (u64)(%s) / 16)"
# A, 64 rows, then B, N rows, of 64 elements each: D = A B^T, four steps of 16 elements, the first by START.
_PRODUCT = (
    _COPY
    + """
float d[TILES][4];
const u32 g = t % 32 / 4, k = t % 4;
wgmma_fence();
for (u32 s = 0; s < 4; ++s) {
  u32 a[4];
  for (u32 i = 0; i < 4; ++i)
    a[i] = ld_global_u32(x + 128 * (16 * (t / 32) + g + 8 * (i % 2)) + 32 * s + 4 * k + 16 * (i / 2));
  const u64 b = DESCRIBE_B + 2 * s, in_shared = DESCRIBE_A + 2 * s;
  if (s == 0) FUNCTION<true>(d, OPERAND, b);
  else FUNCTION<false>(d, OPERAND, b);
}
wgmma_commit_group();
wgmma_wait_group<0>();
for (u32 n = 0; n < TILES; ++n)
  for (u32 i = 0; i < 4; ++i)
    st_global_u32(y + 4 * (8 * TILES * (16 * (t / 32) + g + 8 * (i / 2)) + 8 * n + 2 * k + i % 2), mov_b32_f32(d[n][i]));
"""
)


def _with(text: str, **values: object) -> str:
    values |= {"DESCRIBE_A": _DESCRIBE % "shared", "DESCRIBE_B": _DESCRIBE % "(shared + 8192)"}
    return re.sub(r"\b(" + "|".join(values) + r")\b", lambda found: str(values[found.group(1)]), text)


@needs_compiler
@pytest.mark.parametrize("operand", ["a[0], a[1], a[2], a[3]", "in_shared"], ids=["registers", "shared"])
@pytest.mark.parametrize("width", [8, 40, 136])
@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_product_of_a_warpgroup(kind: str, dtype: torch.dtype, width: int, operand: str) -> None:
    a, b = torch.randint(-9, 10, (64, 64)).to(dtype), torch.randint(-9, 10, (width, 64)).to(dtype)
    body = _with(
        _PRODUCT, BYTES=128 * (64 + width), THREADS=128, TILES=width // 8, FUNCTION=f"wgmma_m64k16_f32_{kind}", OPERAND=operand
    )  # fmt: skip
    program = snippet(body, threads=128, shared_bytes=128 * (64 + width))
    for seed in range(3):
        d = torch.zeros(64, width)
        run(program, torch.cat((a, b)), d, seed=seed)
        assert torch.equal(d, a.float() @ b.float().T)


@needs_compiler
@pytest.mark.parametrize("count", [2, 4])
def test_stored_matrices(count: int) -> None:
    """Matrix m, 8 x 8, element (r, c) in word m of lane 4 r + c / 2; column c at the address of lane 8 m + c."""
    words = ", ".join(f"ld_global_u32(x + 16 * t + {4 * i})" for i in range(count))
    body = (
        f"stmatrix_x{count}_trans(shared + 16 * (t ^ 5), {words}); bar_warp_sync();"
        f"if (t < {8 * count}) st_global_v4(y + 16 * t, ld_shared_v4(shared + 16 * (t ^ 5)));"
    )
    x = torch.arange(256, dtype=torch.int16).view(8, 4, 4, 2)  # row, pair of columns, matrix, column of it
    y = torch.zeros(8 * count, 8, dtype=torch.int16)
    report = run(snippet(body, threads=32), x, y)
    expected = x.permute(2, 1, 3, 0).reshape(4, 8, 8)[:count]
    assert torch.equal(y.view(count, 8, 8), expected) and report.extra_wavefronts == 0
    # All columns in the same banks: 7 wavefronts too many for each matrix.
    conflicts = f"stmatrix_x{count}_trans(shared + 128 * t, 1, 2{', 3, 4' * (count == 4)});"
    assert run(snippet(conflicts, threads=32, shared_bytes=4096)).extra_wavefronts == 28


_STORE = "st_shared_v4_f32(shared + 16 * t, 1, 2, 3, 4);"
_FENCE = "fence_proxy_async(); bar_sync(); wgmma_fence();"
_A_AND_B = f"const u64 a = {_DESCRIBE % 'shared'}, b = {_DESCRIBE % '(shared + 8192)'}; float d[2][4];"
_FILL = f"for (u32 i = 0; i < 6; ++i) st_shared_v4_f32(shared + 16 * (128 * i + t), 0, 0, 0, 0); {_STORE}"
_COMMIT = "wgmma_commit_group();"
_START = f"wgmma_m64k16_f32_f16<true>(d, a, b); {_COMMIT}"
_WAIT = "wgmma_wait_group<0>();"
_USE = "for (u32 i = 0; i < 8; ++i) st_global_u32(y + 4 * (8 * t + i), mov_b32_f32(d[i / 4][i % 4]));"
_ALL = f"{_A_AND_B} {_FILL} {_FENCE}"
_ARRIVALS = "const u32 barrier = shared + 12288; if (t == 0) mbarrier_init(barrier, %s); bar_sync();"
_COPIES = "cp_async_cg_16(shared + 16 * t, x + 16 * t);"
_ARRIVE = "cp_async_mbarrier_arrive_noinc(barrier);"
_TRY = "while (!mbarrier_try_wait_parity(barrier, 0)) {}"
_LOAD_OTHER = "ld_shared_v4(shared + 16 * (127 - t));"
_OWN = "bar_sync_of(1 + t / 64, 64);"

FAULTS = {
    "A that nobody wrote": (
        f"{_A_AND_B} {_FENCE} {_START} {_WAIT}",
        r"wgmma_m64k16_f32_f16: shared byte \d+ of block 0 was never written",
    ),
    "B of 16 rows of 64 elements that nobody wrote": (
        f"float d[8][4]; {_FENCE} wgmma_m64n64k16_f32_f16(d, 0, 0, 0, 0, {_DESCRIBE % 'shared'}, 0); {_COMMIT} {_WAIT}",
        "was never written",
    ),
    "no barrier before the product": (
        f"{_A_AND_B} {_FILL} fence_proxy_async(); wgmma_fence(); {_START} {_WAIT}",
        "is a race: this read and the write|was never written",
    ),
    "no fence of the async proxy": (
        f"{_A_AND_B} {_FILL} bar_sync(); wgmma_fence(); {_START} {_WAIT}",
        "no fence_proxy_async between the write by thread",
    ),
    "fence of the async proxy before the write": (
        f"{_A_AND_B} fence_proxy_async(); {_FILL} bar_sync(); wgmma_fence(); {_START} {_WAIT}",
        "no fence_proxy_async",
    ),
    "no fence of registers": (
        f"{_A_AND_B} {_FILL} fence_proxy_async(); bar_sync(); {_START} {_WAIT}",
        "no wgmma_fence after registers may have been",
    ),
    "no fence of registers after a wait": (
        f"{_ALL} {_START} {_WAIT} {_START} {_WAIT}",
        "no wgmma_fence after registers",
    ),
    "operand overwritten before the wait": (
        f"{_ALL} {_START} {_STORE} {_WAIT}",
        "is a race: this (read|write) and the (read|write) by",
    ),
    "operand overwritten before the wait, after a barrier": (
        f"{_ALL} {_START} bar_sync(); {_STORE} {_WAIT}",
        "is a race: this (read|write) and the (read|write) by",
    ),
    "product not waited for": (f"{_ALL} {_START}", "end of kernel: 1 wgmma not waited for"),
    "product not committed": (
        f"{_ALL} wgmma_m64k16_f32_f16<true>(d, a, b); {_WAIT}",
        "end of kernel: 1 wgmma not waited for",
    ),
    "newest group not waited for": (
        f"{_ALL} {_START} {_START} wgmma_wait_group<1>();",
        "end of kernel: 1 wgmma not waited for",
    ),
    "matrix without swizzle": (
        f"{_ALL} wgmma_m64k16_f32_f16<true>(d, a, b ^ 1ull << 62); {_COMMIT} {_WAIT}",
        "no matrix in the 128-byte swizzle",
    ),
    "matrix that begins between eight rows": (
        f"{_ALL} wgmma_m64k16_f32_f16<true>(d, a, b + 128 / 16); {_COMMIT} {_WAIT}",
        "no matrix in the 128-byte swizzle",
    ),
    "matrix that goes on past 64 elements": (
        f"{_ALL} wgmma_m64k16_f32_f16<true>(d, a + 7, b); {_COMMIT} {_WAIT}",
        "no matrix in the 128-byte swizzle",
    ),
    "matrix past shared memory": (
        f"{_ALL} wgmma_m64k16_f32_f16<true>(d, a, b + 8192 / 16); {_COMMIT} {_WAIT}",
        "out of bounds: shared byte 16384",
    ),
    "misaligned column of a matrix": (
        "stmatrix_x2_trans(shared + 8 * t, 1, 2);",
        "stmatrix_x2_trans: misaligned: shared byte 8",
    ),
    "matrices stored over others": (
        "stmatrix_x2_trans(shared + 16 * (t & 7), 1, 2);",
        "is a race: this write and the write by",
    ),
    "matrices stored where others read": (
        f"{_STORE} bar_sync(); {_LOAD_OTHER} stmatrix_x4_trans(shared + 16 * t, 1, 2, 3, 4);",
        "is a race: this write and the read by",
    ),
    "matrices read by another warp": (
        f"stmatrix_x4_trans(shared + 16 * t, 1, 2, 3, 4); bar_warp_sync(); {_LOAD_OTHER}",
        "is a race: this read|was never written",
    ),
    "stmatrix by some lanes": (
        "if (t % 32 != 3) stmatrix_x2_trans(shared + 16 * t, 1, 2);",
        "124 threads wait at stmatrix_x2_trans",
    ),
    "another half's barrier": (f"{_STORE} {_OWN} {_LOAD_OTHER}", "is a race: this read|was never written"),
    "numbered barrier not reached by all": ("if (t < 32) bar_sync_of(1, 64);", "32 threads wait at bar_sync_of"),
    "one barrier for different numbers of threads": (
        "bar_sync_of(1, t < 32 ? 64 : 96);",
        "barrier 1 is one of (64|96) threads for others",
    ),
    "barrier that does not exist": ("bar_sync_of(16, 64);", "barrier 16 of 16"),
    "barrier of half a warp": ("bar_sync_of(1, 48);", "48 threads are not whole warps of the block"),
    "copies whose arrival is not waited for": (
        f"{_ARRIVALS % 128} {_COPIES} {_ARRIVE} ld_shared_v4(shared + 16 * t); {_TRY}",
        "cp.async of thread|was not waited for",
    ),
    "copies whose arrival nobody waits for": (
        f"{_ARRIVALS % 128} {_COPIES} {_ARRIVE}",
        "end of kernel: copies that the mbarrier at .* counts were not waited for",
    ),
    "copies after the arrival": (
        f"{_ARRIVALS % 128} {_ARRIVE} {_COPIES} {_TRY} {_LOAD_OTHER}",
        "was not waited for|was never written",
    ),
    "an arrival of copies shows nothing else": (
        f"{_ARRIVALS % 128} {_STORE} {_ARRIVE} {_TRY} {_LOAD_OTHER}",
        "is a race: this read and the write by",
    ),
    "an arrival of one thread": (
        f"{_ARRIVALS % 1} {_STORE} if (t == 0) mbarrier_arrive(barrier); {_TRY} {_LOAD_OTHER}",
        "is a race: this read|was never written",
    ),
    "arrivals of copies at no mbarrier": (f"const u32 barrier = shared; {_ARRIVE}", "is not an mbarrier"),
    "copies that arrive, for wgmma": (
        f"{_A_AND_B} {_FILL} fence_proxy_async(); {_ARRIVALS % 128} {_COPIES} {_ARRIVE} {_TRY} wgmma_fence(); {_START} {_WAIT}",
        "no fence_proxy_async",
    ),
}


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_reported(fault: str) -> None:
    body, message = FAULTS[fault]
    program = snippet(body, threads=128, shared_bytes=16384)
    for seed in range(6):
        with pytest.raises(EmulationError, match=re.sub(r"(?<=byte )\d+", r"\\d+", message)):
            run(program, seed=seed)


CORRECT = {
    "product": f"{_ALL} {_START} {_WAIT} bar_sync(); {_STORE}",
    "two groups": (
        f"{_ALL} float e[2][4]; {_START} wgmma_m64k16_f32_f16<true>(e, a, b); {_COMMIT} wgmma_wait_group<1>(); {_WAIT}"
    ),
    "rows of B that nobody wrote": (f"{_ALL} float e[8][4]; wgmma_m64k16_f32_f16<true>(e, a, b); {_COMMIT} {_WAIT}"),
    "fence of the async proxy by the reader": (
        f"{_A_AND_B} {_FILL} bar_sync(); fence_proxy_async(); wgmma_fence(); {_START} {_WAIT}"
    ),
    "a half's own barrier": f"{_STORE} {_OWN} ld_shared_v4(shared + 16 * (t ^ 63)); {_OWN} {_STORE}",
    "copies that arrive": f"{_ARRIVALS % 128} {_COPIES} {_ARRIVE} {_TRY} {_LOAD_OTHER} bar_sync(); {_STORE}",
    "copies that arrive twice": (
        f"{_ARRIVALS % 128} if (t < 64) {{"
        f"cp_async_cg_16(shared + 4096 + 16 * t, x + 2048 + 16 * t); {_ARRIVE} {_COPIES} {_ARRIVE} {_TRY}"
        "ld_shared_v4(shared + 16 * (63 - t)); ld_shared_v4(shared + 4096 + 16 * (63 - t)); }"
    ),
    "arrivals of warps": (
        f"{_ARRIVALS % 4} {_STORE} bar_warp_sync(); if (t % 32 == 0) mbarrier_arrive(barrier); {_TRY} {_LOAD_OTHER}"
    ),
    "copies that arrive, for wgmma, fenced": (
        f"{_A_AND_B} {_FILL} fence_proxy_async(); {_ARRIVALS % 128} {_COPIES} {_ARRIVE} {_TRY} fence_proxy_async();"
        f"wgmma_fence(); {_START} {_WAIT}"
    ),
}


@needs_compiler
@pytest.mark.parametrize("name", CORRECT)
def test_correct_code_is_not_reported(name: str) -> None:
    program = snippet(CORRECT[name], threads=128, shared_bytes=16384)
    for seed in range(6):
        run(program, seed=seed)


@needs_compiler
def test_sums_are_there_only_after_the_wait() -> None:
    """And columns of B that nobody wrote are NaN."""
    program = snippet(f"{_ALL} {_START} {_USE} {_WAIT}", threads=128, shared_bytes=16384)
    y = torch.zeros(1024)
    run(program, None, y)
    assert y.isnan().all()
    run(snippet(f"{_ALL} {_START} {_WAIT} {_USE}", threads=128, shared_bytes=16384), None, y)
    assert torch.isfinite(y).all()
    of_all_rows = _ALL.replace("d[2][4]", "d[8][4]")  # 32 of them were written
    use = "for (u32 n = 0; n < 8; ++n) st_global_u32(y + 4 * (8 * t + n), mov_b32_f32(d[n][0]));"
    run(snippet(f"{of_all_rows} {_START} {_WAIT} {use}", threads=128, shared_bytes=16384), None, y)
    assert torch.equal(y.view(128, 8).isfinite(), (torch.arange(8) < 4).expand(128, 8))


@needs_compiler
def test_more_arrivals_of_copies_than_counted() -> None:
    """An error if they have not landed; if they have, the last one is of the next phase."""
    program = snippet(f"{_ARRIVALS % 2} if (t < 3) {_ARRIVE}", threads=128, shared_bytes=16384)
    with pytest.raises(EmulationError, match="cp_async_mbarrier_arrive_noinc: more arrivals than the 2 of a phase"):
        run(program)
    run(program, seed=1)
