"""The drop-ins behave as the packages they stand in for."""

from __future__ import annotations

import inspect

import pytest
import torch

import hadacore
from hadacore.compat import fast_hadamard_transform, faster_hadamard_transform
from tests import oracle


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 100, 128, 137, 1000])
def test_fast_hadamard_transform_pads(n: int, device: torch.device) -> None:
    x = torch.randn(3, n, device=device)
    size = 1 << (n - 1).bit_length()
    padded = torch.nn.functional.pad(x, (0, size - n))
    expected = oracle.transform(padded, 0.5)[:, :n]
    got = fast_hadamard_transform.hadamard_transform(x, scale=0.5)
    assert got.shape == x.shape and torch.allclose(got.double(), expected, atol=1e-5)


def test_fast_hadamard_transform_is_not_normalised_by_default() -> None:
    x = torch.eye(8)
    assert torch.equal(fast_hadamard_transform.hadamard_transform(x), hadacore.hadamard_matrix(8))
    assert str(inspect.signature(fast_hadamard_transform.hadamard_transform)).startswith(
        "(x: 'Tensor', scale: 'float' = 1.0)"
    )


def test_fast_hadamard_transform_differentiates_through_padding() -> None:
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fast_hadamard_transform.hadamard_transform(x, 0.25), (x,))


def test_faster_hadamard_transform(device: torch.device) -> None:
    x = torch.randn(5, 256, device=device).half()
    before = x.clone()
    y = faster_hadamard_transform.hadamard_transform(x)
    assert torch.equal(x, before) and torch.equal(y, hadacore.hadamard_transform(x))
    assert faster_hadamard_transform.hadamard_transform(x, inplace=True) is x
    assert torch.equal(x, y)
    assert str(inspect.signature(faster_hadamard_transform.hadamard_transform)).startswith(
        "(x: 'Tensor', inplace: 'bool' = False)"
    )
