"""Rotate and quantize: the public functions."""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore import checks
from hadacore.backends.selection import check_backend
from hadacore.formats import E4M3, PER_TENSOR, Granularity, round_to_float32
from hadacore.prologues import Prologue, check_prologue
from hadacore.quantization import arguments, operators  # noqa: F401  (registers the operator)
from hadacore.quantization.result import QuantizedTensor


def hadamard_quantize(
    x: Tensor,
    format: str,
    *,
    granularity: Granularity | None = None,
    scale: float | Tensor | None = None,
    prologue: Prologue | None = None,
    clip_ratio: float = 1.0,
    seed: int | None = None,
    swizzled: bool | None = None,
    block_size: int | None = None,
    base: Tensor | None = None,
    transform_scale: float | None = None,
    signs: Tensor | None = None,
    inverse: bool = False,
    backend: str | None = None,
) -> QuantizedTensor:
    r"""Rotate the last dimension and quantize the result.

    .. math:: y = \mathrm{transform\_scale} \cdot H (\mathrm{signs} \circ \mathrm{prologue}(x)), \qquad
              y \approx \mathrm{value}(\mathrm{code}) \cdot \mathrm{scale}

    The quantizer sees y in fp32, not rounded to 16 bits before.

    Args:
        x: ``(..., n)``, or ``(..., 2 n)`` with a prologue on one concatenated tensor. float16, bfloat16 or float32, any
            strides; leading dimensions may be empty.
        format: ``"fp8_e4m3"``, ``"fp8_e5m2"``, ``"int8"``, ``"int4"``, ``"mxfp8"``, ``"mxfp4"`` or ``"nvfp4"``.
        granularity: What shares a scale: ``"tensor"`` (FP8), ``"row"`` (FP8, INT8, INT4), or a number of consecutive
            elements (FP8 128; INT4 32, 64, 128; MXFP8 and MXFP4 32; NVFP4 16), a divisor of n. None is ``"row"``, and for
            the last three their block.
        scale: The decode scale of the whole tensor: needed for ``"tensor"``; for NVFP4 the optional global scale, 1 if
            None. A number, or a float32 tensor of one element on x's device, from 2^-126 to 2^118 (not looked at on a
            GPU). :func:`static_scale` makes one.
        prologue: From :mod:`hadacore.prologues`; computed in fp32 before the rotation.
        clip_ratio: The largest code stands for this share of the largest magnitude, 2^-10 to 1; what is beyond saturates.
            No effect on ``"tensor"``.
        seed: Round stochastically (MXFP4, NVFP4), from 0 to 2^63 - 1; the random number of an element depends on the seed
            and its index alone. None rounds to nearest, ties to even.
        swizzled: Scales of MXFP8, MXFP4 and NVFP4 in the 32x4x4 order that GEMMs load (the default there), or plain.
        block_size: As in :func:`hadacore.hadamard_transform`, and so the next four.
        base: An ``(m, m)`` matrix to use as :math:`H_m`, in x's dtype or float32, any strides. None is this library's.
        transform_scale: Factor of the rotated values; None is ``size ** -0.5``, as ``scale`` there.
        signs: ``(n,)`` of +1 and -1.
        inverse: Apply the transpose, and the signs after it.
        backend: As in :func:`hadacore.hadamard_transform`. ``"triton"`` rotates and quantizes in one kernel, or says why it does
            not: ``docs/backends.md`` has the formats.

    Returns:
        A :class:`QuantizedTensor`, which unpacks into ``codes, scales``.

    Raises:
        TypeError: Wrong type or dtype of an argument.
        ValueError: Wrong shape, size, device or value; a row that is no multiple of the block; a gradient is asked for.

    Numerics: the rules for scales and codes are stated operation by operation in ``docs/quantization.md``. A row of zeros
    has a finite scale. NaN or infinity makes the scale of its row or block NaN, and touches no other.
    On a GPU, rotated values of 16-bit ``x`` are off by 2.2e-4 of a row's root mean square at random (``docs/numerics.md``),
    which adds less than 0.05 % to the error of any format.
    :func:`hadacore.plan_quantize` says whether one kernel does it.

    Source: OCP MX 1.0, OFP8 1.0, NVIDIA's NVFP4, see :mod:`hadacore.formats`; rotation before rounding is QuaRot's
    (arXiv 2404.00456).

    >>> q = hadamard_quantize(torch.tensor([[4.0, 0.0, 0.0, 0.0]]), "int8")
    >>> q.codes.tolist(), q.scales.shape, q.dequantize().tolist()
    ([[127, 127, 127, 127]], torch.Size([1, 1]), [[2.0, 2.0, 2.0, 2.0]])
    """
    found = arguments.check_format(format)
    if backend is not None and isinstance(x, Tensor):
        check_backend(backend, x.device)
    n = check_prologue(prologue, x, arguments.check_quantized_input(x))
    chosen, block = arguments.check_granularity(granularity, found, n)
    if base is not None:
        base, size = arguments.check_base(base, x, n, block_size)
    else:
        size = checks.check_block_size(n, block_size)
    factor = checks.check_scale(transform_scale, size)
    if signs is not None:
        signs = checks.check_signs(signs, x if x.shape[-1] == n else x[..., :n])
    given = arguments.check_static_scale(scale, found, chosen, x.device)
    is_swizzled = arguments.check_swizzled(swizzled, found)
    codes, scales = torch.ops.hadacore.hadamard_quantize(
        x,
        found.name,
        block,
        given,
        arguments.check_clip_ratio(clip_ratio),
        arguments.check_seed(seed, found),
        is_swizzled,
        size,
        factor,
        signs,
        bool(inverse),
        "" if prologue is None else prologue.description.name,
        [] if prologue is None else list(prologue.operands),
        float(getattr(prologue.description, "epsilon", 0.0)) if prologue is not None else 0.0,
        None if prologue is None else prologue.residual,
        base,
        backend,
    )
    leading = x.shape[:-1]
    if block and not is_swizzled:
        scales = scales.view(*leading, n // block)
    shape = torch.Size((*leading, n))
    return QuantizedTensor(codes, scales, found.name, shape, chosen, is_swizzled, given if block else None)


def static_scale(amax: float | Tensor, format: str) -> Tensor:
    """The scale of a whole tensor with a largest magnitude: FP8's for ``"tensor"``, or NVFP4's global scale.

    ``max(amax * fp32(1 / m), 2^-126)`` in fp32, m being 448, 57344, or 6 * 448 for NVFP4, whose largest block scale is
    then E4M3's maximum.

    Args:
        amax: Largest magnitude of the rotated values, from calibration: a number, or a float32 tensor of one element.
        format: ``"fp8_e4m3"``, ``"fp8_e5m2"`` or ``"nvfp4"``.

    Returns:
        An fp32 tensor without dimensions, on amax's device.

    Raises:
        TypeError: ``amax`` is neither.
        ValueError: Another format.

    >>> static_scale(448.0, "fp8_e4m3").item()
    1.0
    """
    found = arguments.check_format(format)
    if PER_TENSOR not in found.granularities and not found.has_global_scale:
        raise ValueError(f"a scale of the whole tensor is for fp8_e4m3, fp8_e5m2 and nvfp4, got {found.name!r}")
    if isinstance(amax, Tensor):
        if amax.dtype != torch.float32 or amax.numel() != 1:
            raise TypeError(
                f"amax must be one float32, got {amax.dtype} of shape {tuple(amax.shape)}; use .amax().float()"
            )
        value = amax.detach().reshape(())
    elif isinstance(amax, (int, float)) and not isinstance(amax, bool):
        value = torch.tensor(float(amax), dtype=torch.float32)
    else:
        raise TypeError(f"amax must be a number or a float32 tensor, got {type(amax).__name__}")
    largest = found.encoding.maximum * (E4M3.maximum if found.has_global_scale else 1.0)
    return (value * round_to_float32(1.0 / largest)).clamp(min=2.0**-126)
