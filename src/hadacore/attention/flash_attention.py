"""FlashAttention-3 as an engine, from whichever of three places has it: the ``flash_attn_interface`` package, PyTorch's own
activation of it, or the library that vLLM ships.

All three run the same kernels on sm_90, with decode scales of shape ``(batch, kv_heads)``. FP8 output is bfloat16. The
project writes no attention kernel of its own.
"""

from __future__ import annotations

import abc
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hadacore.attention.operands import Operand, Operands, Packing
from hadacore.attention.problem import Problem
from hadacore.attention.recipes import PER_HEAD
from hadacore.attention.visibility import Visibility
from hadacore.backends import Support
from hadacore.formats import PER_TENSOR

#: Environment variable with the path of vLLM's library, for where vLLM itself is not installed.
LIBRARY_VARIABLE = "HADACORE_FLASH_ATTENTION"

_LARGEST_HEAD = 256
# vLLM 0.25.0's library, 500 keys, heads of 256, bfloat16: windows of 64, 77, 128 and 200 are as exact as none (0.002 from
# float64); of 100 and 300, tokens 128 to 159 and 320 to 467 leave out keys (0.07 and 0.04), whatever the number of splits.
_LARGEST_HEAD_WITH_WINDOW = 192
_VLLM_LIBRARY = Path("vllm_flash_attn") / "_vllm_fa3_C.abi3.so"
_NO_WINDOW = -1


@dataclass(frozen=True, eq=False)
class Launch:
    """What the kernels take, packed sequences all of them.

    Attributes:
        q: ``(tokens, heads, head_dim)``, and so ``k`` and ``v`` with fewer heads.
        k: Keys.
        v: Values.
        q_offsets: int32, ``(sequences + 1,)``.
        k_offsets: Likewise.
        longest_q: Tokens of the longest sequence of queries.
        longest_k: Of keys.
        descales: Decode scales of queries, keys, values, ``(sequences, kv_heads)`` each, or None.
        softmax_scale: Factor of the scores.
        causal: Whether queries see no later keys.
        left: Keys that are seen before a query's own, -1 for all.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_offsets: Tensor
    k_offsets: Tensor
    longest_q: int
    longest_k: int
    descales: tuple[Tensor, Tensor, Tensor] | None
    softmax_scale: float
    causal: bool
    left: int

    @property
    def right(self) -> int:
        """Keys that are seen after a query's own, -1 for all."""
        return 0 if self.causal else _NO_WINDOW


class FlashAttentionEngine(abc.ABC):
    """What the three have in common: when they can run, and how a call becomes a :class:`Launch`."""

    name: str
    #: One line for lists.
    title: str

    @abc.abstractmethod
    def missing(self) -> str | None:
        """Why the kernels are not to be had here, or None."""

    @abc.abstractmethod
    def launch(self, call: Launch) -> Tensor:
        """Run the kernel: ``(tokens, heads, head_dim)``."""

    def support(self, device: torch.device) -> Support:
        """Whether it can run on a device at all."""
        if device.type != "cuda":
            return Support(False, f"FlashAttention-3 runs on NVIDIA GPUs of compute capability 9.0, not on {device}")
        if not torch.cuda.is_available():
            return Support(False, "FlashAttention-3 needs an NVIDIA GPU, and PyTorch finds none")
        major, minor = torch.cuda.get_device_capability(device)
        if major != 9:
            return Support(False, f"FlashAttention-3 needs compute capability 9.0, the GPU has {major}.{minor}")
        missing = self.missing()
        return Support(missing is None, missing or self.title)

    def refusal(self, problem: Problem) -> str | None:
        """Why it cannot run a problem, or None."""
        recipe = problem.recipe
        if recipe.format is not None and not recipe.is_fp8:
            return f"it multiplies FP8 or 16-bit types, not {recipe}"
        if recipe.is_fp8 and recipe.granularity not in (PER_TENSOR, PER_HEAD):
            return f"it takes one scale for each (batch, kv head), not per {recipe.granularity}"
        if problem.dtype not in (torch.float16, torch.bfloat16):
            return f"its results are 16-bit, and the queries are {problem.dtype}; use q.bfloat16()"
        if problem.head_dim > _LARGEST_HEAD or problem.head_dim % 16:
            return f"it takes head sizes up to {_LARGEST_HEAD} that 16 divides, not {problem.head_dim}"
        if problem.value_dim != problem.head_dim:
            return (
                f"it is called with values of the keys' head size only, not {problem.value_dim} for {problem.head_dim}"
            )
        if problem.mask:
            return "it takes causal order, a window and padding, not a mask of queries and keys"
        if problem.window is not None and not problem.causal:
            return "it is called with a window in causal order only"
        if problem.window is not None and problem.head_dim > _LARGEST_HEAD_WITH_WINDOW:
            return (
                f"with a window its results are wrong for some queries at head sizes above {_LARGEST_HEAD_WITH_WINDOW}, "
                f"and the head size is {problem.head_dim}"
            )
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
        """``softmax(softmax_scale q k^T) v``, ``(batch, tokens, heads, head_dim)``."""
        q, k, v = operands.q, operands.k, operands.v
        batch, queries, heads = q.codes.shape[:3]
        keys, kv_heads = k.codes.shape[1:3]
        tokens = tuple(operand.codes.flatten(0, 1) for operand in (q, k, v))
        places: Tensor | None = None
        if packed is not None:
            assert longest is not None
            q_offsets, k_offsets = packed[0].offsets, packed[1].offsets
            longest_q, longest_k = longest
        elif visibility.padding is None:
            q_offsets, k_offsets = _regular(batch, queries, q.codes.device), _regular(batch, keys, q.codes.device)
            longest_q, longest_k = queries, keys
        else:
            # Padding is left away: sequences are packed, and the result is spread out again.
            k_there = visibility.padding
            q_there = (
                visibility.queries_of_padding(queries) if visibility.causal else k_there.new_ones((batch, queries))
            )
            if visibility.window is not None:
                _check_ends(k_there)
            places = q_there.flatten().nonzero().squeeze(1)
            k_places = k_there.flatten().nonzero().squeeze(1)
            tokens = tuple(_rows(x, p) for x, p in zip(tokens, (places, k_places, k_places), strict=True))
            q_lengths, k_lengths = q_there.sum(1), k_there.sum(1)
            q_offsets, k_offsets = _offsets(q_lengths), _offsets(k_lengths)
            longest_q, longest_k = int(q_lengths.max()), int(k_lengths.max())
        descales = None
        if q.scales is not None:
            sequences = q_offsets.shape[0] - 1
            descales = (
                _descale(q, sequences, kv_heads),
                _descale(k, sequences, kv_heads),
                _descale(v, sequences, kv_heads),
            )
        result = self.launch(
            Launch(
                q=tokens[0],
                k=tokens[1],
                v=tokens[2],
                q_offsets=q_offsets,
                k_offsets=k_offsets,
                longest_q=longest_q,
                longest_k=longest_k,
                descales=descales,
                softmax_scale=softmax_scale,
                causal=visibility.causal,
                left=_NO_WINDOW if visibility.window is None else visibility.window - 1,
            )
        ).to(out_dtype)
        if places is not None:
            spread = result.new_zeros((batch * queries, *result.shape[1:]))
            result = spread.index_copy_(0, places, result)
        return result.view(batch, queries, heads, -1)


def _rows(x: Tensor, places: Tensor) -> Tensor:
    # As bytes: not every release of PyTorch indexes FP8.
    if x.dtype == torch.float8_e4m3fn:
        return x.view(torch.uint8)[places].view(x.dtype)
    return x[places]


def _check_ends(there: Tensor) -> None:
    """With padding between tokens, a window over the tokens that are left would reach further than one over positions."""
    if bool(((there[:, 1:] != there[:, :-1]).sum(1) > 1).any()):
        raise ValueError(
            "with a window, FlashAttention-3 takes padding at one end of a sequence, got padding at both or between tokens; use "
            "engine='emulated'"
        )


def _regular(batch: int, tokens: int, device: torch.device) -> Tensor:
    return torch.arange(0, (batch + 1) * tokens, max(tokens, 1), dtype=torch.int32, device=device)[: batch + 1]


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def _descale(operand: Operand, sequences: int, kv_heads: int) -> Tensor:
    scales = operand.scales
    assert scales is not None
    return scales if scales.dim() == 2 else scales.expand(sequences, kv_heads).contiguous()


class InterfaceEngine(FlashAttentionEngine):
    """The ``flash_attn_interface`` package, which FlashAttention's ``hopper`` folder installs."""

    name = "flash_attn_interface"
    title = "the flash_attn_interface package"

    def missing(self) -> str | None:
        """Why the package is not there, or None."""
        if not _folders_of(self.name):
            return "the flash_attn_interface package is not installed; it is built from FlashAttention's hopper folder"
        try:
            self._function()
        except (ImportError, OSError, AttributeError) as error:
            return f"flash_attn_interface could not be imported: {error}"
        return None

    @staticmethod
    @functools.cache
    def _function() -> Callable[..., Any]:
        function: Callable[..., Any] = importlib.import_module("flash_attn_interface").flash_attn_varlen_func
        return function

    def launch(self, call: Launch) -> Tensor:
        """Run the kernel."""
        q_descale, k_descale, v_descale = call.descales or (None, None, None)
        result = self._function()(
            call.q,
            call.k,
            call.v,
            cu_seqlens_q=call.q_offsets,
            cu_seqlens_k=call.k_offsets,
            max_seqlen_q=call.longest_q,
            max_seqlen_k=call.longest_k,
            softmax_scale=call.softmax_scale,
            causal=call.causal,
            q_descale=q_descale,
            k_descale=k_descale,
            v_descale=v_descale,
            window_size=(call.left, call.right),
            num_splits=0,  # the kernel's own heuristic, which few queries need
        )
        # Some releases return the log-sum-exp too.
        output: Tensor = result[0] if isinstance(result, tuple) else result
        return output


class PyTorchEngine(FlashAttentionEngine):
    """PyTorch's activation of FlashAttention-3. It changes what PyTorch itself runs, so activating it is the caller's choice."""

    name = "torch"
    title = "FlashAttention-3 as activated in PyTorch"

    def missing(self) -> str | None:
        """Why it is not active, or None."""
        current = getattr(torch.nn.attention, "current_flash_attention_impl", None)
        quantized = "quantized" in torch.ops.aten._flash_attention_forward.overloads()
        if current is None or not quantized:
            return f"PyTorch {torch.__version__} has no FlashAttention-3 that takes FP8"
        if current() != "FA3":
            return "FlashAttention-3 is not active in PyTorch; call torch.nn.attention.activate_flash_attention_impl('FA3')"
        return None

    def launch(self, call: Launch) -> Tensor:
        """Run the kernel."""
        function = torch.ops.aten._flash_attention_forward
        places = (call.q, call.k, call.v, call.q_offsets, call.k_offsets, call.longest_q, call.longest_k)
        options = {"scale": call.softmax_scale, "window_size_left": call.left, "window_size_right": call.right}
        if call.descales is None:
            output: Tensor = function(*places, 0.0, call.causal, False, **options)[0]
        else:
            output = function.quantized(*places, 0.0, call.causal, False, *call.descales, **options)[0]
        return output


class VllmEngine(FlashAttentionEngine):
    """The library that vLLM ships, ``_vllm_fa3_C.abi3.so``: of an installed vLLM, or anywhere.

    Args:
        path: The library; None looks at the environment variable ``HADACORE_FLASH_ATTENTION``, then at the installed vLLM.
    """

    name = "vllm"

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)

    @property
    def title(self) -> str:  # type: ignore[override]
        """One line for lists."""
        return f"vLLM's FlashAttention-3, {self.library()}"

    def library(self) -> Path | None:
        """Where the library is, or None."""
        if self.path is not None:
            return self.path
        given = os.environ.get(LIBRARY_VARIABLE)
        if given:
            return Path(given)
        paths = (folder / _VLLM_LIBRARY for folder in _folders_of("vllm"))
        return next((path for path in paths if path.is_file()), None)

    def missing(self) -> str | None:
        """Why the library cannot be loaded, or None."""
        path = self.library()
        if path is None:
            return f"vLLM is not installed, and {LIBRARY_VARIABLE} does not name its _vllm_fa3_C.abi3.so"
        if not path.is_file():
            return f"there is no file {path}"
        try:
            _load_library(path.resolve())
        except OSError as error:
            return f"{path} could not be loaded: {error.__cause__ or error}"
        except AttributeError:
            return f"{path} does not register the operator _vllm_fa3_C::fwd"
        return None

    def launch(self, call: Launch) -> Tensor:
        """Run the kernel."""
        function = torch.ops._vllm_fa3_C.fwd.default
        values: dict[str, Any] = {
            "q": call.q,
            "k": call.k,
            "v": call.v,
            "cu_seqlens_q": call.q_offsets,
            "cu_seqlens_k": call.k_offsets,
            "max_seqlen_q": call.longest_q,
            "max_seqlen_k": call.longest_k,
            "softmax_scale": call.softmax_scale,
            "is_causal": call.causal,
            "window_size_left": call.left,
            "window_size_right": call.right,
            "softcap": 0.0,
            "is_rotary_interleaved": True,
            "num_splits": 0,  # the kernel's own heuristic
            "sm_margin": 0,
            "cp_world_size": 1,
            "cp_rank": 0,
        }
        if call.descales is not None:
            values |= dict(zip(("q_descale", "k_descale", "v_descale"), call.descales, strict=True))
        # By the schema's names: the order has changed between releases, and all other arguments are optional tensors.
        output: Tensor = function(*(values.get(argument.name) for argument in function._schema.arguments))[0]
        return output


@functools.cache
def _folders_of(module: str) -> tuple[Path, ...]:
    """The folders of a package or the folder of a module; none if it is not installed. Kept, as looking takes 0.1 ms."""
    found = importlib.util.find_spec(module)
    if found is None:
        return ()
    if found.submodule_search_locations:
        return tuple(map(Path, found.submodule_search_locations))
    return (Path(found.origin or ".").parent,)


@functools.cache
def _load_library(path: Path) -> None:
    torch.ops.load_library(str(path))
    torch.ops._vllm_fa3_C.fwd  # noqa: B018  (raises AttributeError where it is not registered)


FLASH_ATTENTION_ENGINES: tuple[FlashAttentionEngine, ...] = (InterfaceEngine(), PyTorchEngine(), VllmEngine())
