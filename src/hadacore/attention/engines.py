"""Engines: who multiplies, whether they can run here, and why not.

An engine takes operands that are rotated and quantized already. ``support(device)`` says whether it can run there at all,
``refusal(problem)`` why it cannot run one problem.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hadacore.attention import emulated
from hadacore.attention.flash_attention import FLASH_ATTENTION_ENGINES, FlashAttentionEngine, VllmEngine
from hadacore.attention.operands import Operands, Packing
from hadacore.attention.problem import Problem
from hadacore.attention.visibility import Visibility
from hadacore.backends import Support


class Engine(Protocol):
    """What every engine has."""

    name: str

    def support(self, device: torch.device) -> Support:
        """Whether it can run on a device at all, and why not."""

    def refusal(self, problem: Problem) -> str | None:
        """Why it cannot run a problem, or None."""

    def attend(
        self,
        operands: Operands,
        visibility: Visibility,
        softmax_scale: float,
        out_dtype: torch.dtype,
        packed: tuple[Packing, Packing] | None,
        longest: tuple[int, int] | None,
    ) -> Tensor:
        """``softmax(softmax_scale q k^T) v``, ``(batch, tokens, heads, head_dim)``, batch 1 for packed sequences."""


class EmulatedEngine:
    """PyTorch operations with the roundings of a low precision kernel, see :mod:`hadacore.attention.emulated`.

    Args:
        key_block: Keys between two updates of the running maximum; None is FlashAttention-3's number for the head size.
    """

    name = "emulated"

    def __init__(self, key_block: int | None = None) -> None:
        self.key_block = key_block

    def support(self, device: torch.device) -> Support:
        """It runs everywhere."""
        return Support(True, "PyTorch operations with FP8's roundings, for accuracy, not for speed")

    def refusal(self, problem: Problem) -> str | None:
        """It runs everything."""
        return None

    def attend(
        self,
        operands: Operands,
        visibility: Visibility,
        softmax_scale: float,
        out_dtype: torch.dtype,
        packed: tuple[Packing, Packing] | None,
        longest: tuple[int, int] | None,
    ) -> Tensor:
        """Sequence by sequence, if they are packed."""
        dtype = _probability_dtype(operands)
        if packed is None:
            return emulated.attend(operands, visibility, softmax_scale, out_dtype, dtype, self.key_block)
        q_bounds, k_bounds = (packing.offsets.tolist() for packing in packed)
        results = []
        for index, (start, stop, k_start, k_stop) in enumerate(
            zip(q_bounds, q_bounds[1:], k_bounds, k_bounds[1:], strict=False)
        ):
            part = Operands(
                operands.q.sequence(index, start, stop),
                operands.k.sequence(index, k_start, k_stop),
                operands.v.sequence(index, k_start, k_stop),
                operands.dtype,
            )
            results.append(emulated.attend(part, visibility, softmax_scale, out_dtype, dtype, self.key_block))
        return torch.cat(results, 1)


def _probability_dtype(operands: Operands) -> torch.dtype | None:
    """What probabilities are rounded to: E4M3 beside FP8 operands, else the 16-bit type that came in, if it is one."""
    if operands.q.codes.dtype == torch.float8_e4m3fn:
        return torch.float8_e4m3fn
    return operands.dtype if operands.dtype in (torch.float16, torch.bfloat16) else None


EMULATED = EmulatedEngine()


def known_engines(flash_attention: str | Path | None = None) -> tuple[Engine, ...]:
    """All engines, in the order in which one is chosen; ``flash_attention`` is a path of vLLM's library."""
    flash: tuple[FlashAttentionEngine, ...] = FLASH_ATTENTION_ENGINES
    if flash_attention is not None:
        flash = (*flash[:-1], VllmEngine(flash_attention))
    return (*flash, EMULATED)


def engines(device: torch.device | str | None = None, flash_attention: str | Path | None = None) -> dict[str, Support]:
    """Every engine, whether it can run on a device, and why not.

    Args:
        device: None is the GPU, or the CPU where there is none.
        flash_attention: Path of vLLM's ``_vllm_fa3_C.abi3.so``, where vLLM is not installed.

    >>> engines("cpu")["emulated"].available
    True
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return {engine.name: engine.support(place) for engine in known_engines(flash_attention)}
