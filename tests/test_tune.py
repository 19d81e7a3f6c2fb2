"""The space of configurations that benchmarks/tune.py searches."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from hadacore.kernels.architectures import BY_NAME
from hadacore.kernels.configurations import BEFORE_EXCHANGE
from hadacore.kernels.stages import stages_of
from tests.benchmarks import load_benchmark


@pytest.fixture(scope="module")
def tune() -> ModuleType:
    return load_benchmark("tune")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_120"])
@pytest.mark.parametrize("code", range(3))
def test_every_size_has_configurations_to_try(tune: ModuleType, code: int, architecture: str) -> None:
    for log2_size in range(16):
        configurations = list(tune.space(code, log2_size, BY_NAME[architecture]))
        assert configurations
        for configuration in configurations:
            assert configuration.runs_on(BY_NAME[architecture])
            assert configuration.threads * configuration.minimum_blocks <= 2048
            stages_of(configuration)  # raises unless every index bit is contracted once
            for point in tune.points_of(configuration):
                early = replace(configuration, programmatic=point)
                assert early.kernel == "exchange_rows" or point != BEFORE_EXCHANGE
