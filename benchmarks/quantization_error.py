"""Errors with and without rotation, on the CPU: the tables of ``docs/quantization.md``.

python benchmarks/quantization_error.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hadacore import hadamard_quantize, hadamard_transform, quantize_query_key, static_scale

ROWS, N = 256, 4096
TOKENS, HEADS, HEAD_DIM = 1024, 4, 128
CASES = [
    ("int8", "row"), ("int4", "row"), ("int4", 128), ("fp8_e4m3", "tensor"), ("fp8_e4m3", "row"), ("fp8_e4m3", 128),
    ("fp8_e5m2", "row"), ("mxfp8", 32), ("mxfp4", 32), ("nvfp4", 16),
]  # fmt: skip


def outlier_channels(*shape: int, count: int, factor: float) -> Tensor:
    x = torch.randn(*shape)
    x[..., torch.randperm(shape[-1])[:count]] *= factor
    return x


def gated() -> Tensor:
    gate, up = (torch.randn(ROWS, N) * torch.randn(N).exp() for _ in range(2))
    return torch.nn.functional.silu(2 * gate) * up


def sparse_outliers(*shape: int) -> Tensor:
    """The data of the FlashAttention-3 paper: N(0, 1), and N(0, 100) added to one element in a thousand."""
    return torch.randn(*shape) + 10 * torch.randn(*shape) * (torch.rand(*shape) < 0.001)


ACTIVATIONS: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: torch.randn(ROWS, N),
    "8 channels x 60": lambda: outlier_channels(ROWS, N, count=8, factor=60),
    "silu-gated": gated,
    "Student t, 2.5": lambda: torch.distributions.StudentT(2.5).sample((ROWS, N)),
}


def error(got: Tensor, exact: Tensor) -> float:
    """Relative L2 error in per cent."""
    return 100 * float((got - exact).norm() / exact.norm())


def activation_error(x: Tensor, format: str, granularity: str | int, block_size: int) -> float:
    rotated = hadamard_transform(x, block_size=block_size)
    needs_scale = granularity == "tensor" or format == "nvfp4"
    scale = static_scale(rotated.abs().amax(), format) if needs_scale else None
    q = hadamard_quantize(x, format, granularity=granularity, scale=scale, block_size=block_size)
    return error(q.dequantize(), rotated)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / HEAD_DIM**0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.double())


def attention_error(q: Tensor, k: Tensor, v: Tensor, granularity: str, rotate: bool) -> float:
    exact = attention(q, k, v)
    if not rotate:  # the rotation is undone before, so that the quantizer sees q and k themselves
        q, k = hadamard_transform(q), hadamard_transform(k)
    codes = quantize_query_key(q, k, granularity=granularity)
    shape = (1, -1, HEADS, 1)
    values = [c.float() * s.view(shape) for c, s in ((codes.q, codes.q_descale), (codes.k, codes.k_descale))]
    return error(attention(values[0], values[1], v), exact)


def main() -> None:
    torch.manual_seed(0)
    data = {name: make() for name, make in ACTIVATIONS.items()}
    print("Error of a row in per cent: not rotated / blocks of 128 / whole row of 4096\n")
    print("| format | granularity | " + " | ".join(data) + " |\n|" + "---|" * (2 + len(data)))
    for format, granularity in CASES:
        cells = [
            " / ".join(f"{activation_error(x, format, granularity, b):.2f}" for b in (1, 128, N)) for x in data.values()
        ]
        print(f"| {format} | {granularity} | " + " | ".join(cells) + " |")
    shape = (1, TOKENS, HEADS, HEAD_DIM)
    pairs = {
        "normal": (torch.randn(shape), torch.randn(shape)),
        "sparse outliers in both": (sparse_outliers(*shape), sparse_outliers(*shape)),
        "2 channels x 15 in K": (torch.randn(shape), outlier_channels(*shape, count=2, factor=15)),
        "2 channels x 15 in both": (
            outlier_channels(*shape, count=2, factor=15),
            outlier_channels(*shape, count=2, factor=15),
        ),
    }
    print("\nError of attention's output in per cent, FP8 E4M3 queries and keys: not rotated / rotated\n")
    print("| data | scale per head | scale per token |\n|---|---|---|")
    v = torch.randn(shape)
    for name, (q, k) in pairs.items():
        cells = [" / ".join(f"{attention_error(q, k, v, g, r):.2f}" for r in (False, True)) for g in ("head", "token")]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
