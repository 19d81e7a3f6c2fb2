"""FlashAttention-3's experiment on the error of FP8 attention: inputs with rare outliers, with and without rotation.

Source: Shah et al., FlashAttention-3, arXiv 2407.08608.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hadacore.attention import AttentionRecipe, Engine, quantized_attention
from hadacore.attention.recipes import GRANULARITIES

#: One element in a thousand is an outlier, whose part from N(0, 100) has the variance 100: the standard deviation 10.
OUTLIER_SHARE = 0.001
OUTLIER_DEVIATION = 10.0

#: Rotations that are compared, by their names in tables: of queries and keys, and of values.
ROTATIONS: dict[str, tuple[bool, bool]] = {"none": (False, False), "q, k": (True, False), "q, k, v": (True, True)}

_FP16 = "fp16"
_FP8 = "fp8_e4m3"


@dataclass(frozen=True)
class ErrorRow:
    """The error of one way to compute attention.

    Attributes:
        sequence: Keys; queries are as many, or the first of as many.
        head_dim: Elements of a head.
        format: ``"fp16"`` or ``"fp8_e4m3"``.
        granularity: What shares a scale; empty for ``"fp16"``.
        rotated: ``"none"``, ``"q, k"`` or ``"q, k, v"``.
        rmse: Root of the mean squared difference from float64.
        relative: The same over the root mean square of the float64 result.
        gain: The error without rotation over this one, same scales; 1 without.
    """

    sequence: int
    head_dim: int
    format: str
    granularity: str
    rotated: str
    rmse: float
    relative: float
    gain: float


def fa3_inputs(
    sequence: int, heads: int, head_dim: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values from ``N(0, 1) + N(0, 100) * Bernoulli(0.001)``, float16, ``(1, sequence, heads, head_dim)``.

    They are drawn on the CPU, so that they are the same on every device.
    """
    shape = (1, sequence, heads, head_dim)

    def draw() -> Tensor:
        normal, rare = (torch.randn(shape, generator=generator) for _ in range(2))
        outlier = torch.rand(shape, generator=generator) < OUTLIER_SHARE
        return (normal + OUTLIER_DEVIATION * rare * outlier).to(device, torch.float16)

    return draw(), draw(), draw()


def run_fa3_error(
    *,
    sequences: Sequence[int] = (512, 1024, 2048, 4096, 8192),
    head_dims: Sequence[int] = (64, 128, 256),
    granularities: Sequence[str] = GRANULARITIES,
    heads: int = 4,
    queries: int | None = 512,
    seed: int = 0,
    device: torch.device | str | None = None,
    engine: str | Engine = "emulated",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ErrorRow, ...]:
    """Errors of FP16 and FP8 attention against float64, for every sequence length, head size, granularity and rotation.

    Inputs are float16, and the float64 result is that of the same inputs. All heads attend to all keys, no causal order.

    Args:
        sequences: Sequence lengths.
        head_dims: Head sizes.
        granularities: What shares a scale: ``"tensor"``, ``"head"``, ``"block"``, ``"token"``.
        heads: Heads; as many of keys.
        queries: At most so many queries, the first ones, for all keys of the sequence; None for all. A query's result depends
            on the others by their scale alone, so that few give the same error in less time.
        seed: Of the inputs.
        device: None is the GPU, or the CPU where there is none.
        engine: Who multiplies, see :func:`hadacore.attention.quantized_attention`. FlashAttention-3 takes ``"tensor"`` and
            ``"head"`` only.
        progress: Called with the results so far and the number of all.

    Returns:
        One row for each, sequence length by sequence length.

    Raises:
        TypeError: A sequence length, head size or number is no integer.
        ValueError: It is less than 1; an unknown granularity; what :func:`hadacore.attention.quantized_attention` raises.

    >>> rows = run_fa3_error(sequences=[256], head_dims=[64], granularities=["tensor"], heads=1, device="cpu")
    >>> [(row.format, row.rotated) for row in rows]
    [('fp16', 'none'), ('fp8_e4m3', 'none'), ('fp8_e4m3', 'q, k'), ('fp8_e4m3', 'q, k, v')]
    """
    _check(sequences, head_dims, granularities, heads, queries)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    total = len(sequences) * len(head_dims) * (1 + len(granularities) * len(ROTATIONS))
    rows: list[ErrorRow] = []

    def add(row: ErrorRow) -> None:
        rows.append(row)
        if progress is not None:
            progress(len(rows), total)

    for sequence in sequences:
        for head_dim in head_dims:
            generator = torch.Generator().manual_seed(seed)
            q, k, v = fa3_inputs(sequence, heads, head_dim, generator, place)
            q = q[:, :queries]
            exact = quantized_attention(q.double(), k.double(), v.double(), recipe="fp16", engine="emulated")
            size = _root_mean_square(exact)

            def error(
                recipe: AttentionRecipe, q: Tensor = q, k: Tensor = k, v: Tensor = v, exact: Tensor = exact
            ) -> float:
                return _root_mean_square(quantized_attention(q, k, v, recipe=recipe, engine=engine).double() - exact)

            found = error(AttentionRecipe())
            add(ErrorRow(sequence, head_dim, _FP16, "", "none", found, found / size, 1.0))
            for granularity in granularities:
                first: float | None = None
                for name, (rotate, rotate_value) in ROTATIONS.items():
                    found = error(AttentionRecipe(_FP8, granularity, rotate=rotate, rotate_value=rotate_value))
                    first = found if first is None else first
                    add(ErrorRow(sequence, head_dim, _FP8, granularity, name, found, found / size, first / found))
    return tuple(rows)


def _root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _check(
    sequences: Sequence[int], head_dims: Sequence[int], granularities: Sequence[str], heads: int, queries: int | None
) -> None:
    most = [] if queries is None else [("queries", [queries])]
    for name, values in (("sequences", sequences), ("head_dims", head_dims), ("heads", [heads]), *most):
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be integers, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if not len(values):
            raise ValueError(f"{name} must not be empty")
    for granularity in granularities:
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularities must be of {', '.join(GRANULARITIES)}, got {granularity!r}")
