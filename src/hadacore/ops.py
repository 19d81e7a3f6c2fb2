"""The registered PyTorch operators: schemas, shapes, gradients and batching. Backends do the work.

``hadacore::hadamard_transform(Tensor x, int size, float scale, Tensor? signs, bool inverse, Tensor? base, str? backend)
-> Tensor``, and the same with ``_out`` and in place. Arguments are checked by :mod:`hadacore.functional`; here they are
taken as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hadacore.backends.selection import BACKENDS, DEFAULTS, Transform, check_backend

LIBRARY = torch.library.Library("hadacore", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)

_OPTIONS = "int size, float scale, Tensor? signs=None, bool inverse=False, Tensor? base=None, str? backend=None"
LIBRARY.define(f"hadamard_transform(Tensor x, {_OPTIONS}) -> Tensor", tags=_TAGS)
LIBRARY.define(f"hadamard_transform_(Tensor(a!) x, {_OPTIONS}) -> ()", tags=_TAGS)
LIBRARY.define(
    "hadamard_transform_out(Tensor x, int size, float scale, Tensor? signs, bool inverse, Tensor? base, Tensor(a!) out, "
    "str? backend=None) -> ()",
    tags=_TAGS,
)

DISPATCH_KEYS = ("CPU", "CUDA", "XPU")  # AMD's GPUs are under CUDA, too


def backend_of(x: Tensor) -> Transform | None:
    """The default backend of a tensor's device, or None for a device without one (such as meta)."""
    return DEFAULTS["cuda"] if x.is_cuda else DEFAULTS["cpu"] if x.is_cpu else DEFAULTS["xpu"] if x.is_xpu else None


def named_backend(x: Tensor, backend: str | None) -> Transform | None:
    """The backend with a name, for ``x``, which it must take; None is the default one.

    Raises:
        ValueError: There is no such backend, or not for x's device.
    """
    if backend is None:
        return backend_of(x)
    check_backend(backend, x.device)
    return None if x.is_meta else BACKENDS[backend]


def _run(
    x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, base: Tensor | None,
    backend: str | None,
) -> None:  # fmt: skip
    transform = named_backend(x, backend)
    assert transform is not None, "registered for devices that have one"
    transform(x, out, size, scale, signs, inverse, base)


def new_output(x: Tensor) -> Tensor:
    """An uninitialised contiguous tensor like ``x``."""
    return torch.empty_like(x) if x.is_contiguous() else x.new_empty(x.shape)


def increment_version(tensor: Tensor) -> None:
    """Tell autograd that ``tensor`` was written, so that a saved alias of it is not used by mistake."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def _register(dispatch_key: str) -> None:
    def hadamard_transform(
        x: Tensor,
        size: int,
        scale: float,
        signs: Tensor | None = None,
        inverse: bool = False,
        base: Tensor | None = None,
        backend: str | None = None,
    ) -> Tensor:
        out = new_output(x)
        _run(x, out, size, scale, signs, inverse, base, backend)
        return out

    def hadamard_transform_(
        x: Tensor,
        size: int,
        scale: float,
        signs: Tensor | None = None,
        inverse: bool = False,
        base: Tensor | None = None,
        backend: str | None = None,
    ) -> None:
        _run(x, x, size, scale, signs, inverse, base, backend)
        increment_version(x)

    def hadamard_transform_out(
        x: Tensor,
        size: int,
        scale: float,
        signs: Tensor | None,
        inverse: bool,
        base: Tensor | None,
        out: Tensor,
        backend: str | None = None,
    ) -> None:
        _run(x, out, size, scale, signs, inverse, base, backend)
        increment_version(out)

    LIBRARY.impl("hadamard_transform", hadamard_transform, dispatch_key)
    LIBRARY.impl("hadamard_transform_", hadamard_transform_, dispatch_key)
    LIBRARY.impl("hadamard_transform_out", hadamard_transform_out, dispatch_key)


for _dispatch_key in DISPATCH_KEYS:
    _register(_dispatch_key)


@torch.library.register_fake("hadacore::hadamard_transform", lib=LIBRARY)
def _fake(
    x: Tensor,
    size: int,
    scale: float,
    signs: Tensor | None = None,
    inverse: bool = False,
    base: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("hadacore::hadamard_transform_", lib=LIBRARY)
def _fake_in_place(
    x: Tensor,
    size: int,
    scale: float,
    signs: Tensor | None = None,
    inverse: bool = False,
    base: Tensor | None = None,
    backend: str | None = None,
) -> None:
    return None


@torch.library.register_fake("hadacore::hadamard_transform_out", lib=LIBRARY)
def _fake_out(
    x: Tensor,
    size: int,
    scale: float,
    signs: Tensor | None,
    inverse: bool,
    base: Tensor | None,
    out: Tensor,
    backend: str | None = None,
) -> None:
    return None


# ---- gradients --------------------------------------------------------------------------------------------

LinearTransform = Callable[[Tensor, int, float, Tensor | None, bool, Tensor | None, str | None], Tensor]


def _gradient_of_base(
    transform: LinearTransform,
    x: Tensor,
    gradient: Tensor,
    size: int,
    scale: float,
    signs: Tensor | None,
    inverse: bool,
    base: Tensor,
    backend: str | None,
) -> Tensor:
    """The gradient of a caller's base matrix B.

    Forward, ``y = scale (B x S)(signs x)`` with S = Sylvester(2^k): ``dB_il = scale sum_j (S dy)_ij (signs x)_lj`` over all rows.
    Inverse, ``y = signs scale (B^T x S) x``: the same with what flows in and what flows out exchanged.
    """
    order = base.shape[0]
    columns = size // order
    if signs is not None:
        gradient, x = (gradient * signs, x) if inverse else (gradient, x * signs)
    gradient = transform(gradient, columns, scale, None, False, None, backend)
    left, right = (x, gradient) if inverse else (gradient, x)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    left, right = (t.reshape(-1, order, columns).to(work).transpose(0, 1).reshape(order, -1) for t in (left, right))
    return (left @ right.T).to(base.dtype)


class DifferentiableTransform(torch.autograd.Function):
    """The transform for ``torch.func`` and forward mode, which a registered operator's gradient formula does not serve.

    y = scale (B x S) D x is linear in x and in B, so tangents are transforms, and the gradient of x, scale D (B x S)^T dy,
    is the same transform with ``inverse`` flipped. Written in terms of itself, it can be differentiated any number of times.
    """

    @staticmethod
    def forward(
        x: Tensor,
        size: int,
        scale: float,
        signs: Tensor | None,
        inverse: bool,
        base: Tensor | None,
        backend: str | None,
    ) -> Tensor:
        """The registered operator."""
        result: Tensor = torch.ops.hadacore.hadamard_transform(x, size, scale, signs, inverse, base, backend)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the options, the signs and the base; ``x`` only if the base wants its gradient or tangent."""
        x, ctx.size, ctx.scale, signs, ctx.inverse, base, ctx.backend = inputs
        kept = (signs, base, None if base is None else x)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None, None, None, Any, None]:
        """The transpose of the forward transform."""
        signs, base, x = ctx.saved_tensors
        gradient = gradients[0]
        of_x = differentiable_transform(gradient, ctx.size, ctx.scale, signs, not ctx.inverse, base, ctx.backend)
        of_base = None
        if base is not None and ctx.needs_input_grad[5]:
            options = (ctx.size, ctx.scale, signs, ctx.inverse, base, ctx.backend)
            of_base = _gradient_of_base(differentiable_transform, x, gradient, *options)
        return of_x, None, None, None, None, of_base, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """The forward transform of the tangents of x and of the base."""
        signs, base, x = ctx.saved_tensors
        parts = []
        options = (ctx.size, ctx.scale, signs, ctx.inverse)
        if tangents[0] is not None:
            parts.append(differentiable_transform(tangents[0], *options, base, ctx.backend))
        if base is not None and tangents[5] is not None:
            parts.append(differentiable_transform(x, *options, tangents[5], ctx.backend))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        x: Tensor,
        size: int,
        scale: float,
        signs: Tensor | None,
        inverse: bool,
        base: Tensor | None,
        backend: str | None,
    ) -> tuple[Tensor, int]:
        """A batch is more rows."""
        dims = (in_dims[0], in_dims[3], in_dims[5])
        return _batched(differentiable_transform, info.batch_size, dims, x, size, scale, signs, inverse, base, backend)


def differentiable_transform(
    x: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, base: Tensor | None, backend: str | None
) -> Tensor:
    """:class:`DifferentiableTransform` as a function."""
    arguments = (x, size, scale, signs, inverse, base, backend)
    result: Tensor = DifferentiableTransform.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None, Tensor | None, None]:
    signs, base, x = ctx.saved_tensors
    operator = torch.ops.hadacore.hadamard_transform
    of_x = of_base = None
    if ctx.needs_input_grad[0]:
        of_x = operator(gradient, ctx.size, ctx.scale, signs, not ctx.inverse, base, ctx.backend)
    if base is not None and ctx.needs_input_grad[5]:
        options = (ctx.size, ctx.scale, signs, ctx.inverse, base, ctx.backend)
        of_base = _gradient_of_base(operator, x, gradient, *options)
    return of_x, None, None, None, None, of_base, None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.size, ctx.scale, signs, ctx.inverse, base, ctx.backend = inputs
    wants_base = base is not None and ctx.needs_input_grad[5]
    ctx.save_for_backward(signs, base, x if wants_base else None)


torch.library.register_autograd("hadacore::hadamard_transform", _backward, setup_context=_setup_context, lib=LIBRARY)


# ---- batching ---------------------------------------------------------------------------------------------


def _batched(
    transform: LinearTransform,
    batch_size: int,
    dims: tuple[int | None, int | None, int | None],
    x: Tensor,
    size: int,
    scale: float,
    signs: Tensor | None,
    inverse: bool,
    base: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, int]:
    """``transform`` of a batch of x, of signs, of bases, or of several; the result's batch dimension is the first.

    ``dims`` are the batch dimensions of x, signs and base.
    """
    x_dim, signs_dim, base_dim = dims
    if base is not None and base_dim is not None:
        # The kernels take one base a call; a caller with a base for each sample pays a call for each.
        samples = [
            transform(
                x if x_dim is None else x.select(x_dim, i),
                size,
                scale,
                signs if signs is None or signs_dim is None else signs.select(signs_dim, i),
                inverse,
                base.select(base_dim, i),
                backend,
            )
            for i in range(batch_size)
        ]
        return torch.stack(samples), 0
    if x_dim is not None:
        x = x.movedim(x_dim, 0)
    if signs is None or signs_dim is None:
        return transform(x, size, scale, signs, inverse, base, backend), 0
    # A sign vector for each sample: multiply outside the kernel, which takes one for all rows.
    if x_dim is None:
        x = x.expand(batch_size, *x.shape)
    signs = signs.movedim(signs_dim, 0)
    signs = signs.view(signs.shape[0], *([1] * (x.dim() - 2)), signs.shape[-1])
    if inverse:
        return transform(x, size, scale, None, True, base, backend) * signs, 0
    return transform(x * signs, size, scale, None, False, base, backend), 0


# PyTorch leaves trailing arguments out where they equal their default, also in `in_dims`.
def _batch_dimensions(in_dims: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    padded = (*in_dims, *[None] * (7 - len(in_dims)))
    return padded[0], padded[3], padded[5]


@torch.library.register_vmap("hadacore::hadamard_transform", lib=LIBRARY)
def _vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    size: int,
    scale: float,
    signs: Tensor | None = None,
    inverse: bool = False,
    base: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, int]:
    operator = torch.ops.hadacore.hadamard_transform
    return _batched(
        operator, info.batch_size, _batch_dimensions(in_dims), x, size, scale, signs, inverse, base, backend
    )


@torch.library.register_vmap("hadacore::hadamard_transform_", lib=LIBRARY)
def _vmap_in_place(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    size: int,
    scale: float,
    signs: Tensor | None = None,
    inverse: bool = False,
    base: Tensor | None = None,
    backend: str | None = None,
) -> tuple[None, None]:
    x_dim, signs_dim, base_dim = _batch_dimensions(in_dims)
    if x_dim is None or signs_dim is not None or base_dim is not None:
        raise ValueError(
            "vmap of an in-place hadamard_transform needs a batched x, one signs vector and one base; use it out of place"
        )
    torch.ops.hadacore.hadamard_transform_(x.movedim(x_dim, 0), size, scale, signs, inverse, base, backend)
    return None, None
