"""The library of Hadamard matrices: each matrix is one, and none ever changes."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadacore import matrices
from hadacore.matrices import check_size, constructions, describe, factor, hadamard_matrix, known_orders, orders
from hadacore.matrices.constructions import Matrix
from hadacore.matrices.finite_fields import FiniteField, irreducible_polynomial, prime_power, quadratic_character
from hadacore.matrices.sequences import (
    difference_set_sequences,
    has_williamson,
    t_sequence_source,
    t_sequences,
    t_times_williamson,
    williamson_sequences,
)
from hadacore.matrices.tables import DIFFERENCE_SETS, TURYN, TURYN_TYPE, WILLIAMSON

STORED = json.loads((Path(matrices.__file__).parent / "digests.json").read_text())

# Dimensions of real models, and the order of the smallest base matrix that each allows.
MODEL_DIMENSIONS = {
    1: (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768),
    12: (96, 192, 768, 1536, 3072, 6144, 12288),
    20: (80, 160, 2560, 5120, 10240, 20480),
    28: (112, 896, 3584, 7168, 14336, 28672),
    36: (576, 1152, 2304, 4608, 9216, 18432, 36864),
    44: (1408, 5632, 22528),
    52: (6656, 53248),
    60: (960, 3840, 15360),
    68: (17408,),
    76: (4864, 9728),
    84: (5376, 21504),
    100: (6400, 25600),
    108: (6912, 13824, 27648),
    132: (33792,),
    140: (8960, 17920),
    148: (18944,),
    172: (11008, 22016),
    180: (2880,),
    428: (13696,),
    684: (10944,),
    924: (29568,),
}


def is_hadamard(matrix: Matrix) -> bool:
    """Whether ``H H^T = n I`` in integers. The product is taken in float64, where every sum here is an exact integer."""
    n = len(matrix)
    assert matrix.shape == (n, n) and n * n < 2**53
    wide = matrix.astype(np.float64)
    products = (wide @ wide.T).astype(np.int64)
    return bool(np.array_equal(np.abs(matrix), np.ones((n, n))) and np.array_equal(products, n * np.eye(n, dtype=int)))


def test_missing_orders_are_the_three_that_nobody_knows() -> None:
    known = known_orders(1024)
    assert known == sorted(known) and known[:3] == [1, 2, 4]
    assert all(n % 4 == 0 for n in known[2:])
    assert sorted(set(range(4, 1025, 4)) - set(known)) == [668, 716, 892]


@pytest.mark.parametrize("first", range(1, 1025, 128))
def test_every_known_order_is_a_hadamard_matrix(first: int) -> None:
    for n in known_orders(first + 127):
        if n < first:
            continue
        matrix = hadamard_matrix(n, dtype=torch.int8).numpy()
        assert is_hadamard(matrix), n
        assert factor(n).symmetric == np.array_equal(matrix, matrix.T), n
        found = factor(n)
        assert found.base_order << found.log2 == n
        assert (found.base_order == 1) == (n & (n - 1) == 0)


def test_small_orders_in_integer_arithmetic() -> None:
    """The same in int64 throughout, so that nothing rests on floating point."""
    for n in known_orders(200):
        matrix = orders.matrix(n).astype(np.int64)
        assert np.array_equal(matrix @ matrix.T, n * np.eye(n, dtype=np.int64)), n


def test_powers_of_two_are_sylvesters() -> None:
    for k in range(9):
        i = np.arange(1 << k)
        parity = np.array([[bin(int(a & b)).count("1") % 2 for b in i] for a in i])
        assert np.array_equal(hadamard_matrix(1 << k).numpy(), 1 - 2 * parity)
        assert describe(1 << k) == f"H_{1 << k} = Sylvester(2^{k}), natural order, symmetric; construction version 1"


@pytest.mark.parametrize("n", [24, 96, 172 * 4, 428 * 2])
def test_sizes_are_tensor_products_of_base_and_sylvester(n: int) -> None:
    """Element ``(i * 2^k + j, i' * 2^k + j')`` is ``H_m[i, i'] * H_2^k[j, j']``."""
    found = factor(n)
    small = 1 << found.log2
    h, base, inner = (hadamard_matrix(order, dtype=torch.int64) for order in (n, found.base_order, small))
    assert torch.equal(h.reshape(n // small, small, n // small, small), torch.einsum("ab,cd->acbd", base, inner))
    assert np.array_equal(orders.matrix(n), h.numpy())


@pytest.mark.parametrize("base", MODEL_DIMENSIONS)
def test_dimensions_of_models_and_their_shards(base: int) -> None:
    for dimension in MODEL_DIMENSIONS[base]:
        for shards in (1, 2, 4, 8):
            if (dimension // shards) % 4:
                assert dimension in (80, 112) and shards == 8  # 10 and 14 have no Hadamard matrix
                continue
            found = factor(dimension // shards)
            assert found.base_order == base
            assert found.base_order << found.log2 == dimension // shards


def test_there_are_64_model_dimensions() -> None:
    assert len({dimension for dimensions in MODEL_DIMENSIONS.values() for dimension in dimensions}) == 64


def test_base_matrices_have_their_stored_digests() -> None:
    assert STORED["version"] == orders.VERSION
    base_orders = [n for n in known_orders(1024) if factor(n).base_order == n]
    assert {str(n): orders.digest(orders.matrix(n)) for n in base_orders} == STORED["base_matrices"]


def test_which_construction_an_order_uses_has_its_stored_digest() -> None:
    """A later release that knows more orders must store another digest too, of the lines of this one's orders."""
    table = "\n".join(orders.rule_table(4096))
    assert hashlib.sha256(table.encode()).hexdigest() == STORED["rule_table_to_4096"]


def test_digest_is_of_packed_signs() -> None:
    matrix = np.array([[1, 1, -1, 1], [1, 1, 1, -1], [-1, 1, 1, 1], [1, -1, 1, 1]], dtype=np.int8)
    assert orders.digest(matrix) == hashlib.sha256(bytes([0b00100001, 0b10000100])).hexdigest()


def test_another_process_builds_the_same_matrices() -> None:
    code = (
        "from hadacore.matrices import orders; print(*(orders.digest(orders.matrix(n)) for n in (324, 732, 28, 404)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [STORED["base_matrices"][n] for n in ("324", "732", "28", "404")]


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (12, "H_12 = PaleyI(11), natural order, symmetric"),
        (14336, "H_14336 = PaleyI(27) (x) Sylvester(2^9), natural order, symmetric"),
        (9216, "H_9216 = PaleyII(17) (x) Sylvester(2^8), natural order, symmetric"),
        (11008, "H_11008 = Williamson(43) (x) Sylvester(2^6), natural order, not symmetric"),
        (13696, "H_13696 = GoethalsSeidel(TurynType(36)) (x) Sylvester(2^5), natural order, not symmetric"),
        (404, "H_404 = Miyamoto(101), natural order, not symmetric"),
        (476, "H_476 = GoethalsSeidel(TurynType(6) x Williamson(7)), natural order, not symmetric"),
        (324, "H_324 = GoethalsSeidel(Turyn(5) x Williamson(9)), natural order, not symmetric"),
        (412, "H_412 = GoethalsSeidel(DifferenceSets(103)), natural order, not symmetric"),
        (8304, "H_8304 = PaleyI(11) (x) PaleyI(691), natural order, symmetric"),
        (53248, "H_53248 = PaleyII(25) (x) Sylvester(2^10), natural order, symmetric"),
    ],
)
def test_describe(n: int, text: str) -> None:
    assert describe(n) == f"{text}; construction version 1"


def test_dtype_and_device() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int64):
        h = hadamard_matrix(24, dtype=dtype, device="cpu")
        assert h.dtype == dtype and h.device.type == "cpu" and h.shape == (24, 24)
    assert hadamard_matrix(24).dtype == torch.float32
    assert hadamard_matrix(24, device="meta").is_meta


def test_cached_matrices_cannot_be_changed() -> None:
    before = hadamard_matrix(12)
    hadamard_matrix(12).zero_()
    assert torch.equal(hadamard_matrix(12), before)
    with pytest.raises(ValueError, match="read-only"):
        orders.base_matrix(factor(12))[0, 0] = 0


def test_factorization_is_a_value() -> None:
    for n in (8, 12, 428, 8304):
        found = factor(n)
        assert pickle.loads(pickle.dumps(found)) == found == copy.deepcopy(found)
        assert hash(found) == hash(copy.deepcopy(found))
    assert factor(12) != factor(24)


# Errors


@pytest.mark.parametrize(
    ("n", "pattern"),
    [
        (
            668,
            r"order 668 is known here: no construction.*sizes are 664 and 672\..*block_size=4, 2 \(divisors of 668\)",
        ),
        (716 * 3, r"order 2148 .*sizes are 2144 and 2152\..*block_size=12, 4, 2 \("),
        (1002, r"order 1002 .*multiples of 4.*sizes are 1000 and 1004.*block_size=2 \("),
        (7, r"order 7 .*multiples of 4.*sizes are 4 and 8; no block size but 1 divides 7"),
        (3 * 2**18 + 2, r"nearest usable sizes are 786432 and 786448"),
        (0, r"from 1 to 1048576 here, got 0"),
        (-4, r"from 1 to 1048576 here, got -4"),
        (2**20 + 4, r"from 1 to 1048576 here, got 1048580"),
    ],
)
@pytest.mark.parametrize("function", [factor, describe, hadamard_matrix])
def test_unknown_orders_name_what_can_be_used(function: object, n: int, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        function(n)  # type: ignore[operator]


@pytest.mark.parametrize("n", [8.0, "8", True, None])
def test_orders_are_integers(n: object) -> None:
    with pytest.raises(TypeError, match=rf"must be an integer, got {re.escape(repr(n))} of type"):
        factor(n)  # type: ignore[arg-type]


@given(st.integers(1, 20000))
@settings(max_examples=100, deadline=None)
def test_every_size_named_in_an_error_is_usable(n: int) -> None:
    try:
        factor(n)
    except ValueError as error:
        named = re.search(r"sizes are (\d+) and (\d+)(?:.*block_size=([\d, ]+) \()?", str(error))
        assert named
        below, above = int(named[1]), int(named[2])
        assert below < n < above
        assert not [m for m in range(below + 1, above) if m in known_orders(above)]
        for block in map(int, named[3].split(", ") if named[3] else []):
            assert n % block == 0 and factor(block).n == block


def test_dense_matrices_are_not_absurdly_large() -> None:
    with pytest.raises(ValueError, match=r"order 32768 at most, got 36864; factor\(36864\)"):
        hadamard_matrix(36864)
    with pytest.raises(ValueError, match=r"order 32768 at most, got 65536"):
        hadamard_matrix(65536)


def test_sizes_that_are_transformed() -> None:
    sizes = [1, 2, 4, 8, 12, 20, 28, 14336, 32768, 10944]
    assert [check_size(size) for size in sizes] == sizes
    with pytest.raises(ValueError, match=r"no Hadamard matrix of order 6 .*block_size=2 "):
        check_size(6)
    with pytest.raises(ValueError, match=r"got size 2147483648; .*block_size=1073741824"):
        check_size(2**31)
    with pytest.raises(TypeError, match=r"must be an integer, got 4.0"):
        check_size(4.0)  # type: ignore[arg-type]


def test_nothing_is_built_at_import() -> None:
    code = (
        "import hadacore.matrices as m, hadacore.matrices.orders as o, hadacore.matrices.finite_fields as f\n"
        "assert o._cached_base.cache_info().currsize == o.find.cache_info().currsize == 0\n"
        "assert f.quadratic_character.cache_info().currsize == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Constructions


@pytest.mark.parametrize("q", [3, 7, 11, 27, 243])
def test_paley1(q: int) -> None:
    matrix = constructions.paley1(q)
    assert is_hadamard(matrix) and np.array_equal(matrix, matrix.T)
    assert (matrix[0] == 1).all()


@pytest.mark.parametrize("q", [5, 9, 13, 25, 125])
def test_paley2(q: int) -> None:
    matrix = constructions.paley2(q)
    assert len(matrix) == 2 * (q + 1) and is_hadamard(matrix) and np.array_equal(matrix, matrix.T)


@pytest.mark.parametrize("t", [t for t in range(1, 64) if has_williamson(t)])
def test_williamson(t: int) -> None:
    sequences = williamson_sequences(t)
    assert all(len(a) == t and np.array_equal(a, np.roll(a[::-1], 1)) for a in sequences)
    assert is_hadamard(constructions.williamson(sequences))


def test_tables_hold_no_williamson_sequences_that_a_formula_gives() -> None:
    assert not [t for t in WILLIAMSON if prime_power(2 * t - 1)]


@pytest.mark.parametrize("t", sorted({*(3 * n - 1 for n in TURYN_TYPE), *(2 * n - 1 for n in TURYN)}))
def test_t_sequences(t: int) -> None:
    assert t_sequence_source(t)
    four = np.stack(t_sequences(t)).astype(np.int64)
    assert np.array_equal(np.abs(four).sum(axis=0), np.ones(t))
    correlations = sum(np.correlate(x, x, mode="full") for x in four)
    assert np.array_equal(correlations, np.where(np.arange(2 * t - 1) == t - 1, t, 0))


@pytest.mark.parametrize(("t", "w"), [(3, 3), (5, 3), (9, 9), (7, 1)])
def test_goethals_seidel_on_a_product_of_groups(t: int, w: int) -> None:
    matrix = constructions.goethals_seidel(t_times_williamson(t, w), (t, w))
    assert len(matrix) == 4 * t * w and is_hadamard(matrix)


@pytest.mark.parametrize("t", DIFFERENCE_SETS)
def test_difference_sets(t: int) -> None:
    """Spectra add up to 4t, which is the same as correlations that cancel."""
    spectrum = sum(np.abs(np.fft.fft(a.astype(float))) ** 2 for a in difference_set_sequences(t))
    np.testing.assert_allclose(spectrum, 4 * t, rtol=1e-10)


@pytest.mark.parametrize("q", [5, 9, 13, 25, 49])
def test_miyamoto(q: int) -> None:
    matrix = constructions.miyamoto(q, orders.matrix(q - 1))
    assert len(matrix) == 4 * q and is_hadamard(matrix)


def test_tensor_products() -> None:
    found = orders._tensor_product(240)
    assert found is not None and str(found) == "PaleyI(11) (x) PaleyI(19)" and found.symmetric
    assert np.array_equal(found.build(), np.kron(constructions.paley1(11), constructions.paley1(19)))
    assert is_hadamard(found.build())
    assert orders._tensor_product(48) is None  # 12 x 4 is Sylvester's part


def test_constructions_check_their_arguments() -> None:
    for q in (5, 15, 8):
        with pytest.raises(ValueError, match=rf"paley1\(q\) needs a prime power q that leaves 3 .*got {q}"):
            constructions.paley1(q)
    for q in (7, 21, 4):
        with pytest.raises(ValueError, match=rf"paley2\(q\) needs a prime power q that leaves 1 .*got {q}"):
            constructions.paley2(q)
    with pytest.raises(ValueError, match=r"needs a matrix of order 4, got shape \(2, 2\)"):
        constructions.miyamoto(5, constructions.sylvester(1))
    with pytest.raises(ValueError, match=r"no T-sequences of length 10 are known"):
        t_sequences(10)


# Finite fields

FIELDS = [FiniteField(q) for q in (2, 3, 4, 7, 8, 9, 25, 27, 49, 121, 125, 343)]


@st.composite
def field_and_elements(draw: st.DrawFn) -> tuple[FiniteField, int, int, int]:
    field = draw(st.sampled_from(FIELDS))
    x, y, z = (draw(st.integers(0, field.q - 1)) for _ in range(3))
    return field, x, y, z


@given(field_and_elements())
@settings(max_examples=300, deadline=None)
def test_field_laws(drawn: tuple[FiniteField, int, int, int]) -> None:
    f, x, y, z = drawn
    add, multiply = f.add, f.multiply
    assert add(add(x, y), z) == add(x, add(y, z)) and multiply(multiply(x, y), z) == multiply(x, multiply(y, z))
    assert add(x, y) == add(y, x) and multiply(x, y) == multiply(y, x)
    assert multiply(x, add(y, z)) == add(multiply(x, y), multiply(x, z))
    assert add(x, 0) == x == multiply(x, 1) and multiply(x, 0) == 0
    assert add(x, f.negative(x)) == 0
    assert int(f.sums(x)[y]) == add(x, y)
    assert f.power(x, f.q) == x  # Fermat
    if x:
        assert multiply(x, f.inverse(x)) == 1
    if f.q % 2:
        character = quadratic_character(f.q)
        assert character[multiply(x, y)] == character[x] * character[y]
        assert int(character.sum()) == 0


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: f"GF({field.q})")
def test_powers_of_the_primitive_element_are_the_field(field: FiniteField) -> None:
    assert sorted(field.powers()) == list(range(1, field.q))


def test_polynomials_that_define_the_fields_never_change() -> None:
    chosen = {q: irreducible_polynomial(*prime_power(q)) for q in (4, 8, 9, 25, 27, 49, 121, 125, 243)}  # type: ignore[misc]
    assert chosen == {
        4: (1, 1, 1),
        8: (1, 1, 0, 1),
        9: (1, 0, 1),
        25: (2, 0, 1),
        27: (1, 2, 0, 1),
        49: (1, 0, 1),
        121: (1, 0, 1),
        125: (1, 1, 0, 1),
        243: (1, 2, 0, 0, 0, 1),
    }


def test_prime_powers() -> None:
    expected = [2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29, 31, 32, 37, 41, 43, 47, 49]
    assert [q for q in range(50) if prime_power(q)] == expected
    with pytest.raises(ValueError, match="prime power of elements, got 6"):
        FiniteField(6)
    with pytest.raises(ZeroDivisionError, match=r"no inverse in GF\(9\)"):
        FiniteField(9).inverse(0)
