"""Fixtures shared by the suite. Tests with the ``device`` fixture run on the CPU, and on a GPU where there is one.

Where there is none, Triton interprets its kernels on the CPU. It decides that when it is first imported.
"""

from __future__ import annotations

import os

import pytest
import torch

if not (torch.cuda.is_available() or torch.xpu.is_available()):
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests, with the reason, where the CUDA backend cannot run, and Triton's where that cannot."""
    from hadacore.backends import cuda, triton

    for mark, name, support in (("gpu", "CUDA", cuda.support()), ("triton", "Triton", triton.support())):
        if support:
            continue
        skip = pytest.mark.skip(reason=f"{name} backend unavailable: {support.reason}")
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(skip)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that the package runs on."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20260)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors gain nothing from torch's threads, and lose 100x where workers share two cores."""
    torch.set_num_threads(1)
