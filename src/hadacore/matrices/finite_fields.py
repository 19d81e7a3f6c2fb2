"""Finite fields GF(p^e), as much of them as Hadamard matrices need: the quadratic character and discrete logarithms.

Which field elements come in which order decides which matrix comes out, so both choices are fixed for good:

- an element is the number whose base-p digits are its coefficients, lowest power of x first: ``7 = 1 + 2*3`` is
  ``1 + 2x`` in GF(9);
- arithmetic is modulo the first monic irreducible polynomial of degree e, where polynomials are ordered as numbers in
  the same way (``x^2 + 1`` for GF(9)).

Source: R. Lidl and H. Niederreiter, "Finite Fields", 2nd ed., 1997, sections 1.4 and 2.1.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Signs = npt.NDArray[np.int8]


def prime_power(q: int) -> tuple[int, int] | None:
    """The prime ``p`` and exponent ``e`` with ``p**e == q``, or None if there are none.

    >>> prime_power(27), prime_power(28), prime_power(1)
    ((3, 3), None, None)
    """
    if q < 2:
        return None
    p = next((d for d in range(2, math.isqrt(q) + 1) if q % d == 0), q)
    e, rest = 0, q
    while rest % p == 0:
        rest //= p
        e += 1
    return (p, e) if rest == 1 else None


def _remainder(dividend: list[int], divisor: list[int], p: int) -> list[int]:
    """Remainder of polynomials over GF(p), coefficients lowest first; the divisor is monic."""
    rest, degree = list(dividend), len(divisor) - 1
    for top in range(len(rest) - 1, degree - 1, -1):
        factor = rest[top]
        for i, c in enumerate(divisor):
            rest[top - degree + i] = (rest[top - degree + i] - factor * c) % p
    return rest[:degree]


def _digits(number: int, p: int, count: int) -> list[int]:
    return [number // p**i % p for i in range(count)]


@lru_cache(maxsize=64)
def irreducible_polynomial(p: int, e: int) -> tuple[int, ...]:
    """The first monic irreducible polynomial of degree ``e`` over GF(p), coefficients lowest power first.

    Found by trial division by every monic polynomial of degree up to ``e / 2``.

    >>> irreducible_polynomial(3, 3)  # x^3 + 2x + 1
    (1, 2, 0, 1)
    """
    divisors = [[*_digits(number, p, d), 1] for d in range(1, e // 2 + 1) for number in range(p**d)]
    for number in range(p**e):
        candidate = [*_digits(number, p, e), 1]
        if all(any(_remainder(candidate, divisor, p)) for divisor in divisors):
            return tuple(candidate)
    raise AssertionError(f"there is an irreducible polynomial of every degree, so of degree {e} over GF({p})")


class FiniteField:
    """GF(q), elements numbered 0 to ``q - 1`` as the module says.

    >>> field = FiniteField(9)
    >>> field.multiply(3, 3) == field.negative(1)  # x * x = -1
    True
    """

    def __init__(self, q: int):
        found = prime_power(q)
        if found is None:
            raise ValueError(f"a finite field has a prime power of elements, got {q}")
        self.q = q
        self.p, self.e = found
        self.modulus = irreducible_polynomial(self.p, self.e)
        self._digits = np.stack([np.arange(q) // self.p**i % self.p for i in range(self.e)])

    def sums(self, x: int) -> npt.NDArray[np.int64]:
        """``x + y`` for every element ``y`` in order."""
        total = np.zeros(self.q, dtype=np.int64)
        for i, digit in enumerate(_digits(x, self.p, self.e)):
            total += (self._digits[i] + digit) % self.p * self.p**i
        return total

    def add(self, x: int, y: int) -> int:
        """The sum of two elements."""
        digits = zip(_digits(x, self.p, self.e), _digits(y, self.p, self.e), strict=True)
        return sum((a + b) % self.p * self.p**i for i, (a, b) in enumerate(digits))

    def negative(self, x: int) -> int:
        """The element that gives 0 with ``x``."""
        return sum(-a % self.p * self.p**i for i, a in enumerate(_digits(x, self.p, self.e)))

    def multiply(self, x: int, y: int) -> int:
        """The product of two elements."""
        if self.e == 1:
            return x * y % self.p
        product = [0] * (2 * self.e - 1)
        for i, a in enumerate(_digits(x, self.p, self.e)):
            for j, b in enumerate(_digits(y, self.p, self.e)):
                product[i + j] += a * b
        rest = _remainder([c % self.p for c in product], list(self.modulus), self.p)
        return sum(c * self.p**i for i, c in enumerate(rest))

    def power(self, x: int, exponent: int) -> int:
        """``x`` to the power of a whole number, 0 or more."""
        result = 1
        while exponent:
            if exponent & 1:
                result = self.multiply(result, x)
            x = self.multiply(x, x)
            exponent >>= 1
        return result

    def inverse(self, x: int) -> int:
        """The element that gives 1 with ``x``."""
        if x == 0:
            raise ZeroDivisionError(f"0 has no inverse in GF({self.q})")
        return self.power(x, self.q - 2)

    def primitive_element(self) -> int:
        """The first element whose powers are all others but 0."""
        order = self.q - 1
        primes = [d for d in range(2, order + 1) if order % d == 0 and prime_power(d) == (d, 1)]
        return next(g for g in range(1, self.q) if all(self.power(g, order // d) != 1 for d in primes))

    def powers(self) -> list[int]:
        """Powers 0 to ``q - 2`` of the primitive element."""
        g, result = self.primitive_element(), [1]
        for _ in range(self.q - 2):
            result.append(self.multiply(result[-1], g))
        return result


@lru_cache(maxsize=16)
def quadratic_character(q: int) -> Signs:
    """For each element of GF(q), q odd: 0 for 0, 1 for a square, -1 for the rest. Read-only.

    >>> quadratic_character(7).tolist()
    [0, 1, 1, -1, 1, -1, -1]
    """
    field = FiniteField(q)
    character = np.full(q, -1, dtype=np.int8)
    character[[field.multiply(x, x) for x in range(1, q)]] = 1
    character[0] = 0
    character.setflags(write=False)
    return character
