"""Bad input to the quantizing functions: every error says what was got, what is allowed and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hadacore
from hadacore import hadamard_quantize, prologues

X = torch.randn(4, 128)
TABLE = torch.ones(4, 8)

ERRORS: list[tuple[type[Exception], str, Any]] = [
    (TypeError, r"x must be a torch.Tensor, got list; convert it", lambda: hadamard_quantize([1.0], "int8")),
    (TypeError, r"x must be float16, .* got torch.float64; convert it", lambda: hadamard_quantize(X.double(), "int8")),
    (ValueError, r"got shape \(\); only leading", lambda: hadamard_quantize(torch.tensor(1.0), "int8")),
    (ValueError, r"got shape \(3, 0\); only leading", lambda: hadamard_quantize(torch.empty(3, 0), "int8")),
    (ValueError, r"records no gradient.*x.detach\(\)", lambda: hadamard_quantize(X.clone().requires_grad_(), "int8")),
    (ValueError, r"format must be one of fp8_e4m3, .*nvfp4, got 'fp8'", lambda: hadamard_quantize(X, "fp8")),
    (ValueError, r"format must be one of .*got 8", lambda: hadamard_quantize(X, 8)),
    (
        ValueError,
        r"granularity of int4 must be one of 'row', 32, 64, 128, got 16",
        lambda: hadamard_quantize(X, "int4", granularity=16),
    ),
    (
        ValueError,
        r"granularity of int8 must be one of 'row', got True",
        lambda: hadamard_quantize(X, "int8", granularity=True),
    ),
    (
        ValueError,
        r"block of 128 elements .* got 64 elements; use granularity 32 or 64 or 'row', or pad .* to 128",
        lambda: hadamard_quantize(X[:, :64], "int4", granularity=128),
    ),
    (
        ValueError,
        r"block of 32 .* got 16 elements; pad the last dimension with zeros to 32",
        lambda: hadamard_quantize(X[:, :16], "mxfp8"),
    ),
    (ValueError, r"int4 packs two codes a byte .* got 1", lambda: hadamard_quantize(X[:, :1], "int4")),
    (
        ValueError,
        r"must be given as scale=, .*hadacore.static_scale",
        lambda: hadamard_quantize(X, "fp8_e4m3", granularity="tensor"),
    ),
    (ValueError, r"scales of int8 .* are computed from x, got scale=", lambda: hadamard_quantize(X, "int8", scale=1.0)),
    (ValueError, r"granularity 'row' are computed from x", lambda: hadamard_quantize(X, "fp8_e4m3", scale=1.0)),
    (ValueError, r"scale must be from 2\^-126 to 2\^118, got 0", lambda: hadamard_quantize(X, "nvfp4", scale=0)),
    (
        ValueError,
        r"scale must be from 2\^-126 to 2\^118, got nan",
        lambda: hadamard_quantize(X, "nvfp4", scale=float("nan")),
    ),
    (
        ValueError,
        r"scale must be from 2\^-126 to 2\^118, got -1.0; hadacore.static_scale",
        lambda: hadamard_quantize(X, "nvfp4", scale=torch.tensor(-1.0)),
    ),
    (
        TypeError,
        r"scale must be a number or a float32 tensor, got str",
        lambda: hadamard_quantize(X, "nvfp4", scale="1"),
    ),
    (
        TypeError,
        r"scale must be one float32, got torch.float64 of shape \(\)",
        lambda: hadamard_quantize(X, "nvfp4", scale=torch.ones((), dtype=torch.float64)),
    ),
    (
        TypeError,
        r"scale must be one float32, got torch.float32 of shape \(2,\)",
        lambda: hadamard_quantize(X, "nvfp4", scale=torch.ones(2)),
    ),
    (
        ValueError,
        r"scale must be on x's device cpu, got meta",
        lambda: hadamard_quantize(X, "nvfp4", scale=torch.ones((), device="meta")),
    ),
    (TypeError, r"clip_ratio must be a number, got str", lambda: hadamard_quantize(X, "int8", clip_ratio="1")),
    (
        ValueError,
        r"clip_ratio must be from 2\^-10 to 1, .*got 1.5",
        lambda: hadamard_quantize(X, "int8", clip_ratio=1.5),
    ),
    (
        ValueError,
        r"clip_ratio must be from 2\^-10 to 1, .*got nan",
        lambda: hadamard_quantize(X, "int8", clip_ratio=float("nan")),
    ),
    (
        ValueError,
        r"stochastic rounding is for mxfp4, nvfp4, got seed=1 with int8",
        lambda: hadamard_quantize(X, "int8", seed=1),
    ),
    (TypeError, r"seed must be an integer, got float", lambda: hadamard_quantize(X, "nvfp4", seed=1.0)),
    (ValueError, r"seed must be from 0 to 2\^63 - 1, got -1", lambda: hadamard_quantize(X, "nvfp4", seed=-1)),
    (
        ValueError,
        r"swizzled scales are for mxfp8, mxfp4, nvfp4, got swizzled=True with int8",
        lambda: hadamard_quantize(X, "int8", swizzled=True),
    ),
    (
        ValueError,
        r"block_size must divide.*block_size=256 and 128",
        lambda: hadamard_quantize(X, "int8", block_size=256),
    ),
    (TypeError, r"base must be a torch.Tensor .* got list", lambda: hadamard_quantize(X, "int8", base=[[1.0]])),
    (
        TypeError,
        r"base must be torch.float32 for an x of torch.float32, got torch.bfloat16; convert it with base.to",
        lambda: hadamard_quantize(X, "int8", base=torch.eye(4).bfloat16()),
    ),
    (
        TypeError,
        r"base must be torch.float16 or torch.float32 .* got torch.bfloat16",
        lambda: hadamard_quantize(X.half(), "int8", base=torch.eye(4).bfloat16()),
    ),
    (
        ValueError,
        r"base must be a square matrix .* got shape \(2, 4\)",
        lambda: hadamard_quantize(X, "int8", base=torch.ones(2, 4)),
    ),
    (
        ValueError,
        r"base must be on x's device cpu, got meta",
        lambda: hadamard_quantize(X, "int8", base=torch.ones(2, 2, device="meta")),
    ),
    (
        ValueError,
        r"a base of order 3 goes with sizes 3 \* 2\^k .* got x's last dimension 128; pass a base",
        lambda: hadamard_quantize(X, "int8", base=torch.eye(3)),
    ),
    (
        ValueError,
        r"a base of order 4 .* got block_size 12 of rows of 128; use block_size=128",
        lambda: hadamard_quantize(X, "int8", base=torch.eye(4), block_size=12),
    ),
    (
        ValueError,
        r"a base of order 4 .* got x's last dimension 60; use block_size=4",
        lambda: hadamard_quantize(X[:, :120], "int8", base=torch.eye(4), prologue=prologues.silu_mul(order="gate_up")),
    ),
    (
        ValueError,
        r"records no gradient, got a base that requires grad; use base.detach\(\)",
        lambda: hadamard_quantize(X, "int8", base=torch.eye(4).requires_grad_()),
    ),
    (TypeError, r"scale must be a real number.*got str", lambda: hadamard_quantize(X, "int8", transform_scale="1")),
    (ValueError, r"shape \(128,\), got \(4,\)", lambda: hadamard_quantize(X, "int8", signs=torch.ones(4))),
    (TypeError, r"dtype must be one of .*got torch.int8", lambda: hadamard_quantize(X, "int8").dequantize(torch.int8)),
    (ValueError, r"for fp8_e4m3, fp8_e5m2 and nvfp4, got 'int8'", lambda: hadacore.static_scale(1.0, "int8")),
    (TypeError, r"amax must be a number or a float32 tensor, got str", lambda: hadacore.static_scale("1", "nvfp4")),
    (
        TypeError,
        r"amax must be one float32, got torch.float16 of shape \(\); use",
        lambda: hadacore.static_scale(torch.ones(()).half(), "nvfp4"),
    ),
    (
        TypeError,
        r"must come from hadacore.prologues .*got str",
        lambda: hadamard_quantize(X, "int8", prologue="silu_mul"),
    ),
    (ValueError, r"pass up= .*got neither", lambda: prologues.silu_mul()),
    (ValueError, r"pass up= .*got both", lambda: prologues.silu_mul(X, order="gate_up")),
    (ValueError, r"order must be 'gate_up' or 'up_gate', got 'up'", lambda: prologues.gelu_mul(order="up")),
    (TypeError, r"up must be a torch.Tensor, got int", lambda: prologues.silu_mul(1)),
    (TypeError, r"up must be float16, .*got torch.int64", lambda: prologues.silu_mul(torch.arange(3))),
    (
        ValueError,
        r"approximate must be 'tanh' or 'none' \(erf\), got 'erf'",
        lambda: prologues.gelu_mul(X, approximate="erf"),
    ),
    (
        ValueError,
        r"up must have the gate's shape \(4, 128\), got \(128,\)",
        lambda: hadamard_quantize(X, "int8", prologue=prologues.silu_mul(X[0])),
    ),
    (
        ValueError,
        r"even number of elements a row, got 127",
        lambda: hadamard_quantize(X[:, 1:], "int8", prologue=prologues.silu_mul(order="up_gate")),
    ),
    (
        ValueError,
        r"prologue's tensors must be on x's device cpu, got meta",
        lambda: hadamard_quantize(X, "int8", prologue=prologues.silu_mul(X.to("meta"))),
    ),
    (
        ValueError,
        r"prologue records no gradient",
        lambda: hadamard_quantize(X, "int8", prologue=prologues.silu_mul(X.clone().requires_grad_())),
    ),
    (ValueError, r"weight must have one dimension, .*got shape \(4, 128\)", lambda: prologues.rms_norm(X)),
    (
        ValueError,
        r"weight must have one entry for each of the 128 .*got 4",
        lambda: hadamard_quantize(X, "int8", prologue=prologues.rms_norm(X[:, 0])),
    ),
    (TypeError, r"eps must be a number, got str", lambda: prologues.rms_norm(X[0], "1")),
    (ValueError, r"eps must be finite and not negative, got -1.0", lambda: prologues.rms_norm(X[0], -1.0)),
    (
        ValueError,
        r"residual must have x's shape \(4, 128\), got \(128,\)",
        lambda: hadamard_quantize(X, "int8", prologue=prologues.rms_norm(X[0], residual=X[0].clone())),
    ),
    (
        ValueError,
        r"residual .* must not overlap itself, got an expanded",
        lambda: hadamard_quantize(
            X, "int8", prologue=prologues.rms_norm(X[0], residual=torch.ones(1, 128).expand(4, 128))
        ),
    ),
    (
        ValueError,
        r"residual .* must not overlap x",
        lambda: hadamard_quantize(X, "int8", prologue=prologues.rms_norm(X[0].clone(), residual=X)),
    ),
    (
        ValueError,
        r"cos and sin must both have shape .*got \(4, 8\) and \(8, 4\)",
        lambda: prologues.rope(TABLE, TABLE.T),
    ),
    (
        TypeError,
        r"positions must be an int32 or int64 tensor, got torch.float32",
        lambda: prologues.rope(TABLE, TABLE, X),
    ),
    (TypeError, r"positions must be an int32 or int64 tensor, got list", lambda: prologues.rope(TABLE, TABLE, [1])),
    (
        ValueError,
        r"rope needs x of shape .*got \(4, 128\)",
        lambda: hadamard_quantize(X, "int8", prologue=prologues.rope(TABLE, TABLE)),
    ),
    (
        ValueError,
        r"rotate 16 elements, more than the 8 of a head",
        lambda: hadamard_quantize(X.view(4, 16, 8), "int8", prologue=prologues.rope(TABLE, TABLE)),
    ),
    (
        ValueError,
        r"positions must have shape \(4,\) or its last dimensions, got \(3,\)",
        lambda: hadamard_quantize(X.view(4, 2, 64), "int8", prologue=prologues.rope(TABLE, TABLE, torch.arange(3))),
    ),
    (
        ValueError,
        r"cos and sin have 4 positions, fewer than the 8 tokens",
        lambda: hadamard_quantize(X.view(8, 1, 64), "int8", prologue=prologues.rope(TABLE, TABLE)),
    ),
    (
        ValueError,
        r"positions must be from 0 to 3, .*got 0 to 4",
        lambda: hadamard_quantize(
            X.view(2, 4, 64), "int8", prologue=prologues.rope(TABLE, TABLE, torch.tensor([0, 4]))
        ),
    ),
]


@pytest.mark.parametrize(("error", "message", "call"), ERRORS, ids=[message[:40] for _, message, _ in ERRORS])
def test_message(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()
