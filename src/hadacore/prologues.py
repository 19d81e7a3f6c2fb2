"""Prologues: what is computed of the input, in fp32, before it is rotated and quantized.

Each function returns a :class:`Prologue` for the ``prologue=`` argument of :func:`hadacore.hadamard_quantize`: a frozen
description, by which a kernel is specialised, and the tensors it works on. The result of a prologue is not rounded to
16 bits before the rotation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hadacore.checks import share_memory

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)

SEPARATE = "separate"
GATE_UP = "gate_up"
UP_GATE = "up_gate"
_LAYOUTS = (SEPARATE, GATE_UP, UP_GATE)


@dataclass(frozen=True)
class GatedActivation:
    """``activation(gate) * up``.

    Attributes:
        activation: ``"silu"``, ``"gelu_tanh"`` or ``"gelu_erf"``.
        layout: ``"separate"`` tensors, or one whose last dimension holds ``"gate_up"`` or ``"up_gate"``.
    """

    activation: str
    layout: str

    @property
    def name(self) -> str:
        """The name that the operator takes."""
        return f"{self.activation}_mul:{self.layout}"


@dataclass(frozen=True)
class RMSNorm:
    """``z / sqrt(mean(z^2) + epsilon) * weight`` with ``z = x``, or ``x + residual``, which is then written back.

    Attributes:
        epsilon: Added to the mean square.
        has_residual: Whether there is a residual.
    """

    epsilon: float
    has_residual: bool

    @property
    def name(self) -> str:
        """The name that the operator takes."""
        return "rms_norm:residual" if self.has_residual else "rms_norm"


@dataclass(frozen=True)
class RotaryEmbedding:
    """Rotary position embedding of the first ``2 * cos.shape[-1]`` elements of each head.

    Attributes:
        interleaved: Whether elements ``2i, 2i + 1`` are rotated together, otherwise ``i, i + rotary / 2``.
    """

    interleaved: bool

    @property
    def name(self) -> str:
        """The name that the operator takes."""
        return "rope:interleaved" if self.interleaved else "rope:half"


Description = GatedActivation | RMSNorm | RotaryEmbedding

_GATED = [GatedActivation(a, layout) for a in ("silu", "gelu_tanh", "gelu_erf") for layout in _LAYOUTS]
_ROTARY = [RotaryEmbedding(False), RotaryEmbedding(True)]
_NAMED: dict[str, Description] = {**{d.name: d for d in _GATED}, **{d.name: d for d in _ROTARY}}


def description_of(name: str, epsilon: float) -> Description:
    """The description with a name, as the operator takes it."""
    if name.startswith("rms_norm"):
        return RMSNorm(epsilon, name.endswith("residual"))
    return _NAMED[name]


def elements_after(description: Description | None, n: int) -> int:
    """Elements of a row of ``n`` after a prologue, which may make one of two halves."""
    return n // 2 if isinstance(description, GatedActivation) and description.layout != "separate" else n


@dataclass(frozen=True, eq=False)
class Prologue:
    """A description and its tensors.

    Attributes:
        description: What is computed.
        operands: Tensors that are read, in the order of the function's arguments.
        residual: Tensor that is read and written, or None.
    """

    description: Description
    operands: tuple[Tensor, ...]
    residual: Tensor | None = None


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16 or float32, got {value.dtype}; convert it with .float()")


def _gated(activation: str, up: Tensor | None, order: str | None) -> Prologue:
    if (up is None) == (order is None):
        raise ValueError(
            "pass up= for a separate tensor (x is then the gate), or order='gate_up' or order='up_gate' for an x that "
            f"holds both in its last dimension; got {'both' if up is not None else 'neither'}"
        )
    if order is not None:
        if order not in (GATE_UP, UP_GATE):
            raise ValueError(f"order must be 'gate_up' or 'up_gate', got {order!r}")
        return Prologue(GatedActivation(activation, order), ())
    _check_tensor("up", up)
    assert up is not None
    return Prologue(GatedActivation(activation, SEPARATE), (up,))


def silu_mul(up: Tensor | None = None, *, order: str | None = None) -> Prologue:
    """``silu(gate) * up`` with ``silu(g) = g / (1 + exp(-g))``, the gated activation of Llama and its relatives.

    Args:
        up: Of x's shape; x is the gate. float16, bfloat16 or float32.
        order: ``"gate_up"`` or ``"up_gate"``: x is ``(..., 2 n)`` and holds both halves in this order.

    Raises:
        TypeError: ``up`` is no tensor of floats.
        ValueError: Both or neither argument, or another order.

    >>> from hadacore import hadamard_quantize, prologues
    >>> both = torch.randn(4, 2 * 64)
    >>> hadamard_quantize(both, "int8", prologue=prologues.silu_mul(order="gate_up")).shape
    torch.Size([4, 64])
    """
    return _gated("silu", up, order)


def gelu_mul(up: Tensor | None = None, *, order: str | None = None, approximate: str = "tanh") -> Prologue:
    """``gelu(gate) * up``, the gated activation of Gemma (``tanh``).

    Args:
        up: As in :func:`silu_mul`.
        order: As in :func:`silu_mul`.
        approximate: ``"tanh"``: ``g/2 (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3)))``; ``"none"``: ``g/2 (1 + erf(g/sqrt(2)))``,
            as :func:`torch.nn.functional.gelu` names them.

    Raises:
        TypeError, ValueError: As :func:`silu_mul`; another ``approximate``.

    >>> gelu_mul(order="up_gate").description
    GatedActivation(activation='gelu_tanh', layout='up_gate')
    """
    if approximate not in ("tanh", "none"):
        raise ValueError(f"approximate must be 'tanh' or 'none' (erf), got {approximate!r}")
    return _gated("gelu_tanh" if approximate == "tanh" else "gelu_erf", up, order)


def rms_norm(weight: Tensor, eps: float = 1e-6, *, residual: Tensor | None = None) -> Prologue:
    """RMS normalisation of each row: ``z / sqrt(mean(z^2) + eps) * weight``.

    Args:
        weight: ``(n,)``, float16, bfloat16 or float32.
        eps: Positive or zero.
        residual: Of x's shape. ``z = x + residual`` then, and z, rounded to the residual's dtype, is written back to
            ``residual``; the norm is of the unrounded fp32 sum.

    Raises:
        TypeError: ``weight`` or ``residual`` is no tensor of floats, ``eps`` no number.
        ValueError: ``eps`` is negative or not finite, ``weight`` has not one dimension.

    Source: Zhang and Sennrich, arXiv 1910.07467.

    >>> from hadacore import hadamard_quantize, prologues
    >>> stream = torch.ones(2, 64)
    >>> q = hadamard_quantize(torch.ones(2, 64), "int8", prologue=prologues.rms_norm(torch.ones(64), residual=stream))
    >>> stream[0, 0].item()
    2.0
    """
    _check_tensor("weight", weight)
    if weight.dim() != 1:
        raise ValueError(f"weight must have one dimension, the row's, got shape {tuple(weight.shape)}")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and not negative, got {eps}")
    if residual is not None:
        _check_tensor("residual", residual)
    return Prologue(RMSNorm(float(eps), residual is not None), (weight,), residual)


def rope(cos: Tensor, sin: Tensor, positions: Tensor | None = None, *, interleaved: bool = False) -> Prologue:
    """Rotary position embedding of x of shape ``(..., tokens, heads, n)``.

    A pair (a, b) of a token at position p becomes ``(a cos - b sin, b cos + a sin)`` with ``cos[p, i], sin[p, i]``, i
    being the pair's number. The first ``2 * cos.shape[1]`` elements are rotated, the rest stay.

    Args:
        cos: ``(positions, pairs)``, float16, bfloat16 or float32.
        sin: Like ``cos``.
        positions: int32 or int64, shape ``x.shape[:-2]`` or its last dimensions, such as ``(tokens,)``; rows of the tables.
            None is 0, 1, ... along the dimension of tokens. Values outside the tables are an error on the CPU and are not
            looked at on a GPU.
        interleaved: Pairs are elements ``2i, 2i + 1`` (GPT-J); otherwise ``i, i + pairs`` (GPT-NeoX, Llama).

    Raises:
        TypeError: A table is no tensor of floats, ``positions`` no tensor of integers.
        ValueError: The tables are not of one two-dimensional shape.

    Source: Su et al., arXiv 2104.09864.

    >>> angles = torch.arange(16.0)[:, None] * 100.0 ** -(torch.arange(32.0) / 32)
    >>> rope(angles.cos(), angles.sin()).description
    RotaryEmbedding(interleaved=False)
    """
    _check_tensor("cos", cos)
    _check_tensor("sin", sin)
    if cos.dim() != 2 or cos.shape != sin.shape:
        raise ValueError(
            f"cos and sin must both have shape (positions, pairs), got {tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    if positions is None:
        return Prologue(RotaryEmbedding(interleaved), (cos, sin))
    if not isinstance(positions, Tensor) or positions.dtype not in (torch.int32, torch.int64):
        got = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
        raise TypeError(f"positions must be an int32 or int64 tensor, got {got}")
    return Prologue(RotaryEmbedding(interleaved), (cos, sin, positions))


def check_prologue(prologue: Prologue | None, x: Tensor, n: int) -> int:
    """Check a prologue against its input, whose last dimension is ``n``; return the elements of a rotated row."""
    if prologue is None:
        return n
    if not isinstance(prologue, Prologue):
        raise TypeError(
            f"prologue must come from hadacore.prologues (silu_mul, gelu_mul, rms_norm, rope), got {type(prologue).__name__}"
        )
    for tensor in (*prologue.operands, *(() if prologue.residual is None else (prologue.residual,))):
        if tensor.device != x.device:
            raise ValueError(f"the prologue's tensors must be on x's device {x.device}, got {tensor.device}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError("the prologue records no gradient, got a tensor that requires grad; use .detach()")
    description = prologue.description
    if isinstance(description, GatedActivation):
        return _check_gated(description, prologue, x, n)
    if isinstance(description, RMSNorm):
        return _check_rms_norm(prologue, x, n)
    return _check_rope(prologue, x, n)


def _check_gated(description: GatedActivation, prologue: Prologue, x: Tensor, n: int) -> int:
    if description.layout == SEPARATE:
        up = prologue.operands[0]
        if up.shape != x.shape:
            raise ValueError(f"up must have the gate's shape {tuple(x.shape)}, got {tuple(up.shape)}")
        return n
    if n % 2:
        raise ValueError(f"x must hold gate and up, an even number of elements a row, got {n}")
    return n // 2


def _check_rms_norm(prologue: Prologue, x: Tensor, n: int) -> int:
    weight, residual = prologue.operands[0], prologue.residual
    if weight.shape[0] != n:
        raise ValueError(f"weight must have one entry for each of the {n} elements of a row, got {weight.shape[0]}")
    if residual is None:
        return n
    if residual.shape != x.shape:
        raise ValueError(f"residual must have x's shape {tuple(x.shape)}, got {tuple(residual.shape)}")
    if any(stride == 0 and length > 1 for stride, length in zip(residual.stride(), residual.shape, strict=True)):
        raise ValueError("residual is written and must not overlap itself, got an expanded tensor; use .contiguous()")
    if not (torch.compiler.is_compiling() or x.is_meta) and share_memory(x, residual):
        raise ValueError("residual is written and must not overlap x; pass a tensor with memory of its own")
    return n


def _check_rope(prologue: Prologue, x: Tensor, n: int) -> int:
    cos = prologue.operands[0]
    if x.dim() < 3:
        raise ValueError(f"rope needs x of shape (..., tokens, heads, n), got {tuple(x.shape)}")
    if 2 * cos.shape[1] > n:
        raise ValueError(f"cos and sin rotate {2 * cos.shape[1]} elements, more than the {n} of a head")
    tokens = x.shape[:-2]
    if len(prologue.operands) == 3:
        shape = prologue.operands[2].shape
        if len(shape) > len(tokens) or tokens[len(tokens) - len(shape) :] != shape:
            raise ValueError(f"positions must have shape {tuple(tokens)} or its last dimensions, got {tuple(shape)}")
    elif tokens[-1] > cos.shape[0]:
        raise ValueError(f"cos and sin have {cos.shape[0]} positions, fewer than the {tokens[-1]} tokens of x")
    return n
