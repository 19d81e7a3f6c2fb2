"""Bad input: every error says what was got, what is allowed and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import hadacore
from hadacore import hadamard_transform
from hadacore.compat import fast_hadamard_transform

X = torch.randn(4, 8)
STORAGE = torch.randn(80)

CASES: list[tuple[type[Exception], str, Any]] = [
    (TypeError, r"x must be a torch.Tensor, got list; convert it", lambda: hadamard_transform([1.0, 2.0])),
    (TypeError, r"x must be one of float16, .* got torch.int64; convert it", lambda: hadamard_transform(torch.arange(8))),
    (TypeError, r"got torch.complex64", lambda: hadamard_transform(torch.randn(8, dtype=torch.complex64))),
    (ValueError, r"at least one dimension.*0-dimensional", lambda: hadamard_transform(torch.tensor(1.0))),
    (ValueError, r"transform size of 1 or more, got shape \(4, 0\)", lambda: hadamard_transform(torch.empty(4, 0))),
    (ValueError, r"order 14 is known here.*nearest usable sizes are 12 and 16.*block_size=2", lambda: hadamard_transform(torch.randn(14))),
    (ValueError, r"got size 2147483648; .*up to 1073741824", lambda: hadamard_transform(torch.empty(1).expand(2**31))),
    (ValueError, r"block_size must divide.*block_size=16 and 8", lambda: hadamard_transform(X, block_size=16)),
    (ValueError, r"no Hadamard matrix of order 3 .*multiples of 4", lambda: hadamard_transform(X, block_size=3)),
    (ValueError, r"transform size must be 1 or more, got 0", lambda: hadamard_transform(X, block_size=0)),
    (TypeError, r"must be an integer, got 4.0 of type float", lambda: hadamard_transform(X, block_size=4.0)),
    (TypeError, r"must be an integer, got True", lambda: hadamard_transform(X, block_size=True)),
    (TypeError, r"scale must be a real number.*got str", lambda: hadamard_transform(X, "1")),
    (TypeError, r"scale must be a real number.*got bool", lambda: hadamard_transform(X, True)),
    (TypeError, r"got Tensor; use scale.item\(\)", lambda: hadamard_transform(X, torch.tensor(1.0))),
    (TypeError, r"base must be a torch.Tensor of shape \(m, m\), got list", lambda: hadamard_transform(X, base=[[1.0]])),
    (TypeError, r"base must be torch.float32 for an x of torch.float32, got torch.float16", lambda: hadamard_transform(X, base=torch.eye(2).half())),
    (TypeError, r"torch.float16 or torch.float32 for an x of torch.float16.*base.to\(torch.float32\)", lambda: hadamard_transform(X.half(), base=torch.eye(2).double())),
    (ValueError, r"square matrix of shape \(m, m\), got shape \(2, 4\)", lambda: hadamard_transform(X, base=torch.ones(2, 4))),
    (ValueError, r"base must be on x's device cpu, got meta", lambda: hadamard_transform(X, base=torch.ones(2, 2, device="meta"))),
    (ValueError, r"order 3 goes with sizes 3 \* 2\^k.*got x's last dimension 8; pass a base", lambda: hadamard_transform(X, base=torch.eye(3))),
    (ValueError, r"order 3 goes .*got x's last dimension 36; use block_size=12", lambda: hadamard_transform(torch.randn(36), base=torch.eye(3))),
    (ValueError, r"order 4 goes .*got block_size 2 of rows of 8; use block_size=8", lambda: hadamard_transform(X, base=torch.eye(4), block_size=2)),
    (TypeError, r"block_size must be an integer, got 4.0", lambda: hadamard_transform(X, base=torch.eye(4), block_size=4.0)),
    (ValueError, r"a base that requires grad; leave out= away", lambda: hadamard_transform(X, base=torch.eye(4, requires_grad=True), out=torch.empty(4, 8))),
    (ValueError, r"out overlaps base", lambda: hadamard_transform(X, base=STORAGE[:16].view(4, 4), out=STORAGE[8:40].view(4, 8))),
    (TypeError, r"signs must be a torch.Tensor of \+1 and -1, got list", lambda: hadamard_transform(X, signs=[1] * 8)),
    (TypeError, r"numbers \+1 and -1, got torch.bool", lambda: hadamard_transform(X, signs=torch.ones(8, dtype=torch.bool))),
    (ValueError, r"shape \(8,\), got \(4,\)", lambda: hadamard_transform(X, signs=torch.ones(4))),
    (ValueError, r"signs must be on x's device cpu, got meta", lambda: hadamard_transform(X, signs=torch.ones(8, device="meta"))),
    (ValueError, r"signs are not differentiable", lambda: hadamard_transform(X, signs=torch.ones(8, requires_grad=True))),
    (ValueError, r"only \+1 and -1, got 2.0", lambda: hadamard_transform(X, signs=torch.full((8,), 2.0))),
    (TypeError, r"out must be a torch.Tensor, got ndarray", lambda: hadamard_transform(X, out=np.zeros((4, 8)))),
    (TypeError, r"out must have x's dtype torch.float32, got torch.float16", lambda: hadamard_transform(X, out=X.half())),
    (ValueError, r"out must have x's shape \(4, 8\), got \(8,\)", lambda: hadamard_transform(X, out=torch.empty(8))),
    (ValueError, r"out must be on x's device cpu, got meta", lambda: hadamard_transform(X, out=torch.empty(4, 8, device="meta"))),
    (ValueError, r"expanded tensor", lambda: hadamard_transform(X, out=torch.empty(1, 8).expand(4, 8))),
    (ValueError, r"record no gradient", lambda: hadamard_transform(X.clone().requires_grad_(), out=torch.empty(4, 8))),
    (TypeError, r"must be an integer, got 8.0", lambda: hadacore.hadamard_matrix(8.0)),
    (ValueError, r"no Hadamard matrix of order 668 .*664 and 672", lambda: hadacore.describe(668)),
    (ValueError, r"no Hadamard matrix of order 668 .*block_size=4", lambda: hadamard_transform(torch.randn(668))),
    (TypeError, r"dtype must be one of .*got torch.int8", lambda: hadacore.plan(8, torch.int8)),
    (ValueError, r"rows must be 0 or more, got -1", lambda: hadacore.plan(8, rows=-1)),
    (ValueError, r"architecture must be one of sm_80.*got 'sm_75'", lambda: hadacore.plan(8, architecture="sm_75")),
    (ValueError, r"must have 8 elements.*got shape \(4,\)", lambda: hadacore.HadamardTransform(8)(torch.randn(4))),
    (ValueError, r"scale 0 has no inverse", lambda: hadacore.HadamardTransform(8, 0.0).inverted()),
    (ValueError, r"at most 1073741824 elements, got 1073741825",
     lambda: fast_hadamard_transform.hadamard_transform(torch.empty(1).expand(2**30 + 1))),
    (TypeError, r"base must be one of float16, .*got torch.int64; convert it", lambda: hadacore.HadamardTransform(8, base=torch.ones(4, 4, dtype=torch.int64))),
    (TypeError, r"base must be a torch.Tensor of shape \(m, m\), got list", lambda: hadacore.HadamardTransform(8, base=[[1.0]])),
    (ValueError, r"order 3 goes with sizes 3 \* 2\^k", lambda: hadacore.HadamardTransform(8, base=torch.eye(3))),
    (ValueError, r"transpose of this base does not undo it: .*off by", lambda: hadacore.HadamardTransform(8, base=torch.triu(torch.ones(4, 4))).inverted()),
    (ValueError, r"at most 12288 elements for hadamard_transform_12N, got 12289; use .*base=base_matrix\(12\)", lambda: fast_hadamard_transform.hadamard_transform_12N(torch.randn(12289))),
    (ValueError, r"shape \(2, 0\)", lambda: fast_hadamard_transform.hadamard_transform_40N(torch.empty(2, 0))),
    (TypeError, r"got list; convert it", lambda: fast_hadamard_transform.hadamard_transform_28N([1.0])),
    (TypeError, r"scale must be a real number.*got str", lambda: fast_hadamard_transform.hadamard_transform_20N(X, "1")),
    (ValueError, r"orders 12, 20, 28, 40, got 36; hadacore.hadamard_matrix has", lambda: fast_hadamard_transform.base_matrix(36)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), CASES, ids=[message[:40] for _, message, _ in CASES])
def test_message(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("x", "out"),
    [
        (slice(0, 4), slice(1, 5)),
        (slice(0, 4), slice(0, 8, 2)),
        (slice(3, 7), slice(0, 4)),
    ],
)
def test_partial_overlap_is_refused(x: slice, out: slice, device: torch.device) -> None:
    storage = torch.randn(16, 8, device=device)
    with pytest.raises(ValueError, match="out overlaps x without being exactly x; pass out=x"):
        hadamard_transform(storage[x], out=storage[out])


def test_interleaved_memory_that_does_not_overlap_is_allowed(device: torch.device) -> None:
    storage = torch.randn(5, 2, 64, device=device)
    x, out = storage[:, 0], storage[:, 1]
    expected = hadamard_transform(x)
    hadamard_transform(x, out=out)
    assert torch.equal(out, expected)


def test_another_view_of_the_same_memory_is_in_place(device: torch.device) -> None:
    x = torch.randn(3, 64, device=device)
    expected = hadamard_transform(x)
    view = x.view(3, 64)
    assert hadamard_transform(x, out=view) is view
    assert torch.equal(x, expected)


@pytest.mark.gpu
def test_float64_on_a_gpu() -> None:
    with pytest.raises(TypeError, match=r"float64 is transformed on the CPU only, got a tensor on cuda:0; use x.to"):
        hadamard_transform(torch.randn(8, dtype=torch.float64, device="cuda"))


def test_scale_may_be_any_real_number() -> None:
    for scale in (2, 2.0, np.float32(2), np.int64(2)):
        assert torch.equal(hadamard_transform(X, scale), hadamard_transform(X, 1.0) * 2)
