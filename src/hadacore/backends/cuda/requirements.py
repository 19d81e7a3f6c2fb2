"""Finds cuda.core, and says what to install when it is not there."""

from __future__ import annotations

import functools
import importlib
import threading
from types import ModuleType

import torch

from hadacore.errors import BackendUnavailableError

# cuda.core puts another module in its own place while it is imported: a second thread would find that one half done.
_importing = threading.Lock()


def _advice() -> str:
    major = (torch.version.cuda or "13").split(".")[0]
    return f'Install it with: pip install "hadacore[cuda{major}]" (or "cuda-core[cu{major}]" into this environment)'


@functools.lru_cache(maxsize=1)
def cuda_core() -> ModuleType:
    """The module ``cuda.core``.

    Raises:
        BackendUnavailableError: It, its bindings or the CUDA driver are missing; the message says what to install. Or torch
            is built for AMD GPUs, whose tensors call themselves CUDA tensors too.
    """
    if torch.version.hip:
        raise BackendUnavailableError(
            f"this torch is built for AMD GPUs (ROCm {torch.version.hip}), for which hadacore has no backend in this "
            "release; move the tensor to the CPU"
        )
    try:
        with _importing:
            module = importlib.import_module("cuda.core")
    except ImportError as error:
        raise BackendUnavailableError(
            f"hadacore's CUDA backend needs the package cuda-core, which could not be imported ({error}). {_advice()}"
        ) from error
    return module


@functools.lru_cache(maxsize=1)
def compiler_version() -> tuple[int, int]:
    """The version of NVRTC.

    Raises:
        BackendUnavailableError: NVRTC could not be loaded.
    """
    cuda_core()
    from cuda.bindings import nvrtc

    try:
        status, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as error:  # cuda-pathfinder found no library
        raise BackendUnavailableError(
            f"hadacore's CUDA backend needs NVRTC, which could not be loaded ({error}). {_advice()}"
        ) from error
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendUnavailableError(f"NVRTC did not report its version ({status.name}). {_advice()}")
    return major, minor
