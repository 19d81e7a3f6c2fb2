"""``hadacore demo``: what a rotation does to the quantization error of attention activations, and what it costs.

The activations are synthetic, of the shapes of Llama models and with the outlier channels known from them: Gaussian
values, and in every head a few channels that are 10 to 30 times larger in every token, about one sign. Keys have
most of them, values fewest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hadacore.benchmarking.copy import time_copy
from hadacore.benchmarking.measure import transform_out
from hadacore.benchmarking.pictures import new_figure, plain_axes, png
from hadacore.benchmarking.timing import HOT, Arena, time_operation
from hadacore.functional import hadamard_transform

HEAD_SIZE = 128
PREFILL_ELEMENTS = 33_554_432
PREFILL_ELEMENTS_CPU = 2_097_152
_PICTURE_TOKENS = 128


@dataclass(frozen=True)
class Shape:
    """Activations of one model and phase: ``elements`` in rows of 128, ``heads`` rows a token."""

    model: str
    phase: str
    elements: int
    heads: int


@dataclass(frozen=True)
class ActivationKind:
    """Queries, keys or values: outlier channels of a head, and how much larger they are."""

    name: str
    outlier_channels: int
    smallest_gain: float
    largest_gain: float


@dataclass(frozen=True)
class Format:
    """A number format with one symmetric scale per tensor, and the value that the largest element is mapped to."""

    name: str
    maximum: float
    to_grid: Callable[[Tensor], Tensor]


KINDS = (
    ActivationKind("Q", 3, 10.0, 20.0),
    ActivationKind("K", 4, 15.0, 30.0),
    ActivationKind("V", 1, 10.0, 12.0),
)
FORMATS = (
    Format("INT8", 127.0, torch.round),
    Format("INT4", 7.0, torch.round),
    Format("FP8", 448.0, lambda scaled: scaled.to(torch.float8_e4m3fn).float()),
)


def shapes_for(prefill_elements: int) -> tuple[Shape, ...]:
    """The shapes of the published table (prefill, and decode of one token), with so many elements in prefill.

    Raises:
        ValueError: Not a multiple of the head size.
    """
    if prefill_elements < HEAD_SIZE or prefill_elements % HEAD_SIZE:
        raise ValueError(
            f"elements must be a positive multiple of the head size {HEAD_SIZE}, got {prefill_elements}; "
            f"{prefill_elements // HEAD_SIZE * HEAD_SIZE or HEAD_SIZE} is one"
        )
    return (
        Shape("Llama-2-70B", "prefill", prefill_elements, 64),
        Shape("Llama-2-70B", "decode", 64 * HEAD_SIZE, 64),
        Shape("Llama-3-8B", "prefill", prefill_elements, 32),
        Shape("Llama-3-8B", "decode", 32 * HEAD_SIZE, 32),
    )


def activations(kind: ActivationKind, rows: int, heads: int, generator: torch.Generator) -> Tensor:
    """Activations ``(rows, 128)`` in float32 on the generator's device; row r belongs to head ``r % heads``."""
    device = generator.device
    values = torch.randn(rows, HEAD_SIZE, generator=generator, device=device)
    gains = torch.empty(heads, kind.outlier_channels, device=device)
    gains.uniform_(kind.smallest_gain, kind.largest_gain, generator=generator)
    signs = torch.randint(0, 2, gains.shape, generator=generator, device=device) * 2 - 1
    order = torch.rand(heads, HEAD_SIZE, generator=generator, device=device).argsort(1)
    for head in range(min(heads, rows)):
        channels = order[head, : kind.outlier_channels]
        # Half of the power is a constant that all tokens share, half varies: mean square gain^2 in all.
        own = values[head::heads, channels]
        values[head::heads, channels] = gains[head] * (signs[head] + own) * 0.5**0.5
    return values


def quantized(x: Tensor, number_format: Format) -> Tensor:
    """``x`` (float32) rounded to the format's grid and scaled back; ``scale = max|x| / maximum``."""
    scale = x.abs().max().clamp(min=torch.finfo(torch.float32).tiny) / number_format.maximum
    scaled = (x / scale).clamp(-number_format.maximum, number_format.maximum)
    return number_format.to_grid(scaled) * scale


def _relative_error(y: Tensor, x: Tensor) -> float:
    return float((y - x).norm() / x.norm())


def quantization_errors(x: Tensor, number_format: Format) -> tuple[float, float]:
    """``||dequantized - x|| / ||x||`` without a rotation, and with one before and its inverse after."""
    exact = x.float()
    plain = _relative_error(quantized(exact, number_format), exact)
    rotated = quantized(hadamard_transform(x).float(), number_format)
    return plain, _relative_error(hadamard_transform(rotated, inverse=True), exact)


@dataclass(frozen=True)
class Errors:
    """Relative L2 errors of one tensor: before and after rotation, by format."""

    shape: Shape
    kind: str
    by_format: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Times:
    """Microseconds of a copy, and of the transform, of one tensor of a shape; both hot."""

    shape: Shape
    copy_us: float
    hadacore_us: float

    @property
    def ratio(self) -> float:
        """Time over that of a copy."""
        return self.hadacore_us / self.copy_us


def measure_errors(
    shapes: tuple[Shape, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Iterator[Errors]:
    """Errors of queries, keys and values of each shape."""
    for shape in shapes:
        for kind in KINDS:
            x = activations(kind, shape.elements // HEAD_SIZE, shape.heads, generator).to(device, dtype)
            yield Errors(shape, kind.name, {f.name: quantization_errors(x, f) for f in FORMATS})


def measure_times(shapes: tuple[Shape, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Times]:
    """Times of each shape. Two shapes of as many elements are one measurement."""
    arena = Arena(dtype, device, max(shape.elements for shape in shapes), cold=False)
    measured: dict[int, tuple[float, float]] = {}
    for shape in shapes:
        if shape.elements not in measured:
            workload = arena.workload(shape.elements, HOT).rows_of(HEAD_SIZE)
            measured[shape.elements] = time_copy(workload)[0], time_operation(transform_out, workload)
        yield Times(shape, *measured[shape.elements])


CSV_COLUMNS = (
    "model", "phase", "elements", "hadamard_size", "dtype", "tensor", "format", "error_before", "error_after", "copy_us",
    "hadacore_us",
)  # fmt: skip


def csv_rows(errors: list[Errors], times: list[Times], dtype: str) -> Iterator[dict[str, Any]]:
    """One row for each shape, tensor and format."""
    times_of = {time.shape: time for time in times}
    for entry in errors:
        time = times_of[entry.shape]
        for name, (before, after) in entry.by_format.items():
            values = (
                entry.shape.model, entry.shape.phase, entry.shape.elements, HEAD_SIZE, dtype, entry.kind, name,
                f"{before:.6f}", f"{after:.6f}", f"{time.copy_us:.3f}", f"{time.hadacore_us:.3f}",
            )  # fmt: skip
            yield dict(zip(CSV_COLUMNS, values, strict=True))


def picture_activations(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Magnitudes of the keys of one head, tokens by channels, before and after rotation, on the CPU."""
    keys = next(kind for kind in KINDS if kind.name == "K")
    x = activations(keys, _PICTURE_TOKENS, 1, generator).to(device, dtype)
    return x.float().abs().cpu(), hadamard_transform(x).float().abs().cpu()


def draw(before: Tensor, after: Tensor) -> bytes:
    """The picture, as PNG: magnitudes as heat maps on one scale, and the largest of each channel below."""
    top = float(before.max())
    figure = new_figure(10.5, 6.4)
    maps, lines = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(2.3, 1))
    image = None
    for axes, values, title in zip(maps, (before, after), ("before rotation", "after rotation"), strict=True):
        image = axes.imshow(values.numpy(), aspect="auto", cmap="magma", vmin=0.0, vmax=top, interpolation="nearest")
        axes.set_title(f"{title}: largest {float(values.max()):.1f}", fontsize=11)
        axes.tick_params(labelsize=9)
    maps[0].set_ylabel("token", fontsize=10)
    for axes, values, colour in zip(lines, (before, after), ("#b5367a", "#12805c"), strict=True):
        largest = values.amax(0).numpy()
        axes.fill_between(range(len(largest)), largest, step="mid", color=colour, alpha=0.25, linewidth=0)
        axes.step(range(len(largest)), largest, where="mid", color=colour, linewidth=1.1)
        axes.set_xlabel("channel", fontsize=10)
        axes.set_ylim(0, top * 1.05)
        plain_axes(axes)
    lines[0].set_ylabel("largest |x|\nof the channel", fontsize=10)
    bar = figure.colorbar(image, ax=maps, pad=0.015)
    bar.set_label("|x|", fontsize=10)
    bar.ax.tick_params(labelsize=9)
    bar.outline.set_visible(False)
    figure.suptitle(
        "Keys of one attention head with outlier channels (synthetic), and their Hadamard rotation", fontsize=13
    )
    return png(figure)
