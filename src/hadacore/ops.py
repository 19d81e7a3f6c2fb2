"""The registered PyTorch operators: schemas, shapes, gradients and batching. Backends do the work.

``hadacore::hadamard_transform(Tensor x, int size, float scale, Tensor? signs, bool inverse) -> Tensor``, and the same
with ``_out`` and in place. Arguments are checked by :mod:`hadacore.functional`; here they are taken as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hadacore.backends import cpu, cuda

Transform = Callable[[Tensor, Tensor, int, float, Tensor | None, bool], None]

LIBRARY = torch.library.Library("hadacore", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)

LIBRARY.define(
    "hadamard_transform(Tensor x, int size, float scale, Tensor? signs=None, bool inverse=False) -> Tensor", tags=_TAGS
)
LIBRARY.define(
    "hadamard_transform_(Tensor(a!) x, int size, float scale, Tensor? signs=None, bool inverse=False) -> ()", tags=_TAGS
)
LIBRARY.define(
    "hadamard_transform_out(Tensor x, int size, float scale, Tensor? signs, bool inverse, Tensor(a!) out) -> ()",
    tags=_TAGS,
)

BACKENDS: dict[str, Transform] = {"cpu": cpu.transform, "cuda": cuda.transform}


def backend_of(x: Tensor) -> Transform | None:
    """The backend of a tensor's device, or None for a device without one (such as meta)."""
    return BACKENDS["cuda"] if x.is_cuda else BACKENDS["cpu"] if x.is_cpu else None


def new_output(x: Tensor) -> Tensor:
    """An uninitialised contiguous tensor like ``x``."""
    return torch.empty_like(x) if x.is_contiguous() else x.new_empty(x.shape)


def increment_version(tensor: Tensor) -> None:
    """Tell autograd that ``tensor`` was written, so that a saved alias of it is not used by mistake."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def _register(dispatch_key: str, transform: Transform) -> None:
    def hadamard_transform(
        x: Tensor, size: int, scale: float, signs: Tensor | None = None, inverse: bool = False
    ) -> Tensor:
        out = new_output(x)
        transform(x, out, size, scale, signs, inverse)
        return out

    def hadamard_transform_(
        x: Tensor, size: int, scale: float, signs: Tensor | None = None, inverse: bool = False
    ) -> None:
        transform(x, x, size, scale, signs, inverse)
        increment_version(x)

    def hadamard_transform_out(
        x: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, out: Tensor
    ) -> None:
        transform(x, out, size, scale, signs, inverse)
        increment_version(out)

    LIBRARY.impl("hadamard_transform", hadamard_transform, dispatch_key)
    LIBRARY.impl("hadamard_transform_", hadamard_transform_, dispatch_key)
    LIBRARY.impl("hadamard_transform_out", hadamard_transform_out, dispatch_key)


for _device_type, _transform in BACKENDS.items():
    _register(_device_type.upper(), _transform)


@torch.library.register_fake("hadacore::hadamard_transform", lib=LIBRARY)
def _fake(x: Tensor, size: int, scale: float, signs: Tensor | None = None, inverse: bool = False) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("hadacore::hadamard_transform_", lib=LIBRARY)
def _fake_in_place(x: Tensor, size: int, scale: float, signs: Tensor | None = None, inverse: bool = False) -> None:
    return None


@torch.library.register_fake("hadacore::hadamard_transform_out", lib=LIBRARY)
def _fake_out(x: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, out: Tensor) -> None:
    return None


class DifferentiableTransform(torch.autograd.Function):
    """The transform for ``torch.func`` and forward mode, which a registered operator's gradient formula does not serve.

    y = scale H D x is linear, so its tangent is the transform of the tangent, and its gradient scale D H^T dy is the
    same transform with ``inverse`` flipped. Written in terms of itself, it can be differentiated any number of times.
    """

    @staticmethod
    def forward(x: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool) -> Tensor:
        """The registered operator."""
        result: Tensor = torch.ops.hadacore.hadamard_transform(x, size, scale, signs, inverse)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the options and the signs, not ``x``: a linear map does not need it."""
        _, ctx.size, ctx.scale, signs, ctx.inverse = inputs
        ctx.save_for_backward(signs)
        ctx.save_for_forward(signs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None, None, None]:
        """The transpose of the forward transform."""
        (signs,) = ctx.saved_tensors
        return (
            differentiable_transform(gradients[0], ctx.size, ctx.scale, signs, not ctx.inverse),
            None,
            None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """The forward transform."""
        (signs,) = ctx.saved_tensors
        return differentiable_transform(tangents[0], ctx.size, ctx.scale, signs, ctx.inverse)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool
    ) -> tuple[Tensor, int]:
        """A batch is more rows."""
        return _batched(
            differentiable_transform, info.batch_size, in_dims[0], in_dims[3], x, size, scale, signs, inverse
        )


def differentiable_transform(x: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool) -> Tensor:
    """:class:`DifferentiableTransform` as a function."""
    result: Tensor = DifferentiableTransform.apply(x, size, scale, signs, inverse)  # type: ignore[no-untyped-call]
    return result


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
    (signs,) = ctx.saved_tensors
    operator = torch.ops.hadacore.hadamard_transform
    return operator(gradient, ctx.size, ctx.scale, signs, not ctx.inverse), None, None, None, None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.size, ctx.scale, signs, ctx.inverse = inputs
    ctx.save_for_backward(signs)


torch.library.register_autograd("hadacore::hadamard_transform", _backward, setup_context=_setup_context, lib=LIBRARY)


def _batched(
    transform: Callable[[Tensor, int, float, Tensor | None, bool], Tensor],
    batch_size: int,
    x_dim: int | None,
    signs_dim: int | None,
    x: Tensor,
    size: int,
    scale: float,
    signs: Tensor | None,
    inverse: bool,
) -> tuple[Tensor, int]:
    """``transform`` of a batch of x, of signs, or of both; the result's batch dimension is the first."""
    if x_dim is not None:
        x = x.movedim(x_dim, 0)
    if signs is None or signs_dim is None:
        return transform(x, size, scale, signs, inverse), 0
    # A sign vector for each sample: multiply outside the kernel, which takes one for all rows.
    if x_dim is None:
        x = x.expand(batch_size, *x.shape)
    signs = signs.movedim(signs_dim, 0)
    signs = signs.view(signs.shape[0], *([1] * (x.dim() - 2)), signs.shape[-1])
    if inverse:
        return transform(x, size, scale, None, True) * signs, 0
    return transform(x * signs, size, scale, None, False), 0


# PyTorch leaves trailing arguments out where they equal their default, also in `in_dims`.
@torch.library.register_vmap("hadacore::hadamard_transform", lib=LIBRARY)
def _vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    size: int,
    scale: float,
    signs: Tensor | None = None,
    inverse: bool = False,
) -> tuple[Tensor, int]:
    signs_dim = in_dims[3] if len(in_dims) > 3 else None
    operator = torch.ops.hadacore.hadamard_transform
    return _batched(operator, info.batch_size, in_dims[0], signs_dim, x, size, scale, signs, inverse)


@torch.library.register_vmap("hadacore::hadamard_transform_", lib=LIBRARY)
def _vmap_in_place(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    size: int,
    scale: float,
    signs: Tensor | None = None,
    inverse: bool = False,
) -> tuple[None, None]:
    x_dim, signs_dim = in_dims[0], in_dims[3] if len(in_dims) > 3 else None
    if x_dim is None or signs_dim is not None:
        raise ValueError(
            "vmap of an in-place hadamard_transform needs a batched x and one signs vector; use it out of place"
        )
    torch.ops.hadacore.hadamard_transform_(x.movedim(x_dim, 0), size, scale, signs, inverse)
    return None, None
