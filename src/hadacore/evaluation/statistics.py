"""Statistics of paired measurements: the same questions answered twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error.

    Attributes:
        value: ``sum(x) / n``.
        error: ``sqrt(sum((x - value)^2) / (n - 1) / n)``; NaN for one value.
    """

    value: float
    error: float


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard error of independent values.

    Raises:
        ValueError: There are none.

    >>> mean([1.0, 2.0, 3.0, 4.0])
    Mean(value=2.5, error=0.6454972243679028)
    """
    n = len(values)
    if n == 0:
        raise ValueError("the mean needs at least one value, got none")
    value = math.fsum(values) / n
    if n == 1:
        return Mean(value, math.nan)
    variance = math.fsum((x - value) ** 2 for x in values) / (n - 1)
    return Mean(value, math.sqrt(variance / n))


def mcnemar(lost: int, won: int) -> float:
    """McNemar's exact test: how likely is so uneven a split if each changed answer were as likely to go either way?

        p = min(1, 2 * sum_{i <= min(lost, won)} binomial(lost + won, i) / 2^(lost + won))

    Args:
        lost: Questions answered rightly before and wrongly now.
        won: The reverse.

    Returns:
        The two-sided p-value, 1.0 if no answer changed.

    Raises:
        ValueError: A count is negative.

    Source: Q. McNemar, Psychometrika 12 (1947); the exact version is the sign test on the changed answers.

    >>> mcnemar(9, 1)
    0.021484375
    """
    if lost < 0 or won < 0:
        raise ValueError(f"counts must be 0 or more, got {lost} and {won}")
    changed = lost + won
    tail = sum(math.comb(changed, i) for i in range(min(lost, won) + 1))
    p_value: float = 2 * tail / 2**changed  # of integers, so nothing underflows before the division
    return min(1.0, p_value)


@dataclass(frozen=True)
class Paired:
    """One row against the reference, on the same questions.

    Attributes:
        accuracy_change: Mean of (right now) - (right before), with its standard error.
        log_likelihood_change: Mean change of the right answer's log-likelihood, in nats, with its standard error.
        lost: Questions that became wrong.
        won: Questions that became right.
        p_value: :func:`mcnemar` of these.
    """

    accuracy_change: Mean
    log_likelihood_change: Mean
    lost: int
    won: int
    p_value: float


def compare(
    right: Sequence[bool], right_before: Sequence[bool], likelihood: Sequence[float], likelihood_before: Sequence[float]
) -> Paired:
    """Compare answers to the same questions, in the same order.

    Args:
        right: Whether each question is answered rightly.
        right_before: The same of the reference.
        likelihood: Log-likelihood of each right answer, in nats.
        likelihood_before: The same of the reference.

    Raises:
        ValueError: The four differ in length.
    """
    lengths = {len(right), len(right_before), len(likelihood), len(likelihood_before)}
    if len(lengths) != 1:
        raise ValueError(f"paired statistics need the same questions in both rows, got {sorted(lengths)} of them")
    pairs = list(zip(right, right_before, strict=True))
    lost = sum(before and not now for now, before in pairs)
    won = sum(now and not before for now, before in pairs)
    return Paired(
        mean([float(now) - float(before) for now, before in pairs]),
        mean([now - before for now, before in zip(likelihood, likelihood_before, strict=True)]),
        lost, won, mcnemar(lost, won),
    )  # fmt: skip
