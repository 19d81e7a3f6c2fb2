"""The base matrix of a size as bits, in the order in which the lanes of ``base.cuh`` use them.

A 16 x 16 fragment of a matrix of +1 and -1 is 8 bits a lane: 4 registers of a pair each. Four fragments, of 4 consecutive
steps of K, are one 32-bit word: register r of step s is ``(word << (4 s + r)) & 0x80008000``, a 1 bit for -1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hadacore.matrices import factor
from hadacore.matrices.constructions import Matrix, sylvester
from hadacore.matrices.orders import base_matrix


def sign_words(matrix: Matrix) -> npt.NDArray[np.uint32]:
    """Words by M tile, group of 4 steps, lane. What lies outside the matrix counts as +1."""
    order = matrix.shape[0]
    tiles = -(-order // 16)
    groups = -(-tiles // 4)
    negative = np.zeros((16 * tiles, 64 * groups), dtype=np.uint32)
    negative[:order, :order] = matrix < 0
    lane = np.arange(32)
    tile, group = np.arange(tiles)[:, None, None], np.arange(groups)[None, :, None]
    words = np.zeros((tiles, groups, 32), dtype=np.uint32)
    for step in range(4):
        for register in range(4):
            # Fragment registers a0..a3: rows g and g + 8 of the first pair of a lane's K slots, then of the second.
            row = 16 * tile + lane // 4 + 8 * (register & 1)
            column = 64 * group + 16 * step + 2 * (lane % 4) + 4 * (register & 2)
            for element, sign_bit in enumerate((15, 31)):
                words |= negative[row, column + element] << np.uint32(sign_bit - (4 * step + register))
    return words


def dense_base(size: int, log2_merge: int, transposed: bool, halves: bool) -> Matrix:
    """``kron(H_m, Sylvester(2^log2_merge))`` of the size's H_m, or its transpose.

    ``halves``: ``C - I`` of an H_m that is ``C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]]``, for ``base_halves.cuh``.
    """
    base = base_matrix(factor(size))
    if halves:
        return base[0::2, 1::2]
    matrix = np.kron(base, sylvester(log2_merge))
    return matrix.T if transposed else matrix


def in_fragment_order(matrix: Matrix) -> Matrix:
    """The columns of each 16 as the K slots of ``fragment_rows.cu``: slot ``2 t + e + 8 h`` is column ``4 (2 h + e) + t``."""
    order = matrix.shape[0]
    steps = -(-order // 16)
    padded = np.ones((16 * steps, 16 * steps), dtype=matrix.dtype)
    padded[:order, :order] = matrix
    slot = np.arange(16)
    column = 4 * (2 * (slot >> 3) + (slot & 1)) + (slot >> 1 & 3)
    return padded.reshape(16 * steps, steps, 16)[:, :, column].reshape(16 * steps, 16 * steps)


def base_signs_text(matrix: Matrix) -> str:
    """The CUDA definition of ``base_signs``."""
    words = sign_words(matrix).ravel()
    listed = ",".join(f"{word:#x}" for word in words)
    return f'#line 1 "base_signs"\nextern "C" __device__ const u32 base_signs[{words.size}] = {{{listed}}};'


def fragment_signs_text(matrix: Matrix) -> str:
    """The same in the order of ``fragment_rows.cu``."""
    return base_signs_text(in_fragment_order(matrix))


def base_row_signs_text(matrix: Matrix) -> str:
    """The CUDA definition of ``base_row_signs``: each row's signs, 32 columns a word, lowest first, a 1 bit for -1."""
    order = matrix.shape[0]
    words_of_row = -(-order // 32)
    negative = np.zeros((order, 32 * words_of_row), dtype=np.uint64)
    negative[:, :order] = matrix < 0
    words = (negative.reshape(-1, 32) << np.arange(32, dtype=np.uint64)).sum(axis=1)
    listed = ",".join(f"{int(word):#x}" for word in words)
    return (
        f'#line 1 "base_row_signs"\nconstexpr int kWordsOfRow = {words_of_row};\n'
        f'extern "C" __device__ const u32 base_row_signs[{words.size}] = {{{listed}}};'
    )
