"""The same properties for every backend: native CPU, PyTorch operations, CUDA, Triton (interpreted where there is no GPU)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hadacore
from hadacore.backends.cpu import native
from hadacore.backends.selection import CAPABILITIES, support_table
from hadacore.elements import BY_NAME
from tests import oracle, tolerances

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
POWERS = [2**k for k in range(16)]
# Bases that are symmetric and not, of one block of a product and of several, with columns from none to many.
ORDERS = [12, 20, 28, 40, 96, 172, 344, 428, 768, 1376, 2304, 5120, 11008, 14336]
SIZES = POWERS + ORDERS
GPU = torch.device("cuda" if torch.cuda.is_available() else "xpu" if torch.xpu.is_available() else "cpu")


@dataclass(frozen=True)
class Backend:
    """One of the ways to run a transform."""

    name: str
    device: torch.device
    argument: str

    def __call__(self, x: torch.Tensor, scale: float | None = None, **options: Any) -> torch.Tensor:
        return hadacore.hadamard_transform(x, scale, backend=self.argument, **options)

    def normal(self, *shape: int, dtype: torch.dtype, factor: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, dtype=torch.float64) * factor).to(dtype).to(self.device)


@contextlib.contextmanager
def _without_native() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "unavailable_reason", lambda: "the test wants PyTorch operations")
        yield


@pytest.fixture(
    params=[
        "cpu-native",
        "cpu-pytorch",
        pytest.param("triton", marks=pytest.mark.triton),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    name = request.param
    if name == "cpu-native" and (reason := native.unavailable_reason()) is not None:
        pytest.skip(f"no native kernels: {reason}")
    found = Backend(name, GPU if name in ("triton", "cuda") else torch.device("cpu"), name.split("-")[0])
    with _without_native() if name == "cpu-pytorch" else contextlib.nullcontext():
        yield found


def _rows(size: int) -> int:
    return max(2, 300 // size * 2 + 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_matches_the_oracle_element_by_element(size: int, dtype: torch.dtype, backend: Backend) -> None:
    x = backend.normal(_rows(size), size, dtype=dtype)
    signs = (torch.randint(0, 2, (size,)) * 2 - 1).to(dtype).to(backend.device)
    for inverse in (False, True):
        y = backend(x, signs=signs, inverse=inverse)
        assert y.dtype == dtype and y.shape == x.shape and y.is_contiguous()
        exact = oracle.transform(x, signs=signs, inverse=inverse)
        assert ((y.double() - exact).abs() <= tolerances.element_bound(x, exact, size, size**-0.5, dtype)).all()


@pytest.mark.parametrize("factor", [1.0, 6e4, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_sixteen_bit_error_is_that_of_correct_rounding(
    size: int, dtype: torch.dtype, factor: float, backend: Backend
) -> None:
    rows = max(2, 16384 // size)
    if factor > 1:
        x = ((torch.rand(rows, size, dtype=torch.float64) * 2 - 1) * factor).to(dtype).to(backend.device)
    else:
        x = backend.normal(rows, size, dtype=dtype, factor=factor)
    scale = 1 / size if factor > 1 else None
    y = backend(x, scale)
    exact = oracle.transform(x, scale)
    assert torch.isfinite(y).all()
    best = tolerances.rounding_error(exact, dtype)
    assert tolerances.relative_error(y, exact) <= best * tolerances.CORRECT_ROUNDING_RATIO


@pytest.mark.parametrize("size", SIZES)
def test_float32_error_is_that_of_plain_sums(size: int, backend: Backend) -> None:
    x = backend.normal(max(2, 8192 // size), size, dtype=torch.float32)
    exact = oracle.transform(x)
    if size & (size - 1):
        yardstick = tolerances.base_float32(x, oracle.known_base(size), size, size**-0.5)
    else:
        yardstick = tolerances.butterfly_float32(x, size, size**-0.5)
    allowed = max(tolerances.relative_error(yardstick, exact), tolerances.rounding_error(exact, torch.float32))
    assert tolerances.relative_error(backend(x), exact) <= allowed * tolerances.FLOAT32_BUTTERFLY_RATIO


def test_largest_float16_values_do_not_overflow_inside(backend: Backend) -> None:
    for size in POWERS:
        x = torch.full((3, size), 65504.0, dtype=torch.float16, device=backend.device)
        y = backend(x, 1 / size)
        assert y[:, 0].tolist() == [65504.0] * 3 and not y[:, 1:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_impulse_gives_a_column_exactly(size: int, dtype: torch.dtype, backend: Backend) -> None:
    positions = torch.tensor([0, size // 3, size - 1])
    x = torch.zeros(3, size, dtype=dtype)
    x[torch.arange(3), positions] = 1
    for inverse in (False, True):
        y = backend(x.to(backend.device), 1.0, inverse=inverse)
        assert torch.equal(y.cpu().double(), oracle.transform(x, 1.0, inverse=inverse))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_a_row_depends_on_itself_alone(size: int, dtype: torch.dtype, backend: Backend) -> None:
    rows = 41 if size <= 128 else 9
    x = backend.normal(rows, size, dtype=dtype)
    together = backend(x)
    for count in (1, rows - 1):
        assert torch.equal(backend(x[:count]), together[:count]), count
    assert torch.equal(backend(x[rows // 2]), together[rows // 2])
    poisoned = x.clone()
    poisoned[1, size // 2] = math.nan
    poisoned[5, 0] = math.inf
    poisoned[7, size - 1] = -math.inf
    result = backend(poisoned)
    untouched = [r for r in range(rows) if r not in (1, 5, 7)]
    assert torch.equal(result[untouched], together[untouched])
    assert not torch.isfinite(result[[1, 5, 7]]).any()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_strides_and_options(data: st.DataObject, backend: Backend) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    size = data.draw(st.sampled_from([*POWERS[:13], 12, 28, 40, 96, 172, 768]))
    blocks = data.draw(st.sampled_from([1, 1, 2, 3]))
    n = size * blocks
    leading = data.draw(st.lists(st.integers(0, 4), max_size=3))
    gap = data.draw(st.sampled_from([0, 0, 1, 8]))
    storage = torch.randn(*leading, n + gap).to(dtype).to(backend.device)
    x = storage[..., gap:] if data.draw(st.booleans()) else storage[..., :n]
    if len(leading) >= 2 and data.draw(st.booleans()):
        x = x.transpose(0, 1)
    if leading and data.draw(st.booleans()):
        x = x[::2]
    signs = None
    if data.draw(st.booleans()):
        signs = (torch.randint(0, 2, (n,)) * 2 - 1).to(dtype).to(backend.device)
    inverse = data.draw(st.booleans())
    scale = data.draw(st.sampled_from([None, 1.0, -0.25, 0]))
    before = x.clone()
    how = data.draw(st.sampled_from(["new", "out", "in place"]))
    options: dict[str, Any] = {"block_size": size if blocks > 1 else None, "signs": signs, "inverse": inverse}
    if how == "out":
        options["out"] = torch.full_like(x, math.nan)
    elif how == "in place":
        options["out"] = x
    y = backend(x, scale, **options)
    if how == "new":
        assert y.is_contiguous()
    else:
        assert y is options["out"]
    if how != "in place":
        assert torch.equal(x, before)
    exact = oracle.transform(before, scale, block_size=size, signs=signs, inverse=inverse)
    factor = size**-0.5 if scale is None else scale
    assert ((y.double() - exact).abs() <= tolerances.element_bound(before, exact, size, factor, dtype)).all()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtypes", [(d, b) for d in DTYPES for b in dict.fromkeys((d, torch.float32))], ids=str)
@pytest.mark.parametrize(
    ("order", "columns"), [(2, 8), (3, 4), (5, 64), (16, 32), (28, 1), (36, 256), (172, 16), (300, 2)]
)
def test_a_callers_base(
    order: int, columns: int, dtypes: tuple[torch.dtype, torch.dtype], inverse: bool, backend: Backend
) -> None:
    dtype, base_dtype = dtypes
    size = order * columns
    base = torch.randn(order, order, dtype=torch.float64).to(base_dtype).to(backend.device).T
    x = backend.normal(5, size, dtype=dtype)
    scale = 1 / size
    y = backend(x, scale, base=base, inverse=inverse)
    exact = oracle.transform(x, scale, base=base, inverse=inverse)
    bound = tolerances.element_bound(x, exact, size, scale, dtype, base)
    assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("size", [64, 28 * 16])
def test_gradients_go_through_the_same_backend(size: int, backend: Backend) -> None:
    x = backend.normal(3, size, dtype=torch.float32).requires_grad_()
    gradient = backend.normal(3, size, dtype=torch.float32)
    backend(x).backward(gradient)
    assert torch.equal(x.grad, backend(gradient, inverse=True))


@pytest.mark.parametrize("size", [64, 768])
def test_compiles_whole(size: int, backend: Backend) -> None:
    x = backend.normal(4, size, dtype=torch.float16)

    def f(x: torch.Tensor) -> torch.Tensor:
        y = hadacore.hadamard_transform(x * 2, backend=backend.argument)
        return hadacore.hadamard_transform_(y + 1, backend=backend.argument)

    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 64), (0, 1)])
def test_empty(shape: tuple[int, ...], backend: Backend) -> None:
    assert backend(torch.empty(shape, device=backend.device, dtype=torch.float16)).shape == shape


# ---- choosing ---------------------------------------------------------------------------------------------


def test_an_unknown_backend_is_named() -> None:
    for call in (hadacore.hadamard_transform, hadacore.hadamard_transform_):
        with pytest.raises(ValueError, match="backend must be None or one of cpu, cuda, triton, got 'cudnn'"):
            call(torch.ones(8), backend="cudnn")
    with pytest.raises(ValueError, match="backend must be None or one of"):
        hadacore.HadamardTransform(8, backend="cudnn")
    with pytest.raises(ValueError, match="backend must be None or one of"):
        hadacore.hadamard_quantize(torch.ones(1, 8), "int8", backend="cudnn")


def test_a_backend_that_does_not_take_the_device_says_so() -> None:
    with pytest.raises(ValueError, match="backend='cuda' takes tensors on NVIDIA GPUs, got one on cpu"):
        hadacore.hadamard_transform(torch.ones(8), backend="cuda")
    with pytest.raises(ValueError, match="backend='cuda' takes tensors on NVIDIA GPUs, got one on cpu"):
        hadacore.hadamard_quantize(torch.ones(1, 8), "int8", backend="cuda")
    x = torch.ones(8, requires_grad=True)
    with pytest.raises(ValueError, match="backend='cuda' takes tensors on NVIDIA GPUs, got one on cpu"):
        hadacore.hadamard_transform(x, backend="cuda")


def test_a_module_keeps_its_backend() -> None:
    rotate = hadacore.HadamardTransform(8, backend="cpu")
    assert repr(rotate) == "HadamardTransform(8, backend='cpu')"
    assert rotate.inverted().backend == "cpu"
    assert torch.equal(rotate(torch.ones(8)), hadacore.hadamard_transform(torch.ones(8)))


# ---- what they report -------------------------------------------------------------------------------------


def test_the_support_table_is_that_of_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs/backends.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("| `")] == support_table().splitlines()[2:]
    assert support_table() in text


def test_backends_take_what_they_report(backend: Backend) -> None:
    reported = CAPABILITIES[backend.argument]
    for name in reported.dtypes:
        x = torch.ones(2, 4, dtype=BY_NAME[name].dtype, device=backend.device)
        assert backend(x)[0].tolist() == [2, 0, 0, 0]
    largest = min(reported.largest_power, 1 << 16)
    assert backend(torch.ones(1, largest, device=backend.device), 1.0)[0, 0] == largest
    if reported.largest_order is not None:
        with pytest.raises(ValueError, match=f"base matrices up to order {reported.largest_order}, got order 2068"):
            backend(torch.ones(1, 2068, device=backend.device))
