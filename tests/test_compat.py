"""The drop-ins behave as the packages they stand in for."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import hadacore
from hadacore.compat import fast_hadamard_transform, faster_hadamard_transform
from hadacore.compat.fast_hadamard_transform import base_matrix
from hadacore.matrices.orders import digest
from tests import oracle, tolerances

# Digests of the tables that fast-hadamard-transform 1.1.0 generates its kernels from.
BASES = {
    12: "521b6d31fd7b32cf32d14b13d1b13ecd7e99497be0d2293e8286ccff5abbf191",
    20: "1a801fefc1249d0d7c3cf4a4a793e80df16732d47a5b37de854802aa1b404bc4",
    28: "1ba31a8cb5e1350096fe22d9b09c719e12506c9d8cfc5c693c861121173bdc53",
    40: "ffa217535f1d503cd23d11ff5386b5d33fd78e2f0b46142076c97598d8356fb7",
}


def _with_base(order: int) -> Any:
    return getattr(fast_hadamard_transform, f"hadamard_transform_{order}N")


def _padded_size(n: int, order: int) -> int:
    """What the original pads n to: whole groups of four columns, and these to a power of two."""
    groups = -(-n // (4 * order))
    return 4 * order * (1 << (groups - 1).bit_length())


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


@pytest.mark.parametrize("order", BASES)
def test_base_matrices_are_those_of_fast_hadamard_transform(order: int) -> None:
    base = base_matrix(order, dtype=torch.float64)
    assert digest(base.to(torch.int8).numpy()) == BASES[order]
    assert torch.equal(base @ base.T, order * torch.eye(order, dtype=torch.float64))
    assert torch.equal(base, base.T) == (order == 12)


@pytest.mark.parametrize("order", BASES)
def test_base_matrix_is_the_slow_index(order: int, device: torch.device) -> None:
    applied = _with_base(order)(torch.eye(8 * order, device=device)).T.cpu().double()
    assert torch.equal(applied, torch.kron(base_matrix(order, dtype=torch.float64), oracle.sylvester(8)))


@pytest.mark.parametrize("order", BASES)
def test_base_variants_pad(order: int, device: torch.device) -> None:
    for n in (1, order - 1, order, 2 * order, 4 * order, 4 * order + 1, 5 * order, 8 * order, 63 * order, 64 * order):
        x = torch.randn(3, n, device=device)
        size = _padded_size(n, order)
        padded = torch.nn.functional.pad(x, (0, size - n))
        base = base_matrix(order, dtype=torch.float64)
        expected = oracle.transform(padded, size**-0.5, base=base)
        bound = tolerances.element_bound(padded, expected, size, size**-0.5, torch.float32, base=base)[:, :n]
        got = _with_base(order)(x, scale=size**-0.5)
        assert got.shape == x.shape and got.dtype == x.dtype
        assert ((got.double() - expected[:, :n]).abs() <= bound).all(), n


@pytest.mark.parametrize("order", BASES)
def test_base_variants_take_every_width_of_the_original(order: int) -> None:
    base = base_matrix(order)
    for log2 in range(2, 11):
        x = torch.randn(1, order << log2)
        assert torch.equal(_with_base(order)(x, 0.5), hadacore.hadamard_transform(x, 0.5, base=base))
    assert _with_base(order)(torch.randn(1, order * 1024 - 1)).shape == (1, order * 1024 - 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", BASES)
def test_base_variants_round_once(order: int, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(16, 64 * order).to(dtype).to(device)
    scale = (64 * order) ** -0.5
    exact = oracle.transform(x, scale, base=base_matrix(order, dtype=torch.float64))
    error = tolerances.relative_error(_with_base(order)(x, scale), exact)
    assert error <= tolerances.rounding_error(exact, dtype) * tolerances.CORRECT_ROUNDING_RATIO


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("order", BASES)
def test_base_variants_have_the_gradient_of_the_transpose(order: int, padding: int) -> None:
    n = 4 * order - padding
    x = torch.randn(1, n, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _with_base(order)(x, 0.25), (x,))
    applied = _with_base(order)(torch.eye(n, dtype=torch.float64)).T
    g = torch.randn(1, n, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(_with_base(order)(x), x, g)
    assert torch.allclose(gradient, g @ applied)
    assert torch.allclose(gradient, g @ applied.T) == (order == 12)  # what the original returns


@pytest.mark.parametrize("order", BASES)
def test_base_variants_have_the_signature_of_the_original(order: int) -> None:
    assert str(inspect.signature(_with_base(order))).startswith("(x: 'Tensor', scale: 'float' = 1.0)")


def test_base_variants_start_anywhere(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call keeps the base matrix; wherever that is, later calls elsewhere must be able to use it."""
    f = fast_hadamard_transform.hadamard_transform_20N
    x = torch.randn(3, 80, device=device)
    expected = f(x)

    def afresh() -> None:
        monkeypatch.setattr(fast_hadamard_transform, "_BASES", {})

    afresh()
    with torch.inference_mode():
        assert torch.equal(f(x), expected)
    assert f(x.clone().requires_grad_()).requires_grad
    afresh()
    torch.func.vmap(torch.func.grad(lambda row: f(row).sum()))(x)
    assert not any(map(torch._C._functorch.is_functorch_wrapped_tensor, fast_hadamard_transform._BASES.values()))
    assert torch.equal(f(x), expected)
    afresh()
    assert torch.func.jvp(f, (x,), (x,))[1].equal(expected)
    assert torch.equal(f(x), expected)
    afresh()
    with torch._subclasses.FakeTensorMode():
        f(torch.empty(3, 80, device=device))
    assert torch.equal(f(x), expected)
    afresh()
    torch._dynamo.reset()
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), expected)
    assert torch.equal(f(x), expected)


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
