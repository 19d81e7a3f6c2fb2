"""The native CPU kernels: every instruction set this CPU has, against the float64 oracle and the PyTorch path."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hadacore
from hadacore.backends import cpu
from hadacore.backends.cpu import building, native, torch_operations
from hadacore.matrices import factor
from hadacore.matrices.orders import base_matrix
from tests import oracle, tolerances

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ORDERS = [1, 2, 3, 12, 20, 28, 36, 172]

needs_library = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=f"native kernels: {native.unavailable_reason()}"
)


@pytest.fixture(params=["avx512", "avx2", "neon", "portable"])
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set of the library that this CPU runs."""
    reason = native.unavailable_reason()
    if reason is not None:
        pytest.skip(f"native kernels: {reason}")
    if request.param not in native.load().instruction_sets:
        pytest.skip(f"this CPU or library has no {request.param}")
    return str(request.param)


@pytest.fixture(params=["OpenMP", "own"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Torch's threads or the library's own; puts their number back."""
    before = torch.get_num_threads()
    if native.unavailable_reason() is None and request.param == "own":
        native.load().handle.hadacore_use_openmp(None)
    yield
    if native.unavailable_reason() is None:
        native.load()  # gives it torch's again
    torch.set_num_threads(before)


def _normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def _signs(n: int, dtype: torch.dtype) -> Tensor:
    return (torch.randint(0, 2, (n,)) * 2 - 1).to(dtype)


def _native(
    x: Tensor,
    log2: int,
    scale: float = 1.0,
    signs: Tensor | None = None,
    inverse: bool = False,
    base: Tensor | None = None,
    isa: str | None = None,
) -> Tensor:
    out = torch.full_like(x, math.nan, memory_format=torch.contiguous_format)
    order = 1 if base is None else base.shape[0]
    native.transform_native(x, out, order, base, log2, scale, signs, inverse, instruction_set=isa)
    return out


def _pytorch(x: Tensor, log2: int, scale: float = 1.0, signs: Tensor | None = None, inverse: bool = False) -> Tensor:
    out = torch.full_like(x, math.nan, memory_format=torch.contiguous_format)
    torch_operations.transform(x, out, 1 << log2, scale, signs, inverse, None)
    return out


def _same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, any NaN being a NaN."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return bool(((a.view(integers) == b.view(integers)) | (a.isnan() & b.isnan())).all())


def _exact(x: Tensor, base: Tensor, log2: int, scale: float, signs: Tensor | None, inverse: bool) -> Tensor:
    order, run = base.shape[0], 1 << log2
    values = x.double()
    if signs is not None and not inverse:
        values = values * signs.double()
    matrix = base.double().T if inverse else base.double()
    parts = oracle.transform(values.reshape(-1, order, run), 1.0)
    result = torch.einsum("ip,rpj->rij", matrix, parts).reshape(x.shape) * scale
    return result * signs.double() if signs is not None and inverse else result


# ---- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_powers_of_two_have_the_bits_of_the_pytorch_path(isa: str, dtype: torch.dtype) -> None:
    for log2 in range(16):
        size = 1 << log2
        for rows in (1, 3, 37) if log2 < 12 else (2,):
            x = _normal(rows, size, dtype=dtype)
            signs = _signs(size, dtype)
            for options in ((None, False), (signs, False), (signs, True)):
                expected = _pytorch(x, log2, size**-0.5, *options)
                assert _same(_native(x, log2, size**-0.5, *options, isa=isa), expected), (size, rows, options[1])


@pytest.mark.parametrize("log2", [16, 17, 20, 21])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_shared_out_among_threads(isa: str, dtype: torch.dtype, log2: int, threads: None) -> None:
    x = _normal(2, 1 << log2, dtype=dtype)
    signs = _signs(1 << log2, dtype)
    expected = _pytorch(x, log2, 2.0 ** (-log2 / 2), signs, True)
    for count in (1, 2):
        torch.set_num_threads(count)
        assert _same(_native(x, log2, 2.0 ** (-log2 / 2), signs, True, isa=isa), expected)
        x_in_place = x.clone()
        native.transform_native(
            x_in_place, x_in_place, 1, None, log2, 2.0 ** (-log2 / 2), signs, True, instruction_set=isa
        )
        assert _same(x_in_place, expected)


@pytest.mark.parametrize("kind", ["signs", "values"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_base_matrices_match_the_oracle(isa: str, dtype: torch.dtype, order: int, kind: str) -> None:
    work = torch.float64 if dtype == torch.float64 else torch.float32
    base = _signs(order * order, work).view(order, order) if kind == "signs" else _normal(order, order, dtype=work)
    for log2 in range(11 if order < 100 else 8):
        n = order << log2
        for rows in (1, 5, 37) if n < 4096 else (2,):
            x, signs = _normal(rows, n, dtype=dtype), _signs(n, dtype)
            for options in ((None, False), (signs, False), (signs, True)):
                y = _native(x, log2, n**-0.5, *options, base=base, isa=isa)
                exact = _exact(x, base, log2, n**-0.5, *options)
                bound = tolerances.base_bound(x, exact, base, log2, n**-0.5, dtype)
                assert ((y.double() - exact).abs() <= bound).all(), (n, rows, options[1])


KNOWN_ORDERS = [12, 20, 28]


def _known(order: int, dtype: torch.dtype) -> Tensor:
    work = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.tensor(base_matrix(factor(order)), dtype=work)


@pytest.mark.parametrize("order", KNOWN_ORDERS)
def test_constants_of_known_bases_are_the_matrices(order: int) -> None:
    text = (building.SOURCES / "known_bases.hpp").read_text()
    found = re.search(rf"KnownBase<{order}> \{{(.*?)\}};", text, re.S)
    assert found is not None
    words = [int(word, 16) for word in re.findall(r"0x[0-9a-f]+", found[1])]
    matrix = base_matrix(factor(order << 8))
    assert words == [sum(1 << p for p in range(order) if row[p] < 0) for row in matrix]
    assert (matrix == matrix.T).all()


@pytest.mark.parametrize("order", KNOWN_ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_known_bases_and_nearly_known_ones_match_the_oracle(isa: str, dtype: torch.dtype, order: int) -> None:
    known = _known(order, dtype)
    nearly = known.clone()
    nearly[-1, -1] *= -1
    for base in (known, nearly):
        for log2 in range(11):
            n = order << log2
            for rows in (1, 5, 37, 67) if n < 4096 else (2,):
                x, signs = _normal(rows, n, dtype=dtype), _signs(n, dtype)
                for options in ((None, False), (signs, False), (signs, True)):
                    y = _native(x, log2, n**-0.5, *options, base=base, isa=isa)
                    exact = _exact(x, base, log2, n**-0.5, *options)
                    bound = tolerances.base_bound(x, exact, base, log2, n**-0.5, dtype)
                    assert ((y.double() - exact).abs() <= bound).all(), (n, rows, options[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_base_matrix_on_a_row_shared_out_among_threads(isa: str, dtype: torch.dtype) -> None:
    base = _signs(20 * 20, torch.float32).view(20, 20)
    x, signs = _normal(1, 20 << 17, dtype=dtype), _signs(20 << 17, dtype)
    y = _native(x, 17, 0.001, signs, True, base=base, isa=isa)
    exact = _exact(x, base, 17, 0.001, signs, True)
    assert ((y.double() - exact).abs() <= tolerances.base_bound(x, exact, base, 17, 0.001, dtype)).all()


@needs_library
@pytest.mark.parametrize("order", [12, 20, 28])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_instruction_sets_agree_in_bits_on_matrices_of_signs(dtype: torch.dtype, order: int) -> None:
    for base in (_signs(order * order, torch.float64).view(order, order), _known(order, dtype)):
        for log2 in (0, 2, 5, 9):
            x = _normal(7, order << log2, dtype=dtype)
            results = [_native(x, log2, 0.3, base=base, isa=name) for name in native.load().instruction_sets]
            assert all(_same(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_value_of_sixteen_bits_and_its_rounding(isa: str, dtype: torch.dtype) -> None:
    """Subnormals, infinities, NaN and halfway cases among them: pairs of all values with a random other one."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    pairs = torch.stack([every, every[torch.randperm(2**16)]], 1)
    for scale in (1.0, 0.5, 1.5, -3e-5, 0.0):
        assert _same(_native(pairs, 1, scale, isa=isa), _pytorch(pairs, 1, scale)), scale
        assert _same(_native(every.view(-1, 1), 0, scale, isa=isa), _pytorch(every.view(-1, 1), 0, scale)), scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_nan_of_all_ones_is_not_rounded_to_a_number(isa: str, dtype: torch.dtype) -> None:
    base = torch.full((1, 1), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert _native(torch.ones(3, 64, dtype=dtype), 6, base=base, isa=isa).isnan().all()


def test_subnormals_of_float32(isa: str) -> None:
    x = torch.randint(1, 2**20, (5, 64), dtype=torch.int32).view(torch.float32)
    y = _native(x, 6, isa=isa)
    assert _same(y, _pytorch(x, 6)) and y.count_nonzero() > 300


def test_subnormal_mode_of_the_caller_holds_in_every_thread(threads: None) -> None:
    if native.unavailable_reason() is not None or not torch.set_flush_denormal(True):
        pytest.skip("no native kernels, or no such mode on this CPU")
    torch.set_flush_denormal(False)
    x = torch.full((16384, 256), 1e-41)
    torch.set_num_threads(2)
    assert _native(x, 8).any()  # makes the thread, which starts with the mode of this one
    try:
        torch.set_flush_denormal(True)
        assert not (_native(x, 8).view(torch.int32) != 0).any()
    finally:
        torch.set_flush_denormal(False)


# ---- memory -----------------------------------------------------------------------------------------


def _layouts(dtype: torch.dtype, size: int) -> dict[str, Tensor]:
    return {
        "rows with gaps": _normal(9, size + 3, dtype=dtype)[:, :size],
        "not aligned": _normal(9, size + 3, dtype=dtype)[:, 3:],
        "three dimensions": _normal(5, 2, 3, size, dtype=dtype).permute(2, 0, 1, 3)[:, ::2],
        "columns": _normal(size, 9, dtype=dtype).T,
        "every second": _normal(9, 2 * size, dtype=dtype)[:, ::2],
        "one row for all": _normal(1, size, dtype=dtype).expand(9, size),
    }


@pytest.mark.parametrize("layout", list(_layouts(torch.float32, 1)))
@pytest.mark.parametrize("log2", [0, 1, 3, 6, 7, 9, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_strides(isa: str, dtype: torch.dtype, log2: int, layout: str) -> None:
    size = 1 << log2
    x = _layouts(dtype, 3 * size)[layout]
    signs = _signs(3 * size, dtype)
    for options in ((None, False), (signs, False), (signs, True)):
        expected = _pytorch(x.contiguous(), log2, 0.7, *options)
        assert _same(_native(x, log2, 0.7, *options, isa=isa), expected)
        storage = torch.zeros(*x.shape[:-1], 4 * size + 1, dtype=dtype)
        out = storage[..., 1 : 1 + 3 * size]
        native.transform_native(x, out, 1, None, log2, 0.7, *options, instruction_set=isa)
        assert _same(out.contiguous(), expected)
        assert not storage[..., 0].any() and not storage[..., 1 + 3 * size :].any()
        if layout != "one row for all":
            in_place = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)
            native.transform_native(in_place, in_place, 1, None, log2, 0.7, *options, instruction_set=isa)
            assert _same(in_place.contiguous(), expected)


@pytest.mark.parametrize("count", [16, 32, 71])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_have_the_bits_of_rows(isa: str, dtype: torch.dtype, count: int) -> None:
    for log2 in range(13):
        size = 1 << log2
        n = size if log2 > 8 else 3 * size
        x = _normal(2, n, count + 1, dtype=dtype)[:, :, 1:].transpose(1, 2)
        x[1, 3, n // 2] = math.inf
        signs = _signs(n, dtype)
        for options in ((None, False), (signs, False), (signs, True)):
            expected = _native(x.contiguous(), log2, 0.7, *options, isa=isa)
            storage = torch.zeros(2, n, count + 4, dtype=dtype)
            out = storage[:, :, 2 : 2 + count].transpose(1, 2)
            native.transform_native(x, out, 1, None, log2, 0.7, *options, instruction_set=isa)
            assert _same(out.contiguous(), expected)
            assert not storage[..., :2].any() and not storage[..., 2 + count :].any()
            in_place = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)
            native.transform_native(in_place, in_place, 1, None, log2, 0.7, *options, instruction_set=isa)
            assert _same(in_place.contiguous(), expected)


@pytest.mark.parametrize("log2", [0, 2, 4, 6, 9])
def test_base_matrix_in_place_and_with_gaps(isa: str, log2: int) -> None:
    base = _normal(12, 12, dtype=torch.float32)
    n = 2 * 12 << log2
    storage = _normal(70, n + 5, dtype=torch.float32)
    x = storage[:, 2 : 2 + n]
    expected = _native(x.contiguous(), log2, base=base, isa=isa)
    native.transform_native(x, x, 12, base, log2, 1.0, None, False, instruction_set=isa)
    assert _same(x.contiguous(), expected)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stores_past_the_caches_give_the_same(dtype: torch.dtype) -> None:
    """Outputs of 4 MiB and more are stored otherwise; one of them does not begin at a whole vector."""
    x = _normal(1 << 22, dtype=dtype)
    for log2 in (3, 8, 11, 15):
        y = _native(x.view(-1, 1 << log2), log2)
        in_place = x.clone()
        native.transform_native(
            in_place.view(-1, 1 << log2), in_place.view(-1, 1 << log2), 1, None, log2, 1.0, None, False
        )
        assert _same(y.view(-1), in_place)
        apart = torch.empty(x.numel() + 1, dtype=dtype)[1:].view(-1, 1 << log2)
        native.transform_native(x.view(-1, 1 << log2), apart, 1, None, log2, 1.0, None, False)
        assert _same(apart, y)


# ---- isolation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 12, 20, 28])
@pytest.mark.parametrize("log2", [0, 1, 3, 5, 8, 10])
def test_a_row_depends_on_itself_alone(isa: str, log2: int, order: int) -> None:
    base = (
        None
        if order == 1
        else _known(order, torch.float32)
        if order == 20
        else _normal(order, order, dtype=torch.float32)
    )
    rows = 71
    for dtype in (torch.float32, torch.float16):
        x = _normal(rows, order << log2, dtype=dtype)
        together = _native(x, log2, base=base, isa=isa)
        for first, last in ((0, 1), (3, 5), (13, 46), (70, 71)):
            assert _same(_native(x[first:last].clone(), log2, base=base, isa=isa), together[first:last])
        poisoned = x.clone()
        poisoned[1, -1], poisoned[17, 0], poisoned[69, 0] = math.nan, math.inf, -math.inf
        others = [r for r in range(rows) if r not in (1, 17, 69)]
        result = _native(poisoned, log2, base=base, isa=isa)
        assert _same(result[others], together[others])
        assert not torch.isfinite(result[[1, 17, 69]]).any()


@needs_library
@pytest.mark.parametrize(("order", "log2"), [(1, 2), (1, 7), (1, 10), (1, 15), (1, 18), (28, 1), (28, 8)])
def test_threads_do_not_change_bits(order: int, log2: int, threads: None) -> None:
    base = None if order == 1 else _normal(order, order, dtype=torch.float32)
    x = _normal(max(2, (1 << 19) // (order << log2)), order << log2, dtype=torch.float32)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append(_native(x, log2, base=base))
    assert all(_same(result, results[0]) for result in results)


@needs_library
def test_calls_from_several_python_threads(threads: None) -> None:
    torch.set_num_threads(3)
    inputs = [_normal(257, 1 << log2, dtype=torch.float32) for log2 in (4, 8, 10, 12)]
    expected = [hadacore.hadamard_transform(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            results = list(pool.map(hadacore.hadamard_transform, inputs))
            assert all(map(_same, results, expected))


def _transform_in_child(x: Tensor, expected: bytes, code: int) -> None:
    # Compared without torch, whose own threads may not survive a fork.
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir())) if tasks.is_dir() else 0
    same = hadacore.hadamard_transform(x).numpy().tobytes() == expected
    after = len(list(tasks.iterdir())) if tasks.is_dir() else 1
    os._exit(code if same and after == before + 1 else 1)


@needs_library
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_makes_threads_of_its_own(threads: None) -> None:
    torch.set_num_threads(2)
    x = _normal(1024, 256, dtype=torch.float32)
    expected = hadacore.hadamard_transform(x)
    child = multiprocessing.get_context("fork").Process(
        target=_transform_in_child, args=(x, expected.numpy().tobytes(), 7), daemon=True
    )
    child.start()
    child.join(60)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 7
    assert _same(hadacore.hadamard_transform(x), expected)


# ---- with and without the library -------------------------------------------------------------------


@pytest.mark.parametrize("order", [12, 20])
def test_pytorch_path_computes_the_same_with_a_base_matrix(order: int) -> None:
    x, base, signs = (
        _normal(5, order << 4, dtype=torch.float32),
        _normal(order, order, dtype=torch.float32),
        _signs(order << 4, torch.float32),
    )
    for inverse in (False, True):
        out = torch.empty_like(x)
        torch_operations.transform(x, out, order << 4, 0.1, signs, inverse, base)
        exact = _exact(x, base, 4, 0.1, signs, inverse)
        assert ((out.double() - exact).abs() <= tolerances.base_bound(x, exact, base, 4, 0.1, torch.float32)).all()


@needs_library
def test_backend_says_what_it_uses() -> None:
    assert f"native kernels, {native.instruction_set()}" in cpu.support().reason


def test_without_the_library_everything_works_and_the_reason_is_told() -> None:
    code = (
        "import torch, hadacore\n"
        "from hadacore.backends import cpu\n"
        "y = hadacore.hadamard_transform(torch.tensor([1.0, 2.0, 3.0, 4.0]))\n"
        "assert y.tolist() == [5.0, -1.0, -2.0, 0.0]\n"
        "print(cpu.support().reason)\n"
    )

    def reason(wanted: str) -> str:
        environment = {**os.environ, native.INSTRUCTION_SET_VARIABLE: wanted}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert "PyTorch operations" in reason("none") and "HADACORE_CPU_ISA is none" in reason("none")
    if native.unavailable_reason() is None:
        assert "HADACORE_CPU_ISA is 'mmx', and this CPU runs" in reason("mmx")
        assert "native kernels, portable" in reason("portable")


def test_library_that_was_not_built(tmp_path: Path) -> None:
    with pytest.raises(native.NativeUnavailableError, match="was not built when the package was installed"):
        native.load(tmp_path / "absent.so")
    (tmp_path / "broken.so").write_text("not a library")
    with pytest.raises(native.NativeUnavailableError, match="does not load"):
        native.load(tmp_path / "broken.so")


@needs_library
def test_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "sources_digest", lambda: "0" * 16)
    with pytest.raises(native.NativeUnavailableError, match="built from other sources than these; install"):
        native.load()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HADACORE_NO_NATIVE", "1", "HADACORE_NO_NATIVE was set"),
        ("CXX", "/nowhere/c++", "/nowhere/c\\+\\+ cannot be run"),
        ("CXX", f"{sys.executable} -c 'raise SystemExit(\"no\")'", "failed: no"),
        ("PATH", "/nowhere", "no C\\+\\+ compiler was found"),
    ],
)
def test_building_without_a_compiler_says_why_and_leaves_nothing(
    variable: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("HADACORE_NO_NATIVE", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(building.CannotBuildError, match=message):
        building.build(tmp_path / "library.so")
    assert not list(tmp_path.iterdir())
