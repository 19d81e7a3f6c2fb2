"""Other packages with a Hadamard transform, to be measured beside this one: one table."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hadacore.benchmarking.timing import Operation

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)
_ALL = (*_SIXTEEN_BIT, torch.float32)

# A package's transform, found in its imported module, as an operation for rows of a size.
Factory = Callable[[Any, int], Operation]


def _scaled(module: Any, size: int) -> Operation:
    transform, scale = module.hadamard_transform, size**-0.5
    return lambda x, y: transform(x, scale)


def _scaled_forward(module: Any, size: int) -> Operation:
    transform, scale = module.hadamard_transform_fwd, size**-0.5
    return lambda x, y: transform(x, scale)


def _orthonormal(module: Any, size: int) -> Operation:
    transform = module.hadamard_transform
    return lambda x, y: transform(x)


@dataclass(frozen=True)
class Peer:
    """A package.

    Attributes:
        name: In columns and legends.
        modules: Where its transform is, the newest place first.
        factory: Makes an operation of the module.
        dtypes: Types it takes.
        minimum_size: Smallest transform it gets right.
        maximum_size: Largest transform.
        install: What to install.
        device_types: Kinds of devices it runs on.
    """

    name: str
    modules: tuple[str, ...]
    factory: Factory
    dtypes: tuple[torch.dtype, ...]
    minimum_size: int
    maximum_size: int
    install: str
    device_types: tuple[str, ...] = ("cuda",)

    def supports(self, dtype: torch.dtype, size: int) -> bool:
        """Whether it transforms rows of ``size`` elements of this type."""
        return dtype in self.dtypes and self.minimum_size <= size <= self.maximum_size


# Both scaled ones return uninitialised memory or a special case for size 1, so they start at 2.
PEERS: tuple[Peer, ...] = (
    Peer(
        "fast_hadamard_transform", ("fast_hadamard_transform",), _scaled, _ALL, 2, 32768,
        "fast-hadamard-transform (Dao-AILab), from its repository",
    ),
    Peer("quack", ("quack.transform.hadamard", "quack.hadamard"), _scaled_forward, _ALL, 2, 32768, "quack-kernels"),
    Peer(
        "hadacore_original", ("faster_hadamard_transform",), _orthonormal, _SIXTEEN_BIT, 2, 32768,
        "the extension published with arXiv 2412.08832",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class InstalledPeer:
    """A peer whose module could be imported."""

    peer: Peer
    module: Any

    @property
    def name(self) -> str:
        """The peer's name."""
        return self.peer.name

    def operation(self, dtype: torch.dtype, size: int) -> Operation | None:
        """Its transform as an operation, or None where it has none."""
        return self.peer.factory(self.module, size) if self.peer.supports(dtype, size) else None


def _import(peer: Peer) -> Any:
    """The peer's module.

    Raises:
        ImportError: None of its modules is there; anything else that its import raises passes through.
    """
    for name in peer.modules[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # the package is there, something it needs is not
    return importlib.import_module(peer.modules[-1])


def find_peers(
    device_type: str, peers: tuple[Peer, ...] | None = None
) -> tuple[tuple[InstalledPeer, ...], dict[str, str]]:
    """The peers that can run on a kind of device, and why each of the others cannot, by name."""
    found, reasons = [], {}
    for peer in PEERS if peers is None else peers:
        if device_type not in peer.device_types:
            reasons[peer.name] = f"runs on {' and '.join(peer.device_types)}, not on {device_type}"
            continue
        try:
            found.append(InstalledPeer(peer, _import(peer)))
        except ModuleNotFoundError as error:
            missing = any(error.name and name.split(".")[0] == error.name for name in peer.modules)
            reasons[peer.name] = f"not installed ({peer.install})" if missing else f"import failed: {error}"
        except Exception as error:  # a foreign extension may fail to import in any way; it must not end the run
            reasons[peer.name] = f"import failed: {type(error).__name__}: {error}"
    return tuple(found), reasons
