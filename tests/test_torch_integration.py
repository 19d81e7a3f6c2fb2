"""The operator as a citizen of PyTorch: schema, gradients, vmap, compile, meta, autocast, threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

import hadacore
from hadacore import ops

OPERATORS = torch.ops.hadacore
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def _signs(n: int, device: torch.device) -> torch.Tensor:
    return (torch.randint(0, 2, (n,), device=device) * 2 - 1).float()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("with_signs", [False, True])
@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 64), (0, 16), (5, 1)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(
    shape: tuple[int, ...], with_signs: bool, inverse: bool, requires_grad: bool, device: torch.device
) -> None:
    x = torch.randn(shape, device=device, requires_grad=requires_grad)
    signs = _signs(shape[-1], device) if with_signs else None
    arguments = (x, shape[-1], 0.5, signs, inverse)
    torch.library.opcheck(OPERATORS.hadamard_transform.default, arguments, test_utils=UTILITIES)
    if not requires_grad:
        torch.library.opcheck(OPERATORS.hadamard_transform_.default, arguments, test_utils=UTILITIES)
        torch.library.opcheck(
            OPERATORS.hadamard_transform_out.default, (*arguments, None, torch.empty_like(x)), test_utils=UTILITIES
        )


def test_opcheck_of_strided_input(device: torch.device) -> None:
    x = torch.randn(4, 3, 16, device=device).transpose(0, 1)
    torch.library.opcheck(OPERATORS.hadamard_transform.default, (x, 8, 1.0, None, False), test_utils=UTILITIES)
    torch.library.opcheck(OPERATORS.hadamard_transform_.default, (x, 8, 1.0, None, False), test_utils=UTILITIES)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("with_signs", [False, True])
def test_first_and_second_gradient(with_signs: bool, inverse: bool) -> None:
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    signs = _signs(16, torch.device("cpu")).double() if with_signs else None

    def f(x: torch.Tensor) -> torch.Tensor:
        return hadacore.hadamard_transform(x, 0.3, block_size=8, signs=signs, inverse=inverse)

    assert torch.autograd.gradcheck(f, (x,))
    assert torch.autograd.gradgradcheck(lambda x: f(x).sin(), (x,))


def test_gradient_is_the_transpose(device: torch.device) -> None:
    x = torch.randn(5, 64, device=device, requires_grad=True)
    signs = _signs(64, device)
    g = torch.randn(5, 64, device=device)
    hadacore.hadamard_transform(x, signs=signs).backward(g)
    assert torch.equal(x.grad, hadacore.hadamard_transform(g, signs=signs, inverse=True))


def test_no_gradient_is_recorded_where_none_is_wanted() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    with torch.no_grad():
        assert not hadacore.hadamard_transform(x).requires_grad
    with torch.inference_mode():
        y = hadacore.hadamard_transform(x)
        hadacore.hadamard_transform_(y)
    assert hadacore.hadamard_transform(x).requires_grad
    parameter = torch.nn.Parameter(torch.randn(4, 8))
    assert hadacore.hadamard_transform(parameter).grad_fn is not None


def test_writing_in_place_is_noticed_by_autograd(device: torch.device) -> None:
    weight = torch.randn(8, device=device, requires_grad=True)
    x = torch.randn(4, 8, device=device)
    y = (weight * x).sum()
    hadacore.hadamard_transform_(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    out = torch.randn(4, 8, device=device)
    y = (weight * out).sum()
    hadacore.hadamard_transform(x, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_forward_mode_keeps_the_tangent(device: torch.device) -> None:
    x, tangent = torch.randn(2, 8, device=device), torch.randn(2, 8, device=device)
    expected = hadacore.hadamard_transform(tangent)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        assert torch.equal(forward_ad.unpack_dual(hadacore.hadamard_transform(dual)).tangent, expected)
        with pytest.raises(ValueError, match="got a dual tensor; leave out= away"):
            hadacore.hadamard_transform(dual, out=torch.empty_like(x))
    assert torch.equal(torch.func.jvp(hadacore.hadamard_transform, (x,), (tangent,))[1], expected)


def test_hessian_by_every_combination(device: torch.device) -> None:
    x = torch.randn(8, device=device)
    signs = _signs(8, device)

    def f(x: torch.Tensor) -> torch.Tensor:
        return hadacore.hadamard_transform(x, signs=signs).pow(2).sum()

    for outer in (torch.func.jacfwd, torch.func.jacrev):
        for inner in (torch.func.jacfwd, torch.func.jacrev):
            assert torch.allclose(outer(inner(f))(x), 2 * torch.eye(8, device=device), atol=1e-5)


def test_vmap_and_functional_gradients(device: torch.device) -> None:
    x = torch.randn(3, 16, 5, device=device)
    signs = torch.stack([_signs(16, device) for _ in range(5)])

    def f(x: torch.Tensor) -> torch.Tensor:
        return hadacore.hadamard_transform(x, block_size=4)

    mapped = torch.func.vmap(f, in_dims=2)(x)
    assert torch.equal(mapped, torch.stack([f(x[:, :, i].contiguous()) for i in range(5)]))
    for inverse in (False, True):
        mapped = torch.func.vmap(
            lambda x, s, inverse=inverse: hadacore.hadamard_transform(x, signs=s, inverse=inverse), in_dims=(2, 0)
        )(x, signs)
        expected = [hadacore.hadamard_transform(x[:, :, i], signs=signs[i], inverse=inverse) for i in range(5)]
        assert torch.allclose(mapped, torch.stack(expected), atol=1e-6)
    shared = torch.func.vmap(lambda s: hadacore.hadamard_transform(x[:, :, 0], signs=s))(signs)
    assert torch.allclose(shared[1], hadacore.hadamard_transform(x[:, :, 0], signs=signs[1]), atol=1e-6)
    gradient = torch.func.vmap(torch.func.grad(lambda row: f(row).pow(2).sum()))(x[:, :, 0].contiguous())
    assert torch.allclose(gradient, 2 * x[:, :, 0], atol=1e-5)


def test_vmap_in_place(device: torch.device) -> None:
    x = torch.randn(3, 16, device=device)
    expected = hadacore.hadamard_transform(x)
    torch.func.vmap(lambda row: OPERATORS.hadamard_transform_(row, 16, 0.25, None, False), in_dims=0, out_dims=None)(x)
    assert torch.equal(x, expected)
    with pytest.raises(ValueError, match="batched x, one signs vector and one base"):
        torch.func.vmap(
            lambda s: OPERATORS.hadamard_transform_(x, 16, 0.25, s, False), in_dims=0, out_dims=None
        )(_signs(48, device).view(3, 16))  # fmt: skip


def _counting_backend(counter: list[int]) -> Any:
    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        counter.append(1)
        return graph.forward

    return backend


def test_compile_fullgraph_with_dynamic_rows(device: torch.device) -> None:
    torch._dynamo.reset()
    compiled: list[int] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        return hadacore.hadamard_transform(x * 2, block_size=8) + 1

    g = torch.compile(f, fullgraph=True, dynamic=True, backend=_counting_backend(compiled))
    for rows in (2, 3, 7, 64, 1000):
        x = torch.randn(rows, 16, device=device)
        assert torch.allclose(g(x), f(x))
    assert len(compiled) == 1


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_with_gradient_in_place_and_out(backend: str, device: torch.device) -> None:
    torch._dynamo.reset()
    module = hadacore.HadamardTransform(32, random_signs=True).to(device)

    def f(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scratch = x.detach() * 1.0
        hadacore.hadamard_transform_(scratch)
        other = torch.empty_like(scratch)
        hadacore.hadamard_transform(scratch, out=other)
        return module(x).sin().sum(), scratch + other

    x = torch.randn(6, 32, device=device, requires_grad=True)
    expected = f(x)
    gradient = torch.autograd.grad(expected[0], x)[0]
    got = torch.compile(f, fullgraph=True, backend=backend)(x)
    assert torch.allclose(got[0], expected[0], atol=1e-5) and torch.allclose(got[1], expected[1], atol=1e-5)
    assert torch.allclose(torch.autograd.grad(got[0], x)[0], gradient, atol=1e-5)


def test_bad_input_fails_under_compile_too() -> None:
    torch._dynamo.reset()
    g = torch.compile(lambda x: hadacore.hadamard_transform(x), backend="eager")
    with pytest.raises(Exception, match="no Hadamard matrix of order 14"):
        g(torch.randn(2, 14))


def test_meta_and_fake_tensors() -> None:
    x = torch.empty(5, 64, dtype=torch.bfloat16, device="meta")
    y = hadacore.hadamard_transform(x)
    assert y.is_meta and y.shape == x.shape and y.dtype == x.dtype
    assert hadacore.hadamard_transform_(x) is x
    assert hadacore.hadamard_transform(x, out=torch.empty_like(x)).is_meta
    with torch._subclasses.FakeTensorMode():
        assert hadacore.hadamard_transform(torch.empty(3, 8)).shape == (3, 8)


def test_autocast_is_left_alone(device: torch.device) -> None:
    x = torch.randn(4, 64, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        y = hadacore.hadamard_transform(x)
    assert y.dtype == torch.float32 and torch.equal(y, hadacore.hadamard_transform(x))


def test_modes_see_the_call() -> None:
    seen: list[str] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Recorder():
        hadacore.hadamard_transform(torch.randn(4, 8))
    assert "hadacore.hadamard_transform.default" in seen


def test_subclasses_see_the_call() -> None:
    class Tagged(torch.Tensor):
        pass

    assert isinstance(hadacore.hadamard_transform(torch.randn(4, 8).as_subclass(Tagged)), Tagged)


def test_profiler_sees_the_call() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        hadacore.hadamard_transform(torch.randn(4, 8))
    assert any(event.key == "hadacore::hadamard_transform" for event in profile.key_averages())


def test_direct_calls_and_the_operator_agree(device: torch.device) -> None:
    x = torch.randn(7, 128, device=device)
    assert torch.equal(hadacore.hadamard_transform(x), OPERATORS.hadamard_transform(x, 128, 128**-0.5, None, False))


def test_threads(device: torch.device) -> None:
    x = torch.randn(64, 256, device=device)
    expected = hadacore.hadamard_transform(x)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            if not torch.equal(hadacore.hadamard_transform(x), expected):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_module_saves_and_loads(device: torch.device) -> None:
    module = hadacore.HadamardTransform(64, random_signs=True, generator=torch.Generator().manual_seed(1)).to(device)
    again = hadacore.HadamardTransform(64, random_signs=True, generator=torch.Generator().manual_seed(1)).to(device)
    x = torch.randn(3, 64, device=device)
    assert torch.equal(module(x), again(x))
    other = hadacore.HadamardTransform(64, random_signs=True, generator=torch.Generator().manual_seed(2)).to(device)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
    assert torch.allclose(module.inverted()(module(x)), x, atol=1e-5)
    scaled = hadacore.HadamardTransform(64, 2.0, block_size=16)
    assert torch.allclose(scaled.inverted()(scaled(x)), x, atol=1e-5)
    assert repr(scaled) == "HadamardTransform(64, scale=2.0, block_size=16)"


def test_every_backend_has_the_operators() -> None:
    for key in ("CPU", "CUDA", "XPU", "Meta"):
        for name in ("hadamard_transform", "hadamard_transform_", "hadamard_transform_out"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"hadacore::{name}", key), (name, key)
    assert set(ops.BACKENDS) == {"cpu", "cuda", "triton"}
