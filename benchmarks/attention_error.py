"""Errors of attention by every recipe, on the CPU: the second table of ``docs/attention.md``.

python benchmarks/attention_error.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hadacore.attention import RECIPES, quantized_attention
from hadacore.experiments import fa3_inputs

TOKENS, HEADS, HEAD_DIM = 1024, 4, 128
SHAPE = (1, TOKENS, HEADS, HEAD_DIM)
PAIRS = ("fp8", "fp8_token", "int8", "int4_kv")


def normal() -> Tensor:
    return torch.randn(SHAPE)


def channels(count: int = 2, factor: float = 15.0) -> Tensor:
    """A few channels are large for every token, as those of keys often are. Their places differ between tensors."""
    x = torch.randn(SHAPE)
    x[..., torch.randperm(HEAD_DIM)[:count]] *= factor
    return x


def same_channels() -> tuple[Tensor, Tensor, Tensor]:
    place = torch.randperm(HEAD_DIM)[:2]
    q, k = normal(), normal()
    q[..., place] *= 4
    k[..., place] *= 4
    return q, k, normal()


def opposite_channels() -> tuple[Tensor, Tensor, Tensor]:
    """Keys are large where queries are small: products as of normal numbers."""
    place = torch.randperm(HEAD_DIM)[:4]
    q, k = normal(), normal()
    q[..., place] /= 15
    k[..., place] *= 15
    return q, k, normal()


def sparse() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = fa3_inputs(TOKENS, HEADS, HEAD_DIM, torch.Generator().manual_seed(0))
    return q.float(), k.float(), v.float()


DATA: dict[str, Callable[[], tuple[Tensor, Tensor, Tensor]]] = {
    "normal": lambda: (normal(), normal(), normal()),
    "rare outliers in q, k, v": sparse,
    "2 channels x 4 in q and k": same_channels,
    "4 channels x 15 in k, / 15 in q": opposite_channels,
    "2 channels x 15 in v": lambda: (normal(), normal(), channels()),
}


def main() -> None:
    torch.manual_seed(0)
    print("| data | " + " | ".join(PAIRS) + " |\n|" + "---|" * (1 + len(PAIRS)))
    for name, make in DATA.items():
        q, k, v = make()
        exact = quantized_attention(q.double(), k.double(), v.double(), recipe="fp16")
        cells = []
        for pair in PAIRS:
            errors = [quantized_attention(q, k, v, recipe=r).double() - exact for r in (pair, f"{pair}_rotated")]
            cells.append(" / ".join(f"{100 * float(e.norm() / exact.norm()):.2f}" for e in errors))
        print(f"| {name} | " + " | ".join(cells) + " |")
    assert set(PAIRS) <= set(RECIPES)


if __name__ == "__main__":
    main()
