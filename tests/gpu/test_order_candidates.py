"""Sizes m * 2^k on a GPU: every candidate gives the same bits, in place, in graphs, and where one launch does not do."""

from __future__ import annotations

import math

import pytest
import torch

import hadacore
from hadacore.backends.cuda.launch import kernel_arguments, launch_prepared, prepare
from hadacore.elements import CUDA_ELEMENTS, Element
from hadacore.kernels.architectures import architecture_of
from hadacore.kernels.base_configurations import base_candidates
from hadacore.matrices import factor
from tests import oracle, tolerances

pytestmark = pytest.mark.gpu

GUARD = 64
SIZES = (20, 80, 360, 768, 1536, 2304, 2880, 3584, 5120, 8960, 11008, 12288, 13696, 14336, 15360, 18944, 28672, 36864)
SIZES += (10944, 29568, 53248)
SIZES += (5632, 6912, 7168)
SIZES += (2560, 3072, 4608, 4864, 9216, 18432, 20480)
SIZES += (112, 144, 160, 240, 320, 384, 416, 576, 896, 960, 1152, 1280, 1408, 1792)


def _more_than_blocks(size: int) -> int:
    """Rows, more than those who loop over them have at a time: up to 8 blocks on a multiprocessor, or 40 warps of 4 rows each."""
    return max(300, 5_000_000 // size)


@pytest.mark.parametrize("element", CUDA_ELEMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("size", SIZES)
def test_every_candidate_gives_the_same_bits(element: Element, size: int) -> None:
    device = torch.cuda.current_device()
    matrix = factor(size)
    rows = 1 + 5_000_000 // size  # more than the blocks that loop over them
    x = torch.randn(rows, size, device="cuda").to(element.dtype)
    exact = oracle.transform(x)
    results = []
    for c in base_candidates(
        element.cuda_code, matrix.base_order, matrix.log2, architecture_of(torch.cuda.get_device_capability())
    ):
        buffer = torch.full((rows * size + 2 * GUARD,), math.nan, dtype=element.dtype, device="cuda")
        out = buffer[GUARD : GUARD + rows * size].view(rows, size)
        prepared = prepare(c, rows, device)
        launch_prepared(prepared, device, kernel_arguments(x, out, size**-0.5, rows, size, None, None))
        assert torch.isnan(buffer[:GUARD]).all() and torch.isnan(buffer[GUARD + rows * size :]).all()
        if element.bytes == 2:
            ratio = tolerances.relative_error(out, exact) / tolerances.rounding_error(exact, element.dtype)
            assert ratio <= tolerances.CORRECT_ROUNDING_RATIO, c
        else:
            assert tolerances.relative_error(out, exact) <= tolerances.base_product_float32(c.order, c.log2_size), c
        results.append(out.clone())
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("size", [80, 96, 160, 576, 768, 960, 1536, 2304, 2880, 5120, 14336, 20480, 28672, 29568])
def test_rows_alone_and_in_place(size: int) -> None:
    """In place too where several blocks share a row."""
    many = _more_than_blocks(size)
    x = torch.randn(many, size, device="cuda", dtype=torch.bfloat16)
    together = hadacore.hadamard_transform(x)
    for rows in (1, 2, 7, 64, 300, many):
        some = x[:rows].clone()
        assert torch.equal(hadacore.hadamard_transform(some), together[:rows]), rows
        assert torch.equal(hadacore.hadamard_transform_(some), together[:rows]), rows


@pytest.mark.parametrize("size", [5632, 6912, 7168, 14336, 15360])
def test_so_many_rows_that_lanes_store_in_pairs(size: int) -> None:
    rows = -(-(3 << 23) // size)
    x = torch.randn(rows, size, device="cuda", dtype=torch.float16)
    y = hadacore.hadamard_transform(x)
    assert torch.equal(hadacore.hadamard_transform(x[-40:]), y[-40:]) and torch.equal(
        hadacore.hadamard_transform(x[:300]), y[:300]
    )
    assert torch.equal(hadacore.hadamard_transform_(x), y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "size", [80, 112, 160, 576, 960, 1152, 1536, 2304, 9216, 13696, 14336, 18944, 20480, 28672, 29568]
)
def test_options_of_rows(size: int, dtype: torch.dtype) -> None:
    """Signs before and after, rows at strides and in place, few and many: correctly rounded, and a row's bits always the same."""
    many = _more_than_blocks(size)
    projection = torch.randn(many, size + 64, device="cuda").to(dtype)
    x, signs = projection[:, :size], (torch.randint(0, 2, (size,), device="cuda") * 2 - 1).to(dtype)
    for given in (None, signs):
        for inverse in (False, True):
            together = hadacore.hadamard_transform(x.contiguous(), signs=given, inverse=inverse)
            exact = oracle.transform(x[:20].contiguous(), signs=given, inverse=inverse)
            ratio = tolerances.relative_error(together[:20], exact) / tolerances.rounding_error(exact, dtype)
            assert ratio <= tolerances.CORRECT_ROUNDING_RATIO
            for rows in (1, 2, 7, 33, 64, 133, many):
                out = torch.full((rows, 2 * size), math.nan, dtype=dtype, device="cuda")
                hadacore.hadamard_transform(x[:rows], signs=given, inverse=inverse, out=out[:, size:])
                assert torch.equal(out[:, size:], together[:rows]) and torch.isnan(out[:, :size]).all(), rows
                for some in (x[:rows].clone(), projection[:rows].clone()[:, :size]):  # contiguous, and not
                    assert torch.equal(
                        hadacore.hadamard_transform_(some, signs=given, inverse=inverse), together[:rows]
                    ), rows


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("size", [80, 160, 960, 1536, 2304, 9216, 13696, 18944, 20480, 29568])
def test_a_bad_row_touches_no_other(size: int, few: bool, dtype: torch.dtype) -> None:
    rows = 3 if few else _more_than_blocks(size)
    x = torch.randn(rows, size, device="cuda").to(dtype)
    clean = hadacore.hadamard_transform(x)
    bad = {0: math.inf, rows // 2: math.nan}
    for row, value in bad.items():
        x[row, (size // 3 + row) % size] = value
    y = hadacore.hadamard_transform(x)
    others = [row for row in range(rows) if row not in bad]
    assert torch.equal(y[others], clean[others])
    assert not torch.isfinite(y[list(bad)]).any()


def test_graph_of_a_size_that_is_new() -> None:
    """The base is part of the program, so nothing is uploaded while a graph is captured."""
    x = torch.randn(5, 1176, device="cuda", dtype=torch.float16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = hadacore.hadamard_transform(x)
    graph.replay()
    assert torch.equal(y, hadacore.hadamard_transform(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("inverse", [False, True])
def test_bases_too_large_for_one_launch(dtype: torch.dtype, inverse: bool) -> None:
    size = 172 << 12
    x = torch.randn(2, size, device="cuda").to(dtype)
    signs = (torch.randint(0, 2, (size,), device="cuda") * 2 - 1).to(dtype)
    exact = oracle.transform(x, signs=signs, inverse=inverse)
    y = hadacore.hadamard_transform(x, signs=signs, inverse=inverse)
    limit = (
        tolerances.CORRECT_ROUNDING_RATIO * tolerances.rounding_error(exact, dtype) if dtype == torch.float16 else 1e-6
    )
    assert tolerances.relative_error(y, exact) <= limit


def test_a_base_beyond_the_kernel() -> None:
    base = torch.eye(2052, device="cuda")
    with pytest.raises(ValueError, match=r"base matrices up to order 2048, got order 2052; use a block_size"):
        hadacore.hadamard_transform(torch.randn(1, 4104, device="cuda"), base=base)
