"""Which Hadamard matrix an order uses. Fixed for good: weights get rotated with it offline.

Size ``n = odd * 2^a`` uses ``kron(H_m, Sylvester(2^k))`` with ``n = m * 2^k``, index ``i * 2^k + j``. A power of two has
``m = 1``. Otherwise m is the smallest of ``odd * 4, odd * 8, ..., odd * 2^a`` that a rule in :data:`RULES` builds, and the
first rule that builds it does. That is construction version 1.

A later release may know more orders. It must not change one that is known already: rules and tables may only be
added such that each order keeps its line in :func:`rule_table`, whose digest is tested.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np

from hadacore.matrices import constructions, sequences
from hadacore.matrices.constructions import Matrix
from hadacore.matrices.finite_fields import prime_power
from hadacore.matrices.tables import DIFFERENCE_SETS, WILLIAMSON

VERSION = 1
LARGEST_ORDER = 1 << 20  # but of powers of two; to bound the time of a look-up, there is nothing special about it

_CACHED_ORDER = 1024


@dataclass(frozen=True)
class Construction:
    """How one matrix is built.

    Attributes:
        name: The construction with its argument, such as ``"PaleyI(27)"``.
        symmetric: Whether the matrix is its own transpose.
        build: Builds it, without a cache.
        conference: Whether it is ``C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]]``, C symmetric with 0 on the diagonal.
    """

    name: str
    symmetric: bool
    build: Callable[[], Matrix] = field(compare=False, repr=False)
    conference: bool = field(default=False, compare=False, repr=False)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Factorization:
    """``H_n = kron(H_m, Sylvester(2^k))``, ``n = m * 2^k``; element ``i * 2^k + j`` is row i of H_m, row j of Sylvester's.

    Attributes:
        n: Order.
        base_order: The m of the base matrix, the part that is applied as a dense product; 1 for a power of two.
        log2: The k of Sylvester's part.
        construction: How the base matrix is built, None for a power of two.
    """

    n: int
    base_order: int
    log2: int
    construction: Construction | None

    @property
    def symmetric(self) -> bool:
        """Whether H_n is its own transpose, so that the inverse transform is the transform."""
        return self.construction is None or self.construction.symmetric

    def __str__(self) -> str:
        parts = [] if self.construction is None else [self.construction.name]
        if self.log2 or not parts:
            parts.append(f"Sylvester(2^{self.log2})")
        return " (x) ".join(parts)


def _build_williamson(t: int) -> Matrix:
    return constructions.williamson(sequences.williamson_sequences(t))


def _build_t_sequences(t: int, w: int) -> Matrix:
    return constructions.goethals_seidel(sequences.t_times_williamson(t, w), (t, w))


def _build_miyamoto(q: int) -> Matrix:
    return constructions.miyamoto(q, matrix(q - 1))


def _build_difference_sets(t: int) -> Matrix:
    return constructions.goethals_seidel(sequences.difference_set_sequences(t), (t,))


def _build_tensor_product(left: int, right: int) -> Matrix:
    return np.kron(matrix(left), matrix(right))


def _paley1(order: int) -> Construction | None:
    q = order - 1
    if q % 4 != 3 or prime_power(q) is None:
        return None
    return Construction(f"PaleyI({q})", True, partial(constructions.paley1, q))


def _paley2(order: int) -> Construction | None:
    q = order // 2 - 1
    if q % 4 != 1 or prime_power(q) is None:
        return None
    return Construction(f"PaleyII({q})", True, partial(constructions.paley2, q), conference=True)


def _williamson(order: int) -> Construction | None:
    t = order // 4
    return Construction(f"Williamson({t})", False, partial(_build_williamson, t)) if t in WILLIAMSON else None


def _t_sequences(order: int) -> Construction | None:
    for w in range(1, sequences.LARGEST_WILLIAMSON + 1, 2):
        t, rest = divmod(order // 4, w)
        source = sequences.t_sequence_source(t) if rest == 0 and sequences.has_williamson(w) else None
        if source is not None:
            filling = f"{source[0]}({source[1]})" + (f" x Williamson({w})" if w > 1 else "")
            return Construction(f"GoethalsSeidel({filling})", False, partial(_build_t_sequences, t, w))
    return None


def _miyamoto(order: int) -> Construction | None:
    q = order // 4
    if q % 4 != 1 or prime_power(q) is None or find(q - 1) is None:
        return None
    return Construction(f"Miyamoto({q})", False, partial(_build_miyamoto, q))


def _difference_sets(order: int) -> Construction | None:
    t = order // 4
    if t not in DIFFERENCE_SETS:
        return None
    return Construction(f"GoethalsSeidel(DifferenceSets({t}))", False, partial(_build_difference_sets, t))


def _tensor_product(order: int) -> Construction | None:
    for left in range(12, math.isqrt(order) + 1, 4):
        right, rest = divmod(order, left)
        a, b = (None, None) if rest else (construction(left), construction(right))
        if a is not None and b is not None:
            symmetric = a.symmetric and b.symmetric
            return Construction(f"{a} (x) {b}", symmetric, partial(_build_tensor_product, left, right))
    return None


# In order of precedence. New rules go to the end, and see the note at the top.
RULES: tuple[Callable[[int], Construction | None], ...] = (
    _paley1,
    _paley2,
    _williamson,
    _t_sequences,
    _miyamoto,
    _difference_sets,
    _tensor_product,
)


@lru_cache(maxsize=4096)
def construction(order: int) -> Construction | None:
    """The construction that builds ``order`` itself, None if no rule does; powers of two are left to Sylvester's.

    >>> print(construction(428))
    GoethalsSeidel(TurynType(36))
    """
    if order % 4 or order & (order - 1) == 0:
        return None
    return next((found for rule in RULES if (found := rule(order)) is not None), None)


@lru_cache(maxsize=4096)
def find(n: int) -> Factorization | None:
    """The factorization of order ``n``, None if the order is not known here."""
    if n < 1:
        return None
    twos = (n & -n).bit_length() - 1
    odd = n >> twos
    if odd == 1:
        return Factorization(n, 1, twos, None)
    if n > LARGEST_ORDER:
        return None
    for k in range(twos - 2, -1, -1):
        found = construction(n >> k)
        if found is not None:
            return Factorization(n, n >> k, k, found)
    return None


@lru_cache(maxsize=64)
def _cached_base(order: int) -> Matrix:
    found = construction(order)
    assert found is not None
    base = found.build()
    base.setflags(write=False)
    return base


def base_matrix(found: Factorization) -> Matrix:
    """H_m of a factorization, as int8; read-only and cached up to order 1024."""
    if found.construction is None:
        return np.ones((1, 1), dtype=np.int8)
    return _cached_base(found.base_order) if found.base_order <= _CACHED_ORDER else found.construction.build()


def matrix(n: int) -> Matrix:
    """H_n as a dense int8 array, for an order that is known."""
    return np.kron(base_matrix(factor(n)), constructions.sylvester(factor(n).log2))


def known_orders(limit: int = 1024) -> list[int]:
    """Every order up to ``limit`` for which there is a matrix, in increasing order.

    >>> known_orders(30)
    [1, 2, 4, 8, 12, 16, 20, 24, 28]
    """
    return [n for n in range(1, limit + 1) if find(n) is not None]


def factor(n: int) -> Factorization:
    """Which matrix order ``n`` uses: ``H_n = kron(H_m, Sylvester(2^k))`` with the smallest m that is known.

    Raises:
        TypeError: ``n`` is not an integer.
        ValueError: No matrix of that order is known here; the message names orders and block sizes that are.

    >>> factor(14336).base_order, factor(14336).log2, str(factor(14336))
    (28, 9, 'PaleyI(27) (x) Sylvester(2^9)')
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"the order of a Hadamard matrix must be an integer, got {n!r} of type {type(n).__name__}")
    found = find(n)
    if found is None and not 1 <= n <= LARGEST_ORDER:
        raise ValueError(
            f"the order of a Hadamard matrix must be a power of two or from 1 to {LARGEST_ORDER} here, got {n}"
        )
    if found is None:
        why = "orders other than 1 and 2 are multiples of 4" if n % 4 else "no construction in this library gives it"
        raise ValueError(f"no Hadamard matrix of order {n} is known here: {why}. {_usable(n)}")
    return found


def _usable(n: int) -> str:
    below = next(m for m in range(n - 1, 0, -1) if find(m) is not None)
    above = next((m for m in range(n + 1, LARGEST_ORDER + 1) if find(m) is not None), None)
    sizes = f"The nearest usable sizes are {below} and {above}" if above else f"The nearest usable size is {below}"
    blocks = _largest_blocks(n)
    if not blocks:
        return f"{sizes}; no block size but 1 divides {n}. Pad the dimension yourself."
    listed = ", ".join(map(str, blocks))
    return f"{sizes}. Use a block-diagonal transform, block_size={listed} (divisors of {n}), or pad the dimension yourself."


def _largest_blocks(n: int, count: int = 3) -> list[int]:
    divisors = sorted({d for i in range(1, math.isqrt(n) + 1) if n % i == 0 for d in (i, n // i)}, reverse=True)
    return [d for d in divisors if 1 < d < n and find(d) is not None][:count]


def digest(array: Matrix) -> str:
    """SHA-256 of a matrix: its entries in rows, packed eight to a byte, highest bit first, a 1 bit for -1."""
    return hashlib.sha256(np.packbits(array.ravel() < 0).tobytes()).hexdigest()


def rule_table(limit: int) -> Iterator[str]:
    """One line for each known order up to ``limit``: the order, a colon, and its factors.

    >>> list(rule_table(12))
    ['1: Sylvester(2^0)', '2: Sylvester(2^1)', '4: Sylvester(2^2)', '8: Sylvester(2^3)', '12: PaleyI(11)']
    """
    return (f"{n}: {find(n)}" for n in known_orders(limit))
