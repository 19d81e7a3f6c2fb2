"""``warpgroup_rows.cu``, sizes m * 2^k by wgmma on both sides, run on the CPU by the emulator, every access checked."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hadacore.kernels.architectures import BY_NAME
from hadacore.kernels.base_configurations import choose_base
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE
from hadacore.kernels.source import kernel_source
from hadacore.kernels.warpgroup_configurations import WarpgroupConfiguration, warpgroup_candidates
from hadacore.kernels.warpgroup_table import PLAIN
from hadacore.matrices import factor
from hadacore.matrices.orders import base_matrix
from tests import oracle, tolerances
from tests.emulator import EmulatedKernel, EmulationError, compiler

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="the emulator compiles the kernels with g++, which is not installed"
)

HOPPER = BY_NAME["sm_90a"]
DTYPES = (torch.float16, torch.bfloat16)  # by ELEMENT
GUARD = 64  # elements before and after the output
SIZES = sorted(order << log2_columns for order, log2_columns in PLAIN)

# Order, merged bits, column bits, warpgroups: less than a K step, rows that are no multiple of 8 or of 16; and one group of
# columns, several of one warpgroup, and of two.
SMALL = [
    (12, 0, 6, 1), (12, 0, 7, 2), (12, 0, 8, 1), (24, 1, 8, 2), (36, 0, 7, 1), (36, 0, 8, 2), (40, 1, 6, 1), (40, 1, 8, 2),
]  # fmt: skip


def _small(code: int = 0, **changes: object) -> Iterator[WarpgroupConfiguration]:
    """One kernel of each small size, with one and two ``tensor_shares`` where there are groups for two."""
    for order, merge, log2_size, warpgroups in SMALL:
        for tensor_shares in range(1, warpgroups + 1):
            plain = WarpgroupConfiguration(
                code, order, merge, log2_size, warpgroups, tensor_shares=tensor_shares, overlap=log2_size == 8
            )
            yield replace(plain, **changes)


def _exact(c: WarpgroupConfiguration, x: Tensor) -> Tensor:
    """The transform of rows in float64, without signs."""
    matrix = torch.tensor(base_matrix(factor(c.size))).double()
    rows = x.double().reshape(-1, matrix.shape[0], c.size // matrix.shape[0])
    rows = (matrix.T if c.transposed else matrix) @ rows
    return oracle.transform(rows.reshape(-1, rows.shape[2]), 1.0).reshape(x.shape) * c.size**-0.5


def _candidates(size: int, code: int, transposed: bool = False) -> tuple[WarpgroupConfiguration, ...]:
    matrix = factor(size)
    return warpgroup_candidates(code, matrix.base_order, matrix.log2, HOPPER, transposed)


@functools.lru_cache(maxsize=256)
def _kernel(configuration: WarpgroupConfiguration) -> EmulatedKernel:
    return EmulatedKernel(configuration)


def _signs(n: int, dtype: torch.dtype) -> Tensor:
    return (torch.randint(0, 2, (n,)) * 2 - 1).to(dtype)


def _run(
    c: WarpgroupConfiguration, x: Tensor, *, signs: Tensor | None = None, in_place: bool = False, seed: int = 0
) -> Tensor:
    """By one multiprocessor, so that blocks that loop over rows have several."""
    rows = x.shape[0]
    buffer = torch.full((x.numel() + 2 * GUARD,), float("nan"), dtype=x.dtype)
    out = buffer[GUARD : GUARD + x.numel()].view(x.shape)
    if in_place:
        out.copy_(x)
    report = _kernel(c).run(
        out if in_place else x, out, c.size**-0.5, rows, signs=signs, grid=c.grid(rows, 1), seed=seed
    )
    assert report.written_bytes == x.numel() * x.element_size()
    assert buffer[:GUARD].isnan().all() and buffer[GUARD + x.numel() :].isnan().all()
    return out


def _check(y: Tensor, exact: Tensor, x: Tensor) -> None:
    assert torch.isfinite(y).all()
    assert tolerances.relative_error(y, exact) <= tolerances.CORRECT_ROUNDING_RATIO * tolerances.rounding_error(
        exact, x.dtype
    )


@pytest.mark.parametrize("code", range(2), ids=["float16", "bfloat16"])
@pytest.mark.parametrize("size", SIZES)
def test_few_and_many_rows_give_the_same_bits(size: int, code: int) -> None:
    """Of every size of the table, with three rows and more for a block that loops over them."""
    found = _candidates(size, code)
    rows = 3 * found[-1].minimum_blocks + 1 if size < 10000 else 5
    x = torch.randn(rows, size).to(DTYPES[code])
    x[1] = 1  # where almost all sums are 0
    exact = _exact(found[0], x)
    results = [_run(c, x, seed=number) for number, c in enumerate(found)]
    _check(results[0], exact, x)
    assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("size", SIZES)
def test_rows_of_the_table_with_options(size: int) -> None:
    """What runs with signs and as the inverse. Fewer blocks have to fit then, which changes no bits."""
    code = size // 512 % 2
    x = torch.randn(2, size).to(DTYPES[code])
    signs = _signs(size, x.dtype)
    for signs_are in (SIGNS_BEFORE, SIGNS_AFTER):
        inverse = signs_are == SIGNS_AFTER
        found = [c.with_options(signs_are, False) for c in _candidates(size, code, inverse)]
        exact = _exact(found[0], x if inverse else x.double() * signs.double())
        results = [_run(c, x, signs=signs, seed=2 + number) for number, c in enumerate(found)]
        _check(results[0], exact * signs.double() if inverse else exact, x)
        assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("code", range(2), ids=["float16", "bfloat16"])
def test_every_way_to_share_a_row_gives_the_same_bits(code: int) -> None:
    """Blocks by columns and by rows of the base, warpgroups, overlap and stages; only ``tensor_shares`` decide sums."""
    for c in _small(code):
        x = torch.randn(3, c.size).to(DTYPES[code])
        y = _run(c, x)
        _check(y, _exact(c, x), x)
        tiles, most = c.panel_rows // 8, c.groups // c.tensor_shares
        ways = {
            replace(c, overlap=not c.overlap),
            replace(c, stages=1),
            *(replace(c, stages=1 + i % 2, order_splits=i) for i in {2, min(3, tiles), tiles}),
            replace(c, stages=1, warpgroups=c.tensor_shares, column_splits=most),
            replace(
                c, stages=1, warpgroups=c.tensor_shares, column_splits=most, order_splits=min(3, tiles), overlap=False
            ),
            replace(c, warpgroups=1, column_splits=c.tensor_shares),
        }
        for number, way in enumerate(ways):
            assert torch.equal(_run(way, x, seed=number), y), way


@pytest.mark.parametrize("signs_are", [SIGNS_BEFORE, SIGNS_AFTER])
def test_signs_in_place_and_transposed(signs_are: int) -> None:
    """Signs of two rows in turn. In place only where one block has a row."""
    after = signs_are == SIGNS_AFTER
    for c in _small(0, signs=signs_are, transposed=after):
        x = torch.randn(5, c.size).half()
        signs = _signs(c.size, x.dtype)
        exact = _exact(c, x if after else x.double() * signs.double())
        for seed, way in enumerate((c, replace(c, stages=1, order_splits=2))):
            y = _run(way, x, signs=signs, seed=seed)
            _check(y, exact * signs.double() if after else exact, x)
        assert c.works_in_place and torch.equal(_run(c, x, signs=signs, in_place=True, seed=1), y)


def test_a_base_that_is_not_symmetric_is_transposed() -> None:
    """None of the table; 172 is the smallest."""
    c = WarpgroupConfiguration(0, 172, 0, 6, transposed=True)
    assert not factor(c.size).symmetric and all(factor(size).symmetric for size in SIZES)
    x = torch.randn(2, c.size).half()
    for way in (c, replace(c, transposed=False), replace(c, stages=1, order_splits=3)):
        _check(_run(way, x), _exact(way, x), x)


def test_in_place_where_blocks_share_a_row_is_reported() -> None:
    c = WarpgroupConfiguration(0, 12, 0, 7, stages=1, column_splits=2)
    assert not c.works_in_place
    with pytest.raises(EmulationError, match=r"is no longer the input|was already written|is a race"):
        _run(c, torch.randn(2, c.size).half(), in_place=True)


def test_strided_rows() -> None:
    """Rows of two levels, and signs of two rows."""
    for plain in _small(1, strided=True, signs=SIGNS_BEFORE):
        for c in (plain, replace(plain, stages=1, order_splits=2)):
            size = c.size
            projection = torch.randn(6, size + 8).bfloat16()
            signs = _signs(2 * size, projection.dtype)
            out = torch.full((6, 2 * size), float("nan"), dtype=projection.dtype)
            # Row r is at 3 (r / 2) + r % 2 of the input: of three rows, the last is no input.
            _kernel(c).run(
                projection, out, size**-0.5, 4, signs=signs, sign_rows=2, grid=c.grid(4, 1),
                strides=(2, 3 * (size + 8), size + 8, 4 * size, 2 * size),
            )  # fmt: skip
            x = projection[[0, 1, 3, 4], :size]
            exact = _exact(c, x.double() * signs.double().view(2, size).repeat(2, 1))
            _check(out[:4, :size], exact, x)
            assert out[:, size:].isnan().all() and out[4:].isnan().all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_rows_stay_apart(poison: float) -> None:
    """Whatever one row holds, and leaves in shared memory, the others keep their bits."""
    found = [*_small(), *(c for size in (2304, 9216) for c in _candidates(size, 0))]
    for c in found:
        rows = 4 * c.minimum_blocks
        x = torch.randn(rows, c.size).half()
        clean = _run(c, x)
        bad = (0, c.minimum_blocks)  # then the same block's next row, and the one in the same stage
        for row in bad:
            x[row, c.size // 3 + row] = poison
        y = _run(c, x)
        others = [row for row in range(rows) if row not in bad]
        assert torch.equal(y[others], clean[others]), c
        assert not torch.isfinite(y[list(bad)]).any()


def test_large_float16_values_do_not_overflow_inside() -> None:
    for c in _candidates(5120, 0):
        x = torch.full((1, 5120), 60000.0).half() * _signs(5120, torch.float16)
        x[:, torch.arange(5120) % 61 > 0] = 0  # or the exact result would overflow as well
        _check(_run(c, x), _exact(c, x), x)


def test_no_bank_conflicts_in_the_panel() -> None:
    """Some where a block writes the base, once: as many for one row as for five."""
    for c in (*_small(), *(c for size in (2304, 5120, 20480) for c in _candidates(size, 0)[-1:])):
        extra = []
        for rows in (1, 5):
            x = torch.randn(rows, c.size).half()
            extra.append(_kernel(c).run(x, torch.empty_like(x), 1.0, rows, grid=1).extra_wavefronts)
        assert extra[0] == extra[1] <= 12 * c.own_rows, c


def test_options_take_no_configuration_of_other_sums() -> None:
    """Or a row's bits would depend on how many rows there are."""
    for size in SIZES:
        matrix = factor(size)
        for signs, strided in ((NO_SIGNS, False), (SIGNS_BEFORE, True)):
            chosen = [
                choose_base(0, matrix.base_order, matrix.log2, rows, (9, 0), 132, signs, strided)
                for rows in (1, 5, 66, 2000)
            ]
            assert all(isinstance(c, WarpgroupConfiguration) for c in chosen)
            assert len({(c.tensor_shares, c.order, c.log2_size) for c in chosen}) == 1
            assert chosen[0].stages == 1 and chosen[-1].stages == 2


# The kernel with one thing taken out, or done too early, and what is reported then.
MUTATIONS = {
    "wait for copies": (r"  cp_async_wait_all\(\);", "", "was not waited for"),
    "fence between copies and wgmma": (r"fence_proxy_async\(\);", ";", "no fence_proxy_async between the write by"),
    "barrier after the copies": (
        r"bar_sync\(\);  // everyone's",
        "//",
        "is a race: this read and the write by|was never written",
    ),
    "barrier before results take the panel's place": (
        r"bar_sync_multiplying\(\);  // the panel",
        "//",
        "is a race: this write and the read by",
    ),
    "barrier before results are stored": (
        r"if \(WARPGROUPS == 1\) bar_sync\(\);\n    else bar_sync_of\(1 \+ threadIdx.x / 128, 128\);",
        "",
        "is a race: this read and the write by",
    ),
    "another warpgroup's barrier": (
        r"bar_sync_of\(1 \+ threadIdx.x / 128, 128\)",
        "bar_sync_of(1 + threadIdx.x / 32 % 2, 128)",
        "is a race: this read and the write by",
    ),
    "wait for products": (
        r"wgmma_wait_group<0>\(\);",
        ";",
        "wgmma not waited for|is a race: this read and the write by",
    ),
    "commit of products": (r"wgmma_commit_group\(\);", ";", "wgmma not waited for"),
    "fence of the products' registers": (
        r"  wgmma_fence\(\);\n  multiply_base",
        "  multiply_base",
        "no wgmma_fence after",
    ),
    "swizzle of the base": (
        r"constexpr u64 kSwizzle128 = \(u64\)1 << 62",
        "constexpr u64 kSwizzle128 = 0",
        "no matrix in the 128-byte swizzle",
    ),
}


@pytest.mark.parametrize("taken_out", MUTATIONS)
def test_kernel_with_a_part_missing_is_reported(taken_out: str) -> None:
    call, instead, message = MUTATIONS[taken_out]
    c = WarpgroupConfiguration(0, 12, 0, 8, warpgroups=2)
    text, count = re.subn(call, instead, kernel_source(c, ptx=False))
    assert count > 0
    kernel = EmulatedKernel(c, text=text)
    x = torch.randn(3, c.size).half()
    for seed in range(3):
        with pytest.raises(EmulationError, match=message):
            kernel.run(x, torch.empty_like(x), 1.0, 3, grid=1, seed=seed)


def test_a_row_past_the_last_that_is_used_shows() -> None:
    """The panel's rows past the last are read as they are, which is no error; their results are dropped."""
    c = WarpgroupConfiguration(0, 12, 0, 6)
    dropped = "if (8 * tile + 8 > ORDER && 8 * tile + 2 * (lane & 3) >= ORDER) of_high = of_low = 0;"
    text = kernel_source(c, ptx=False)
    assert dropped in text
    x = torch.randn(1, c.size).half()
    for kept, finite in ((text, True), (text.replace(dropped, ""), False)):
        y = torch.empty_like(x)
        EmulatedKernel(c, text=kept).run(x, y, 1.0, 1)
        assert torch.isfinite(y).all() == finite
