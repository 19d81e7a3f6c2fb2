"""The public functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hadacore import checks, ops
from hadacore.backends.selection import check_backend
from hadacore.matrices import check_size

_PLAIN_TENSORS = (Tensor, torch.nn.Parameter)


def _can_skip_dispatcher(x: Tensor) -> bool:
    """Whether nothing watches this call: no gradient, no tracing, no mode, no functional transform, no profiler.

    PyTorch's dispatcher calls a Python operator with an autograd formula in 8.7 us, and the backend itself takes
    0.9 us (CPU, 4096 elements, PyTorch 2.13); every test here costs 0.1 us.
    """
    return (
        type(x) in _PLAIN_TENSORS
        and not (x.requires_grad and torch.is_grad_enabled())
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_torch_function_mode_enabled()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not torch._C._autograd._profiler_enabled()
        and not torch._C._get_tracing_state()
    )


def hadamard_transform(
    x: Tensor,
    scale: float | None = None,
    *,
    block_size: int | None = None,
    base: Tensor | None = None,
    signs: Tensor | None = None,
    inverse: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Hadamard transform of the last dimension.

    .. math:: y = \mathrm{scale} \cdot H (\mathrm{signs} \circ x)

    and with ``inverse=True`` :math:`y = \mathrm{signs} \circ (\mathrm{scale} \cdot H^T x)`, so that, with the default
    scale, inverse undoes forward. For a power of two H is Sylvester's matrix,
    :math:`H_{ij} = (-1)^{\mathrm{popcount}(i \wedge j)}`; another size :math:`m \cdot 2^k` has
    :math:`H = H_m \otimes H_{2^k}`, which :func:`hadacore.describe` names and :func:`hadacore.hadamard_matrix` returns.

    Args:
        x: ``(..., n)``, float16, bfloat16 or float32 (float64 on the CPU), any strides; leading dimensions may be empty.
        scale: Factor of the result. None is ``size ** -0.5``, which is orthonormal where the entries of H are +1 and -1. With
            an orthonormal ``base`` (entries near ``m ** -0.5``) pass ``(m / size) ** 0.5``.
        block_size: Transform blocks of this many elements separately; divides ``n``. None transforms all ``n``.
        base: An ``(m, m)`` matrix to use as :math:`H_m`, of any values, in x's dtype or float32 (float64 for float64), any
            strides; the size is :math:`m \cdot 2^k`. It may require a gradient. None is this library's.
        signs: ``(n,)`` of +1 and -1 (only the sign bit is looked at on a GPU), a randomized transform at no cost. In
            another dtype than ``x`` it is converted first.
        inverse: Apply the transpose, and the signs after it.
        out: Tensor of x's shape, dtype and device for the result; ``x`` itself transforms in place.
        backend: ``"cpu"``, ``"cuda"`` or ``"triton"``, which must take the problem; ``docs/backends.md`` says what each takes.
            None is ``"cuda"`` on NVIDIA GPUs where cuda-core and NVRTC are, ``"triton"`` on any other GPU, else ``"cpu"``.

    Returns:
        A tensor of x's shape and dtype, contiguous unless it is ``out``.

    Raises:
        TypeError: Wrong type or dtype of an argument.
        ValueError: Wrong shape or device; a size without a known Hadamard matrix (the message names the nearest sizes and the
            block sizes that have one); ``out`` overlaps ``x``; a gradient through ``out=`` is asked for; no such backend, or not
            for this device or problem.
        BackendUnavailableError: What the backend needs is missing; the message says what to install.

    Numerics: 16-bit input is computed in fp32 and rounded once; the error is that of correct rounding (ratio at most
    1.002). float16 input up to 65504 never overflows inside. A row's result depends on that row alone, bit for bit. A
    row that holds an infinity or NaN comes out without finite values.

    Source: the blocked algorithm is that of HadaCore (arXiv 2412.08832) with the corrections of ``docs/design.md``.

    >>> hadamard_transform(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
    [5.0, -1.0, -2.0, 0.0]
    """
    n = checks.check_input(x)
    # The usual cases of check_block_size, check_scale and ops.new_output stand here without the call: together 0.3 of the
    # 6.4 us that Python takes to the launch, more than the eager call has to spare against torch.neg.
    if base is not None:
        base, size = checks.check_base(base, x, block_size)
    else:
        size = check_size(n) if block_size is None else checks.check_block_size(n, block_size)
    factor = size**-0.5 if scale is None else checks.check_scale(scale, size)
    if signs is not None:
        signs = checks.check_signs(signs, x)
    if out is not None:
        return _into(x, size, factor, signs, inverse, base, out, backend)
    if not torch.compiler.is_compiling():
        if _can_skip_dispatcher(x) and not (base is not None and base.requires_grad):
            transform = ops.backend_of(x) if backend is None else ops.named_backend(x, backend)
            if transform is not None:
                result = torch.empty_like(x) if x.is_contiguous() else ops.new_output(x)
                transform(x, result, size, factor, signs, inverse, base)
                return result
        elif _is_differentiated_functionally():
            return ops.differentiable_transform(x, size, factor, signs, inverse, base, backend)
    if backend is not None:
        check_backend(backend, x.device)
    transformed: Tensor = torch.ops.hadacore.hadamard_transform(x, size, factor, signs, inverse, base, backend)
    return transformed


def _is_differentiated_functionally() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation is at work."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def _into(
    x: Tensor, size: int, factor: float, signs: Tensor | None, inverse: bool, base: Tensor | None, out: Tensor,
    backend: str | None,
) -> Tensor:  # fmt: skip
    target = checks.check_out(x, out)
    if base is not None:
        checks.check_base_beside_out(base, out)
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise ValueError("out= and in-place transforms record no gradient, got a dual tensor; leave out= away")
    if not torch.compiler.is_compiling() and _can_skip_dispatcher(x) and type(out) in _PLAIN_TENSORS:
        transform = ops.backend_of(x) if backend is None else ops.named_backend(x, backend)
        if transform is not None:
            transform(x, target, size, factor, signs, inverse, base)
            ops.increment_version(out)
            return out
    if backend is not None:
        check_backend(backend, x.device)
    if target is x:
        torch.ops.hadacore.hadamard_transform_(x, size, factor, signs, inverse, base, backend)
    else:
        torch.ops.hadacore.hadamard_transform_out(x, size, factor, signs, inverse, base, out, backend)
    return out


def hadamard_transform_(
    x: Tensor,
    scale: float | None = None,
    *,
    block_size: int | None = None,
    base: Tensor | None = None,
    signs: Tensor | None = None,
    inverse: bool = False,
    backend: str | None = None,
) -> Tensor:
    """:func:`hadamard_transform` in place: the same arguments, numerics and errors, with ``out=x``. Returns ``x``.

    >>> x = torch.tensor([1.0, 1.0])
    >>> hadamard_transform_(x, scale=1.0).tolist(), x.tolist()
    ([2.0, 0.0], [2.0, 0.0])
    """
    return hadamard_transform(
        x, scale, block_size=block_size, base=base, signs=signs, inverse=inverse, out=x, backend=backend
    )
