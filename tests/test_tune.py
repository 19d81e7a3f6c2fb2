"""The space of configurations that benchmarks/tune.py searches."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from hadacore.kernels.architectures import BY_NAME
from hadacore.kernels.configurations import BEFORE_EXCHANGE
from hadacore.kernels.stages import stages_of

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "tune.py"


@pytest.fixture(scope="module")
def tune() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tune", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["tune"] = module
    specification.loader.exec_module(module)
    return module


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
