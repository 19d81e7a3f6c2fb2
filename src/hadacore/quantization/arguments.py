"""Argument checks of the quantizing functions. Each error says what was got, what is allowed, and what to do."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from hadacore import checks
from hadacore.formats import BY_NAME, FORMATS, PER_ROW, PER_TENSOR, Format, Granularity

_INPUTS = (torch.float16, torch.bfloat16, torch.float32)


def check_format(name: str) -> Format:
    """The format with a name."""
    found = BY_NAME.get(name) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"format must be one of {', '.join(f.name for f in FORMATS)}, got {name!r}")
    return found


def check_input_dtype(dtype: torch.dtype) -> None:
    """Check a dtype that is rotated in fp32."""
    if dtype not in _INPUTS:
        raise TypeError(f"x must be float16, bfloat16 or float32, got {dtype}; convert it with x.to(torch.float32)")


def check_quantized_input(x: Tensor) -> int:
    """Check that ``x`` can be rotated in fp32 and quantized; return its last dimension."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}; convert it with torch.as_tensor(x)")
    check_input_dtype(x.dtype)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"x must have at least one dimension, the last of 1 or more elements, got shape {tuple(x.shape)}; only leading "
            "dimensions may be empty"
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "quantization records no gradient, got an x that requires grad; use x.detach() or torch.no_grad()"
        )
    return x.shape[-1]


def check_base(base: Tensor, x: Tensor, n: int, block_size: int | None) -> tuple[Tensor, int]:
    """The base matrix, and the transform size for rotated rows of ``n`` elements."""
    found, size = checks.check_base(base, x if x.shape[-1] == n else x[..., :n], block_size)
    if base.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "quantization records no gradient, got a base that requires grad; use base.detach() or torch.no_grad()"
        )
    return found, size


def check_granularity(granularity: Granularity | None, format: Format, n: int) -> tuple[Granularity, int]:
    """The granularity, and the elements that share a scale in rows of ``n`` elements; 0 for a tensor's one scale."""
    chosen = format.default if granularity is None else granularity
    if isinstance(chosen, bool) or chosen not in format.granularities:
        allowed = ", ".join(map(repr, format.granularities))
        raise ValueError(f"granularity of {format.name} must be one of {allowed}, got {granularity!r}")
    block = 0 if chosen == PER_TENSOR else n if chosen == PER_ROW else int(chosen)
    if block and n % block:
        others = [str(g) for g in format.granularities if isinstance(g, int) and n % g == 0]
        others += [repr(g) for g in format.granularities if isinstance(g, str)]
        hint = f"use granularity {' or '.join(others)}, or pad" if others else "pad"
        raise ValueError(
            f"rows must be a multiple of the block of {block} elements that share a scale, got {n} elements; {hint} the last "
            f"dimension with zeros to {-(-n // block) * block}"
        )
    if n % format.packed:
        raise ValueError(f"{format.name} packs two codes a byte and needs an even number of elements a row, got {n}")
    return chosen, block


def check_clip_ratio(clip_ratio: float) -> float:
    """A share of the largest magnitude."""
    if isinstance(clip_ratio, bool) or not isinstance(clip_ratio, numbers.Real):
        raise TypeError(f"clip_ratio must be a number, got {type(clip_ratio).__name__}")
    if not 2.0**-10 <= clip_ratio <= 1:
        raise ValueError(f"clip_ratio must be from 2^-10 to 1, which clips nothing, got {clip_ratio}")
    return float(clip_ratio)


def check_seed(seed: int | None, format: Format) -> int | None:
    """A seed of stochastic rounding, where the format has it."""
    if seed is None:
        return None
    if not format.stochastic:
        allowed = ", ".join(f.name for f in FORMATS if f.stochastic)
        raise ValueError(f"stochastic rounding is for {allowed}, got seed={seed} with {format.name}; leave seed= away")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2^63 - 1, got {seed}")
    return seed


def check_swizzled(swizzled: bool | None, format: Format) -> bool:
    """Whether scales are swizzled: where the format has it, unless told otherwise."""
    if swizzled is None:
        return format.can_swizzle
    if swizzled and not format.can_swizzle:
        allowed = ", ".join(f.name for f in FORMATS if f.can_swizzle)
        raise ValueError(f"swizzled scales are for {allowed}, got swizzled=True with {format.name}; leave it away")
    return bool(swizzled)


def check_static_scale(
    scale: float | Tensor | None, format: Format, granularity: Granularity, device: torch.device
) -> Tensor | None:
    """A given scale as an fp32 tensor without dimensions."""
    if scale is None:
        if granularity == PER_TENSOR:
            raise ValueError(
                "one scale for the whole tensor must be given as scale=, because finding it would take a second pass; "
                "hadacore.static_scale makes one of a largest magnitude"
            )
        return None
    if granularity != PER_TENSOR and not format.has_global_scale:
        raise ValueError(
            f"the scales of {format.name} with granularity {granularity!r} are computed from x, got scale=; leave it away, "
            f"or use {PER_TENSOR!r} where the format has it"
        )
    return fp32_scalar(scale, "scale", device)


def fp32_scalar(scale: float | Tensor, name: str, device: torch.device) -> Tensor:
    """A number or a tensor of one element as an fp32 tensor without dimensions."""
    if isinstance(scale, Tensor):
        if scale.dtype != torch.float32 or scale.numel() != 1:
            raise TypeError(f"{name} must be one float32, got {scale.dtype} of shape {tuple(scale.shape)}")
        if scale.device != device:
            raise ValueError(f"{name} must be on x's device {device}, got {scale.device}; use {name}.to(x.device)")
        return scale.detach().reshape(())
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise TypeError(f"{name} must be a number or a float32 tensor, got {type(scale).__name__}")
    if not math.isfinite(scale) or not 2.0**-126 <= scale <= 2.0**118:
        raise ValueError(f"{name} must be from 2^-126 to 2^118, got {scale}")
    return torch.full((), float(scale), dtype=torch.float32, device=device)
