"""A linear layer whose weight was rotated and quantized ahead of time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hadacore import checks
from hadacore.formats import BY_NAME, PER_TENSOR, Format, Granularity
from hadacore.functional import hadamard_transform
from hadacore.matrices import describe
from hadacore.prologues import Prologue
from hadacore.quantization import arguments, layouts
from hadacore.quantization.functional import hadamard_quantize, static_scale
from hadacore.quantization.products import GEMMS
from hadacore.quantization.result import QuantizedTensor

_FILE_VERSION = 1
_METADATA_KEY = "hadacore.RotatedLinear"


class RotatedLinear(nn.Module):
    r"""``x @ W.T + bias`` computed as quantize(rotate(x)) times quantize(rotate(W)).

    With an orthonormal rotation R, :math:`W x = (W R^T)(R x)`: the weight's rows are rotated once and quantized, the
    activation's rows at each call, in the same pass as their quantization. Made by :meth:`from_linear` or :meth:`load`.

    Args:
        weight: The rotated, quantized weight, ``(out_features, in_features)``.
        gemm: ``"dequantize"``: both factors dequantized to fp32 and multiplied, any format, any device, no faster than an fp32
            layer. ``"int_mm"``: :func:`torch._int_mm`, exact in int32, for INT8; on GPUs it wants more than 16 rows and
            multiples of 8. ``"scaled_mm"``: :func:`torch.nn.functional.scaled_mm` of FP8 E4M3 (scale per tensor, row or 128
            elements), MXFP8 or NVFP4, bfloat16 results, where the device has it; features in multiples of 16. FP8 per tensor
            and row is for GPUs from sm_89 and for torch before 2.10, too, 128 for Hopper, MXFP8 and NVFP4 for GPUs from
            sm_100.
        block_size: Of the rotation, as in :func:`hadacore.hadamard_transform`.
        signs: ``(in_features,)`` of +1 and -1, or None.
        bias: ``(out_features,)``, or None.
        clip_ratio: Of the activation, as in :func:`hadacore.hadamard_quantize`.
        activation_scale: The activation's scale for granularity ``"tensor"``, or its NVFP4 global scale (None is 1): a number or
            a float32 tensor of one element. :func:`hadacore.static_scale` makes one of a largest magnitude.

    Raises:
        ValueError: A GEMM that does not take the format; wrong shapes; a scale that is missing or not looked at.

    A device that has no such product says so at the first call, as a :class:`hadacore.BackendUnavailableError`.

    Numerics: the result differs from the fp32 layer's by the quantization errors of both factors; nothing else but fp32
    (``"scaled_mm"``: bfloat16) rounding. The result has x's dtype.

    >>> layer = nn.Linear(64, 32)
    >>> fast = RotatedLinear.from_linear(layer, "int8", gemm="int_mm")
    >>> fast
    RotatedLinear(in_features=64, out_features=32, format=int8, granularity=row, gemm=int_mm, bias=True)
    >>> x = torch.randn(8, 64)
    >>> bool((fast(x) - layer(x)).norm() < 0.02 * layer(x).norm())
    True
    """

    weight_codes: Tensor
    weight_scales: Tensor
    weight_global_scale: Tensor | None
    activation_scale: Tensor | None
    signs: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: QuantizedTensor,
        *,
        gemm: str,
        block_size: int | None = None,
        signs: Tensor | None = None,
        bias: Tensor | None = None,
        clip_ratio: float = 1.0,
        activation_scale: float | Tensor | None = None,
    ) -> None:
        super().__init__()
        if gemm not in GEMMS:
            raise ValueError(f"gemm must be one of {', '.join(GEMMS)}, got {gemm!r}")
        reason = GEMMS[gemm].why_not(weight)
        if reason is not None:
            raise ValueError(f"gemm={gemm!r} {reason}; use gemm='dequantize'")
        found = BY_NAME[weight.format]
        given = _check_activation_scale(activation_scale, found, weight)
        self.out_features, self.in_features = weight.shape
        self.format, self.granularity, self.swizzled = weight.format, weight.granularity, weight.swizzled
        self.gemm, self.block_size = gemm, checks.check_block_size(self.in_features, block_size)
        self.clip_ratio = arguments.check_clip_ratio(clip_ratio)
        if bias is not None and bias.shape != (self.out_features,):
            raise ValueError(f"bias must have shape {(self.out_features,)}, got {tuple(bias.shape)}")
        if signs is not None and signs.shape != (self.in_features,):
            raise ValueError(f"signs must have shape {(self.in_features,)}, got {tuple(signs.shape)}")
        self.register_buffer("weight_codes", weight.codes)
        self.register_buffer("weight_scales", _as_stored(weight))
        self.register_buffer("weight_global_scale", weight.global_scale)
        self.register_buffer("activation_scale", given)
        self.register_buffer("signs", signs)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        format: str,
        *,
        gemm: str,
        granularity: Granularity | None = None,
        block_size: int | None = None,
        signs: Tensor | None = None,
        clip_ratio: float = 1.0,
        activation_scale: float | Tensor | None = None,
    ) -> RotatedLinear:
        """Rotate and quantize a layer's weight.

        Args:
            linear: The layer; it is left as it is.
            format: As in :func:`hadacore.hadamard_quantize`, and so ``granularity``, ``block_size``, ``signs``.
            gemm: As in :class:`RotatedLinear`.
            granularity: For weight and activation.
            block_size: Of the rotation.
            signs: ``(in_features,)`` of +1 and -1.
            clip_ratio: Of the activation; the weight is not clipped.
            activation_scale: As in :class:`RotatedLinear`, from calibration. The weight's scale for ``"tensor"``, and its
                NVFP4 global scale, are made of its largest magnitude.

        Raises:
            TypeError: ``linear`` is no :class:`torch.nn.Linear`.
            ValueError: As :func:`hadacore.hadamard_quantize` and :class:`RotatedLinear`.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        found, values = arguments.check_format(format), linear.weight.detach()
        scale = None
        # Weights are small, and NVFP4's block scales below 2^-6 are subnormal.
        if found.has_global_scale or granularity == PER_TENSOR:
            rotated = hadamard_transform(values.float(), block_size=block_size, signs=signs)
            scale = static_scale(rotated.abs().amax(), format)
        weight = hadamard_quantize(
            values, format, granularity=granularity, scale=scale, block_size=block_size, signs=signs
        )
        return cls(
            weight,
            gemm=gemm,
            block_size=block_size,
            signs=None if signs is None else signs.to(torch.int8),
            bias=linear.bias,
            clip_ratio=clip_ratio,
            activation_scale=activation_scale,
        )

    @property
    def weight(self) -> QuantizedTensor:
        """The rotated, quantized weight."""
        shape = torch.Size((self.out_features, self.in_features))
        return QuantizedTensor(
            self.weight_codes,
            self.weight_scales,
            self.format,
            shape,
            self.granularity,
            self.swizzled,
            self.weight_global_scale,
        )

    def forward(self, x: Tensor, prologue: Prologue | None = None) -> Tensor:
        """The layer's result for x of shape ``(..., in_features)``, or what the prologue takes; of x's dtype."""
        quantized = hadamard_quantize(
            x,
            self.format,
            granularity=self.granularity,
            scale=self.activation_scale,
            prologue=prologue,
            clip_ratio=self.clip_ratio,
            swizzled=self.swizzled,
            block_size=self.block_size,
            signs=self.signs,
        )
        if quantized.shape[-1] != self.in_features:
            raise ValueError(f"x must give rows of {self.in_features} elements, got {quantized.shape[-1]}")
        leading = quantized.shape[:-1]
        if len(leading) != 1:
            quantized = _flattened(quantized)
        y = GEMMS[self.gemm].product(quantized, self.weight)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*leading, self.out_features)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``."""
        parts = [
            f"in_features={self.in_features}, out_features={self.out_features}, format={self.format}",
            f"granularity={self.granularity}, gemm={self.gemm}, bias={self.bias is not None}",
        ]
        if self.block_size != self.in_features:
            parts.append(f"block_size={self.block_size}")
        if self.signs is not None:
            parts.append("signs=True")
        if self.clip_ratio != 1:
            parts.append(f"clip_ratio={self.clip_ratio}")
        return ", ".join(parts)

    def _options(self) -> dict[str, Any]:
        return {
            "version": _FILE_VERSION,
            "matrix": describe(self.block_size),
            "format": self.format,
            "granularity": self.granularity,
            "swizzled": self.swizzled,
            "gemm": self.gemm,
            "block_size": self.block_size,
            "clip_ratio": self.clip_ratio,
            "in_features": self.in_features,
            "out_features": self.out_features,
        }

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: the tensors, and in its metadata the options and how the matrix is constructed.

        Raises:
            ModuleNotFoundError: safetensors is not installed.
        """
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        _, save_file = _safetensors()
        save_file(tensors, str(path), {_METADATA_KEY: json.dumps(self._options())})

    @classmethod
    def load(cls, path: str | Path, *, gemm: str | None = None, device: torch.device | str = "cpu") -> RotatedLinear:
        """Read what :meth:`save` wrote.

        Args:
            path: The file.
            gemm: Another GEMM than the one saved, for another device.
            device: Where the tensors go.

        Raises:
            ModuleNotFoundError: safetensors is not installed.
            ValueError: The file is none of these, of another version, or its matrix is constructed otherwise today.
        """
        safe_open, _ = _safetensors()
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            metadata = (file.metadata() or {}).get(_METADATA_KEY)
            if metadata is None:
                raise ValueError(f"{path} has no metadata {_METADATA_KEY!r}; it was not written by RotatedLinear.save")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)
        options = json.loads(metadata)
        if options["version"] != _FILE_VERSION:
            raise ValueError(
                f"{path} has version {options['version']}, this release reads {_FILE_VERSION}; upgrade hadacore"
            )
        matrix = describe(options["block_size"])
        if options["matrix"] != matrix:
            raise ValueError(
                f"{path} was rotated with {options['matrix']}, but this release has {matrix}; convert the original weight again"
            )
        weight = QuantizedTensor(
            tensors["weight_codes"],
            tensors["weight_scales"],
            options["format"],
            torch.Size((options["out_features"], options["in_features"])),
            options["granularity"],
            options["swizzled"],
            tensors.get("weight_global_scale"),
        )
        return cls(
            weight,
            gemm=options["gemm"] if gemm is None else gemm,
            block_size=options["block_size"],
            signs=tensors.get("signs"),
            bias=tensors.get("bias"),
            clip_ratio=options["clip_ratio"],
            activation_scale=tensors.get("activation_scale"),
        )


def _check_activation_scale(scale: float | Tensor | None, format: Format, weight: QuantizedTensor) -> Tensor | None:
    if scale is None:
        if weight.granularity == PER_TENSOR:
            raise ValueError(
                "one scale for the whole activation needs activation_scale=, from calibration; hadacore.static_scale makes one "
                "of the largest magnitude of the rotated activations"
            )
        return None
    if weight.granularity != PER_TENSOR and not format.has_global_scale:
        raise ValueError(
            f"activation_scale is for granularity {PER_TENSOR!r} and for nvfp4, got {format.name} with granularity "
            f"{weight.granularity!r}, whose scales are computed at each call; leave it away"
        )
    return arguments.fp32_scalar(scale, "activation_scale", weight.codes.device)


def _as_stored(weight: QuantizedTensor) -> Tensor:
    """The scales as the GEMM wants them in memory; a file keeps them row by row."""
    scales = weight.scales
    if weight.block and not weight.swizzled and BY_NAME[weight.format].is_block_major(scales.shape[-1]):
        return scales if scales.stride() == (1, scales.shape[0]) else layouts.block_major(scales)
    return scales


def _flattened(x: QuantizedTensor) -> QuantizedTensor:
    """All leading dimensions as one."""
    codes = x.codes.reshape(-1, x.codes.shape[-1])
    scales = x.scales if x.swizzled or x.block == 0 else x.scales.reshape(-1, x.scales.shape[-1])
    shape = torch.Size((codes.shape[0], x.shape[-1]))
    return QuantizedTensor(codes, scales, x.format, shape, x.granularity, x.swizzled, x.global_scale)


def _safetensors() -> tuple[Any, Any]:
    """``safe_open`` and ``save_file``, which are wanted here only."""
    try:
        from safetensors import safe_open
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'saving and loading needs the package safetensors: pip install "hadacore[safetensors]"'
        ) from error
    return safe_open, save_file
