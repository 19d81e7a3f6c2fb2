"""Finds Triton, and says what to install when it is not there."""

from __future__ import annotations

import functools
from types import ModuleType

import torch

from hadacore.backends import Support
from hadacore.errors import BackendUnavailableError

OLDEST_VERSION = (3, 4)
OLDEST_CAPABILITY = (8, 0)
#: On compute capability 10 and 11, whose products go through tensor memory: 3.6 makes a trap of 32768, 28672 and 11008.
OLDEST_WITH_TENSOR_MEMORY = (3, 9)


def _version(module: ModuleType) -> tuple[int, int]:
    major, minor = str(module.__version__).split(".")[:2]
    return int(major), int(minor)


@functools.lru_cache(maxsize=1)
def triton_module() -> ModuleType:
    """The module ``triton``.

    Raises:
        BackendUnavailableError: It is missing or too old; the message says what to install.
    """
    try:
        import triton
    except ImportError as error:
        raise BackendUnavailableError(
            f"hadacore's Triton backend needs the package triton, which could not be imported ({error}). Install it with: "
            'pip install "hadacore[triton]"; torch for GPUs brings it along on Linux'
        ) from error
    module: ModuleType = triton
    if _version(module) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise BackendUnavailableError(
            f"hadacore's Triton backend needs triton {oldest} or newer, got {module.__version__}; it comes with torch, "
            "install a newer one"
        )
    return module


def architecture_refusal(major: int) -> str | None:
    """Why this Triton does not compile for NVIDIA GPUs of compute capability ``major``, or None if it does."""
    module = triton_module()
    if major not in (10, 11) or _version(module) >= OLDEST_WITH_TENSOR_MEMORY:
        return None
    oldest = ".".join(map(str, OLDEST_WITH_TENSOR_MEMORY))
    return (
        f"triton {module.__version__} compiles some kernels to a trap for compute capability {major}; the Triton backend "
        f"needs triton {oldest} or newer there: install it, or use backend='cuda'"
    )


@functools.lru_cache(maxsize=1)
def is_interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU (``TRITON_INTERPRET=1`` before its first import), as the tests do."""
    from hadacore.backends.triton import kernels

    return not isinstance(kernels.butterflies, triton_module().JITFunction)


def _gpu(device: torch.device | None) -> torch.device | None:
    if device is not None:
        return device
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.xpu.is_available():
        return torch.device("xpu", torch.xpu.current_device())
    return None


def device_refusal(device: torch.device) -> str | None:
    """Why the backend takes no tensors on ``device``, or None if it does. Triton must be there."""
    if is_interpreted():
        return None
    if device.type not in ("cuda", "xpu"):
        return f"the Triton backend takes tensors on NVIDIA, AMD and Intel GPUs, got one on {device}; use backend='cpu'"
    if device.type == "cuda" and not torch.version.hip:
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST_CAPABILITY:
            return (
                f"the Triton backend needs an NVIDIA GPU of compute capability {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]} "
                f"or newer, got {capability[0]}.{capability[1]}; move the tensor to the CPU"
            )
        return architecture_refusal(capability[0])
    return None


def support(device: torch.device | None = None) -> Support:
    """Whether the Triton backend can run on ``device`` (the current GPU by default)."""
    try:
        version = triton_module().__version__
    except BackendUnavailableError as error:
        return Support(False, str(error))
    if is_interpreted():
        return Support(True, f"triton {version}, interpreted on the CPU (TRITON_INTERPRET), for tests")
    found = _gpu(device)
    if found is None:
        return Support(False, f"triton {version} is installed, but no GPU was found")
    refusal = device_refusal(found)
    if refusal is not None:
        return Support(False, refusal)
    name = torch.get_device_module(found).get_device_name(found)
    return Support(True, f"{name}, triton {version}")
