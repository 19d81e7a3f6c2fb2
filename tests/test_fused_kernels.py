"""Which kernels quantize: the reasons why there is none, and that where there is one every row count finds it."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from hadacore.backends.cuda import quantize as backend
from hadacore.backends.cuda.launch import Request
from hadacore.formats import BY_NAME, Quantizer
from hadacore.kernels.architectures import BY_NAME as ARCHITECTURES
from hadacore.kernels.architectures import CHECKED
from hadacore.kernels.base_configurations import BaseConfiguration, base_source, choose_base
from hadacore.kernels.configurations import KernelConfiguration, choose
from hadacore.kernels.fusion import Fusion, fused_prologue, fusion_of
from hadacore.kernels.quantizing import find_fusion
from hadacore.matrices import factor
from hadacore.prologues import Description, GatedActivation, RMSNorm, RotaryEmbedding
from hadacore.quantization import cuda_kernels
from hadacore.quantization.composed import Rotation

HOPPER = ARCHITECTURES["sm_90a"]
ROW = "fp8_e4m3"


@pytest.mark.parametrize("architecture", CHECKED)
@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize("n", [16, 128, 256, 1024, 2048, 4096, 8192, 16384, 448, 768, 5120, 7168, 11008, 14336])
def test_every_row_count_finds_a_kernel(n: int, code: int, architecture: str) -> None:
    target, matrix = ARCHITECTURES[architecture], factor(n)
    for name, block in ((ROW, n), ("int8", n), ("int4", n), ("mxfp8", 32), ("nvfp4", 16), (ROW, 128), (ROW, 0)):
        if block and n % block:
            continue
        fusion = find_fusion(code, n, n, Quantizer(BY_NAME[name], block), False, False, target)
        if isinstance(fusion, str):
            # float32 rows of these sizes take several blocks, which form a cluster from sm_90 on.
            assert code == 2 and not target.has_clusters and "no kernel that holds the" in fusion
            continue
        for rows in (1, 7, 100, 5000, 100_000):
            if matrix.base_order == 1:
                chosen = choose(code, matrix.log2, rows, target.capability, 132, fusion=fusion)
            else:
                chosen = choose_base(code, matrix.base_order, matrix.log2, rows, target.capability, 132, fusion=fusion)
            assert chosen.fusion == fusion and chosen.runs_on(target)


@pytest.mark.parametrize(
    ("n", "size", "name", "block", "prologue", "reason"),
    [
        (64, 4, ROW, 64, None, "a transform of 4 elements is shorter than a vector of 16 bytes"),
        (1 << 16, 1 << 16, ROW, 1 << 16, None, "a quantizer goes with powers of two up to 32768, not 65536"),
        (8192, 4096, ROW, 8192, None, "8192 elements that share a scale are several transforms of 4096"),
        (384, 64, ROW, 384, None, "384 elements that share a scale are several transforms of 64"),
        (
            96,
            96,
            ROW,
            96,
            RotaryEmbedding(False),
            "sizes that are no power of two go with gated activations and RMSNorm only",
        ),
        (4096, 128, ROW, 128, RMSNorm(1e-6, False), "is normalised as a whole, but transformed in parts of 128"),
        (
            2048,
            2048,
            ROW,
            2048,
            RotaryEmbedding(False),
            "a rotary embedding goes with transforms of up to 1024 elements",
        ),
        (20, 20, "int8", 20, None, "20 is 20 * 2^0, and 2^0 columns are fewer than a vector of 8"),
    ],
)
def test_reasons(n: int, size: int, name: str, block: int, prologue: Description | None, reason: str) -> None:
    made = None if prologue is None else fused_prologue(prologue, n, n // 2)
    found = find_fusion(1, n, size, Quantizer(BY_NAME[name], block), False, False, HOPPER, made)
    assert isinstance(found, str) and reason in found


@pytest.mark.parametrize("architecture", CHECKED)
@pytest.mark.parametrize("float32_base", [False, True])
@pytest.mark.parametrize(
    ("order", "n"), [(1, 256), (5, 320), (16, 256), (28, 3584), (28, 14336), (20, 5120), (172, 11008)]
)
def test_every_row_count_finds_a_kernel_with_a_base(order: int, n: int, float32_base: bool, architecture: str) -> None:
    target, log2 = ARCHITECTURES[architecture], (n // order).bit_length() - 1
    for code in (0, 1, 2) if float32_base else (0, 1):
        for name, block in ((ROW, n), ("int4", n), ("mxfp8", 32), (ROW, 0)):
            quantizer = Quantizer(BY_NAME[name], block)
            fusion = find_fusion(
                code, n, n, quantizer, False, False, target, base_order=order, float32_base=float32_base
            )
            if isinstance(fusion, str):
                assert code == 2 and not target.has_clusters and "no kernel that holds the" in fusion
                continue
            base = base_source(code, float32_base)
            for rows in (1, 7, 100, 5000, 100_000):
                chosen = choose_base(code, order, log2, rows, target.capability, 132, base=base, fusion=fusion)
                assert chosen.fusion == fusion and chosen.base == base and chosen.runs_on(target)


@pytest.mark.parametrize(
    ("n", "size", "order", "prologue", "reason"),
    [
        (128, 128, 128, None, r"128 is 128 * 2^0, and 2^0 columns are fewer than a vector of 8"),
        (28, 4, 1, None, "a transform of 4 elements is shorter than a vector of 16 bytes"),
        (16448, 16448, 2056, None, "a base of 2056 rows, merged columns included, is more than the 2048 of one launch"),
        (
            1 << 20,
            1 << 20,
            1,
            None,
            "a base of 4096 rows, merged columns included, is more than the 2048 of one launch",
        ),
        (512, 128, 16, None, "512 elements that share a scale are several transforms of 128"),
        (
            256,
            256,
            16,
            RMSNorm(1e-6, False),
            "a kernel that normalises holds rows of 64 columns and more, 256 is 16 * 2^4",
        ),
    ],
)
def test_reasons_with_a_base(n: int, size: int, order: int, prologue: Description | None, reason: str) -> None:
    made = None if prologue is None else fused_prologue(prologue, n)
    quantizer = Quantizer(BY_NAME[ROW], n)
    found = find_fusion(1, n, size, quantizer, False, False, HOPPER, made, base_order=order, float32_base=False)
    assert isinstance(found, str) and reason in found


def _row(n: int, prologue: Description | None = None) -> Fusion:
    made = None if prologue is None else fused_prologue(prologue, n)
    return fusion_of(Quantizer(BY_NAME[ROW], n), n, False, made)


def test_configurations_that_cannot_be() -> None:
    gated = GatedActivation("silu", "separate")
    whole = KernelConfiguration("exchange_rows", 1, 15, 3, 16, passes=2)
    with pytest.raises(ValueError, match=r"a quantizer needs a thread's share of the row at once"):
        replace(whole, fusion=_row(1 << 15))
    with pytest.raises(ValueError, match=r"a prologue reads rows when it needs them"):
        replace(whole, passes=1, prefetch=True, fusion=_row(1 << 15, gated))
    with pytest.raises(ValueError, match=r"a block must be a row or the elements that some of a warp's lanes hold"):
        replace(KernelConfiguration("warp_rows", 1, 7), fusion=_row(512))
    base = BaseConfiguration(1, 28, 0, 4, 2)
    with pytest.raises(ValueError, match=r"gated activations and RMSNorm only, of panels in shared memory"):
        replace(base, fusion=_row(448, gated))
    normalising = RMSNorm(1e-6, True)
    with pytest.raises(ValueError, match=r"a row that is normalised must fill a group of columns"):
        replace(base, stages=1, fusion=_row(448, normalising))
    with pytest.raises(ValueError, match=r"one would read what another has written"):
        replace(base, log2_size=6, tiles=1, splits=2, stages=1, fusion=_row(1792, normalising))
    with pytest.raises(ValueError, match=r"a quantizer needs whole vectors of a row"):
        replace(base, log2_size=2, fusion=_row(112))
    with pytest.raises(ValueError, match=r"a block must be a row or the elements that a warp holds side by side"):
        replace(base, fusion=_row(512))
    with pytest.raises(ValueError, match=r"the blocks that share a row must form a cluster"):
        replace(base, tiles=1, splits=2, units=2, fusion=_row(448))


# ---- what a launch is given, without a GPU -----------------------------------------------------------------


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("dtype", "base_dtype", "prologue", "weight", "read"),
    [
        (torch.bfloat16, torch.bfloat16, None, None, torch.bfloat16),
        (torch.bfloat16, torch.float32, None, None, torch.float32),
        (torch.bfloat16, torch.bfloat16, GatedActivation("silu", "gate_up"), None, torch.bfloat16),
        (torch.float16, torch.float16, RMSNorm(1e-6, False), torch.float16, torch.float16),
        (torch.float16, torch.float16, RMSNorm(1e-6, False), torch.float32, torch.float32),
    ],
)
def test_arguments_of_a_launch_with_a_base(
    dtype: torch.dtype, base_dtype: torch.dtype, prologue: Description | None, weight: torch.dtype | None, read: torch.dtype,
    inverse: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The base after the signs and before a prologue's operands, transposed by its strides. After a prologue of PyTorch
    operations, as with a weight of another type, x is float32, and so is the base."""
    launched: list[tuple[int | float, ...]] = []
    requests: list[Request] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backend, "enter_device", contextlib.nullcontext)
    monkeypatch.setattr(backend, "find_prepared", requests.append)
    monkeypatch.setattr(backend, "launch_prepared", lambda prepared, device, arguments: launched.append(arguments))
    gated = isinstance(prologue, GatedActivation)
    x, signs = torch.randn(3, 320 * (1 + gated)).to(dtype), torch.ones(320)
    base = torch.randn(5, 7)[:, 2:].to(base_dtype).T
    operands = () if weight is None else (torch.ones(320, dtype=weight),)
    fused = gated or weight == dtype
    rotation = Rotation(320, 0.5, inverse)
    quantizer = Quantizer(BY_NAME[ROW], 320)
    cuda_kernels.quantize(x, rotation, signs, quantizer, None, None, prologue, operands, None, base)
    (request,), (arguments,) = requests, launched
    assert (
        request.base_order == 5
        and request.base_dtype == read
        and request.dtype == (read if operands and not fused else dtype)
    )
    (_, _, scale, rows), (_, sign_rows), (address, *strides) = arguments[:4], arguments[4:6], arguments[6:9]
    assert (scale, rows, sign_rows) == (0.5, 3, 1) and len(arguments) == 9 + 6 * fused + 5
    assert strides == list(base.T.stride() if inverse else base.stride())
    assert (address == base.data_ptr()) == (read == base_dtype)
