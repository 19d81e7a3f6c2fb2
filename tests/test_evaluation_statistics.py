"""Statistics of evaluations against closed forms, and rows of the table."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadacore.attention import RECIPES
from hadacore.evaluation.rows import REFERENCE, ROWS, rows_named
from hadacore.evaluation.statistics import Mean, compare, mcnemar, mean


def test_mean_of_right_answers() -> None:
    """Of k ones among n: k/n and sqrt(p (1 - p) / (n - 1))."""
    for right, n in ((1, 2), (3, 10), (650, 1000)):
        found = mean([1.0] * right + [0.0] * (n - right))
        p = right / n
        assert found.value == pytest.approx(p)
        assert found.error == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


@given(st.integers(2, 200), st.floats(-10, 10), st.floats(0.1, 10))
def test_mean_of_equal_steps(n: int, start: float, step: float) -> None:
    """Of an arithmetic sequence: the middle, and step * sqrt((n + 1) / 12)."""
    found = mean([start + step * i for i in range(n)])
    assert found.value == pytest.approx(start + step * (n - 1) / 2, abs=1e-9)
    assert found.error == pytest.approx(step * math.sqrt((n + 1) / 12))


def test_mean_of_one_and_of_none() -> None:
    assert mean([3.0]).value == 3.0 and math.isnan(mean([3.0]).error)
    with pytest.raises(ValueError, match="needs at least one value, got none"):
        mean([])


@given(st.integers(1, 2000))
def test_mcnemar_when_all_go_one_way(n: int) -> None:
    """Both tails of n coins that all agree: 2 * 2^-n."""
    assert mcnemar(n, 0) == mcnemar(0, n) == pytest.approx(2.0 ** (1 - n) if n < 1074 else 0.0)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_sum_over_splits_at_least_as_uneven(lost: int, won: int) -> None:
    n = lost + won
    as_uneven = sum(math.comb(n, i) for i in range(n + 1) if abs(2 * i - n) >= abs(lost - won))
    assert mcnemar(lost, won) == pytest.approx(as_uneven / 2**n)
    assert mcnemar(lost, won) == mcnemar(won, lost)


def test_mcnemar_known_values() -> None:
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1.0
    assert mcnemar(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    with pytest.raises(ValueError, match="0 or more, got -1 and 2"):
        mcnemar(-1, 2)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_paired_accuracy(pairs: list[tuple[bool, bool]]) -> None:
    """(won - lost) / n, with error sqrt(((won + lost) - (won - lost)^2 / n) / (n (n - 1)))."""
    now, before = [p[0] for p in pairs], [p[1] for p in pairs]
    found = compare(now, before, [0.0] * len(pairs), [0.0] * len(pairs))
    n, won, lost = len(pairs), found.won, found.lost
    assert won == sum(a and not b for a, b in pairs) and lost == sum(b and not a for a, b in pairs)
    assert found.accuracy_change.value == pytest.approx((won - lost) / n)
    assert found.accuracy_change.value == pytest.approx(sum(now) / n - sum(before) / n)
    error = math.sqrt(((won + lost) - (won - lost) ** 2 / n) / (n * (n - 1)))
    assert found.accuracy_change.error == pytest.approx(error, abs=1e-12)
    assert found.p_value == mcnemar(lost, won)


def test_paired_likelihoods() -> None:
    found = compare([True] * 3, [True] * 3, [-1.0, -2.0, -3.0], [-1.5, -2.0, -2.0])
    assert found.log_likelihood_change.value == pytest.approx((0.5 + 0 - 1.0) / 3)
    assert found.accuracy_change == Mean(0.0, 0.0)
    with pytest.raises(ValueError, match=r"same questions in both rows, got \[2, 3\]"):
        compare([True] * 3, [True] * 3, [0.0] * 3, [0.0] * 2)


def test_every_recipe_has_a_row() -> None:
    assert [row.name for row in ROWS] == list(RECIPES)
    published = {row.name: row.published for row in ROWS if row.published is not None}
    assert published == {"fp16": 65.38, "fp8": 64.40, "fp8_rotated": 65.09, "fp8_explicit": 65.45}


def test_documentation_lists_the_rows() -> None:
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    lines = [
        line for line in text.partition("## The rows")[2].partition("## ")[0].splitlines() if line.startswith("| `")
    ]
    listed = [name for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert listed == [row.name for row in ROWS]
    published = {line.split("`")[1]: line.split("|")[3].strip() for line in lines}
    for row in ROWS:
        if row.name in published:
            assert published[row.name] == ("" if row.published is None else f"{row.published:.2f}")


def test_rows_by_name() -> None:
    assert rows_named(None) == ROWS and ROWS[0].name == REFERENCE
    assert [row.name for row in rows_named(["int4_kv", "fp8"])] == ["fp16", "fp8", "int4_kv"]
    with pytest.raises(ValueError, match=r"rows must be some of fp16, fp8, .*got 'fp4'"):
        rows_named(["fp4"])
