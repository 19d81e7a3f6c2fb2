"""Loads compiled kernels onto GPUs, once each, also while a CUDA graph is being captured."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from hadacore.backends.cuda.compiler import cached_compile, object_code
from hadacore.backends.cuda.requirements import cuda_core

_lock = threading.RLock()
_loaded: dict[tuple[str, tuple[tuple[str, str], ...], str, int], Any] = {}


def _check(status: Any, what: str) -> None:
    if int(status) != 0:
        raise RuntimeError(f"{what} failed: {status.name}")


@contextlib.contextmanager
def _relaxed_capture() -> Iterator[None]:
    """Loading a module is forbidden in a thread that captures a graph in global mode; relax that meanwhile."""
    from cuda.bindings import driver

    mode = driver.CUstreamCaptureMode
    status, previous = driver.cuThreadExchangeStreamCaptureMode(mode.CU_STREAM_CAPTURE_MODE_RELAXED)
    _check(status, "cuThreadExchangeStreamCaptureMode")
    try:
        yield
    finally:
        driver.cuThreadExchangeStreamCaptureMode(previous)


def _load(
    source: str, macros: tuple[tuple[str, str], ...], architecture: str, entry: str, shared_bytes: int, device_index: int,
    *, refresh: bool,
) -> Any | None:  # fmt: skip
    """The loaded kernel, or None if the cache had one that the driver rejects."""
    from cuda.bindings import driver

    compiled, from_cache = cached_compile(source, macros, architecture, refresh=refresh)
    core = cuda_core()
    try:
        kernel = object_code(compiled).get_kernel(entry)
        # Lazy loading would otherwise happen at the first launch, perhaps inside a capture.
        status, _ = driver.cuKernelGetFunction(kernel.handle)
        _check(status, "cuKernelGetFunction")
    except Exception:
        if not from_cache:
            raise
        return None
    if shared_bytes > 48 * 1024:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        (status,) = driver.cuKernelSetAttribute(
            attribute, shared_bytes, kernel.handle, core.Device(device_index).device_id
        )
        _check(status, "cuKernelSetAttribute")
    return kernel


def load_kernel(
    source: str,
    macros: tuple[tuple[str, str], ...],
    architecture: str,
    entry: str,
    shared_bytes: int,
    device_index: int,
) -> Any:
    """The kernel, compiled, loaded, and ready to launch with ``shared_bytes`` on the current device.

    A cached kernel that the driver rejects (another driver wrote it) is compiled again.
    """
    key = (source, macros, architecture, device_index)
    kernel = _loaded.get(key)
    if kernel is not None:
        return kernel
    with _lock, _relaxed_capture():
        kernel = _loaded.get(key)
        if kernel is None:
            arguments = (source, macros, architecture, entry, shared_bytes, device_index)
            kernel = _load(*arguments, refresh=False)
            if kernel is None:
                kernel = _load(*arguments, refresh=True)
            _loaded[key] = kernel
    return kernel
