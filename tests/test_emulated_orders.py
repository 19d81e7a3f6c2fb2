"""``base_rows.cu``, the kernel of sizes m * 2^k, run on the CPU by the emulator, every access checked."""

from __future__ import annotations

import functools
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hadacore.kernels.architectures import BY_NAME
from hadacore.kernels.base_configurations import (
    BASE_OF_ELEMENTS,
    BASE_OF_FLOAT32,
    BASE_SIGNS,
    BaseConfiguration,
    panel_candidates,
)
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE
from hadacore.kernels.source import constants, kernel_source
from hadacore.matrices import factor
from hadacore.matrices.orders import base_matrix
from tests import oracle, tolerances
from tests.emulator import EmulatedKernel, EmulationError, Program, compiler
from tests.emulator.launch import _ENTRY

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="the emulator compiles the kernels with g++, which is not installed"
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # by ELEMENT
GUARD = 64  # elements before and after the output
UNTOUCHED = 77.0

# Size, rows: every line of the table, every number of column bits, and rows that leave units incomplete.
SIZES = [
    (12, 9), (20, 71), (24, 35), (40, 35), (72, 9), (80, 37), (96, 9), (160, 9), (192, 5), (360, 35), (576, 5), (768, 9),
    (896, 3), (960, 5), (1536, 5), (2304, 5), (2880, 5), (3584, 3), (5120, 2), (8960, 2), (10240, 2), (12288, 2),
    (13696, 3), (14336, 2), (15360, 1), (18944, 1), (28672, 1), (29568, 3), (36864, 1),
]  # fmt: skip


def _dense(matrix: Tensor, columns: int, x: Tensor) -> Tensor:
    """``(matrix (x) Sylvester(columns)) x`` for each row, in float64."""
    rows = x.double().reshape(-1, matrix.shape[0], columns)
    return oracle.transform((matrix.double() @ rows).reshape(-1, columns), 1.0).reshape(x.shape)


def _matrix(c: BaseConfiguration) -> Tensor:
    matrix = torch.tensor(base_matrix(factor(c.size)))
    return matrix.T if c.transposed else matrix


@functools.lru_cache(maxsize=256)
def _kernel(configuration: BaseConfiguration, cuda_arch: int = 900) -> EmulatedKernel:
    return EmulatedKernel(configuration, cuda_arch=cuda_arch)


def _signs(n: int, dtype: torch.dtype) -> Tensor:
    return (torch.randint(0, 2, (n,)) * 2 - 1).to(dtype)


def _run(
    c: BaseConfiguration, x: Tensor, *, signs: Tensor | None = None, base: Tensor | None = None, in_place: bool = False,
    cuda_arch: int = 900, seed: int = 0,
) -> Tensor:  # fmt: skip
    rows = x.shape[0]
    buffer = torch.full((x.numel() + 2 * GUARD,), UNTOUCHED, dtype=x.dtype)
    out = buffer[GUARD : GUARD + x.numel()].view(x.shape)
    if in_place:
        out.copy_(x)
    given = {} if base is None else {"base": base, "base_strides": base.stride()}
    report = _kernel(c, cuda_arch).run(
        out if in_place else x, out, c.size**-0.5, rows, signs=signs, grid=c.grid(rows, 1), seed=seed, **given
    )
    assert report.written_bytes == x.numel() * x.element_size()
    assert (buffer[:GUARD] == UNTOUCHED).all() and (buffer[GUARD + x.numel() :] == UNTOUCHED).all()
    return out


def _check(y: Tensor, exact: Tensor, x: Tensor, c: BaseConfiguration) -> None:
    """Correctly rounded; float32 within the bound of its sums."""
    assert torch.isfinite(y).all()
    error = tolerances.relative_error(y, exact)
    if x.dtype == torch.float32:
        assert error <= tolerances.base_product_float32(c.order, c.log2_size)
    else:
        assert error <= tolerances.CORRECT_ROUNDING_RATIO * tolerances.rounding_error(exact, x.dtype)


@pytest.mark.parametrize(("size", "rows"), SIZES)
@pytest.mark.parametrize("code", range(3), ids=["float16", "bfloat16", "float32"])
def test_every_candidate_is_right_and_gives_the_same_bits(code: int, size: int, rows: int) -> None:
    if size > 6000 and code != size // 64 % 3 and size not in (14336, 18944, 29568):
        pytest.skip("one type of each large size, to keep the suite quick")
    matrix = factor(size)
    found = panel_candidates(code, matrix.base_order, matrix.log2, BY_NAME["sm_90a"])
    x = torch.randn(rows, size).to(DTYPES[code])
    exact = _dense(_matrix(found[0]), 1 << matrix.log2, x) * size**-0.5
    results = [_run(c, x, seed=number) for number, c in enumerate(found)]
    _check(results[0], exact, x, found[0])
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_100a", "sm_120"])
@pytest.mark.parametrize(("size", "rows"), [(20, 71), (768, 5), (2880, 5), (3584, 2), (5120, 2)])
def test_gpus_without_wgmma(architecture: str, size: int, rows: int) -> None:
    matrix = factor(size)
    found = panel_candidates(0, matrix.base_order, matrix.log2, BY_NAME[architecture])
    assert not any(c.wgmma for c in found)
    x = torch.randn(rows, size).half()
    exact = _dense(_matrix(found[0]), 1 << matrix.log2, x) * size**-0.5
    major, minor = BY_NAME[architecture].capability
    results = [_run(c, x, cuda_arch=100 * major + 10 * minor) for c in found]
    _check(results[0], exact, x, found[0])
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(
    ("size", "rows"), [(20, 9), (80, 9), (172, 5), (360, 9), (768, 5), (1536, 3), (2880, 5), (5120, 2), (29568, 3)]
)
@pytest.mark.parametrize("signs_are", [SIGNS_BEFORE, SIGNS_AFTER])
@pytest.mark.parametrize("code", [0, 2])
def test_signs_inverse_and_in_place(code: int, signs_are: int, size: int, rows: int) -> None:
    """The inverse of a matrix that is not symmetric (172) is its transpose."""
    matrix = factor(size)
    inverse = signs_are == SIGNS_AFTER
    found = panel_candidates(
        code, matrix.base_order, matrix.log2, BY_NAME["sm_90a"], transposed=inverse and not matrix.symmetric
    )
    x = torch.randn(rows, size).to(DTYPES[code])
    signs = _signs(size, x.dtype)
    given = x.double() if inverse else x.double() * signs.double()
    exact = _dense(_matrix(found[0]), 1 << matrix.log2, given) * size**-0.5
    exact = exact * signs.double() if inverse else exact
    for c in found:
        signed = c.with_options(signs_are, False)
        y = _run(signed, x, signs=signs)
        _check(y, exact, x, signed)
        if signed.works_in_place:
            assert torch.equal(_run(signed, x, signs=signs, in_place=True), y)


@pytest.mark.parametrize(("size", "code"), [(96, 0), (768, 1), (2880, 0), (5120, 0), (1536, 2), (29568, 1)])
def test_strided_rows(size: int, code: int) -> None:
    matrix = factor(size)
    for c in panel_candidates(code, matrix.base_order, matrix.log2, BY_NAME["sm_90a"]):
        projection = torch.randn(5, 2, size + 8).to(DTYPES[code])
        x = projection[:, 1, :size]
        out = torch.full((5, 2 * size), UNTOUCHED, dtype=x.dtype)
        strided = c.with_options(NO_SIGNS, True)
        _kernel(strided).run(
            projection.view(-1)[size + 8 :], out, size**-0.5, 5, strides=(5, 0, 2 * (size + 8), 0, 2 * size),
            grid=strided.grid(5, 1),
        )  # fmt: skip
        exact = _dense(_matrix(c), 1 << matrix.log2, x.contiguous()) * size**-0.5
        _check(out[:, :size], exact, x, strided)
        assert (out[:, size:] == UNTOUCHED).all()


@pytest.mark.parametrize(("size", "rows"), [(20, 16), (96, 9), (360, 9), (2880, 9), (768, 9), (5120, 3), (29568, 3)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_rows_stay_apart(size: int, rows: int, poison: float) -> None:
    """Neighbours in a unit, in a block, and in shared memory: whatever one row holds, the others keep their bits."""
    matrix = factor(size)
    for c in panel_candidates(0, matrix.base_order, matrix.log2, BY_NAME["sm_90a"]):
        x = torch.randn(rows, size).half()
        clean = _run(c, x)
        x[rows // 2, size // 3] = poison
        y = _run(c, x)
        others = [row for row in range(rows) if row != rows // 2]
        assert torch.equal(y[others], clean[others])
        assert not torch.isfinite(y[rows // 2]).any()


@pytest.mark.parametrize("order", [3, 12, 28, 36])
@pytest.mark.parametrize(
    ("code", "source"),
    [(0, BASE_OF_ELEMENTS), (1, BASE_OF_ELEMENTS), (0, BASE_OF_FLOAT32), (1, BASE_OF_FLOAT32), (2, BASE_OF_FLOAT32)],
)
@pytest.mark.parametrize("log2_columns", [0, 3, 6, 9])
def test_a_base_of_the_caller(log2_columns: int, code: int, source: int, order: int) -> None:
    if log2_columns == 9 and order != 12:
        pytest.skip("one order with merged columns, to keep the suite quick")
    size = order << log2_columns
    dtype = DTYPES[code] if source == BASE_OF_ELEMENTS else torch.float32
    base = torch.randn(order + 1, order + 2).to(dtype)[1:, 2:]  # neither contiguous nor symmetric
    x = torch.randn(5, size).to(DTYPES[code])
    for c in panel_candidates(code, order, log2_columns, BY_NAME["sm_90a"], base=source):
        assert c.base == source
        storage = base.as_strided(((order - 1) * (base.stride(0) + 1) + 1,), (1,))  # what the kernel may read
        rows = 5
        out = torch.full_like(x, UNTOUCHED)
        for matrix, strides in ((base, base.stride()), (base.T, base.T.stride())):
            _kernel(c).run(x, out, size**-0.5, rows, grid=c.grid(rows, 1), base=storage, base_strides=strides)
            exact = _dense(matrix, 1 << log2_columns, x) * size**-0.5
            _check(out, exact, x, c)


def test_a_value_outside_the_base_is_never_multiplied() -> None:
    """Rows of the panel past the order are 0, and 0 times what lies behind the base must stay 0."""
    base = torch.full((36 * 36 + 500,), float("nan"), dtype=torch.float16)
    base[: 36 * 36] = torch.randn(36 * 36)
    x = torch.randn(3, 36 * 64).half()
    (*_, c) = panel_candidates(0, 36, 6, BY_NAME["sm_90a"], base=BASE_OF_ELEMENTS)
    out = torch.empty_like(x)
    _kernel(c).run(x, out, 1.0, 3, grid=c.grid(3, 1), base=base, base_strides=(36, 1))
    assert torch.isfinite(out).all()


def test_large_float16_values_do_not_overflow_inside() -> None:
    (*_, c) = panel_candidates(0, 28, 9, BY_NAME["sm_90a"])
    x = torch.full((1, 14336), 60000.0).half() * _signs(14336, torch.float16)
    x[:, torch.arange(14336) % 61 > 0] = 0  # or the exact result would overflow as well
    y = _run(c, x)
    _check(y, _dense(_matrix(c), 512, x) * 14336**-0.5, x, c)


@pytest.mark.parametrize("log2_size", [6, 7])
def test_narrow_and_wide_products_agree(log2_size: int) -> None:
    """Two kernels for one transform: six column bits by wgmma, or four by mma.sync and the others by additions."""
    x = torch.randn(5, 20 << log2_size).half()
    both = []
    for wide in (False, True):
        c = BaseConfiguration(0, 20, 0, log2_size, 1, order_warps=4, stages=2, wgmma=True, wide=wide)
        y = torch.full_like(x, float("nan"))
        _kernel(c).run(x, y, x.shape[1] ** -0.5, 5, grid=2)
        _check(y, _dense(_matrix(c), x.shape[1] // 20, x) * x.shape[1] ** -0.5, x, c)
        both.append(y)
    torch.testing.assert_close(both[0], both[1], rtol=2**-10, atol=1e-3)


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("log2_size", range(4, 9))
def test_bases_of_half_the_order(log2_size: int, splits: int, stages: int) -> None:
    """The halves of a row next to one another in a group, or in two; more tiles than the base has, more blocks than rows."""
    code, order = log2_size % 2, 74 if splits == 2 else 26  # of 148 and 52
    x = torch.randn(5, order << log2_size).to(DTYPES[code])
    x[3] = 1  # where almost all sums are 0
    exact = oracle.transform(x)
    for wide in (False, True)[: 1 + (log2_size >= 6)]:
        c = BaseConfiguration(
            code,
            order,
            0,
            log2_size,
            1,
            order_warps=4,
            stages=stages,
            splits=splits,
            wgmma=True,
            wide=wide,
            halves=True,
        )
        y = _run(c, x, seed=log2_size)
        _check(y, exact, x, c)
        for signs_are in (SIGNS_BEFORE, SIGNS_AFTER):
            signs, signed = _signs(c.size, x.dtype), c.with_options(signs_are, False)
            given = oracle.transform(x, signs=signs, inverse=signs_are == SIGNS_AFTER)
            _check(_run(signed, x, signs=signs), given, x, signed)


# Tiles of 4 and 8 warps, rows in units of their own and together, one and two groups of columns, blocks that share a row, and
# halves.
DRIFTING = [
    BaseConfiguration(0, 20, 0, 4, 1, order_warps=4, stages=2, wgmma=True),
    BaseConfiguration(1, 20, 0, 6, 1, order_warps=4, stages=2, wgmma=True, wide=True),
    BaseConfiguration(0, 36, 0, 7, 1, order_warps=4, stages=2, wgmma=True),
    BaseConfiguration(0, 72, 1, 6, 1, order_warps=8, stages=2, wgmma=True, wide=True),
    BaseConfiguration(1, 108, 0, 6, 1, order_warps=4, stages=2, wgmma=True, wide=True, splits=2),
    BaseConfiguration(0, 26, 0, 5, 1, order_warps=4, stages=2, wgmma=True, halves=True),
    BaseConfiguration(0, 26, 0, 7, 1, order_warps=4, stages=2, wgmma=True, wide=True, halves=True),
]


@pytest.mark.parametrize("signs_are", [NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER])
@pytest.mark.parametrize("plain", DRIFTING, ids=str)
def test_warps_that_drift_give_the_same_bits(plain: BaseConfiguration, signs_are: int) -> None:
    """For a block with one unit, two, and more, the last incomplete; copies that land late, at once and at any moment."""
    plain = plain.with_options(signs_are, False)
    c = replace(plain, drift=True)
    for units in (1, 2, 6):
        rows = max(1, units * c.unit_rows - c.unit_rows // 2)
        x = torch.randn(rows, c.size).to(DTYPES[c.element_code])
        signs = None if signs_are == NO_SIGNS else _signs(c.size, x.dtype)
        y = _run(plain, x, signs=signs)
        _check(y, oracle.transform(x, signs=signs, inverse=signs_are == SIGNS_AFTER), x, c)
        for seed in range(3):
            assert torch.equal(_run(c, x, signs=signs, seed=seed), y)
        if c.works_in_place:
            assert torch.equal(_run(c, x, signs=signs, in_place=True, seed=3), y)


@pytest.mark.parametrize("code", range(2), ids=["float16", "bfloat16"])
def test_a_base_of_the_caller_of_warps_that_drift(code: int) -> None:
    plain = BaseConfiguration(code, 36, 0, 6, 1, order_warps=4, stages=2, wgmma=True, base=BASE_OF_ELEMENTS)
    base = torch.randn(36, 36).to(DTYPES[code])
    x = torch.randn(5, plain.size).to(DTYPES[code])
    y = _run(plain, x, base=base)
    _check(y, _dense(base, 64, x) * plain.size**-0.5, x, plain)
    for seed in range(3):
        assert torch.equal(_run(replace(plain, drift=True), x, base=base, seed=seed), y)


def test_strided_rows_of_warps_that_drift() -> None:
    for plain in DRIFTING[:4]:
        c, rows = replace(plain, strided=True, drift=True), 5 * plain.unit_rows
        projection = torch.randn(rows, 2, c.size + 8).to(DTYPES[c.element_code])
        out = torch.full((rows, 2 * c.size), UNTOUCHED, dtype=projection.dtype)
        _kernel(c).run(
            projection.view(-1)[c.size + 8 :], out, c.size**-0.5, rows, strides=(rows, 0, 2 * (c.size + 8), 0, 2 * c.size),
            grid=c.grid(rows, 1), seed=2,
        )  # fmt: skip
        x = projection[:, 1, : c.size].contiguous()
        _check(out[:, : c.size], oracle.transform(x), x, c)
        assert (out[:, c.size :] == UNTOUCHED).all()


_TRY = r"while \(!mbarrier_try_wait_parity\(arrivals, parity\)\) \{\}"
# What is taken out of a kernel that drifts, and what is reported then, whether threads wait for copies or those arrive by
# themselves.
DRIFT_MUTATIONS = {
    "wait for the others": (_TRY, "", "was not waited for|was never written|is a race"),
    "parity of the wait": (
        r"parity \^= 1;",
        "",
        "was not waited for|is a race|threads wait at mbarrier_try_wait_parity",
    ),
    "arrivals of warps": (
        r"if \(lane == 0\) mbarrier_arrive\(arrivals\);",
        "",
        "threads wait at mbarrier_try_wait_parity",
    ),
    "barrier of a warp before its arrival": (
        r"bar_warp_sync\(\);(?=\n    if \(lane == 0\) mbarrier_arrive)",
        "",
        "is a race|was not waited for",
    ),
    "barrier after the initialisation": (
        r"bar_sync\(\);(?=\n  \}\n\n  // This thread's copies)",
        "",
        "mbarrier_init|not an mbarrier",
    ),
    "fence between copies and wgmma": (r"fence_proxy_async\(\);", ";", "no fence_proxy_async between the write by"),
    "wait for products": (r"wgmma_wait_group<0>\(\);", ";", "wgmma not waited for|is a race"),
}


def _run_text(c: BaseConfiguration, text: str, seed: int) -> None:
    program = Program(text, _ENTRY, constants(c), threads=c.threads, shared_bytes=c.shared_bytes)
    x = torch.randn(5 * c.unit_rows, c.size).to(DTYPES[c.element_code])
    program.run(x, torch.empty_like(x), 1.0, len(x), grid=1, seed=seed)


@pytest.mark.parametrize("plain", DRIFTING[:2], ids=["waits for copies", "copies arrive"])
@pytest.mark.parametrize("taken_out", DRIFT_MUTATIONS)
def test_a_drift_with_a_part_missing_is_reported(taken_out: str, plain: BaseConfiguration) -> None:
    call, instead, message = DRIFT_MUTATIONS[taken_out]
    c = replace(plain, drift=True)
    text, count = re.subn(call, instead, kernel_source(c, ptx=False))
    assert count > 0
    for seed in range(3):
        with pytest.raises(EmulationError, match=message):
            _run_text(c, text, seed)


@pytest.mark.parametrize("plain", DRIFTING[:2], ids=["waits for copies", "copies arrive"])
def test_a_stage_that_is_given_up_too_early_is_reported(plain: BaseConfiguration) -> None:
    c = replace(plain, drift=True)
    text = kernel_source(c, ptx=False)
    ended = "if (!last) drift.products_ended(problem, first_unit + step, both_stages - stage, lane);"
    before = "Accumulators value[WARP_TILES][kGroups];\n    if (!WGMMA)"
    assert text.count(ended) == text.count(before) == 1
    text = text.replace(ended, "").replace(before, f"{ended}\n{before}")
    with pytest.raises(EmulationError, match=r"is a race: this write and the read by|was not waited for"):
        _run_text(c, text, 0)


def test_copies_that_do_not_arrive_are_missed() -> None:
    c = replace(DRIFTING[1], drift=True)
    text, count = re.subn(r"drift\.copies_started\(\);", "", kernel_source(c, ptx=False))
    assert count == 2
    with pytest.raises(EmulationError, match="threads wait at mbarrier_try_wait_parity"):
        _run_text(c, text, 0)


def test_no_bank_conflicts_in_the_panel() -> None:
    for size in (5120, 14336, 29568):
        matrix = factor(size)
        for c in panel_candidates(0, matrix.base_order, matrix.log2, BY_NAME["sm_90a"]):
            x = torch.randn(2, size).half()
            report = _kernel(c).run(x, torch.empty_like(x), 1.0, 2, grid=c.grid(2, 1))
            assert report.extra_wavefronts == 0, c


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log2_size": 9}, "a warp holds 2.8 columns at most"),
        ({"tiles": 1, "order_warps": 1}, "the warps must hold all 2 tiles"),
        ({"wgmma": True}, "wgmma takes 16-bit panels"),
        ({"wide": True}, "the wide second product is wgmma's"),
        ({"drift": True}, "warps drift by wgmma, with two stages and no quantizer"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, int], message: str) -> None:
    plain = BaseConfiguration(0, 28, 0, 7, tiles=2, stages=0)
    assert plain.base == BASE_SIGNS
    with pytest.raises(ValueError, match=message):
        replace(plain, **changes)
