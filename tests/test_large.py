"""Transforms above 32768, through the public functions: on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import hadacore
from tests import oracle, tolerances

FLOAT32_ERROR = 1e-6
each_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
each_size = pytest.mark.parametrize("log2_size", [16, 17, 20])


def _random(device: torch.device | str, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _signs(x: Tensor) -> Tensor:
    return (torch.randint(0, 2, x.shape[-1:], device=x.device) * 2 - 1).to(x.dtype)


def _assert_close(y: Tensor, exact: Tensor) -> None:
    error = tolerances.relative_error(y, exact)
    if y.dtype == torch.float32:
        assert error < FLOAT32_ERROR
    else:
        assert error <= tolerances.CORRECT_ROUNDING_RATIO * tolerances.rounding_error(exact, y.dtype)


@each_dtype
@each_size
def test_matches_the_oracle(device: torch.device, log2_size: int, dtype: torch.dtype) -> None:
    x = _random(device, dtype, 3, 1 << log2_size)
    y = hadacore.hadamard_transform(x)
    _assert_close(y, oracle.transform(x))
    in_place = x.clone()
    assert hadacore.hadamard_transform_(in_place) is in_place and torch.equal(in_place, y)


@each_dtype
def test_signs_and_inverse(device: torch.device, dtype: torch.dtype) -> None:
    x = _random(device, dtype, 3, 3 << 16)
    signs = _signs(x)
    for inverse in (False, True):
        y = hadacore.hadamard_transform(x, signs=signs, inverse=inverse, block_size=1 << 16)
        _assert_close(y, oracle.transform(x, signs=signs, inverse=inverse, block_size=1 << 16))
    back = hadacore.hadamard_transform(
        hadacore.hadamard_transform(x.float(), signs=signs.float(), block_size=1 << 16),
        signs=signs.float(), inverse=True, block_size=1 << 16,
    )  # fmt: skip
    assert tolerances.relative_error(back, x.double()) < FLOAT32_ERROR


def test_rows_are_isolated_and_batches_do_not_matter(device: torch.device) -> None:
    for dtype in (torch.float16, torch.float32):
        x = _random(device, dtype, 5, 1 << 17)
        clean = hadacore.hadamard_transform(x)
        assert torch.equal(hadacore.hadamard_transform(x[3]), clean[3])
        x[2, 777] = math.nan
        y = hadacore.hadamard_transform(x)
        assert not y[2].isfinite().any()
        assert torch.equal(y[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_strided_input_and_output(device: torch.device) -> None:
    x = _random(device, torch.float16, 2, 3, 1 << 16)
    expected = hadacore.hadamard_transform(x[:, 1].contiguous())
    assert torch.equal(hadacore.hadamard_transform(x[:, 1]), expected)
    out = torch.zeros_like(x)
    hadacore.hadamard_transform(x[:, 1], out=out[:, 2])
    assert torch.equal(out[:, 2], expected) and not out[:, :2].any()


def test_gradient(device: torch.device) -> None:
    x = _random(device, torch.float32, 1, 1 << 16).requires_grad_()
    signs, weight = _signs(x), _random(device, torch.float32, 1, 1 << 16)
    (hadacore.hadamard_transform(x, signs=signs) * weight).sum().backward()
    assert x.grad is not None
    _assert_close(x.grad, oracle.transform(weight, signs=signs, inverse=True))


@pytest.mark.gpu
@each_dtype
@pytest.mark.parametrize("log2_size", [18, 19, 21, 22, 23, 24, 25, 26])
def test_larger_sizes_on_a_gpu(log2_size: int, dtype: torch.dtype) -> None:
    x = _random("cuda", dtype, 1, 1 << log2_size)
    signs = _signs(x)
    for inverse in (False, True):
        y = hadacore.hadamard_transform(x, signs=signs, inverse=inverse)
        _assert_close(y, oracle.transform(x, signs=signs, inverse=inverse))


@pytest.mark.gpu
@pytest.mark.parametrize("log2_size", [27, 30])
def test_three_passes_on_a_gpu(log2_size: int) -> None:
    """The transform of a unit vector is a row of the matrix, of +1 and -1."""
    if torch.cuda.mem_get_info()[0] < 10 << log2_size:
        pytest.skip("needs 10 bytes of GPU memory an element")
    x = torch.zeros(1 << log2_size, device="cuda", dtype=torch.bfloat16)
    place = (1 << log2_size) // 3
    x[place] = 1
    hadacore.hadamard_transform_(x, scale=1.0)
    assert (x.abs() == 1).all()
    for index in torch.randint(0, 1 << log2_size, (100,)).tolist():
        assert x[index].item() == (-1) ** (index & place).bit_count()
    back = hadacore.hadamard_transform_(x, scale=2.0**-log2_size)
    assert back[place].item() == 1 and back.count_nonzero().item() == 1


@pytest.mark.gpu
@each_dtype
def test_many_rows_in_groups_and_in_a_graph(dtype: torch.dtype) -> None:
    x = _random("cuda", dtype, 70, 1 << 18)  # groups of 16 rows, and 6 more
    signs, y = _signs(x), torch.empty_like(x)
    expected = torch.stack([hadacore.hadamard_transform(row, signs=signs) for row in x])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hadacore.hadamard_transform(x, signs=signs, out=y)
    for _ in range(2):
        y.fill_(math.nan)
        graph.replay()
        assert torch.equal(y, expected)


@pytest.mark.gpu
@each_dtype
def test_passes_give_the_bits_of_divisions_measured_against(dtype: torch.dtype) -> None:
    """Every division of the table and every group size gives the same bits."""
    from hadacore.backends.cuda.passes import prepare_passes, run_passes
    from hadacore.elements import BY_DTYPE
    from hadacore.kernels.passes import SPLITS, passes_of

    device = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(device)
    capability, processors = (properties.major, properties.minor), properties.multi_processor_count
    for log2_size in (16, 18, 20, 23):
        x = _random("cuda", dtype, 3, 1 << log2_size)
        expected = hadacore.hadamard_transform(x)
        for split in SPLITS[log2_size]:
            for group_bytes in (1, 8 << 20, 1 << 40):
                passes = passes_of(
                    BY_DTYPE[dtype].cuda_code,
                    log2_size,
                    3,
                    capability,
                    processors,
                    split=split,
                    group_bytes=group_bytes,
                )
                y = torch.full_like(x, math.nan)
                run_passes(prepare_passes(passes, device), x, y, 2.0 ** (-log2_size / 2), None, device)
                assert torch.equal(y, expected), (split, group_bytes)
