"""The emulator reports every fault that is planted in a small kernel, and nothing in correct ones."""

from __future__ import annotations

import re

import pytest
import torch

from tests.emulator import EmulationError, Report
from tests.emulator.snippets import needs_compiler, program_of, run, snippet

_STORE = "st_shared_v4_f32(shared + 16 * t, 1, 2, 3, 4);"
_LOAD_OTHER = "ld_shared_v4_f32(shared + 16 * (63 - t));"
_COPY = "cp_async_cg_16(shared + 16 * t, x + 16 * t); cp_async_commit_group();"
_LOAD = "ld_shared_v4_f32(shared + 16 * t);"
_CLUSTER_BARRIER = "barrier_cluster_arrive(); barrier_cluster_wait();"
_BARRIER = "const u32 barrier = shared + 1024;"  # an mbarrier, behind 64 slots of 16 bytes
_INIT = "if (t == 0) mbarrier_init(barrier, 1);"
_FENCED_INIT = "if (t == 0) { mbarrier_init(barrier, 1); fence_mbarrier_init(); }"
_ARRIVE = "if (t == 0) mbarrier_arrive_expect_tx(barrier, 0);"
_EXPECT = "if (t == 0) mbarrier_arrive_expect_tx(barrier, 1024);"
_WAIT = "while (!mbarrier_try_wait_parity(barrier, 0)) {}"
_BULK = "if (t == 0) cp_async_bulk(shared, x, 1024, barrier);"
_START_CLUSTER = f"{_BARRIER} {_FENCED_INIT} {_CLUSTER_BARRIER}"
_START_BULK = f"{_BARRIER} {_FENCED_INIT} bar_sync(); {_EXPECT} {_BULK}"
_TO_OTHER = "mapa_shared_cluster(%s, 1 - cluster_ctarank())"
_OTHER_BARRIER = _TO_OTHER % "barrier"
_REMOTE_STORE = f"st_async_v4_b32({_TO_OTHER % '(shared + 16 * t)'}, {_OTHER_BARRIER}, 1, 2, 3, 4);"
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
    "write after several reads, some of them ordered before it": (
        f"if (t == 0) {_STORE} bar_sync(); ld_shared_v4(shared); bar_warp_sync();"
        "if (t == 9) st_shared_v4_f32(shared, 1, 2, 3, 4);",
        "is a race: this (read|write) and the (read|write) by thread",
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
    "another block's memory without a wait": (
        f"{_START_CLUSTER} {_EXPECT} {_REMOTE_STORE} bar_sync(); {_LOAD} {_WAIT}",
        "the mbarrier at shared byte 1024 of block [01] counts was not waited for|was never written",
    ),
    "a cluster barrier instead of a wait": (
        f"{_START_CLUSTER} {_EXPECT} {_REMOTE_STORE} {_CLUSTER_BARRIER} {_LOAD} {_WAIT}",
        "counts was not waited for",
    ),
    "stores shown by a cluster barrier": (
        f"{_STORE} {_CLUSTER_BARRIER} {_LOAD_OTHER}",
        "is a race: this read and the write by thread",
    ),
    "one try is not a wait": (
        f"{_START_CLUSTER} {_EXPECT} {_REMOTE_STORE} mbarrier_try_wait_parity(barrier, 0); {_LOAD}",
        "counts was not waited for|was never written",
    ),
    "another block's memory that is read": (
        f"{_STORE} bar_sync(); {_START_CLUSTER} {_EXPECT} {_LOAD} {_REMOTE_STORE} {_WAIT}",
        "is a race: this (read|write) and the (read|write) by thread|counts was not waited for",
    ),
    "two threads to the same place of another block": (
        f"{_START_CLUSTER} if (t < 2) st_async_v4_b32({_TO_OTHER % 'shared'}, {_OTHER_BARRIER}, 1, 2, 3, 4);",
        "counts was not waited for",
    ),
    "another block leaves": (f"{_START_CLUSTER} {_EXPECT} {_REMOTE_STORE}", "may exit while another block writes"),
    "another block has not started": (
        f"{_BARRIER} {_FENCED_INIT} {_EXPECT} {_REMOTE_STORE} {_CLUSTER_BARRIER} {_WAIT}",
        "block 1 may not have started",
    ),
    "another block's mbarrier without a fence": (
        f"{_BARRIER} {_INIT} {_CLUSTER_BARRIER} {_EXPECT} {_REMOTE_STORE} {_WAIT}",
        "is a race: this use and the mbarrier_init by thread 0 of block",
    ),
    "destination and mbarrier in different blocks": (
        f"{_START_CLUSTER} st_async_v4_b32({_TO_OTHER % 'shared'}, mapa_shared_cluster(barrier, cluster_ctarank()),"
        " 1, 2, 3, 4);",
        "the mbarrier is in block 0, the destination in block 1",
    ),
    "misaligned in another block": (
        f"{_START_CLUSTER} st_async_v4_b32({_TO_OTHER % '(shared + 8)'}, {_OTHER_BARRIER}, 1, 2, 3, 4);",
        "st_async_v4_b32: misaligned: shared byte 8",
    ),
    "mbarrier nobody initialised": (f"{_BARRIER} {_ARRIVE}", "shared byte 1024 of block 0 is not an mbarrier"),
    "misaligned mbarrier": ("mbarrier_init(shared + 4, 1);", "misaligned: shared byte 4 is not a multiple of 8"),
    "mbarrier initialised twice": (f"{_BARRIER} {_INIT} {_INIT}", "shared byte 1024 of block 0 is an mbarrier already"),
    "mbarrier of no arrivals": ("if (t == 0) mbarrier_init(shared, 0);", "0 arrivals cannot be counted"),
    "mbarrier where others have stored": (
        f"{_BARRIER} if (t == 9) st_shared_v4_f32(barrier, 1, 2, 3, 4); {_INIT}",
        "is a race: this write and the write by thread 9|is part of an mbarrier",
    ),
    "mbarrier used without a barrier after its initialisation": (
        f"{_BARRIER} {_INIT} if (t == 1) mbarrier_arrive_expect_tx(barrier, 0);",
        "is a race: this use and the mbarrier_init by thread 0|is not an mbarrier",
    ),
    "mbarrier initialised by another warp": (
        f"{_BARRIER} {_INIT} bar_warp_sync(); if (t == 32) mbarrier_arrive_expect_tx(barrier, 0);",
        "is a race: this use and the mbarrier_init by thread 0|is not an mbarrier",
    ),
    "mbarrier overwritten": (
        f"{_BARRIER} {_INIT} if (t == 0) st_shared_v4_f32(barrier, 1, 2, 3, 4);",
        "shared byte 1024 of block 0 is part of an mbarrier",
    ),
    "mbarrier loaded": (f"{_BARRIER} {_INIT} bar_sync(); ld_shared_v4(barrier);", "is part of an mbarrier"),
    "mbarrier copied into": (
        f"{_BARRIER} {_INIT} if (t == 0) {{ cp_async_cg_16(barrier, x); cp_async_wait_all(); }}",
        "is part of an mbarrier",
    ),
    "more arrivals than counted": (
        f"{_BARRIER} {_INIT} {_EXPECT} {_ARRIVE}",
        "mbarrier_arrive_expect_tx: more arrivals than the 1 of a phase",
    ),
    "more bytes expected than counted": (
        f"{_BARRIER} {_INIT} if (t == 0) mbarrier_arrive_expect_tx(barrier, 1 << 20);",
        "1048576 bytes are more than an mbarrier counts",
    ),
    "mbarrier at which too few arrive": (
        f"{_BARRIER} {_INIT} bar_sync(); {_WAIT}",
        "64 threads wait at mbarrier_try_wait_parity",
    ),
    "wait for the wrong phase": (
        f"{_BARRIER} {_INIT} bar_sync(); {_ARRIVE} {_WAIT} while (!mbarrier_try_wait_parity(barrier, 1)) {{}}",
        "64 threads wait at mbarrier_try_wait_parity",
    ),
    "arrivals by some do not order others": (
        f"{_BARRIER} {_INIT} {_STORE} bar_sync(); {_STORE} {_ARRIVE} {_WAIT} {_LOAD_OTHER}",
        "is a race: this (read|write) and the (read|write) by thread",
    ),
    "fewer bytes than expected": (
        f"{_BARRIER} {_FENCED_INIT} bar_sync(); if (t == 0) mbarrier_arrive_expect_tx(barrier, 2048); {_BULK}",
        "end of kernel: the mbarrier at shared byte 1024 of block 0 expects 1024 more bytes",
    ),
    "bulk copy not waited for": (f"{_START_BULK} bar_sync(); {_LOAD} {_WAIT}", "counts was not waited for"),
    "bulk copy overwritten": (f"{_START_BULK} bar_sync(); {_STORE}", "counts was not waited for"),
    "bulk copy not waited for by the reader": (
        f"{_START_BULK} if (t < 32) {_WAIT} ld_shared_v4(shared + 16 * t);",
        "counts was not waited for|was never written",
    ),
    "bulk copy not waited for at the end": (
        _START_BULK,
        "end of kernel: copies that the mbarrier at shared byte 1024 of block 0 counts were not waited for",
    ),
    "bulk copy into what other lanes read": (
        f"{_BARRIER} {_FENCED_INIT} {_STORE} bar_sync(); {_LOAD} {_EXPECT} {_BULK} {_WAIT}",
        "is a race: this write and the read by thread|counts was not waited for",
    ),
    "bulk copy into what another warp reads": (
        f"{_BARRIER} {_FENCED_INIT} {_STORE} bar_sync(); {_LOAD} bar_warp_sync(); {_EXPECT} {_BULK} {_WAIT}",
        "is a race: this write and the read by thread|counts was not waited for",
    ),
    "bulk copy with an mbarrier that is not shown to it": (
        f"{_BARRIER} {_INIT} {_EXPECT} {_BULK} bar_sync(); {_WAIT}",
        "no fence_mbarrier_init",
    ),
    "bulk copy from past the input": (
        f"{_BARRIER} {_FENCED_INIT} if (t == 0) cp_async_bulk(shared, x + 3088, 1024, barrier);",
        r"cp_async_bulk: out of bounds: x \+ 3088",
    ),
    "bulk copy from the output": (
        f"{_BARRIER} {_FENCED_INIT} if (t == 0) cp_async_bulk(shared, y, 1024, barrier);",
        r"reads from the output: y \+ 0",
    ),
    "bulk copy of a misaligned source": (
        f"{_BARRIER} {_FENCED_INIT} if (t == 0) cp_async_bulk(shared, x + 8, 1024, barrier);",
        r"misaligned: x \+ 8 bytes is not a multiple of 16",
    ),
    "bulk copy to a misaligned destination": (
        f"{_BARRIER} {_FENCED_INIT} if (t == 0) cp_async_bulk(shared + 8, x, 16, barrier);",
        "misaligned: shared byte 8 is not a multiple of 16",
    ),
    "bulk copy past shared memory": (
        f"{_BARRIER} {_FENCED_INIT} if (t == 0) cp_async_bulk(shared + 1040, x, 1024, barrier);",
        "out of bounds: shared byte 1040 of 2048",
    ),
    "bulk copy of half a vector": (
        f"{_BARRIER} {_FENCED_INIT} if (t == 0) cp_async_bulk(shared, x, 24, barrier);",
        "24 bytes are not a multiple of 16",
    ),
    "lanes missing from a warp's barrier": (
        "if (t % 32 != 7) bar_warp_sync();",
        "62 threads wait at bar_warp_sync .*2 threads finished",
    ),
    "another warp's store after a warp's barrier": (
        f"{_STORE} bar_warp_sync(); {_LOAD_OTHER}",
        "is a race: this read and the write by thread|was never written",
    ),
    "input before the previous grid has ended": (
        "ld_global_u32(x + 4 * t); griddepcontrol_wait();",
        "global memory is accessed before griddepcontrol_wait",
    ),
    "next grid let go before the previous one has ended": (
        "griddepcontrol_launch_dependents(); griddepcontrol_wait();",
        "the next grid is let go before griddepcontrol_wait",
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
    program = program_of(body)
    with pytest.raises(EmulationError, match=message):
        run(program)
    whichever_thread = re.sub(r"\d+", r"\\d+", message)
    for seed in range(1, 6):
        with pytest.raises(EmulationError, match=whichever_thread):
            run(program, seed=seed)


@needs_compiler
def test_in_place_faults_are_reported() -> None:
    """One thread reads what another overwrites: a race in a block, and between blocks whatever they wait for."""
    x = torch.arange(1024, dtype=torch.int32)

    def exchange(source: str, barrier: str) -> Report:
        body = f"const u32 i = 4 * (64 * blockIdx.x + t); const u32 v = ld_global_u32(x + {source});"
        return run(snippet(f"{body} {barrier} st_global_u32(y + i, v);"), x, x, grid=3)

    with pytest.raises(EmulationError, match=r"is a race: this write and the read by|is no longer the input"):
        exchange("(i ^ 4)", "")
    assert exchange("(i ^ 4)", "bar_sync();").written_bytes == 3 * 64 * 4
    with pytest.raises(EmulationError, match="is a race: this write and the read by another cluster"):
        exchange("(i + 256) % 768", "bar_sync();")


CORRECT = {
    "barrier between": f"{_STORE} bar_sync(); {_LOAD_OTHER} bar_sync(); {_STORE}",
    "own slot without a barrier": f"{_COPY} cp_async_wait_all(); ld_shared_v4(shared + 16 * t); {_STORE}",
    "copy shown to others": f"{_COPY} cp_async_wait_all(); bar_sync(); {_LOAD_OTHER}",
    "input after the previous grid has ended": (
        "griddepcontrol_wait(); griddepcontrol_launch_dependents(); ld_global_u32(x + 4 * t);"
    ),
    "own warp after its barrier": f"{_STORE} bar_warp_sync(); ld_shared_v4_f32(shared + 16 * (t ^ 31));",
    "several readers before the next write": (
        f"if (t == 0) {_STORE} bar_sync(); ld_shared_v4(shared); bar_sync();"
        "if (t == 9) st_shared_v4_f32(shared, 1, 2, 3, 4);"
    ),
    "arrivals of all order all": (
        f"{_BARRIER} if (t == 0) mbarrier_init(barrier, 64); bar_sync();"
        f"{_STORE} mbarrier_arrive_expect_tx(barrier, 0); {_WAIT} {_LOAD_OTHER}"
    ),
    "phases in turn": (
        f"{_BARRIER} {_INIT} bar_sync(); for (u32 phase = 0; phase < 4; ++phase) {{"
        f"if (t == 0) {{ {_STORE} }} {_ARRIVE} while (!mbarrier_try_wait_parity(barrier, phase % 2)) {{}}"
        "ld_shared_v4(shared); bar_sync(); }"
    ),
    "the phase before the first": f"{_BARRIER} {_INIT} bar_sync(); while (!mbarrier_try_wait_parity(barrier, 1)) {{}}",
    "mbarrier of one warp": f"{_BARRIER} {_INIT} bar_warp_sync(); {_ARRIVE} if (t < 32) {_WAIT}",
    "another block's memory after a wait": f"{_START_CLUSTER} {_EXPECT} {_REMOTE_STORE} {_WAIT} {_LOAD}",
    "another block's memory, waited for by one thread": (
        f"{_START_CLUSTER} {_EXPECT} {_REMOTE_STORE} if (t == 9) {_WAIT} bar_sync(); {_LOAD_OTHER}"
    ),
    "bulk copy": f"{_START_BULK} {_WAIT} {_LOAD_OTHER} bar_sync(); {_STORE}",
    "bulk copy, waited for by one thread": f"{_START_BULK} if (t == 9) {_WAIT} bar_sync(); {_LOAD_OTHER}",
    "bulk copy after a barrier": (
        f"{_BARRIER} {_FENCED_INIT} {_STORE} bar_sync(); {_LOAD_OTHER} bar_sync(); {_EXPECT} {_BULK} {_WAIT} {_LOAD}"
    ),
    "bytes before they are expected": f"{_BARRIER} {_FENCED_INIT} bar_sync(); {_BULK} {_EXPECT} {_WAIT} {_LOAD}",
    "whole warps apart": "if (t < 32) shfl_sync_bfly(1.f, 1); bar_sync();",
}


@needs_compiler
@pytest.mark.parametrize("name", CORRECT)
def test_correct_code_is_not_reported(name: str) -> None:
    program = program_of(CORRECT[name])
    for seed in range(6):
        run(program, seed=seed)
