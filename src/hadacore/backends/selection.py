"""Which backend a tensor goes to: the one that is named, or by a rule that looks at what is installed alone.

- A tensor on the CPU: ``cpu``.
- On an NVIDIA GPU: ``cuda``; where cuda-core or NVRTC is missing, ``triton`` if Triton is there.
- On an AMD GPU (whose tensors call themselves CUDA tensors too) or an Intel GPU: ``triton``.

No environment variable and no problem changes that: a backend that does not take a problem says why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from hadacore.backends import Capabilities, Support, cpu, cuda, triton
from hadacore.backends.cuda.requirements import compiler_version
from hadacore.backends.triton.requirements import triton_module
from hadacore.errors import BackendUnavailableError

Transform = Callable[[Tensor, Tensor, int, float, Tensor | None, bool, Tensor | None], None]

BACKENDS: dict[str, Transform] = {"cpu": cpu.transform, "cuda": cuda.transform, "triton": triton.transform}
CAPABILITIES: dict[str, Capabilities] = {
    "cpu": cpu.CAPABILITIES,
    "cuda": cuda.CAPABILITIES,
    "triton": triton.CAPABILITIES,
}


def supports() -> dict[str, Support]:
    """Whether each backend can run here, and why not."""
    return {"cuda": cuda.support(), "triton": triton.support(), "cpu": cpu.support()}


def support_table() -> str:
    """What each backend takes, in Markdown; ``docs/backends.md`` holds it."""
    lines = [
        "| backend | devices | needs | types | powers of two to | base order to | m * 2^k to | quantizes in one pass |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, c in CAPABILITIES.items():
        fused = "no" if not c.fused_formats else f"{', '.join(c.fused_formats)}; {c.fused_granularity}"
        limits = [
            "any" if limit is None else f"{limit:,}" for limit in (c.largest_power, c.largest_order, c.largest_size)
        ]
        cells = [f"`{name}`", c.devices, c.needs, ", ".join(c.dtypes), *limits, fused]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@functools.cache
def default_backend(device_type: str) -> str:
    """The backend of a kind of device where none is named."""
    if device_type == "cpu":
        return "cpu"
    if device_type == "xpu":
        return "triton"
    try:
        compiler_version()
    except BackendUnavailableError:
        try:
            triton_module()
        except BackendUnavailableError:
            return "cuda"  # whose error says what to install
        return "triton"
    return "cuda"


def check_backend(backend: str | None, device: torch.device) -> None:
    """Check the name of a backend, and that it takes tensors on ``device``.

    Raises:
        ValueError: There is no such backend, or not for this device.
    """
    if backend is None:
        return
    if backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {', '.join(BACKENDS)}, got {backend!r}")
    if device.type == "meta":
        return
    if (backend == "cpu") != (device.type == "cpu") and backend != "triton":
        where = "the CPU" if backend == "cpu" else "NVIDIA GPUs"
        fitting = "backend=None" if device.type in ("cpu", "cuda", "xpu") else "another device"
        raise ValueError(
            f"backend={backend!r} takes tensors on {where}, got one on {device}; move it there, or use {fitting}"
        )


def _choose_for_cuda(
    x: Tensor, out: Tensor, size: int, scale: float, signs: Tensor | None, inverse: bool, base: Tensor | None
) -> None:
    """Stands for CUDA tensors until the first call, so that later ones go straight to what it chose."""
    DEFAULTS["cuda"] = BACKENDS[default_backend("cuda")]
    DEFAULTS["cuda"](x, out, size, scale, signs, inverse, base)


#: The transform for a kind of device where no backend is named.
DEFAULTS: dict[str, Transform] = {"cpu": cpu.transform, "cuda": _choose_for_cuda, "xpu": triton.transform}
