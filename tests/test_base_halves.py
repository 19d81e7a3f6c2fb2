"""Bases of Paley's second construction as a product of half their order: the formula, and which sizes take it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from hadacore.formats import BY_NAME as FORMATS
from hadacore.formats import Quantizer
from hadacore.kernels.architectures import ARCHITECTURES, BY_NAME
from hadacore.kernels.base_configurations import (
    BASE_OF_ELEMENTS,
    LARGEST_ORDER,
    BaseConfiguration,
    base_candidates,
    choose_base,
    has_halves,
    panel_candidates,
)
from hadacore.kernels.base_signs import dense_base
from hadacore.kernels.configurations import NO_SIGNS, SIGNS_AFTER, SIGNS_BEFORE
from hadacore.kernels.fusion import fused_prologue, fusion_of
from hadacore.kernels.stages import base_stages
from hadacore.matrices.constructions import Matrix, sylvester
from hadacore.matrices.orders import base_matrix, construction, factor
from hadacore.prologues import GatedActivation, RMSNorm

HOPPER = BY_NAME["sm_90a"]
PALEY_II = [
    m for m in range(12, LARGEST_ORDER + 1, 4) if (found := construction(m)) and found.name.startswith("PaleyII(")
]


def _base(order: int) -> Matrix:
    return base_matrix(factor(order))


def test_orders_of_the_construction_are_marked() -> None:
    marked = [m for m in range(12, LARGEST_ORDER + 1, 4) if (found := construction(m)) and found.conference]
    assert marked == PALEY_II and {36, 148, 924} <= set(marked) and 428 not in marked


@pytest.mark.parametrize("log2_columns", [0, 3])
def test_the_formula_is_the_matrix(log2_columns: int) -> None:
    """([C u, C v] + [-v, u]) S, C - I by the product and the rest by additions, on integers: to the last entry."""
    random = np.random.default_rng(0)
    columns = 1 << log2_columns
    for order in (m for m in PALEY_II if m <= 1024):
        x = random.integers(-99, 100, order * columns)
        panel = x.reshape(order // 2, 2 * columns)
        u, v = panel[:, :columns], panel[:, columns:]
        for transposed in (False, True):
            half = dense_base(order, 0, transposed, True)
            assert half.shape == (order // 2, order // 2) and (np.abs(half) == 1).all()
            sums = half.astype(np.int64) @ panel + np.hstack([u - v, v + u])
            result = sums @ sylvester(log2_columns + 1)
            base = _base(order).astype(np.int64)
            expected = (base.T if transposed else base) @ x.reshape(order, columns) @ sylvester(log2_columns)
            assert np.array_equal(result.reshape(-1), expected.reshape(-1)), order


@pytest.mark.parametrize("rows", [1, 8, 64, 300, 4096])
@pytest.mark.parametrize("code", [0, 1])
def test_all_kernels_of_29568_take_halves(code: int, rows: int) -> None:
    """Whatever the number of rows and the options, or a row's bits would depend on them."""
    for signs in (NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER):
        for strided in (False, True):
            c = choose_base(code, 924, 5, rows, (9, 0), 132, signs, strided)
            assert c.halves and (c.order, c.log2_size, c.size, c.unit_rows) == (462, 6, 29568, 1)
            assert c.wide and c.wgmma and c.signs == signs and c.strided == strided
            assert math.prod(stage.radix for stage in base_stages(c)) == 29568


@pytest.mark.parametrize("format", ["fp8_e4m3", "nvfp4"])
@pytest.mark.parametrize("prologue", [None, GatedActivation("silu", "gate_up"), RMSNorm(1e-5, False)], ids=str)
def test_quantizers_of_29568_take_halves_too(format: str, prologue: GatedActivation | RMSNorm | None) -> None:
    block = 16 if format == "nvfp4" else 29568
    fused = None if prologue is None else fused_prologue(prologue, 29568)
    found = base_candidates(1, 924, 5, HOPPER, fusion=fusion_of(Quantizer(FORMATS[format], block), 29568, False, fused))
    assert found and all(c.halves and c.runs_on(HOPPER) for c in found)
    assert len({(c.wgmma, c.wide) for c in found}) == 1


def test_others_keep_the_dense_base() -> None:
    for architecture in ARCHITECTURES:
        found = base_candidates(1, 924, 5, architecture)
        assert all(c.halves == architecture.has_wgmma and c.size == 29568 for c in found)
    assert not any(c.halves for c in base_candidates(2, 924, 5, HOPPER))
    assert not any(c.halves for c in base_candidates(1, 924, 5, HOPPER, base=BASE_OF_ELEMENTS))
    for order, log2_columns in ((148, 7), (36, 8), (428, 5), (684, 4)):
        assert not any(c.halves for c in panel_candidates(1, order, log2_columns, HOPPER))


def test_every_order_of_the_construction_has_kernels() -> None:
    """Halves only where the dense base takes more than one block, and the columns leave room for one bit more."""
    taken = set()
    for order in PALEY_II:
        for log2_columns in range(9):
            for code in (0, 2):
                found = panel_candidates(code, order, log2_columns, HOPPER)
                assert all(c.size == order << log2_columns and c.runs_on(HOPPER) for c in found)
                assert len({c.halves for c in found}) == 1
                if found[0].halves:
                    taken.add(log2_columns)
                    assert order > 512 and code == 0 and has_halves(order, log2_columns)
    assert taken == {3, 4, 5, 6}


@pytest.mark.parametrize("changes", [{"wgmma": False}, {"log2_merge": 1}, {"base": BASE_OF_ELEMENTS}], ids=str)
def test_halves_that_cannot_be(changes: dict[str, int]) -> None:
    c = BaseConfiguration(0, 18, 0, 6, 1, order_warps=4, stages=2, wgmma=True, halves=True)
    with pytest.raises(ValueError, match="a base of half the order is this library's, by wgmma"):
        replace(c, **changes)
