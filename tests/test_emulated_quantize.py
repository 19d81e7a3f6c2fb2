"""Kernels that quantize, run on the CPU by the emulator: their codes and scales are the reference's, bit for bit.

The inputs are integers times powers of two, so that every rotated value is exact, whatever the order of its sums.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hadacore import QuantizedTensor
from hadacore.formats import BY_NAME, Quantizer
from hadacore.kernels.architectures import BY_NAME as ARCHITECTURES
from hadacore.kernels.base_configurations import (
    BASE_OF_ELEMENTS,
    BASE_OF_FLOAT32,
    BaseConfiguration,
    base_candidates,
    panel_candidates,
)
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE, TABLE, KernelConfiguration, candidates
from hadacore.kernels.fusion import fusion_of, scale_factor
from hadacore.kernels.warpgroup_configurations import WarpgroupConfiguration
from hadacore.quantization import layouts, reference
from tests import oracle, tolerances
from tests.emulator import EmulatedKernel, Scales, compiler
from tests.quantized_values import assert_quantized_within, exact_base, exact_rows

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="the emulator compiles the kernels with g++, which is not installed"
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # by ELEMENT


def _quantizers(n: int) -> list[Quantizer]:
    """Every format with every granularity that divides a row, swizzled or not."""
    found = []
    for name, format in BY_NAME.items():
        for granularity in format.granularities:
            block = {"row": n, "tensor": 0}.get(str(granularity), granularity)
            if block and (n % int(block) or int(block) < 16):
                continue
            for swizzled in (False, True) if format.can_swizzle else (False,):
                found.append(Quantizer(BY_NAME[name], int(block), 0.9 if name != "mxfp8" else 1.0, swizzled))
            if format.stochastic:
                found.append(Quantizer(BY_NAME[name], int(block), 1.0, False, True))
    return found


AnyConfiguration = KernelConfiguration | BaseConfiguration | WarpgroupConfiguration


@functools.lru_cache(maxsize=8)
def _kernel(configuration: AnyConfiguration, cuda_arch: int) -> EmulatedKernel:
    return EmulatedKernel(configuration, cuda_arch=cuda_arch)


def _scales_buffer(quantizer: Quantizer, rows: int, columns: int) -> Tensor:
    size = layouts.swizzled_size(rows, columns) if quantizer.swizzled else rows * columns
    dtype = torch.float32 if quantizer.format.scale_name == "fp32" else torch.uint8
    return torch.full((max(size, 1),), 0x77, dtype=dtype)


def _run(
    configuration: AnyConfiguration, quantizer: Quantizer, x: Tensor, *, given: Tensor | None = None,
    signs: Tensor | None = None, base: Tensor | None = None, n: int | None = None, cuda_arch: int = 900, seed: int = 0,
    stochastic_seed: int = 5, shared_row: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Codes as bytes and scales as they lie in memory, of the kernel run on ``x``; ``base`` has any strides without gaps."""
    n = n or configuration.size
    rows = x.numel() // n
    of_row = {"shared_row": shared_row} if shared_row else {}
    fused = replace(configuration, fusion=fusion_of(quantizer, n, given is not None), **of_row)
    columns = n // quantizer.block if quantizer.block else 0
    codes = torch.full((x.numel() * quantizer.format.encoding.bits // 8,), 0x55, dtype=torch.uint8)
    scales = _scales_buffer(quantizer, rows, columns)
    transformed = x.numel() // configuration.size
    given_base = {} if base is None else {"base": base.as_strided((base.numel(),), (1,)), "base_strides": base.stride()}
    report = _kernel(fused, cuda_arch).run(
        x.flatten(), codes, configuration.size**-0.5, transformed, signs=signs, sign_rows=1 if signs is None else len(signs),
        grid=fused.grid(transformed, 1), seed=seed,
        scales=Scales(scales, given, scale_factor(quantizer), rows, stochastic_seed), **given_base,
    )  # fmt: skip
    # What warpgroup_rows writes once for each block, its base, has conflicts.
    assert report.extra_wavefronts == 0 or configuration.kernel == "warpgroup_rows"
    return codes, scales


def check(
    configuration: AnyConfiguration, quantizer: Quantizer, x: Tensor, *, given: Tensor | None = None,
    signs: Tensor | None = None, base: Tensor | None = None, n: int | None = None, stochastic_seed: int = 5,
    **options: int,
) -> None:  # fmt: skip
    """Run the kernel on ``x`` and compare with the reference of the exact rotated values. The inverse takes ``base.T``."""
    codes, scales = _run(
        configuration,
        quantizer,
        x,
        given=given,
        signs=signs,
        base=base,
        n=n,
        stochastic_seed=stochastic_seed,
        **options,
    )
    n = n or configuration.size
    rows = x.numel() // n
    columns = n // quantizer.block if quantizer.block else 0
    inverse = configuration.signs == SIGNS_AFTER
    matrix = base.T if base is not None and inverse else base
    rotated = oracle.transform(x.view(-1, configuration.size), scale=1.0, signs=signs, inverse=inverse, base=matrix)
    transform_scale = torch.tensor(configuration.size**-0.5, dtype=torch.float32)
    values = (rotated.float() * transform_scale).reshape(rows, n)
    expected, expected_scales = reference.quantize(values, quantizer, given, stochastic_seed)
    assert torch.equal(codes, expected.view(torch.uint8).flatten())
    if quantizer.block:
        stored = (
            expected_scales.t()
            if quantizer.format.is_block_major(columns) and not quantizer.swizzled
            else expected_scales
        )
        wanted = stored.contiguous().flatten()
        assert torch.equal(scales.view(torch.uint8), wanted.view(torch.uint8))


def _name(value: object) -> str | None:
    if isinstance(value, Quantizer):
        kind = "-swizzled" if value.swizzled else "-stochastic" if value.stochastic else ""
        return f"{value.format.name}-{value.block}{kind}"
    if isinstance(value, KernelConfiguration):
        return f"{str(DTYPES[value.element_code]).removeprefix('torch.')}-{value}".replace(" ", "_").replace(
            "/", "_per_"
        )
    return None


def _configurations() -> list[KernelConfiguration]:
    listed = dict.fromkeys(
        replace(candidate.configuration, element_code=code)
        for (element_bytes, log2_size), candidates in TABLE.items()
        for code in ((2,) if element_bytes == 4 else (0, 1))
        for candidate in candidates
        if log2_size >= 4 and candidate.configuration.passes == 1
    )
    return list(listed)


CONFIGURATIONS = _configurations()


def _takes(configuration: KernelConfiguration, quantizer: Quantizer) -> bool:
    try:
        replace(configuration, fusion=fusion_of(quantizer, configuration.size, False))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=_name)
def test_every_configuration(configuration: KernelConfiguration) -> None:
    """One quantizer each, another for the next configuration; every kind of block comes up many times."""
    torch.manual_seed(0)
    quantizers = [q for q in _quantizers(configuration.size) if _takes(configuration, q)]
    index = CONFIGURATIONS.index(configuration)
    for i in (index, index + 7):
        quantizer = quantizers[i % len(quantizers)]
        given = torch.tensor([0.375]) if quantizer.block == 0 or quantizer.format.has_global_scale else None
        rows = 3 if configuration.size >= 256 else 1024 // configuration.size + 1
        check(
            configuration,
            quantizer,
            exact_rows(rows, configuration.size, DTYPES[configuration.element_code]),
            given=given,
        )


SHORT = KernelConfiguration("warp_rows", 1, 7, 0, 4)
LONG = KernelConfiguration("exchange_rows", 0, 11, 1, 4)


@pytest.mark.parametrize("cuda_arch", [800, 900])
@pytest.mark.parametrize("quantizer", _quantizers(128), ids=_name)
def test_every_quantizer_of_a_warp(quantizer: Quantizer, cuda_arch: int) -> None:
    given = torch.tensor([0.25]) if quantizer.block == 0 else None
    check(SHORT, quantizer, exact_rows(9, 128, torch.bfloat16), given=given, cuda_arch=cuda_arch)


@pytest.mark.parametrize("cuda_arch", [800, 900])
@pytest.mark.parametrize("quantizer", _quantizers(2048), ids=_name)
def test_every_quantizer_after_an_exchange(quantizer: Quantizer, cuda_arch: int) -> None:
    given = torch.tensor([0.25]) if quantizer.block == 0 else None
    check(LONG, quantizer, exact_rows(3, 2048, torch.float16), given=given, cuda_arch=cuda_arch)


def test_blocks_across_short_transforms() -> None:
    """A block, or a short row, may span several transforms that stand in one tile."""
    check(replace(SHORT, log2_size=5), Quantizer(BY_NAME["int4"], 128), exact_rows(6, 384, torch.bfloat16), n=384)
    check(replace(SHORT, log2_size=5), Quantizer(BY_NAME["int8"], 64), exact_rows(9, 64, torch.bfloat16), n=64)


# Elements of a row and of its transforms: warps that all have as many units and not, packed units and whole ones.
SHARED_ROWS = [(512, 16), (2304, 64), (4096, 128), (2816, 256), (3584, 512), (8192, 2048), (14336, 128)]


@pytest.mark.parametrize("code", range(3))
@pytest.mark.parametrize("n, size", SHARED_ROWS)
def test_a_scale_for_a_row_of_several_transforms(n: int, size: int, code: int) -> None:
    for name in ("fp8_e4m3", "int8", "int4")[: 3 if n < 4096 else 1]:
        quantizer = Quantizer(BY_NAME[name], n, 0.9)
        found = candidates(code, size.bit_length() - 1, ARCHITECTURES["sm_90a"], fusion_of(quantizer, n, False))
        (c,) = [candidate.configuration for candidate in found]
        assert c.shared_row == n and f"a row of {n} a block" in str(c)
        check(replace(c, fusion=None, shared_row=0), quantizer, exact_rows(3, n, DTYPES[code]), n=n, shared_row=n)


@pytest.mark.parametrize("signs_are", [SIGNS_BEFORE, SIGNS_AFTER], ids=["before", "after"])
def test_signs_of_a_row_of_several_transforms(signs_are: int) -> None:
    c = KernelConfiguration("warp_rows", 1, 7, 0, 3, 2).with_options(signs_are, False)
    signs = (torch.randint(0, 2, (4, 128)) * 2 - 1).bfloat16()
    check(
        c,
        Quantizer(BY_NAME["int8"], 1280),
        exact_rows(2, 1280, torch.bfloat16),
        n=1280,
        signs=signs[:1],
        shared_row=1280,
    )


def test_a_bad_row_of_several_transforms_touches_no_other() -> None:
    x = exact_rows(5, 2048, torch.bfloat16)
    x[1] = 0
    x[2, 3], x[4, 1500] = float("nan"), float("inf")
    check(KernelConfiguration("warp_rows", 1, 7, 0, 4, 2), Quantizer(BY_NAME["int8"], 2048), x, n=2048, shared_row=2048)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared_row": 1024}, "warps share a row for its scale"),
        ({"units": 1}, "a block has all of a row, in whole units of 256"),
        ({"log2_size": 11, "log2_tiles": 3}, "a block has all of a row, in whole units of 2048"),
    ],
)
def test_rows_that_no_block_shares(changes: dict[str, int], message: str) -> None:
    fusion = fusion_of(Quantizer(BY_NAME["int8"], 1280), 1280, False)
    good = KernelConfiguration("warp_rows", 1, 7, 0, 3, 2, shared_row=1280, fusion=fusion)
    with pytest.raises(ValueError, match=message):
        replace(good, **changes)


@pytest.mark.parametrize("signs_are", [SIGNS_BEFORE, SIGNS_AFTER], ids=["before", "after"])
def test_signs(signs_are: int) -> None:
    exchanges = [c for c in CONFIGURATIONS if c.log2_size == 14 and c.element_code == 1]
    shorts = [c for c in CONFIGURATIONS if c.log2_size == 9 and c.element_code == 2]
    for c in (*shorts[:1], *exchanges):
        x = exact_rows(3, c.size, DTYPES[c.element_code])
        signs = (torch.randint(0, 2, (1, c.size)) * 2 - 1).to(x.dtype)
        check(c.with_options(signs_are, False), Quantizer(BY_NAME["int8"], c.size), x, signs=signs)


@pytest.mark.parametrize("configuration", [SHORT, LONG], ids=_name)
@pytest.mark.parametrize("name", list(BY_NAME))
def test_edge_values(configuration: KernelConfiguration, name: str) -> None:
    """Rows of zeros; NaN and infinity, which reach all of their row and no other."""
    n = configuration.size
    x = exact_rows(6, n, DTYPES[configuration.element_code])
    x[1] = 0
    x[2, 3], x[4, 5] = float("nan"), float("inf")
    quantizer = next(q for q in _quantizers(n) if q.format.name == name and q.block)
    assert configuration.signs == NO_SIGNS
    check(configuration, quantizer, x)


SIZES = [
    (20, 3, 9), (28, 4, 7), (12, 5, 3), (20, 6, 3), (12, 7, 3), (172, 6, 3), (28, 9, 3), (36, 10, 2), (148, 7, 3), (20, 12, 2),
]  # fmt: skip


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(("order", "log2_columns", "rows"), SIZES)
def test_sizes_with_a_base(order: int, log2_columns: int, rows: int, architecture: str) -> None:
    """One quantizer for each type and candidate, a row's own scale for the last one, which many rows use."""
    torch.manual_seed(0)
    n, number = order << log2_columns, SIZES.index((order, log2_columns, rows))
    target = ARCHITECTURES[architecture]
    for code in (0, 1, 2):
        plain = panel_candidates(code, order, log2_columns, target)
        for i in range(len(plain)):
            quantizers = _quantizers(n)
            chosen = (
                Quantizer(BY_NAME["int8"], n)
                if i == len(plain) - 1
                else quantizers[(number * 5 + code * 3 + i) % len(quantizers)]
            )
            found = panel_candidates(code, order, log2_columns, target, fusion=fusion_of(chosen, n, False))
            if not found:  # a row that takes several blocks, which only form a cluster from sm_90 on
                assert (code == 2 or n > 65536) and architecture == "sm_80" and chosen.block == n
                continue
            given = torch.tensor([0.375]) if chosen.block == 0 else None
            fitting = found[min(i, len(found) - 1)]
            x = exact_rows(rows, n, DTYPES[code])
            check(
                replace(fitting, fusion=None),
                chosen,
                x,
                given=given,
                cuda_arch=800 if architecture == "sm_80" else 900,
                seed=i,
            )


@pytest.mark.parametrize("name", ["int8", "nvfp4", "mxfp8"])
def test_a_base_of_half_the_order(name: str) -> None:
    """A base that a Hopper GPU multiplies by half of: few rows by clusters, and scales of parts of a row."""
    torch.manual_seed(0)
    n = 924 << 5
    quantizer = Quantizer(BY_NAME[name], {"int8": n, "nvfp4": 16, "mxfp8": 32}[name])
    for code in (0, 1):
        found = panel_candidates(code, 924, 5, ARCHITECTURES["sm_90a"], fusion=fusion_of(quantizer, n, False))
        assert len(found) > 1 and all(c.halves for c in found)
        for c in found:
            check(replace(c, fusion=None), quantizer, exact_rows(2, n, DTYPES[code]))


@pytest.mark.parametrize(("order", "log2_columns", "rows"), [(28, 4, 7), (20, 6, 3), (172, 6, 2)])
def test_every_quantizer_with_a_base(order: int, log2_columns: int, rows: int) -> None:
    n = order << log2_columns
    for quantizer in _quantizers(n):
        given = torch.tensor([0.375]) if quantizer.block == 0 else None
        found = panel_candidates(1, order, log2_columns, ARCHITECTURES["sm_90a"], fusion=fusion_of(quantizer, n, False))
        check(replace(found[-1], fusion=None), quantizer, exact_rows(rows, n, torch.bfloat16), given=given)


@pytest.mark.parametrize("code", [1, 2])
def test_signs_with_a_base(code: int) -> None:
    for order, log2_columns, rows in ((28, 4, 5), (20, 7, 2)):
        n = order << log2_columns
        x = exact_rows(rows, n, DTYPES[code])
        signs = (torch.randint(0, 2, (1, n)) * 2 - 1).to(x.dtype)
        for signs_are in (SIGNS_BEFORE, SIGNS_AFTER):
            found = panel_candidates(
                code, order, log2_columns, ARCHITECTURES["sm_90a"], transposed=signs_are == SIGNS_AFTER
            )
            check(found[-1].with_options(signs_are, False), Quantizer(BY_NAME["int8"], n), x, signs=signs)


def _bases(code: int) -> list[tuple[int, torch.dtype]]:
    """``BASE`` and the type of the caller's base for inputs of a type."""
    of_elements = [] if code == 2 else [(BASE_OF_ELEMENTS, DTYPES[code])]
    return [*of_elements, (BASE_OF_FLOAT32, torch.float32)]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize(
    ("order", "log2_columns", "rows"), [(5, 3, 17), (28, 4, 7), (20, 6, 3), (12, 9, 2), (172, 6, 2)]
)
def test_a_base_of_the_caller(order: int, log2_columns: int, rows: int, code: int, architecture: str) -> None:
    """One quantizer for each candidate, a row's own scale for the last; the base transposed for every other one."""
    n, target = order << log2_columns, ARCHITECTURES[architecture]
    quantizers = _quantizers(n)
    for source, dtype in _bases(code):
        base = exact_base(order, dtype)
        plain = panel_candidates(code, order, log2_columns, target, base=source)
        for i in range(len(plain)):
            last = i == len(plain) - 1
            quantizer = (
                Quantizer(BY_NAME["int8"], n) if last else quantizers[(5 * order + 3 * code + i) % len(quantizers)]
            )
            fusion = fusion_of(quantizer, n, False)
            found = panel_candidates(code, order, log2_columns, target, base=source, fusion=fusion)
            assert found and all(c.base == source for c in found)
            given = torch.tensor([0.375]) if quantizer.block == 0 else None
            matrix = base.T if i % 2 == 0 else base
            x, fitting = exact_rows(rows, n, DTYPES[code]), replace(found[min(i, len(found) - 1)], fusion=None)
            cuda_arch = 800 if architecture == "sm_80" else 900
            check(fitting, quantizer, x, given=given, base=matrix, cuda_arch=cuda_arch, seed=i)


@pytest.mark.parametrize("source", [BASE_OF_ELEMENTS, BASE_OF_FLOAT32])
def test_every_quantizer_with_a_base_of_the_caller(source: int) -> None:
    order, log2_columns, rows = 28, 4, 7
    n = order << log2_columns
    base = exact_base(order, torch.float32 if source == BASE_OF_FLOAT32 else torch.bfloat16)
    for quantizer in _quantizers(n):
        given = torch.tensor([0.375]) if quantizer.block == 0 else None
        fusion = fusion_of(quantizer, n, False)
        found = panel_candidates(1, order, log2_columns, ARCHITECTURES["sm_90a"], base=source, fusion=fusion)
        check(replace(found[-1], fusion=None), quantizer, exact_rows(rows, n, torch.bfloat16), given=given, base=base)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_signs_with_a_base_of_the_caller(code: int) -> None:
    for order, log2_columns, rows in ((28, 4, 5), (20, 7, 2)):
        n = order << log2_columns
        x = exact_rows(rows, n, DTYPES[code])
        signs = (torch.randint(0, 2, (1, n)) * 2 - 1).to(x.dtype)
        for source, dtype in _bases(code):
            found = panel_candidates(code, order, log2_columns, ARCHITECTURES["sm_90a"], base=source)
            for signs_are in (SIGNS_BEFORE, SIGNS_AFTER):
                with_signs = found[-1].with_options(signs_are, False)
                check(with_signs, Quantizer(BY_NAME["int8"], n), x, signs=signs, base=exact_base(order, dtype))


def test_rows_of_a_base_stay_apart() -> None:
    for order, log2_columns in ((28, 4), (20, 7)):
        n = order << log2_columns
        x = exact_rows(6, n, torch.bfloat16)
        x[1] = 0
        x[2, 3], x[5, n - 1] = float("nan"), float("inf")
        found = panel_candidates(1, order, log2_columns, ARCHITECTURES["sm_90a"])
        for name in ("fp8_e4m3", "int8"):
            check(found[-1], Quantizer(BY_NAME[name], n), x)


@pytest.mark.parametrize("name", ["fp8_e4m3", "int8", "int4", "mxfp8", "nvfp4"])
def test_sums_that_round(name: str) -> None:
    """Values that no order of sums gives exactly: codes and scales are those of values within the bound, and no others."""
    torch.manual_seed(0)
    plain = panel_candidates(1, 28, 4, ARCHITECTURES["sm_90a"])
    for c in (SHORT, LONG, *plain[-1:]):
        x = torch.randn(9, c.size).to(DTYPES[c.element_code])
        quantizer = next(q for q in _quantizers(c.size) if q.format.name == name and q.block)
        quantizer = replace(quantizer, clip_ratio=1.0, swizzled=False)
        codes, scales = _run(c, quantizer, x)
        if quantizer.block == c.size or quantizer.format.name != "fp8_e4m3":
            scales = scales.view(9, -1)
        q = QuantizedTensor(
            codes.view(quantizer.format.codes_dtype).view(9, -1), scales.view(quantizer.format.scale_dtype), name, x.shape,
            "row" if quantizer.block == c.size else quantizer.block,
        )  # fmt: skip
        scale = c.size**-0.5
        bound = tolerances.rotated_bound(x, c.size, scale, x.dtype, tensor_cores=True)
        assert_quantized_within(q, oracle.transform(x), bound, differing=0.2)
        with pytest.raises(AssertionError):
            assert_quantized_within(q, oracle.transform(x) * 1.01, bound, differing=0.2)
        flipped = q.codes.clone()
        flipped.view(torch.uint8)[4, 3] ^= 1
        with pytest.raises(AssertionError):
            assert_quantized_within(replace(q, codes=flipped), oracle.transform(x), bound, differing=0.2)


# A power of two, m * 2^k by base_rows.cu with a narrow second product and a wide one, and columns first.
ERRORS = [(1, 11), (172, 6), (148, 7), (28, 8)]


@pytest.mark.parametrize("name", ["fp8_e4m3", "int8", "mxfp8", "int4", "nvfp4"])
@pytest.mark.parametrize("order, log2_columns", ERRORS)
def test_error_over_that_of_exact_values(order: int, log2_columns: int, name: str) -> None:
    """Codes of values that went to the second product in 11 bits are as near to the exact ones as codes of those themselves."""
    torch.manual_seed(0)
    n = order << log2_columns
    quantizer = next(q for q in _quantizers(n) if q.format.name == name and q.block and not q.swizzled)
    quantizer = replace(quantizer, clip_ratio=1.0, stochastic=False)
    fusion = fusion_of(quantizer, n, False)
    if order == 1:
        c: AnyConfiguration = candidates(1, log2_columns, ARCHITECTURES["sm_90a"], fusion)[-1].configuration
    else:
        c = base_candidates(1, order, log2_columns, ARCHITECTURES["sm_90a"], fusion=fusion)[-1]
    x = torch.randn(8, n).bfloat16()
    codes, scales = _run(replace(c, fusion=None), quantizer, x)
    exact = oracle.transform(x)
    of_exact, exact_scales = reference.quantize(exact.float(), quantizer)
    columns = n // quantizer.block
    scales = scales.view(columns, 8).T if quantizer.format.is_block_major(columns) else scales.view(8, columns)

    def error(codes: Tensor, scales: Tensor) -> float:
        values = reference.dequantize(codes, scales, quantizer.format, None, torch.float64)
        return tolerances.relative_error(values, exact)

    of_kernel = error(codes.view(of_exact.dtype).view(of_exact.shape), scales.view(exact_scales.dtype))
    assert of_kernel <= 1.002 * error(of_exact, exact_scales.reshape(8, columns))
