"""Kernels that rotate and quantize, on a GPU: the reference's bits where sums are exact, and the same bits however they run."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hadacore
from hadacore import hadamard_quantize, plan_quantize, prologues
from hadacore.backends.cuda.launch import enter_device, kernel_arguments, launch_prepared, prepare
from hadacore.backends.cuda.quantize import ScaleMatrix
from hadacore.elements import BY_DTYPE
from hadacore.formats import BY_NAME, FORMATS, Format, Granularity, Quantizer
from hadacore.kernels.architectures import architecture_of
from hadacore.kernels.base_configurations import BaseConfiguration, base_candidates, base_source
from hadacore.kernels.configurations import KernelConfiguration, candidates
from hadacore.kernels.fusion import fusion_of, scale_factor
from hadacore.matrices import factor
from hadacore.quantization import layouts, prologue_reference, reference
from tests import oracle, tolerances
from tests.quantized_values import assert_quantized_within, exact_base, exact_rows

pytestmark = pytest.mark.gpu

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SIZES = (16, 64, 128, 256, 1024, 4096, 8192, 16384, 32768, 448, 5120, 11008, 14336, 28672)
CASES = [(f, g) for f in FORMATS for g in f.granularities]
BASES = ((1, 256), (5, 320), (16, 256), (28, 448), (28, 3584), (20, 5120), (172, 11008), (28, 14336))
GUARD = 64


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def _block(granularity: Granularity, n: int) -> int:
    return int({"row": n, "tensor": 0}.get(str(granularity), granularity))


def _fits(format: Format, granularity: Granularity, n: int) -> bool:
    return n % (_block(granularity, n) or 1) == 0


def _check_exact(
    x: Tensor, format: Format, granularity: Granularity, *, size: int | None = None, signs: Tensor | None = None,
    inverse: bool = False, base: Tensor | None = None,
) -> None:  # fmt: skip
    """Codes and scales of rows whose transforms are exact are the reference's, and one kernel made them."""
    n = x.shape[-1]
    size, block = size or n, _block(granularity, n)
    given = torch.tensor(0.375, device=x.device) if block == 0 else None
    plan = plan_quantize(
        n, format.name, x.dtype, granularity=granularity, block_size=size, base=base, signs=signs is not None, inverse=inverse,
        device="cuda",
    )  # fmt: skip
    assert plan.fused, plan
    q = hadamard_quantize(
        x, format.name, granularity=granularity, scale=given, block_size=size, base=base, signs=signs, inverse=inverse
    )
    rotated = oracle.transform(x, 1.0, block_size=size, signs=signs, inverse=inverse, base=base).float()
    values = rotated * torch.tensor(size**-0.5, dtype=torch.float32, device=x.device)
    codes, scales = reference.quantize(values.view(-1, n), Quantizer(format, block, 1.0, format.can_swizzle), given)
    where = f"{format.name} {granularity} {tuple(x.shape)} {x.dtype}"
    assert _same(q.codes.view(codes.shape), codes), where
    assert _same(q.scales.reshape(scales.shape), scales), where


# ---- the reference's bits ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_bits_of_the_reference(n: int) -> None:
    """Every format and granularity at every size, the type another for the next: each of them meets all in some size."""
    for index, (format, granularity) in enumerate(CASES):
        if _fits(format, granularity, n):
            dtype = DTYPES[(SIZES.index(n) + index) % len(DTYPES)]
            for rows in (3, 130):  # 130: two tiles of swizzled scales, the second almost empty
                _check_exact(exact_rows(rows, n, dtype).cuda(), format, granularity)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [256, 4096, 14336])
def test_every_type_of_common_sizes(n: int, dtype: torch.dtype) -> None:
    for name, granularity in (("fp8_e4m3", "row"), ("int8", "row"), ("int4", "row"), ("mxfp8", 32), ("nvfp4", 16)):
        _check_exact(exact_rows(5, n, dtype).cuda(), BY_NAME[name], granularity)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("n", [128, 4096, 5120, 14336])  # 14336 has a matrix that is not symmetric
def test_signs_and_inverse(n: int, inverse: bool) -> None:
    signs = (torch.randint(0, 2, (n,), device="cuda") * 2 - 1).to(torch.int8)
    for name, granularity in (("int8", "row"), ("mxfp4", 32)):
        x = exact_rows(7, n, torch.bfloat16).cuda()
        _check_exact(x, BY_NAME[name], granularity, inverse=inverse)
        _check_exact(x, BY_NAME[name], granularity, signs=signs, inverse=inverse)


def test_blocks_of_the_transform() -> None:
    """Rows of several transforms: scales for parts of a transform, for a transform and, where a tile holds it, for several."""
    for n, size, name, granularity in (
        (1024, 128, "fp8_e4m3", 128), (4096, 256, "nvfp4", 16), (4096, 512, "mxfp8", 32), (14336, 3584, "int4", 64),
        (256, 64, "int8", "row"), (384, 32, "int4", 128), (2304, 64, "int4", "row"), (14336, 128, "fp8_e4m3", "row"),
        (11008, 256, "int8", "row"), (8192, 2048, "fp8_e4m3", "row"), (28672, 512, "int8", "row"),
    ):  # fmt: skip
        _check_exact(exact_rows(9, n, torch.bfloat16).cuda(), BY_NAME[name], granularity, size=size)


def test_a_scale_for_a_row_of_several_transforms() -> None:
    """Every type, with signs before and after, at strides, after a gated activation, and with no difference to fewer rows."""
    for dtype in DTYPES:
        x = exact_rows(300, 4096, dtype).cuda()
        signs = (torch.randint(0, 2, (4096,), device="cuda") * 2 - 1).to(torch.int8)
        for inverse in (False, True):
            _check_exact(x, BY_NAME["int8"], "row", size=128, signs=signs, inverse=inverse)
        _check_exact(x[:, :2048], BY_NAME["fp8_e4m3"], "row", size=128)
        gate, up = (torch.randn(300, 4096, device="cuda").to(dtype) for _ in range(2))
        silu = prologues.silu_mul(up)
        q = hadamard_quantize(gate, "int8", block_size=128, prologue=silu)
        values = prologue_reference.apply(silu.description, gate, silu.operands, None)
        codes, scales = reference.quantize(
            hadacore.hadamard_transform(values, block_size=128), Quantizer(BY_NAME["int8"], 4096)
        )
        torch.testing.assert_close(q.scales.view(scales.shape), scales, rtol=2 * tolerances.TF32_ERROR * 2, atol=0)
        assert ((q.codes.int() - codes.int()).abs() <= 1).all()
        few = hadamard_quantize(gate[:3], "int8", block_size=128, prologue=prologues.silu_mul(up[:3]))
        assert _same(few.codes, q.codes[:3]) and _same(few.scales, q.scales[:3])


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("order", "n"), BASES)
def test_a_base_of_the_caller(order: int, n: int, dtype: torch.dtype, inverse: bool) -> None:
    """In x's type and in float32, at any strides, with signs and without; with few rows and many."""
    signs = (torch.randint(0, 2, (n,), device="cuda") * 2 - 1).to(torch.int8)
    for base_dtype in dict.fromkeys((dtype, torch.float32)):
        base = exact_base(order + 1, base_dtype).cuda()[1:, :-1]
        for name, granularity in (("int8", "row"), ("fp8_e4m3", "tensor"), ("mxfp4", 32), ("nvfp4", 16)):
            if not _fits(BY_NAME[name], granularity, n):
                continue
            for rows, given in ((7, None), (130, signs)):
                x = exact_rows(rows, n, dtype).cuda()
                _check_exact(x, BY_NAME[name], granularity, signs=given, inverse=inverse, base=base)


def test_blocks_of_a_base_of_the_caller() -> None:
    base = exact_base(28, torch.float32).cuda()
    x = exact_rows(9, 14336, torch.bfloat16).cuda()
    _check_exact(x, BY_NAME["int4"], 64, size=3584, base=base)
    _check_exact(x.view(9, 2, 7168)[:, 1], BY_NAME["mxfp8"], 32, size=1792, base=base.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("order", "n"), BASES)
def test_every_configuration_with_a_base_gives_the_same_bits(order: int, n: int, dtype: torch.dtype) -> None:
    architecture = architecture_of(torch.cuda.get_device_capability())
    code = BY_DTYPE[dtype].cuda_code
    assert code is not None
    x = torch.randn(37, n, device="cuda").to(dtype)
    quantizer = Quantizer(BY_NAME["int8"], n)
    for base_dtype in dict.fromkeys((dtype, torch.float32)):
        base = torch.randn(order, order, device="cuda").to(base_dtype)
        source, log2 = base_source(code, base_dtype == torch.float32), (n // order).bit_length() - 1
        found = base_candidates(code, order, log2, architecture, base=source, fusion=fusion_of(quantizer, n, False))
        assert found
        q = hadamard_quantize(x, "int8", base=base)
        for configuration in found:
            codes, scales = _run(configuration, x, quantizer, None, base)
            assert _same(q.codes, codes) and _same(q.scales, scales), configuration
        bound = tolerances.rotated_bound(x, n, n**-0.5, dtype, base=base)
        assert_quantized_within(
            q, oracle.transform(x, base=base), bound, differing=0.3 if dtype == torch.float32 else 0.4
        )


def test_what_no_kernel_does_with_a_base_is_composed() -> None:
    x, base = exact_rows(5, 128, torch.bfloat16).cuda(), exact_base(128, torch.bfloat16).cuda()
    assert "fewer than a vector" in str(plan_quantize(128, "int8", base=base, device="cuda").composed_reason)
    q = hadamard_quantize(x, "int8", base=base, transform_scale=1.0)
    codes, scales = reference.quantize(oracle.transform(x, 1.0, base=base).float(), Quantizer(BY_NAME["int8"], 128))
    assert _same(q.codes, codes) and _same(q.scales, scales)


def test_rows_that_no_kernel_holds_are_composed() -> None:
    x = exact_rows(3, 14336, torch.bfloat16).cuda()
    plan = plan_quantize(14336, "int8", block_size=3584, device="cuda")
    assert not plan.fused and "several transforms of 3584" in str(plan)
    q = hadamard_quantize(x, "int8", block_size=3584)
    values = oracle.transform(x, 1.0, block_size=3584).float() * torch.tensor(3584**-0.5, device="cuda")
    codes, scales = reference.quantize(values, Quantizer(BY_NAME["int8"], 14336))
    assert _same(q.codes, codes) and _same(q.scales, scales)


# ---- however it runs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Guarded:
    """A buffer between guards, all of it poisoned."""

    whole: Tensor
    inner: Tensor

    @classmethod
    def of(cls, elements: int, dtype: torch.dtype) -> _Guarded:
        whole = torch.empty(elements + 2 * GUARD, dtype=dtype, device="cuda")
        whole.fill_(math.nan) if dtype == torch.float32 else whole.fill_(0x5A)
        return cls(whole, whole[GUARD : GUARD + elements])

    def is_intact(self) -> bool:
        ends = torch.cat((self.whole[:GUARD], self.whole[GUARD + self.inner.numel() :]))
        return bool(ends.isnan().all() if ends.dtype == torch.float32 else (ends == 0x5A).all())


def _run(
    configuration: KernelConfiguration | BaseConfiguration,
    x: Tensor,
    quantizer: Quantizer,
    given: Tensor | None,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes and scales as they lie in memory, of one configuration."""
    rows, n = x.shape
    columns = n // quantizer.block if quantizer.block else 0
    size = layouts.swizzled_size(rows, columns) if quantizer.swizzled else max(1, rows * columns)
    codes = _Guarded.of(x.numel() * quantizer.format.encoding.bits // 8, torch.uint8)
    scales = _Guarded.of(size, torch.float32 if quantizer.format.scale_name == "fp32" else torch.uint8)
    matrix = ScaleMatrix(scales.inner, given, scale_factor(quantizer), rows, 0)
    device = x.get_device()
    with enter_device(device):
        prepared = prepare(configuration, rows, device)
        arguments = kernel_arguments(x, codes.inner, n**-0.5, rows, n, None, None, base)
        launch_prepared(prepared, device, arguments + matrix.arguments())
    torch.cuda.synchronize()
    assert codes.is_intact() and scales.is_intact(), configuration
    return codes.inner.clone(), scales.inner.clone()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [64, 1024, 4096, 16384, 32768, 448, 2560, 5120, 9216, 14336, 29568])
def test_every_configuration_gives_the_same_bits(n: int, dtype: torch.dtype) -> None:
    architecture = architecture_of(torch.cuda.get_device_capability())
    matrix, code = factor(n), BY_DTYPE[dtype].cuda_code
    assert code is not None
    x = torch.randn(37, n, device="cuda").to(dtype)
    exact, bound = oracle.transform(x), tolerances.rotated_bound(x, n, n**-0.5, dtype)
    kinds: list[tuple[str, Granularity]] = [("fp8_e4m3", "row"), ("int4", "row"), ("nvfp4", 16)]
    if n % 128 == 0:
        kinds.append(("fp8_e4m3", 128))
    for name, granularity in kinds:
        format = BY_NAME[name]
        quantizer = Quantizer(format, _block(granularity, n), 1.0, format.can_swizzle)
        fusion = fusion_of(quantizer, n, False)
        found: list[KernelConfiguration | BaseConfiguration] = []
        if matrix.base_order == 1:
            found += [c.configuration for c in candidates(code, matrix.log2, architecture, fusion)]
        else:
            found += base_candidates(code, matrix.base_order, matrix.log2, architecture, fusion=fusion)
        assert found
        first = _run(found[0], x, quantizer, None)
        for configuration in found[1:]:
            again = _run(configuration, x, quantizer, None)
            assert _same(again[0], first[0]) and _same(again[1], first[1]), f"{name} {granularity} {configuration}"
        q = hadamard_quantize(x, name, granularity=granularity)
        assert _same(q.codes.flatten().view(torch.uint8), first[0])
        # Where a base has 924 terms the bound is as wide as FP8's steps, and says nothing about its codes.
        if n < 29568 or name in ("int4", "nvfp4"):
            assert_quantized_within(q, exact, bound, differing=0.2 if dtype == torch.float32 and n < 29568 else 0.3)


@pytest.mark.parametrize("n", [16, 128, 1024, 4096, 32768, 448, 2560, 5120, 9216, 14336, 28672])
def test_rows_do_not_depend_on_how_many_there_are(n: int) -> None:
    many = max(300, (1 << 22) // n)  # enough for the configuration of many rows
    x = torch.randn(many, n, device="cuda", dtype=torch.bfloat16)
    for name in ("fp8_e4m3", "nvfp4", "mxfp8")[: 3 if n % 32 == 0 else 2]:
        together = hadamard_quantize(x, name, swizzled=False)
        for rows in (*range(1, 41), 64, 132, 133, 264):
            q = hadamard_quantize(x[:rows], name, swizzled=False)
            assert _same(q.codes, together.codes[:rows]) and _same(q.scales, together.scales[:rows]), rows


def test_rows_with_gaps_and_odd_addresses() -> None:
    projection = torch.randn(64, 3, 8, 128, device="cuda", dtype=torch.float16)
    query = projection[:, 1]
    storage = torch.randn(5 * 4096 + 1, device="cuda", dtype=torch.bfloat16)
    columns = torch.randn(1024, 33, device="cuda", dtype=torch.float16).t()
    for x in (query, storage[1:].view(5, 4096), columns, projection[::2, 2]):
        for name in ("int8", "mxfp8"):
            q, expected = hadamard_quantize(x, name), hadamard_quantize(x.contiguous().clone(), name)
            assert _same(q.codes, expected.codes) and _same(q.scales, expected.scales)


def test_strided_rows_are_read_in_place() -> None:
    query = torch.randn(1024, 3, 32, 128, device="cuda", dtype=torch.float16)[:, 0]
    hadamard_quantize(query, "int8")
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    q = hadamard_quantize(query, "int8")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before + 2  # codes and scales
    assert q.codes.shape == query.shape


def test_a_bad_row_touches_no_other() -> None:
    for n in (128, 4096, 2560, 14336):
        x = torch.randn(40, n, device="cuda", dtype=torch.bfloat16)
        clean = hadamard_quantize(x, "fp8_e4m3")
        x[7, 5], x[20, n - 1] = math.nan, math.inf
        q = hadamard_quantize(x, "fp8_e4m3")
        others = [row for row in range(40) if row not in (7, 20)]
        assert _same(q.codes[others], clean.codes[others]) and _same(q.scales[others], clean.scales[others])
        assert q.scales[[7, 20]].isnan().all() and (q.codes[[7, 20]].view(torch.uint8) == 0x7F).all()


def test_first_use_inside_a_capture(tmp_path: Path) -> None:
    code = (
        "import torch, hadacore\n"
        "inputs = [torch.randn(8, n, device='cuda').bfloat16() for n in (128, 32768, 14336)]\n"
        "graph = torch.cuda.CUDAGraph()\n"
        "with torch.cuda.graph(graph):\n"
        "    made = [hadacore.hadamard_quantize(x, f) for x in inputs for f in ('fp8_e4m3', 'nvfp4')]\n"
        "for x in inputs:\n"
        "    x.normal_()\n"
        "graph.replay()\n"
        "torch.cuda.synchronize()\n"
        "again = [hadacore.hadamard_quantize(x, f) for x in inputs for f in ('fp8_e4m3', 'nvfp4')]\n"
        "for a, b in zip(made, again):\n"
        "    assert torch.equal(a.codes.view(torch.uint8), b.codes.view(torch.uint8))\n"
        "    assert torch.equal(a.scales.view(torch.uint8), b.scales.view(torch.uint8))\n"
    )
    for _ in ("empty cache", "from disk"):
        environment = {**os.environ, "HADACORE_CACHE_DIR": str(tmp_path / "cache")}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_stochastic_codes_do_not_depend_on_the_rows_after() -> None:
    x = torch.randn(200, 4096, device="cuda", dtype=torch.bfloat16)
    for name in ("mxfp4", "nvfp4"):
        together = hadamard_quantize(x, name, seed=3)
        assert _same(hadamard_quantize(x[:5], name, seed=3).codes, together.codes[:5])
        assert not _same(hadamard_quantize(x, name, seed=4).codes, together.codes)


# ---- prologues ---------------------------------------------------------------------------------------


def _close(q: hadacore.QuantizedTensor, values: Tensor, dtype: torch.dtype, base: Tensor | None = None) -> None:
    """INT8 codes of the rotated fp32 values of a prologue of ``dtype``.

    exp and the sum of squares are the platform's to a few units in the last place, so scales are equal to 2^-12 and few codes
    differ, by one. Of 16-bit types two products take 11 bits, so the largest magnitude, four times the root mean square and
    more, is off by 8 deviations at most (``tolerances.py``).
    """
    relative, differing = 2.0**-12, 0.01
    if dtype != torch.float32:
        relative, differing = 8 * 2**0.5 * tolerances.TF32_ERROR / 4, 0.02
    rotated = hadacore.hadamard_transform(values, base=base)
    codes, scales = reference.quantize(
        rotated.view(-1, rotated.shape[-1]), Quantizer(BY_NAME["int8"], rotated.shape[-1])
    )
    torch.testing.assert_close(q.scales.view(scales.shape), scales, rtol=relative, atol=0)
    difference = (q.codes.view(codes.shape).int() - codes.int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < differing


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [128, 4096, 32768, 5120, 14336])
def test_gated_activations(n: int, dtype: torch.dtype) -> None:
    gate, up = (torch.randn(19, n, device="cuda").to(dtype) for _ in range(2))
    assert (
        plan_quantize(n, "int8", dtype, prologue=prologues.silu_mul(up).description, device="cuda").prologue_reason
        is None
    )
    for make in (prologues.silu_mul, prologues.gelu_mul):
        separate = make(up)
        q = hadamard_quantize(gate, "int8", prologue=separate)
        _close(q, prologue_reference.apply(separate.description, gate, separate.operands, None), dtype)
        for parts, order in (((gate, up), "gate_up"), ((up, gate), "up_gate")):
            one = hadamard_quantize(torch.cat(parts, -1), "int8", prologue=make(order=order))
            assert _same(one.codes, q.codes) and _same(one.scales, q.scales)


@pytest.mark.parametrize("n", [2560, 3584, 4864, 7168, 9216, 14336, 28672])
def test_gated_rows_do_not_depend_on_how_many_there_are(n: int) -> None:
    """Few rows are shared by blocks of a cluster, many by blocks that loop."""
    gate_up = torch.randn(700, 2 * n, device="cuda", dtype=torch.bfloat16)
    silu = prologues.silu_mul(order="gate_up")
    values = prologue_reference.apply(silu.description, gate_up, silu.operands, None)
    for name in ("int8", "mxfp8"):
        together = hadamard_quantize(gate_up, name, prologue=silu, swizzled=False)
        if name == "int8":
            _close(together, values, gate_up.dtype)
        for rows in (1, 2, 17, 64, 133):
            q = hadamard_quantize(gate_up[:rows], name, prologue=silu, swizzled=False)
            assert _same(q.codes, together.codes[:rows]) and _same(q.scales, together.scales[:rows]), (name, rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("order", "n"), [(5, 320), (28, 3584), (20, 5120), (28, 14336)])
def test_prologues_with_a_base_of_the_caller(order: int, n: int, dtype: torch.dtype) -> None:
    """A float16 base is in two parts beside a prologue, since what it is multiplied by is."""
    gate, up = (torch.randn(19, n, device="cuda").to(dtype) for _ in range(2))
    for base_dtype in dict.fromkeys((dtype, torch.float32)):
        base = torch.randn(order, order, device="cuda").to(base_dtype)
        for prologue in (prologues.silu_mul(up), prologues.rms_norm(up[0])):
            plan = plan_quantize(n, "int8", dtype, prologue=prologue.description, base=base, device="cuda")
            assert plan.fused and plan.prologue_reason is None
            q = hadamard_quantize(gate, "int8", prologue=prologue, base=base)
            values = prologue_reference.apply(prologue.description, gate, prologue.operands, None)
            _close(q, values, dtype, base.float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "rows"), [(128, 19), (4096, 19), (16384, 19), (768, 1100), (3584, 19), (5120, 700), (14336, 1), (18944, 300)]
)
def test_rms_norm_writes_the_residual(n: int, rows: int, dtype: torch.dtype) -> None:
    x, residual = (torch.randn(rows, n, device="cuda").to(dtype) for _ in range(2))
    weight = torch.rand(n, device="cuda").to(dtype) + 0.5
    expected_residual = residual.clone()
    description = prologues.rms_norm(weight, residual=residual).description
    values = prologue_reference.apply(description, x, (weight,), expected_residual)
    q = hadamard_quantize(x, "int8", prologue=prologues.rms_norm(weight, residual=residual))
    assert torch.equal(residual, expected_residual)
    _close(q, values, dtype)
    _close(
        hadamard_quantize(x, "int8", prologue=prologues.rms_norm(weight)),
        prologue_reference.apply(prologues.rms_norm(weight).description, x, (weight,), None),
        dtype,
    )
