"""``base=``, a caller's matrix: QuaRot's rotations, orthogonal and learned bases, and all that PyTorch does with an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hadacore
from tests import oracle, tolerances

OPERATOR = torch.ops.hadacore.hadamard_transform.default
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
QUAROT_ORDERS = (28, 36, 40, 52, 60, 108, 140, 156, 172)


def _quarot(x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """The online rotation of QuaRot and SpinQuant in float64: butterflies over neighbours until there are as many groups as
    the stored matrix has rows, that matrix over the groups, and the square root of n."""
    n, order = x.shape[-1], base.shape[0]
    values = x.double().reshape(-1, n, 1)
    while values.shape[1] > order:
        pairs = values.reshape(values.shape[0], values.shape[1] // 2, 2, values.shape[2])
        even, odd = pairs[:, :, 0], pairs[:, :, 1]
        values = torch.cat((even + odd, even - odd), dim=-1)
    return (base.double() @ values).reshape(x.shape) / n**0.5


def _orthogonal(order: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(order, order, dtype=torch.float64))[0].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("order", QUAROT_ORDERS)
def test_quarot_rotation_is_a_base(order: int, dtype: torch.dtype, device: torch.device) -> None:
    for columns in (1, 8, 64):
        x = torch.randn(3, order * columns).to(dtype).to(device)
        base = hadacore.hadamard_matrix(order, device=device)
        for inverse, stored in ((False, base), (True, base.T)):  # QuaRot passes the transpose to undo it
            exact = _quarot(x, stored)
            y = hadacore.hadamard_transform(x, base=base, inverse=inverse)
            bound = tolerances.element_bound(x, exact, x.shape[-1], x.shape[-1] ** -0.5, dtype, base)
            assert ((y.double() - exact).abs() <= bound).all()
        undone = hadacore.hadamard_transform(hadacore.hadamard_transform(x, base=base).float(), base=base, inverse=True)
        size = order * columns
        rounding = torch.finfo(dtype).eps / 2 + tolerances.norm_bound(size, base)
        assert tolerances.relative_error(undone, x.double()) <= rounding


@pytest.mark.parametrize("order", [28, 172])
def test_quarot_randomized_matrix_is_signs_and_a_base(order: int, device: torch.device) -> None:
    """Their matrix is the rotation of each row of diag(signs); an activation is multiplied by it from the left."""
    n = 4 * order
    base = hadacore.hadamard_matrix(order)
    signs = (torch.randint(0, 2, (n,)) * 2 - 1).double()
    matrix = _quarot(torch.diag(signs), base)
    x = torch.randn(3, n)
    y = hadacore.hadamard_transform(x.to(device), signs=signs.float().to(device), base=base.to(device)).cpu()
    assert tolerances.relative_error(y, x.double() @ matrix) <= tolerances.norm_bound(n, base)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 5, 7, 12, 33, 64, 100])
def test_orthogonal_base(order: int, inverse: bool, device: torch.device) -> None:
    base = _orthogonal(order).to(device)
    for columns in (1, 2, 16, 256):
        n = order * columns
        scale = columns**-0.5
        x = torch.randn(5, n, device=device)
        y = hadacore.hadamard_transform(x, scale, base=base, inverse=inverse)
        exact = oracle.transform(x, scale, base=base, inverse=inverse)
        assert ((y.double() - exact).abs() <= tolerances.element_bound(x, exact, n, scale, x.dtype, base)).all()
        back = hadacore.hadamard_transform(y, scale, base=base, inverse=not inverse)
        rounded_base = order**0.5 * tolerances.FLOAT32_ROUNDOFF  # base itself is orthogonal only up to its rounding
        assert tolerances.relative_error(back, x.double()) <= tolerances.norm_bound(n, base) + 2 * rounded_base


@pytest.mark.parametrize("base_is_float32", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", [3, 5, 7, 28, 60, 172])
def test_sixteen_bit_error_with_a_base(
    order: int, dtype: torch.dtype, base_is_float32: bool, device: torch.device
) -> None:
    base = _orthogonal(order, torch.float32 if base_is_float32 else dtype).to(device)
    for columns in (1, 64):
        x = torch.randn(max(4, 20000 // (order * columns)), order * columns).to(dtype).to(device)
        exact = oracle.transform(x, columns**-0.5, base=base)
        error = tolerances.relative_error(hadacore.hadamard_transform(x, columns**-0.5, base=base), exact)
        assert error <= tolerances.rounding_error(exact, dtype) * tolerances.CORRECT_ROUNDING_RATIO


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_any_strides_of_a_base(dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(3, 96, device=device).to(dtype)
    base = _orthogonal(12).to(device)
    expected = hadacore.hadamard_transform(x, base=base)
    storage = torch.full((30, 40), torch.nan, device=device)
    storage[3:27:2, 1:37:3] = base
    assert torch.equal(hadacore.hadamard_transform(x, base=storage[3:27:2, 1:37:3]), expected)
    assert torch.equal(hadacore.hadamard_transform(x, base=base.T.contiguous().T), expected)
    one = torch.ones(1, 1, device=device).expand(3, 3)
    assert torch.equal(hadacore.hadamard_transform(x, base=one), hadacore.hadamard_transform(x, base=one.contiguous()))


def test_the_known_base_given_is_the_transform(device: torch.device) -> None:
    for size in (12, 1152, 11008):
        base = oracle.known_base(size).float().to(device)
        x = torch.randn(2, size, device=device)
        for inverse in (False, True):
            given = hadacore.hadamard_transform(x, base=base, inverse=inverse)
            known = hadacore.hadamard_transform(x, inverse=inverse)
            exact = oracle.transform(x, inverse=inverse)
            bound = tolerances.element_bound(x, exact, size, size**-0.5, x.dtype)
            assert ((given.double() - exact).abs() <= bound).all() and ((known.double() - exact).abs() <= bound).all()


def test_rows_and_blocks_with_a_base_are_isolated(device: torch.device) -> None:
    base = _orthogonal(5).to(device)
    x = torch.randn(41, 60, device=device, dtype=torch.float16)

    def f(x: torch.Tensor) -> torch.Tensor:
        return hadacore.hadamard_transform(x, base=base, block_size=20)

    clean = f(x)
    for count in (1, 2, 7, 33):
        assert torch.equal(f(x[:count]), clean[:count])
    x[4, 25] = torch.nan
    result = f(x).view(41, 3, 20)
    assert not torch.isfinite(result[4, 1]).any()
    result[4, 1] = clean.view(41, 3, 20)[4, 1]
    assert torch.equal(result.view(41, 60), clean)


# ---- gradients and transforms of functions ----------------------------------------------------------------


def _inputs(order: int = 3, n: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(2, n, dtype=torch.float64, requires_grad=True)
    base = torch.randn(order, order, dtype=torch.float64, requires_grad=True)
    return x, base, (torch.randint(0, 2, (n,)) * 2 - 1).double()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("with_signs", [False, True])
@pytest.mark.parametrize("block_size", [None, 6])
def test_first_and_second_gradient_of_x_and_base(block_size: int | None, with_signs: bool, inverse: bool) -> None:
    x, base, signs = _inputs()

    def f(x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        chosen = signs if with_signs else None
        return hadacore.hadamard_transform(x, 0.3, block_size=block_size, base=base, signs=chosen, inverse=inverse)

    assert torch.autograd.gradcheck(f, (x, base), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, base: f(x, base).sin(), (x, base))


def test_gradient_of_the_base_alone(device: torch.device) -> None:
    x = torch.randn(4, 28 * 8, device=device)
    base = oracle.known_base(28).float().to(device).requires_grad_()
    g = torch.randn_like(x)
    hadacore.hadamard_transform(x, base=base).backward(g)
    wide = base.detach().double().requires_grad_()
    sylvester = torch.einsum("ij,rkj->rki", oracle.sylvester(8).to(device), x.double().view(4, 28, 8))
    y = torch.einsum("ij,rjk->rik", wide, sylvester) * (28 * 8) ** -0.5
    (expected,) = torch.autograd.grad(y.reshape(4, -1), wide, g.double())
    bound = 4 * 8 * tolerances.roundings(28 * 8) * tolerances.FLOAT32_ROUNDOFF  # sums over rows and columns too
    assert tolerances.relative_error(base.grad, expected) <= bound


@pytest.mark.parametrize("inverse", [False, True])
def test_vmap_over_bases_signs_and_rows(inverse: bool, device: torch.device) -> None:
    bases = torch.stack([_orthogonal(6) for _ in range(3)], 1).to(device)
    x = torch.randn(4, 3, 24, device=device)
    signs = (torch.randint(0, 2, (3, 24), device=device) * 2 - 1).float()

    def f(x: torch.Tensor, base: torch.Tensor, signs: torch.Tensor | None = None) -> torch.Tensor:
        return hadacore.hadamard_transform(x, base=base, signs=signs, inverse=inverse)

    expected = torch.stack([f(x[:, i], bases[:, i], signs[i]) for i in range(3)])
    assert torch.equal(torch.func.vmap(f, in_dims=(1, 1, 0))(x, bases, signs), expected)
    shared = torch.func.vmap(f, in_dims=(None, 1))(x[:, 0], bases)
    assert torch.equal(shared, torch.stack([f(x[:, 0], bases[:, i]) for i in range(3)]))
    rows = torch.func.vmap(f, in_dims=(1, None))(x, bases[:, 0])
    assert torch.equal(rows, f(x.transpose(0, 1), bases[:, 0]))
    gradients = torch.func.vmap(torch.func.grad(lambda base, x: f(x, base).sin().sum()), in_dims=(1, 1))(bases, x)
    one = torch.func.grad(lambda base: f(x[:, 1], base).sin().sum())(bases[:, 1])
    assert torch.allclose(gradients[1], one, atol=1e-5)


def test_forward_mode_in_base_and_x(device: torch.device) -> None:
    base, tangent = _orthogonal(3).to(device), torch.randn(3, 3, device=device)
    x, x_tangent = torch.randn(2, 12, device=device), torch.randn(2, 12, device=device)

    def f(x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        return hadacore.hadamard_transform(x, base=base)

    by_x, by_base = f(x_tangent, base), f(x, tangent)
    assert torch.equal(torch.func.jvp(lambda base: f(x, base), (base,), (tangent,))[1], by_base)
    assert torch.equal(torch.func.jvp(lambda x: f(x, base), (x,), (x_tangent,))[1], by_x)
    assert torch.equal(torch.func.jvp(f, (x, base), (x_tangent, tangent))[1], by_x + by_base)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph_with_a_learned_base(backend: str, device: torch.device) -> None:
    torch._dynamo.reset()
    module = hadacore.HadamardTransform(24, 0.5, base=nn.Parameter(_orthogonal(6))).to(device)
    x = torch.randn(5, 24, device=device, requires_grad=True)

    def f(x: torch.Tensor) -> torch.Tensor:
        return module(x).sin().sum()

    expected = torch.autograd.grad(f(x), (x, module.base))
    got = torch.autograd.grad(torch.compile(f, fullgraph=True, backend=backend)(x), (x, module.base))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_with_a_base(requires_grad: bool, inverse: bool, device: torch.device) -> None:
    x = torch.randn(3, 24, device=device, requires_grad=requires_grad)
    signs = (torch.randint(0, 2, (24,), device=device) * 2 - 1).float()
    base = _orthogonal(3).to(device).requires_grad_(requires_grad)
    torch.library.opcheck(OPERATOR, (x, 12, 0.5, signs, inverse, base), test_utils=UTILITIES)
    if not requires_grad:
        operators = torch.ops.hadacore
        torch.library.opcheck(
            operators.hadamard_transform_.default, (x, 12, 0.5, signs, inverse, base), test_utils=UTILITIES
        )
        out = (x, 12, 0.5, signs, inverse, base, torch.empty_like(x))
        torch.library.opcheck(operators.hadamard_transform_out.default, out, test_utils=UTILITIES)


# ---- module -----------------------------------------------------------------------------------------------


def test_module_of_any_order(device: torch.device) -> None:
    module = hadacore.HadamardTransform(28, random_signs=True).to(device)
    x = torch.randn(3, 28, device=device)
    assert torch.equal(module(x), hadacore.hadamard_transform(x, signs=module.signs))
    assert torch.allclose(module.inverted()(module(x)), x, atol=1e-5)


def test_module_saves_its_base(device: torch.device) -> None:
    base = _orthogonal(6)
    fixed = hadacore.HadamardTransform(24, 0.5, base=base, random_signs=True).to(device)
    assert set(fixed.state_dict()) == {"signs", "base"} and not list(fixed.parameters())
    learned = hadacore.HadamardTransform(24, 0.5, base=nn.Parameter(torch.eye(6)), random_signs=True).to(device)
    assert [name for name, _ in learned.named_parameters()] == ["base"]
    x = torch.randn(3, 24, device=device)
    assert not torch.equal(learned(x), fixed(x))
    learned.load_state_dict(fixed.state_dict())
    assert torch.equal(learned(x), fixed(x))
    learned(x).square().sum().backward()
    assert learned.base.grad is not None
    assert fixed.half()(x.half()).dtype == torch.float16 and fixed.base.dtype == torch.float16


BASES: list[tuple[str, Callable[[], torch.Tensor]]] = [
    ("hadamard", lambda: hadacore.hadamard_matrix(12)),
    ("orthogonal", lambda: _orthogonal(12)),
    ("tripled", lambda: 3 * _orthogonal(12)),
]


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("make", [make for _, make in BASES], ids=[name for name, _ in BASES])
def test_module_with_a_base_is_undone(make: Any, scale: float | None, device: torch.device) -> None:
    module = hadacore.HadamardTransform(48, scale, block_size=24, base=make(), random_signs=True).to(device)
    x = torch.randn(3, 48, device=device)
    undo = module.inverted()
    assert undo.base is module.base and undo.signs is module.signs
    assert torch.allclose(undo(module(x)), x, atol=1e-5)
