"""Constructions of Hadamard matrices, as NumPy arrays of int8 with entries +1 and -1.

Each is a formula with its source. Where a construction leaves a choice of row order or signs, the symmetric matrix is
taken if there is one, since it is its own inverse up to the factor n.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hadacore.matrices.finite_fields import FiniteField, Signs, prime_power, quadratic_character
from hadacore.matrices.sequences import Four

Matrix = npt.NDArray[np.int8]


def sylvester(k: int) -> Matrix:
    r"""Order :math:`2^k`: :math:`H_{ij} = (-1)^{\mathrm{popcount}(i \wedge j)}`, symmetric.

    Source: J. J. Sylvester, "Thoughts on inverse orthogonal matrices", Phil. Mag. 34 (1867) 461-475.

    >>> sylvester(1).tolist()
    [[1, 1], [1, -1]]
    """
    matrix = np.ones((1, 1), dtype=np.int8)
    for _ in range(k):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _characters_of_sums(q: int, sign: int) -> Matrix:
    """``chi(sign * x + y)`` for the elements x (rows) and y (columns) of GF(q)."""
    field, character = FiniteField(q), quadratic_character(q)
    rows = (x if sign > 0 else field.negative(x) for x in range(q))
    return np.stack([character[field.sums(x)] for x in rows])


def _check_prime_power(q: int, remainder: int, name: str) -> None:
    if prime_power(q) is None or q % 4 != remainder:
        raise ValueError(f"{name}(q) needs a prime power q that leaves {remainder} when divided by 4, got {q}")


def paley1(q: int) -> Matrix:
    r"""Order :math:`q + 1` for a prime power :math:`q = 3 \bmod 4`, symmetric, first row and column +1.

    .. math:: H = \begin{pmatrix} 1 & 1 \\ 1 & \chi(x + y) - [x + y = 0] \end{pmatrix}

    with the quadratic character :math:`\chi` of GF(q). Paley's own matrix has :math:`\chi(x - y)` and is skew; this
    one is it with rows :math:`x` and :math:`-x` exchanged and their signs changed.

    Source: R. E. A. C. Paley, "On orthogonal matrices", J. Math. Phys. 12 (1933) 311-320.

    >>> paley1(3).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    _check_prime_power(q, 3, "paley1")
    matrix = np.ones((q + 1, q + 1), dtype=np.int8)
    core = _characters_of_sums(q, 1)
    core[core == 0] = -1
    matrix[1:, 1:] = core
    return matrix


def _conference(q: int) -> Signs:
    """The symmetric conference matrix of order q + 1, q = 1 mod 4: 0 on the diagonal, ``C C^T = q I``."""
    matrix = np.ones((q + 1, q + 1), dtype=np.int8)
    matrix[0, 0] = 0
    matrix[1:, 1:] = _characters_of_sums(q, -1)
    return matrix


def paley2(q: int) -> Matrix:
    r"""Order :math:`2(q + 1)` for a prime power :math:`q = 1 \bmod 4`, symmetric.

    .. math::

        H = C \otimes \begin{pmatrix} 1 & 1 \\ 1 & -1 \end{pmatrix}
        + I \otimes \begin{pmatrix} 1 & -1 \\ -1 & -1 \end{pmatrix}

    with the conference matrix :math:`C` that has :math:`\chi(y - x)` bordered by ones.

    Source: R. E. A. C. Paley, "On orthogonal matrices", J. Math. Phys. 12 (1933) 311-320.
    """
    _check_prime_power(q, 1, "paley2")
    across = np.array([[1, 1], [1, -1]], dtype=np.int8)
    along = np.array([[1, -1], [-1, -1]], dtype=np.int8)
    return np.kron(_conference(q), across) + np.kron(np.eye(q + 1, dtype=np.int8), along)


def _elements(group: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Coordinates of the elements of a product of cyclic groups, one row for each element."""
    return np.stack([axis.ravel() for axis in np.indices(group)], axis=1)


def _at(sequence: Signs, group: tuple[int, ...], row_sign: int, column_sign: int) -> Matrix:
    """``a[row_sign * g + column_sign * h]`` for the elements g (rows) and h (columns) of the group."""
    elements = _elements(group)
    index = np.zeros((len(elements), len(elements)), dtype=np.int64)
    for axis, order in enumerate(group):
        coordinate = elements[:, axis]
        index = index * order + (row_sign * coordinate[:, None] + column_sign * coordinate[None, :]) % order
    return sequence[index]


def williamson(sequences: Four) -> Matrix:
    r"""Order 4t from four symmetric circulant matrices of order t.

    .. math::

        H = \begin{pmatrix} A & B & C & D \\ -B & A & -D & C \\ -C & D & A & -B \\ -D & -C & B & A \end{pmatrix},
        \qquad A^2 + B^2 + C^2 + D^2 = 4 t I

    Source: J. Williamson, "Hadamard's determinant theorem and the sum of four squares", Duke Math. J. 11 (1944) 65-81.
    """
    group = (len(sequences[0]),)
    a, b, c, d = (_at(sequence, group, -1, 1) for sequence in sequences)
    return np.block([[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]])


def goethals_seidel(sequences: Four, group: tuple[int, ...]) -> Matrix:
    r"""Order 4t from four sequences on an abelian group of order t whose correlations cancel.

    With :math:`A_{gh} = a_{h - g}` and so on, and R the permutation matrix of :math:`g \mapsto -g`:

    .. math::

        H = \begin{pmatrix}
        A & BR & CR & DR \\ -BR & A & -D^T R & C^T R \\ -CR & D^T R & A & -B^T R \\ -DR & -C^T R & B^T R & A
        \end{pmatrix}

    Source: J.-M. Goethals and J. J. Seidel, "Orthogonal matrices with zero diagonal", Canad. J. Math. 19 (1967)
    1001-1010; on any abelian group, J. Wallis and A. L. Whiteman, Bull. Austral. Math. Soc. 7 (1972) 233-249.
    """
    a = _at(sequences[0], group, -1, 1)
    br, cr, dr = (_at(sequence, group, -1, -1) for sequence in sequences[1:])
    bt, ct, dt = (_at(sequence, group, 1, 1) for sequence in sequences[1:])
    return np.block([[a, br, cr, dr], [-br, a, -dt, ct], [-cr, dt, a, -bt], [-dr, -ct, bt, a]])


def miyamoto(q: int, smaller: Matrix) -> Matrix:
    r"""Order 4q for a prime power :math:`q = 1 \bmod 4`, from a Hadamard matrix of order :math:`q - 1`.

    Let Q be :math:`\chi(y - x)` for x, y not 0, squares before the others, in four blocks, K the given matrix in four
    blocks, :math:`m = (q - 1) / 2`, and

    .. math::

        P = \begin{pmatrix} -Q_{11} & Q_{12} \\ Q_{21} & Q_{22} \end{pmatrix}, \quad
        L = \begin{pmatrix} K_{11} & K_{12} \\ -K_{21} & K_{22} \end{pmatrix}, \quad
        U = \begin{pmatrix} P & 0 \\ 0 & P \end{pmatrix}, \quad
        V = \begin{pmatrix} I & L \\ L^T & I \end{pmatrix}.

    Block (i, j) of the 4 x 4 blocks of H is, with signs :math:`s_{ij}`, and :math:`d_{ij}` = -1 if i = j and 1 if not,

    .. math::

        s_{ij} \begin{pmatrix} 1 & d_{ij} & d_{ij} \\ d_{ij} & U_{ij} + V_{ij} & U_{ij} - V_{ij} \\
        d_{ij} & U_{ij} - V_{ij} & U_{ij} + V_{ij} \end{pmatrix}.

    Source: M. Miyamoto, "A construction of Hadamard matrices", J. Combin. Theory A 57 (1991) 86-108.
    """
    _check_prime_power(q, 1, "miyamoto")
    if smaller.shape != (q - 1, q - 1):
        raise ValueError(f"miyamoto({q}, smaller) needs a matrix of order {q - 1}, got shape {smaller.shape}")
    m = (q - 1) // 2
    character = quadratic_character(q)
    elements = [*np.flatnonzero(character == 1), *np.flatnonzero(character == -1)]
    p = _characters_of_sums(q, -1)[np.ix_(elements, elements)]
    p[:m, :m] *= -1
    left = smaller.copy()
    left[m:, :m] *= -1
    zero, one = np.zeros((2 * m, 2 * m), dtype=np.int8), np.eye(2 * m, dtype=np.int8)
    u = np.block([[p, zero], [zero, p]])
    v = np.block([[one, left], [left.T, one]])
    signs = ((1, 1, 1, 1), (-1, 1, 1, -1), (-1, -1, 1, 1), (-1, 1, -1, 1))

    def block(i: int, j: int) -> Matrix:
        here = np.s_[i * m : (i + 1) * m, j * m : (j + 1) * m]
        result = np.full((q, q), -1 if i == j else 1, dtype=np.int8)
        result[0, 0] = 1
        result[1:, 1:] = np.block([[u[here] + v[here], u[here] - v[here]], [u[here] - v[here], u[here] + v[here]]])
        return signs[i][j] * result

    return np.block([[block(i, j) for j in range(4)] for i in range(4)])
