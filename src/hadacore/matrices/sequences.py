"""Four sequences whose correlations cancel: what Williamson and Goethals-Seidel arrays are filled with.

A sequence on a finite abelian group G is ``a[g]``; its correlation is ``sum_g a[g] a[g + s]``. Four sequences of
entries +1 and -1 fit when their correlations add up to 0 for each ``s`` other than 0. Groups here are products of
cyclic groups, given by the tuple of their orders; an element is numbered in row-major order.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from hadacore.matrices.finite_fields import FiniteField, prime_power
from hadacore.matrices.tables import DIFFERENCE_SETS, TURYN, TURYN_TYPE, WILLIAMSON

Sequence = npt.NDArray[np.int8]
Four = tuple[Sequence, Sequence, Sequence, Sequence]

LARGEST_WILLIAMSON = 63  # the formula goes on for ever, but its field has (2t - 1)^2 elements


def _signs(text: str) -> Sequence:
    return np.array([1 if c == "+" else -1 for c in text], dtype=np.int8)


def has_williamson(t: int) -> bool:
    """Whether :func:`williamson_sequences` has length ``t``.

    >>> [t for t in range(1, 64) if not has_williamson(t) and t % 2]
    [35, 47, 53, 59]
    """
    return t == 1 or t in WILLIAMSON or (t % 2 == 1 and t <= LARGEST_WILLIAMSON and prime_power(2 * t - 1) is not None)


@lru_cache(maxsize=8)
def williamson_sequences(t: int) -> Four:
    r"""Four symmetric sequences on the cyclic group of odd order ``t``.

    For :math:`t = (q + 1) / 2` with a prime power q they come from the points of the projective line over GF(q), taken as
    elements of GF(q^2): with g primitive, :math:`\omega(x, y) = \delta (x^q y - x y^q)`, and
    :math:`\eta = g^{q - 1}`, the signs :math:`a_k = \chi(\omega(1, \eta^{2k}))` and
    :math:`b_k = \chi(\omega(1, g \eta^{2k}))` are the two blocks of a conference matrix. The four sequences are
    a with ``a[0] = 1``, a with ``a[0] = -1``, b and b. Other lengths are in a table.

    Source: R. J. Turyn, "An infinite class of Williamson matrices", J. Combin. Theory A 12 (1972) 319-321.

    >>> [sequence.tolist() for sequence in williamson_sequences(3)]
    [[1, 1, 1], [-1, 1, 1], [-1, 1, 1], [-1, 1, 1]]
    """
    if t == 1:
        one = np.ones(1, dtype=np.int8)
        return one, one, one, one
    if t in WILLIAMSON:
        a, b, c, d = (_signs(half + half[:0:-1]) for half in WILLIAMSON[t])
        return a, b, c, d
    q = 2 * t - 1
    field = FiniteField(q * q)
    powers = field.powers()
    logarithm = {element: exponent for exponent, element in enumerate(powers)}
    delta = powers[(q + 1) // 2]  # delta^q = -delta, so that omega lies in GF(q)

    def character(exponent: int) -> int:
        """The character of omega(1, y), y the power ``exponent`` of g."""
        y, conjugate = powers[exponent % (q * q - 1)], powers[exponent * q % (q * q - 1)]
        omega = field.multiply(delta, field.add(y, field.negative(conjugate)))
        return 0 if omega == 0 else 1 - 2 * (logarithm[omega] // (q + 1) % 2)

    a = np.array([character(2 * k * (q - 1)) for k in range(t)], dtype=np.int8)
    b = np.array([character(1 + 2 * k * (q - 1)) for k in range(t)], dtype=np.int8)
    # b[-k] = b[k + s] with s = (t + 1) / 2, so that b is symmetric around half of s.
    s = (t + 1) // 2
    b = np.roll(b, -(s * s % t))
    plus, minus = a.copy(), a.copy()
    plus[0], minus[0] = 1, -1
    return plus, minus, b, b


def t_sequence_source(t: int) -> tuple[str, int] | None:
    """Where T-sequences of length ``t`` come from: the kind and length of the sequences they are made of, or None.

    >>> t_sequence_source(107), t_sequence_source(7), t_sequence_source(10)
    (('TurynType', 36), ('Turyn', 4), None)
    """
    if (t + 1) % 3 == 0 and (t + 1) // 3 in TURYN_TYPE:
        return "TurynType", (t + 1) // 3
    if (t + 1) % 2 == 0 and (t + 1) // 2 in TURYN:
        return "Turyn", (t + 1) // 2
    return None


def _turyn_type(n: int) -> Four:
    digits = [int(c, 16) for c in TURYN_TYPE[n]]
    digits[-1] <<= 1  # the last digit has three bits
    x, y, z, w = (np.array([1 - 2 * (d >> bit & 1) for d in digits], dtype=np.int8) for bit in (3, 2, 1, 0))
    return x, y, z, w[:-1]


def t_sequences(t: int) -> Four:
    """Four sequences of length ``t`` with entries 0, +1 and -1, at each place exactly one of them not 0.

    Turyn-type sequences X, Y, Z, W give base sequences ``A = (Z, W), B = (Z, -W), C = X, D = Y``, of which Turyn
    sequences are others; base sequences give ``(A + B) / 2`` and ``(A - B) / 2`` followed by zeros, and zeros followed by
    ``(C + D) / 2`` and ``(C - D) / 2``.

    Source: H. Kharaghani and B. Tayfeh-Rezaie, "A Hadamard matrix of order 428", J. Combin. Des. 13 (2005) 435-440,
    section 2.

    >>> [sequence.tolist() for sequence in t_sequences(3)]
    [[1, 0, 0], [0, -1, 0], [0, 0, 1], [0, 0, 0]]
    """
    source = t_sequence_source(t)
    if source is None:
        raise ValueError(f"no T-sequences of length {t} are known here")
    kind, n = source
    if kind == "TurynType":
        x, y, z, w = _turyn_type(n)
        a, b, c, d = np.concatenate([z, w]), np.concatenate([z, -w]), x, y
    else:
        a, b, c, d = (_signs(text) for text in TURYN[n])
    first, last = np.zeros(len(a), dtype=np.int8), np.zeros(len(c), dtype=np.int8)
    return (
        np.concatenate([(a + b) // 2, last]),
        np.concatenate([(a - b) // 2, last]),
        np.concatenate([first, (c + d) // 2]),
        np.concatenate([first, (c - d) // 2]),
    )


def t_times_williamson(t: int, w: int) -> Four:
    r"""Four sequences on :math:`Z_t \times Z_w` from T-sequences of length t and Williamson sequences of length w.

    They are :math:`X_1 A + X_2 B + X_3 C + X_4 D`, :math:`-X_1 B + X_2 A - X_3 D + X_4 C`,
    :math:`-X_1 C + X_2 D + X_3 A - X_4 B` and :math:`-X_1 D - X_2 C + X_3 B + X_4 A`.

    Source: J. Cooper and J. Wallis, "A construction for Hadamard arrays", Bull. Austral. Math. Soc. 7 (1972) 269-277.
    """
    x1, x2, x3, x4 = t_sequences(t)
    a, b, c, d = williamson_sequences(w)
    return (
        np.kron(x1, a) + np.kron(x2, b) + np.kron(x3, c) + np.kron(x4, d),
        -np.kron(x1, b) + np.kron(x2, a) - np.kron(x3, d) + np.kron(x4, c),
        -np.kron(x1, c) + np.kron(x2, d) + np.kron(x3, a) - np.kron(x4, b),
        -np.kron(x1, d) - np.kron(x2, c) + np.kron(x3, b) + np.kron(x4, a),
    )


def difference_set_sequences(t: int) -> Four:
    """Four sequences on the cyclic group of order ``t``, -1 on supplementary difference sets, from the table."""
    multiplier, *texts = DIFFERENCE_SETS[t]
    orbit_of: dict[int, int] = {}
    orbits = 0
    for g in range(t):
        if g not in orbit_of:
            while g not in orbit_of:
                orbit_of[g] = orbits
                g = g * multiplier % t
            orbits += 1
    order = [orbit_of[g] for g in range(t)]
    a, b, c, d = (_signs(text)[order] for text in texts)
    return a, b, c, d
