"""The native quantizing epilogue: every instruction set this CPU has, against the reference, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hadacore import hadamard_quantize, prologues
from hadacore.backends import cpu
from hadacore.backends.cpu import native, quantized
from hadacore.formats import BY_NAME, FORMATS, Format, Quantizer
from hadacore.matrices import factor
from hadacore.matrices.orders import base_matrix
from hadacore.quantization import cpu_kernels, layouts, reference
from hadacore.quantization.composed import Rotation, composed

INPUTS = [torch.float32, torch.float16, torch.bfloat16]
CASES = [(f, g) for f in FORMATS for g in f.granularities]
# Sizes with a vector's rest, with several rows a tile and with several tiles a row.
SIZES = [2, 4, 12, 20, 32, 48, 64, 128, 256, 384, 1024, 1536, 4096, 11008, 16384]

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=f"native kernels: {native.unavailable_reason()}"
)


def _ids(case: object) -> str:
    return case.name if isinstance(case, Format) else str(case)


@pytest.fixture(params=["avx512", "avx2", "neon", "portable"])
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set of the library that this CPU runs."""
    if request.param not in native.library().instruction_sets:
        pytest.skip(f"this CPU or library has no {request.param}")
    return str(request.param)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _block(granularity: str | int, n: int) -> int:
    return 0 if granularity == "tensor" else n if granularity == "row" else int(granularity)


def _fits(format: Format, granularity: str | int, n: int) -> bool:
    return n % format.packed == 0 and n % (_block(granularity, n) or n) == 0


def _rows(*shape: int, dtype: torch.dtype) -> Tensor:
    """Rows of very different magnitude, one with an outlier, and one of zeros of both signs."""
    x = torch.randn(*shape) * 2.0 ** torch.randint(-9, 9, (*shape[:-1], 1))
    x.view(-1, shape[-1])[0, 0] *= 300
    x.view(-1, shape[-1])[-1] = 0
    x.view(-1, shape[-1])[-1, ::2] = -0.0
    return x.to(dtype)


def _base(size: int) -> tuple[int, Tensor | None, int]:
    order, log2 = factor(size).base_order, factor(size).log2
    return order, None if order == 1 else torch.tensor(base_matrix(factor(size)), dtype=torch.float32), log2


def _native(
    x: Tensor,
    quantizer: Quantizer,
    given: float = 1.0,
    size: int | None = None,
    scale: float = 1.0,
    signs: Tensor | None = None,
    inverse: bool = False,
    isa: str | None = None,
) -> tuple[Tensor, Tensor]:
    codes, scales = layouts.new_outputs(x, x.shape[-1], quantizer.format, quantizer.block, quantizer.swizzled)
    codes.view(torch.uint8).fill_(0xEE)
    if quantizer.swizzled:
        scales.view(torch.uint8).zero_()
    elif quantizer.block:
        scales.fill_(0.125)
    order, base, log2 = _base(size or x.shape[-1])
    wanted = scales if quantizer.block else None
    quantized.quantize_native(
        x, codes, wanted, quantizer, given, order, base, log2, scale, signs, inverse, instruction_set=isa
    )
    return codes, scales if quantizer.block else torch.tensor(given)


def _reference(
    x: Tensor,
    quantizer: Quantizer,
    given: float | None = None,
    size: int | None = None,
    scale: float = 1.0,
    signs: Tensor | None = None,
    inverse: bool = False,
    isa: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference on the fp32 values of the native transform, which test_cpu_native.py holds to its own contract."""
    rotated = torch.empty(x.shape)
    order, base, log2 = _base(size or x.shape[-1])
    native.transform_native(
        x.float().contiguous(), rotated, order, base, log2, scale, signs, inverse, instruction_set=isa
    )
    tensor = None if given is None else torch.tensor(given)
    codes, scales = reference.quantize(rotated.view(-1, x.shape[-1]), quantizer, tensor)
    return codes.view(*x.shape[:-1], -1), scales


def _same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    """Bit for bit, layouts included."""
    return all(
        p.dtype == q.dtype
        and p.shape == q.shape
        and p.stride() == q.stride()
        and torch.equal(p.flatten().view(torch.uint8), q.flatten().view(torch.uint8))
        for p, q in zip(a, b, strict=True)
    )


# ---- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INPUTS, ids=str)
@pytest.mark.parametrize(("format", "granularity"), CASES, ids=_ids)
def test_codes_and_scales_are_the_references(
    isa: str, format: Format, granularity: str | int, dtype: torch.dtype
) -> None:
    given = 0.37 if granularity == "tensor" or format.has_global_scale else None
    for n in SIZES:
        if not _fits(format, granularity, n):
            continue
        quantizer = Quantizer(format, _block(granularity, n), 0.83, format.can_swizzle)
        for rows in (1, 3, 131) if n < 4096 else (2,):
            x = _rows(rows, n, dtype=dtype)
            got = _native(x, quantizer, given or 1.0, scale=n**-0.5, isa=isa)
            assert _same(got, _reference(x, quantizer, given, scale=n**-0.5, isa=isa)), (n, rows)


@pytest.mark.parametrize("clip_ratio", [1.0, 0.5, 2.0**-10])
@pytest.mark.parametrize("format", FORMATS, ids=_ids)
def test_every_exponent(isa: str, format: Format, clip_ratio: float) -> None:
    """Not rotated: magnitudes from the smallest subnormal to the largest number, NaN and infinities."""
    patterns = torch.randint(0, 2**31, (1 << 15,), dtype=torch.int64)
    values = (patterns * torch.randint(1, 3, patterns.shape)).to(torch.int32).view(torch.float32)
    blocks = [_block(g, 128) for g in format.granularities if g != "tensor"]
    grouped = torch.randn(512, 64) * torch.ldexp(torch.ones(512, 1), torch.randint(-149, 121, (512, 1)))
    for block in blocks:
        for x in (values, grouped.flatten(), torch.tensor([math.nan, math.inf, -math.inf, -0.0]).repeat(128)):
            quantizer = Quantizer(format, block, clip_ratio)
            x = x.view(-1, max(32, block))
            assert _same(_native(x, quantizer, size=1, isa=isa), _reference(x, quantizer, size=1, isa=isa)), (
                block,
                clip_ratio,
            )


@pytest.mark.parametrize("format", [BY_NAME["fp8_e4m3"], BY_NAME["fp8_e5m2"]], ids=_ids)
def test_every_sixteenth_float_with_a_given_scale(isa: str, format: Format) -> None:
    """All upper halves of fp32 with some lower ones: ties, subnormals, NaN of both signs, infinities."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (upper | low).view(torch.float32).view(-1, 64)
        for given in (1.0, 0.37, 2.0**-126, 2.0**118):
            quantizer = Quantizer(format, 0)
            assert _same(
                _native(x, quantizer, given, size=1, isa=isa), _reference(x, quantizer, given, size=1, isa=isa)
            ), (low, given)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "int8", "int4"])
def test_ties_of_every_code(isa: str, name: str) -> None:
    """Values exactly between codes, and one unit in the last place beside, at scale 1."""
    format = BY_NAME[name]
    maximum = format.encoding.maximum
    ties = torch.arange(-4 * maximum, 4 * maximum + 1) / 4
    ties = torch.cat((ties, ties.nextafter(torch.tensor(9e9)), ties.nextafter(torch.tensor(-9e9))))
    block = 16 if name == "nvfp4" else 32
    padded = torch.zeros(-(-ties.numel() // (block - 1)) * (block - 1))
    padded[: ties.numel()] = ties.clamp(-maximum, maximum)
    x = torch.cat((torch.full((padded.numel() // (block - 1), 1), maximum), padded.view(-1, block - 1)), 1)
    quantizer = Quantizer(format, block)
    assert _same(_native(x, quantizer, size=1, isa=isa), _reference(x, quantizer, size=1, isa=isa))


@pytest.mark.parametrize("given", [2.0**-126, 2.0**-30, 0.00123, 777.0, 2.0**118])
def test_nvfp4_with_a_global_scale(isa: str, given: float) -> None:
    x = _rows(77, 64, dtype=torch.float32) * 2.0 ** torch.randint(-60, 60, (77, 1))
    quantizer = Quantizer(BY_NAME["nvfp4"], 16, 1.0, True)
    assert _same(_native(x, quantizer, given, isa=isa), _reference(x, quantizer, given, isa=isa))


def test_the_global_scale_is_multiplied_by_its_reciprocal(isa: str) -> None:
    """Wanted scales next to ties of E4M3, where a product with the reciprocal and a quotient round apart."""
    ties = torch.arange(0x10, 0x7E, dtype=torch.uint8).view(torch.float8_e4m3fn).float() * (1 + 2.0**-4)
    quantizer = Quantizer(BY_NAME["nvfp4"], 16)
    differ = 0
    for given in (0.37, 0.0123, 5.1, 33.3):
        factor = torch.tensor(quantizer.amax_factor)
        amax = ties * torch.tensor(given) / factor
        amax = torch.cat((amax, amax.nextafter(torch.tensor(0.0)), amax.nextafter(torch.tensor(9e9))))
        differ += int((amax * factor / given != amax * factor * torch.tensor(given).reciprocal()).sum())
        x = amax[:, None].expand(-1, 16).contiguous()
        assert _same(_native(x, quantizer, given, size=1, isa=isa), _reference(x, quantizer, given, size=1, isa=isa)), (
            given
        )
    assert differ


# ---- options and memory -----------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "granularity"), CASES, ids=_ids)
@pytest.mark.parametrize("size", [1, 12, 32, 128, 384, 1536])
def test_options(isa: str, size: int, format: Format, granularity: str | int) -> None:
    n = 3072
    x = _rows(9, n, dtype=torch.bfloat16)
    signs = (torch.randint(0, 2, (n,)) * 2 - 1).float()
    given = 0.01 if granularity == "tensor" else None
    quantizer = Quantizer(format, _block(granularity, n), 0.9, False)
    for chosen, inverse in ((None, False), (None, True), (signs, False), (signs, True)):
        options = {"size": size, "scale": -0.3, "signs": chosen, "inverse": inverse, "isa": isa}
        assert _same(_native(x, quantizer, given or 1.0, **options), _reference(x, quantizer, given, **options))


def _layouts(dtype: torch.dtype, n: int) -> dict[str, Tensor]:
    return {
        "rows with gaps": _rows(9, n + 3, dtype=dtype)[:, :n],
        "not aligned": _rows(9, n + 3, dtype=dtype)[:, 3:],
        "three dimensions": _rows(5, 2, 3, n, dtype=dtype).permute(2, 0, 1, 3)[:, ::2],
        "columns": _rows(n, 33, dtype=dtype).T,
        "every second": _rows(9, 2 * n, dtype=dtype)[:, ::2],
        "one row for all": _rows(1, n, dtype=dtype).expand(9, n),
    }


@pytest.mark.parametrize("layout", list(_layouts(torch.float32, 4)))
@pytest.mark.parametrize("n", [12, 64, 192, 2048, 6144])
@pytest.mark.parametrize("dtype", INPUTS, ids=str)
def test_strides(isa: str, dtype: torch.dtype, n: int, layout: str) -> None:
    x = _layouts(dtype, n)[layout]
    for name in ("int8", "fp8_e5m2"):
        quantizer = Quantizer(BY_NAME[name], n)
        assert _same(_native(x, quantizer, isa=isa), _native(x.contiguous(), quantizer, isa=isa))
        assert _same(_native(x, quantizer, isa=isa), _reference(x, quantizer, isa=isa))


@pytest.mark.parametrize("name", ["int8", "int4", "mxfp8"])
def test_nothing_beside_the_outputs_is_written(isa: str, name: str) -> None:
    format = BY_NAME[name]
    for n, rows in ((32, 5), (96, 7), (1056, 3)):
        block = n if format.default == "row" else 32
        quantizer = Quantizer(format, block)
        x = _rows(rows, n, dtype=torch.float16)
        codes_storage = torch.full((rows * n // format.packed + 64,), 0xEE, dtype=torch.uint8)
        codes = codes_storage[32:-32].view(format.codes_dtype).view(rows, -1)
        width = format.scale_dtype.itemsize
        scales_storage = torch.full(((rows * n // block + 32) * width,), 0xEE, dtype=torch.uint8)
        scales = scales_storage[16 * width : -16 * width].view(format.scale_dtype).view(rows, -1)
        quantized.quantize_native(x, codes, scales, quantizer, 1.0, 1, None, 5, 1.0, None, False, instruction_set=isa)
        for storage, margin in ((codes_storage, 32), (scales_storage, 16 * width)):
            assert (storage[:margin] == 0xEE).all() and (storage[-margin:] == 0xEE).all()
        assert _same((codes, scales), _reference(x, quantizer, size=32, isa=isa))


def test_swizzled_padding_is_zero(isa: str) -> None:
    x = torch.randn(130, 160)
    _, scales = hadamard_quantize(x, "mxfp8", block_size=32)
    plain = hadamard_quantize(x, "mxfp8", block_size=32, swizzled=False).scales
    assert scales.numel() == 256 * 8 and scales.view(torch.uint8).count_nonzero() == plain.numel()


# ---- isolation and threads --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp8_e4m3", "int8", "int4"])
@pytest.mark.parametrize("n", [2, 12, 64, 448, 2048])
def test_a_row_depends_on_itself_alone(isa: str, n: int, name: str) -> None:
    quantizer = Quantizer(BY_NAME[name], n)
    x = torch.randn(71, n)
    codes, scales = _native(x, quantizer, isa=isa)
    for first, last in ((0, 1), (13, 46), (70, 71)):
        part = _native(x[first:last].clone(), quantizer, isa=isa)
        assert _same(part, (codes[first:last], scales[first:last]))
    x[1, -1], x[17, 0], x[69, 0] = math.nan, math.inf, -math.inf
    poisoned_codes, poisoned_scales = _native(x, quantizer, isa=isa)
    others = [r for r in range(71) if r not in (1, 17, 69)]
    assert _same((poisoned_codes[others], poisoned_scales[others]), (codes[others], scales[others]))
    assert poisoned_scales[[1, 17, 69]].isnan().all()
    outside = 0x7F if name == "fp8_e4m3" else 0
    assert (poisoned_codes.view(torch.uint8)[[1, 17, 69]] == outside).all()


@pytest.mark.parametrize(("name", "n"), [("int8", 64), ("int4", 1536), ("nvfp4", 4096), ("fp8_e4m3", 1 << 15)])
def test_threads_do_not_change_bits(name: str, n: int, threads: None) -> None:
    format = BY_NAME[name]
    x = torch.randn((1 << 18) // n + 3, n).bfloat16()
    quantizer = Quantizer(format, n if format.default == "row" else int(format.default), 1.0, format.can_swizzle)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(_native(x, quantizer))
    assert _same(results[1], results[0]) and _same(results[2], results[0])


# ---- through the operator ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INPUTS, ids=str)
@pytest.mark.parametrize(("format", "granularity"), CASES, ids=_ids)
def test_the_operator_has_the_bits_of_the_composed_path(
    format: Format, granularity: str | int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in (128, 3072, 4096):
        x = _rows(3, 11, n, dtype=dtype).transpose(0, 1)
        signs = (torch.randint(0, 2, (n,)) * 2 - 1).to(dtype)
        quantizer = Quantizer(format, _block(granularity, n), 0.9, format.can_swizzle)
        scale = torch.tensor(0.02) if granularity == "tensor" or format.has_global_scale else None
        rotation = Rotation(n, n**-0.5, True)
        fused = cpu_kernels.quantize(x, rotation, signs, quantizer, scale, None, None, (), None)
        expected = composed(x, rotation, signs, quantizer, scale, None, None, (), None)
        assert _same(fused, expected)
        if n & (n - 1) == 0:  # for powers of two without the library too
            monkeypatch.setattr(native, "unavailable_reason", lambda: "not now")
            assert _same(fused, cpu_kernels.quantize(x, rotation, signs, quantizer, scale, None, None, (), None))
            monkeypatch.undo()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", INPUTS, ids=str)
def test_with_a_base_the_operator_has_the_bits_of_the_composed_path(dtype: torch.dtype, inverse: bool) -> None:
    for order, n, base_dtype in ((5, 320, torch.float32), (12, 3072, dtype), (1, 64, dtype)):
        x = _rows(3, 11, n, dtype=dtype).transpose(0, 1)
        base = torch.randn(order, order + 1)[:, 1:].to(base_dtype)
        signs = (torch.randint(0, 2, (n,)) * 2 - 1).to(dtype)
        rotation = Rotation(n, n**-0.5, inverse)
        for quantizer in (Quantizer(BY_NAME["int8"], n), Quantizer(BY_NAME["nvfp4"], 16, 0.9, True)):
            assert cpu.composed_reason(n, quantizer, order) is None
            fused = cpu_kernels.quantize(x, rotation, signs, quantizer, None, None, None, (), None, base)
            assert _same(fused, composed(x, rotation, signs, quantizer, None, None, None, (), None, base))


def test_what_is_too_long_depends_on_the_order_of_the_base() -> None:
    quantizer = Quantizer(BY_NAME["int8"], 1 << 17)
    assert cpu.composed_reason(1 << 17, quantizer, 2) is None
    assert "up to 2^16, got 2^17" in str(cpu.composed_reason(1 << 17, quantizer, 1))


def test_prologues_come_first() -> None:
    x = torch.randn(5, 2 * 256).bfloat16()
    prologue = prologues.silu_mul(order="gate_up")
    q = hadamard_quantize(x, "int8", prologue=prologue)
    expected = hadamard_quantize(torch.nn.functional.silu(x[:, :256].float()) * x[:, 256:].float(), "int8")
    assert torch.equal(q.codes, expected.codes) and torch.equal(q.scales, expected.scales)


def test_long_rows_are_composed_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 1 << 17)
    long = hadamard_quantize(x, "int8")
    monkeypatch.setattr(native, "unavailable_reason", lambda: "not now")
    expected = hadamard_quantize(x, "int8")
    assert torch.equal(long.codes, expected.codes) and torch.equal(long.scales, expected.scales)


def test_messages() -> None:
    x = torch.randn(3, 64)
    with pytest.raises(ValueError, match=r"signs must hold only \+1 and -1, got 0.5"):
        hadamard_quantize(x, "int8", signs=torch.full((64,), 0.5))
    with pytest.raises(ValueError, match=r"scale must be from 2\^-126 to 2\^118, got 0.0"):
        hadamard_quantize(x, "fp8_e4m3", granularity="tensor", scale=torch.tensor(0.0))
    quantizer = Quantizer(BY_NAME["int8"], 1 << 17)
    assert "up to 2^16, got 2^17" in str(quantized.unsupported_reason(17, quantizer))


def test_no_rows() -> None:
    q = hadamard_quantize(torch.randn(0, 64), "int8")
    assert q.codes.shape == (0, 64) and q.scales.shape == (0, 1)
    assert hadamard_quantize(torch.randn(0, 64), "nvfp4").scales.numel() == 0
