"""Sequences that were found by search, not by a formula. Everything else is built; nothing here may ever change.

A ``+`` is +1 and a ``-`` is -1. Each table says who found what; SageMath's collection (M. Cati and D. V. Pasechnik)
was the guide to them. The tests multiply out every matrix made of them.
"""

from __future__ import annotations

# First halves (entries 0 to (t - 1) / 2) of four symmetric sequences of length t. Lengths t = (q + 1) / 2 with a prime
# power q = 1 mod 4 are missing here because a formula gives them.
# Sources: J. Williamson, Duke Math. J. 11 (1944) 65-81, t = 43; L. D. Baumert, S. W. Golomb and M. Hall, "Discovery of an
# Hadamard matrix of order 92", Bull. Amer. Math. Soc. 68 (1962) 237-238, t = 23; L. D. Baumert, "Hadamard matrices of
# orders 116 and 232", Bull. Amer. Math. Soc. 72 (1966), t = 29; all in W. H. Holzmann, H. Kharaghani and
# B. Tayfeh-Rezaie, "Williamson matrices up to order 59", Designs, Codes and Cryptography 46 (2008) 343-352.
WILLIAMSON: dict[int, tuple[str, str, str, str]] = {
    11: ("++----", "++-+-+", "++-++-", "+-++--"),
    17: ("+---+++--", "++-+---+-", "+--+-++++", "+-++-+++-"),
    23: ("++---+---+-+", "+-++-++--+++", "+++---++-+-+", "+++-+++-+---"),
    29: ("+++---++--+-+--", "+-+---++--+-+++", "++++-++-+---+++", "++--+--+-+++-++"),
    33: ("++++++-+-+-+++---", "++-+-++-+----+++-", "++--++-+++-+--+-+", "+--++--+++++-++--"),
    39: ("+++--+-+-----+--++--", "+++--++-+---+-+--+--", "++++---+--++----+-+-", "+---++-+-+-----+++-+"),
    43: ("++---++++-+--+--++----", "+++-+-++--+-+-++++-+--", "++-++++++----+-+--++-+", "+---++--++++-+-+++-++-"),
}

# Turyn-type sequences of lengths n, n, n, n - 1 in the usual notation: hexadecimal digit i holds entry i of the four
# sequences, highest bit first, a 1 for -1; the last digit holds the last entries of the first three.
# Sources: H. Kharaghani and B. Tayfeh-Rezaie, "A Hadamard matrix of order 428", J. Combin. Des. 13 (2005) 435-440,
# n = 36; D. Best, D. Z. Djokovic, H. Kharaghani and H. Ramp, "Turyn-type sequences: classification, conjectures and
# constructions", J. Combin. Des. 21 (2013) 24-35, the others.
TURYN_TYPE: dict[int, str] = {
    2: "01",
    4: "0161",
    6: "006d61",
    8: "06e5c4d1",
    10: "0001f4a961",
    12: "0004f90bc961",
    14: "00036ac71c7651",
    16: "0000778e52de5561",
    18: "00006758b30d1e9a51",
    20: "000038e2739c7a0b6951",
    22: "00000f702c71a9ad565961",
    24: "00000b7c2cb2bc4b6cd9a961",
    26: "000000ff0f846f1ca5a5aa9551",
    28: "0000067cde3e50639ab46135aa51",
    30: "000000f70b106f9d427a25e9a96951",
    32: "00000138f64f1c1e77844f26d95a5961",
    36: "060989975b685d8fc80750b21c0212eceb26",
}

# Turyn sequences of lengths n, n, n - 1, n - 1, which fill gaps between the lengths that Turyn-type sequences give.
# Source: R. J. Turyn, "Hadamard matrices, Baumert-Hall units, four-symbol sequences, pulse compression, and surface
# wave encodings", J. Combin. Theory A 16 (1974) 313-333.
TURYN: dict[int, tuple[str, str, str, str]] = {
    2: ("+-", "++", "+", "+"),
    4: ("++--", "++-+", "+++", "+-+"),
    5: ("++-++", "++++-", "++--", "+-+-"),
    7: ("+++-+++", "++---+-", "++-+--", "++-+--"),
}

# Difference sets of Z_t that are unions of orbits of multiplication by h: t, then h and four strings with a sign for
# each orbit, - where the set has it. Orbits are in the order of their smallest elements.
# Sources, D. Z. Djokovic: Bull. Austral. Math. Soc. 45 (1992) 327-332, t = 67, 127, 163; Publ. Elektrotehn. Fak. Ser.
# Mat. 3 (1992) 47-59, t = 219; Australas. J. Combin. 10 (1994) 259-264, t = 103, 151; Combinatorica 14 (1994) 375-377,
# t = 239; Combinatorica 28 (2008) 487-489, t = 191; with O. Golubitsky and I. S. Kotsireas, J. Combin. Des. 22 (2014)
# 270-277, t = 251.
DIFFERENCE_SETS: dict[int, tuple[int, str, str, str, str]] = {
    67: (
        29,
        "+-++-+-+--+---+--++++-+",
        "+---+++-++-+-++++-++---",
        "++++-+-+---++-+++--++--",
        "++----+++-++-+++--++-++",
    ),
    103: (
        46,
        "+++---+--+----+++-+-+-+-++-+-++--++",
        "++-+++----++------+--+-++-+-+++++-+",
        "+---+++-+--+-+----+-+++-+--+---+-++",
        "+----+++++---+----++++-+-+------+-+",
    ),
    127: (
        2,
        "+-+++------+++-+-++",
        "+-++-+----++-+-++--",
        "+-+-+-++-+-+-+-+---",
        "+++--+-++----+++---",
    ),
    151: (
        8,
        "+-++--+++--+++-+-+-+-+--+-+--+-",
        "++-+-+++++-++-++-+-----+++---++",
        "+--------+++++++--++-+---++-+-+",
        "+++-++-+----+++-++---++-+-+----",
    ),
    163: (
        38,
        "+--+--+--++-+++-++-",
        "+-++++++--++-----++",
        "+-++-+-+++++----+--",
        "+++++--++----++----",
    ),
    191: (
        39,
        "++++++--+++-++++-+++-----++-----+--++-+",
        "+++-++-+--++++---+++-+-+++++--+--+-----",
        "+-+-+-++++-+-++-+-++--+--++++--++-----+",
        "+++-+--++-+---+-+--++++-++--++---+---+-",
    ),
    219: (
        4,
        "++++--+-++++-+-+--+-+-----+",
        "++-+-----++-+++-+-++-++--++",
        "+-++-+-+--+++--+-++-+-+--+-",
        "+----++--++-+-++-+-+-+++--+",
    ),
    239: (
        10,
        "+----+++-+-++-+-+++++----+--+++-++-",
        "+-+++++-++---+++--+-++-----+-+---++",
        "++--+--+++++-----+-+--++--++++++---",
        "+--+--++++-+---++--+-++---+--+--+-+",
    ),
    251: (
        20,
        "++-+----+------+++-+-++++-+++-++-+-+-+-----+++++-+-",
        "++-+++-++++-+++------++-++--++---+-+---++-+-++--++-",
        "+--+-+-++---++-+--+-++++++-+--+++---+++--++-++-++--",
        "++--+-+--+++++--++--+-+--+++++-++-++-+-----++-+-++-",
    ),
}
