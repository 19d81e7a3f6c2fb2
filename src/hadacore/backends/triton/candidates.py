"""Configurations worth timing, of which ``benchmarks/tune_triton.py`` finds the fastest for the table."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

from hadacore.backends.triton.configurations import (
    DIRECT,
    IEEE,
    LARGEST_FUSED_ORDER,
    LARGEST_SIZE,
    LARGEST_SUMMED_ORDER,
    PANEL_COLUMNS,
    SMALLEST_PRODUCT,
    SYLVESTER,
    TWO_PARTS,
    VECTOR_AND_LANES,
    Configuration,
    bits_panel,
    butterflies_in,
    choose,
    choose_base,
    panel_of_base,
    power_above,
    shared_bytes_of_bits,
    sylvester_panel,
)

_SHARED_BYTES_OF_MULTIPROCESSOR = 230400  # on an H200, but for what is reserved


def candidates(log2_size: int, sixteen_bit: bool, shared_bytes: int = 0) -> Iterator[Configuration]:
    """Configurations worth timing for a power of two, that of the table first."""
    return _each_once(choose(log2_size, sixteen_bit, shared_bytes=shared_bytes), _space(log2_size, sixteen_bit))


def base_candidates(order: int, log2_columns: int, product: int, shared_bytes: int = 0) -> Iterator[Configuration]:
    """Configurations worth timing for a size ``order * 2^log2_columns``, the chosen one first."""
    mine = choose_base(order, log2_columns, product, shared_bytes=shared_bytes)
    callers = choose_base(order, log2_columns, product, shared_bytes=shared_bytes, callers=True)
    return _each_once(
        mine, itertools.chain((callers,), _base_space(panel_of_base(order, log2_columns, product, False, shared_bytes)))
    )


def _each_once(mine: Configuration, others: Iterable[Configuration]) -> Iterator[Configuration]:
    return iter(dict.fromkeys((mine, *others)))


def _space(log2_size: int, sixteen_bit: bool) -> Iterator[Configuration]:
    if not sixteen_bit or log2_size < 4:
        for log2_tile, warps in ((9, 1), (10, 1), (11, 1), (11, 2), (11, 4), (12, 1), (12, 4), (12, 8), (13, 8)):
            if max(log2_size, 9) <= log2_tile <= max(log2_size, 11):
                yield butterflies_in(1 << (log2_tile - log2_size), log2_size, warps, 32 // warps)
                yield butterflies_in(1 << (log2_tile - log2_size), log2_size, warps, 128 // warps)
        if log2_size >= 13:
            for warps, programs in ((8, 4), (16, 2), (16, 4), (32, 1), (32, 2)):
                yield butterflies_in(1, log2_size, warps, programs)
        return
    if log2_size <= 11:
        for columns, rows, warps in itertools.product((64, 128), (16, 32, 64, 128), (4, 8)):
            columns = min(columns, 1 << log2_size)
            if 2048 * warps // 4 <= rows << log2_size <= 4096 * warps // 2:
                parts = (1 << log2_size) // columns
                for stages, programs in ((2, 12 // warps), (2, 16 // warps), (2, 32 // warps), (1, 128)):
                    yield Configuration("short_rows", rows, parts, columns, warps, stages, programs)
    if log2_size == 10:
        for stages, programs in ((1, 2), (2, 1), (2, 2)):
            yield Configuration("short_rows", 16, 16, 64, 8, stages, programs)
    if log2_size in (10, 11):
        for rows, stages, programs in itertools.product((2, 4), (2, 3), (4, 6, 8)):
            if rows << log2_size <= 4096:
                yield replace(sylvester_panel(64, 1, 1 << log2_size - 6, 4, stages, programs), rows=rows)
        for stages, programs in ((3, 10), (3, 12), (4, 8), (4, 9)):
            yield sylvester_panel(64, 1, 1 << log2_size - 6, 4, stages, programs)
    if log2_size == 15:
        for parts, stages, programs in ((4, 3, 1), (8, 2, 1), (8, 2, 2), (8, 3, 1)):
            yield sylvester_panel(128, parts, 256 // parts, 8, stages, programs)
    for order, columns in ((32, 16), (64, 16), (32, 32), (64, 32), (64, 64), (128, 64), (128, 128)):
        parts, rest = divmod(1 << log2_size, order * columns)
        if rest or parts > 16 or order * columns * 16 < 1 << log2_size:
            continue
        for warps in (4, 8, 16):
            if 128 * warps <= 1 << log2_size <= 4096 * warps and (warps == 4 or 512 * warps <= 1 << log2_size):
                resident = 16 if log2_size >= 13 else 32
                for stages, programs in ((2, resident // 2), (2, resident), (1, 512)):
                    yield sylvester_panel(order, parts, columns, warps, stages, max(1, programs // warps))
                if log2_size <= 12:
                    yield sylvester_panel(order, parts, columns, warps, 3, max(1, resident // warps))


def _base_space(mine: Configuration) -> Iterator[Configuration]:
    sixteen_bit, all_columns = mine.product == DIRECT, mine.parts * mine.columns
    yield mine
    if mine.order <= LARGEST_SUMMED_ORDER and (not sixteen_bit or mine.order == 12):
        yield from _sums(mine.order, all_columns, sixteen_bit)
    for merged in range(5):
        order, rest = mine.order << merged, all_columns >> merged
        if merged and (order > LARGEST_FUSED_ORDER or rest < SMALLEST_PRODUCT):
            break
        if sixteen_bit and 32 < order <= 128:
            yield from _whole_panels(order, rest)
        if sixteen_bit and 64 < order <= 128 and rest == 256:
            yield from _two_blocks_of_bits(order, rest)
    if mine.order > 128:
        yield from _bits(mine.order, all_columns, mine.product)


def _sums(order: int, all_columns: int, sixteen_bit: bool) -> Iterator[Configuration]:
    """The base as sums of parts; a part is 16 rows of a product, or two or four elements to a lane where there is none."""
    if sixteen_bit and all_columns >= SMALLEST_PRODUCT:
        columns = min(all_columns, PANEL_COLUMNS)
        parts = all_columns // columns
        for stages, programs in ((1, 3), (2, 2), (2, 3)):
            if parts <= 16:
                rows = 16 // parts
                yield Configuration("sums", rows, parts, columns, 4, stages, programs, order, product=SYLVESTER)
        return
    for warps, in_lane in itertools.product((1, 2, 4, 8, 16), (2, 4)):
        part = 32 * warps * in_lane
        if all_columns <= part <= max(all_columns, 128) and order * in_lane <= 128:
            bits = all_columns.bit_length() - 1 if warps == 1 else VECTOR_AND_LANES
            for stages, programs in ((1, max(1, 64 // warps)), (2, max(1, 8 // warps))):
                if stages == 1 or all_columns >= 256:
                    found = Configuration(
                        "sums", part // all_columns, 1, all_columns, warps, stages, programs, order,
                        product=IEEE, warp_bits=bits,
                    )  # fmt: skip
                    yield from (found, replace(found, fused=True))
                    if warps > 1:  # bits 5 and 6 in the same trips through shared memory as those above
                        yield replace(found, fused=True, warp_bits=5)


def _whole_panels(order: int, rest: int) -> Iterator[Configuration]:
    """Panels of a base with merged bits: 14336 is 28 x 512, of which 32 x 512 are computed, and 56 x 256, of 64 x 256."""
    block = power_above(order)
    warps = 4 if block == 64 else 8
    for in_n, columns in itertools.product((1, 2, 4), (16, 32, 64)):
        parts = rest // columns
        if not 32 <= in_n * columns <= PANEL_COLUMNS or columns > rest or parts > 8 or (in_n > 1 and parts > 1):
            continue
        # Stages, and warps of a multiprocessor.
        for stages, warps_at_once in {
            2048: ((3, 24), (4, 32)),
            4096: ((2, 16), (2, 20), (3, 16)),
            8192: ((2, 16), (2, 24), (3, 12)),
            16384: ((2, 8), (2, 16)),
            32768: ((2, 8),),
        }.get(block * in_n * rest, ()):
            yield Configuration(
                "panel", in_n, parts, columns, warps, stages, warps_at_once // warps, order, block, block, DIRECT
            )

    if block * rest == 128 * 32 * warps and rest % 128 == 0:  # 128 registers of results
        for inner, fetches in ((32, True), (64, True), (16, True), (32, False)):
            yield Configuration(
                "panel", 1, rest // 128, 128, warps, 2, 8 // warps, order, block, block, DIRECT, inner=inner, fetches=fetches
            )  # fmt: skip
    if block * rest == 1024:  # programs that registers or shared memory would allow, were they a few less
        for in_n, stages, programs, fetches in (
            (2, 3, 7, False), (2, 3, 7, True), (2, 3, 8, True), (2, 4, 7, True), (4, 3, 5, True), (4, 2, 6, True),
        ):  # fmt: skip
            registers = 65536 // (128 * programs) // 8 * 8
            yield Configuration(
                "panel", in_n, 1, rest, 4, stages, programs, order, 64, 64, DIRECT, registers=registers, fetches=fetches
            )  # fmt: skip
        yield Configuration("panel", 2, 1, rest, 4, 3, 6, order, 64, 64, DIRECT, fetches=True)


def _two_blocks_of_bits(order: int, rest: int) -> Iterator[Configuration]:
    """A base of two blocks as bits with 256 columns: all of a row's results are never in registers, so two programs fit."""
    for inner, programs in ((32, 2), (64, 2), (16, 2), (32, 128)):
        yield Configuration(
            "bits", 1, rest // 128, 128, 4, 1, programs, order, 64, 128, DIRECT, held=2, fetches=programs == 2, inner=inner
        )  # fmt: skip


def _looped_bits(found: Configuration) -> Iterator[Configuration]:
    """A loop over blocks of bits with what it reads next on its way, in the registers with which all programs fit."""
    registers = 65536 // (128 * found.programs) // 8 * 8
    if found.product == TWO_PARTS:
        found = replace(found, fused=True)
        yield found
    elif found.rows > 1:  # by two groups of four warps, whose blocks are as many rows more
        in_eight = replace(found, warps=8, block=128, held=-(-found.order // 128), programs=2, registers=128)
        yield from (in_eight, replace(in_eight, fetches=True))
        yield replace(in_eight, rows=2 * found.rows, step=128, programs=1, registers=0, fetches=True)
    for ahead, fetches in ((True, False), (False, True), (True, True)):
        if not ahead or registers >= 128:
            yield replace(found, ahead=ahead, fetches=fetches, registers=registers)


def _bits(order: int, rest: int, product: int) -> Iterator[Configuration]:
    """A base as bits; results of a block are 64 registers of a lane at most."""
    sixteen_bit = product == DIRECT
    ways: tuple[tuple[int, int, int], ...]  # steps, programs and operands
    if not 5120 <= order * rest <= LARGEST_SIZE:
        return
    for columns, rows in ((32, 1), (32, 2), (64, 1)):
        parts = rest // columns
        elements = rows * rest
        if columns > rest or parts > (4 if sixteen_bit else 1) or elements > (128 if sixteen_bit else 64):
            continue
        if rows > 1 and parts > 1:
            continue
        # Sums of steps of float32 are added by additions, which round; Tensor Cores cut off.
        ways = ((64, 3, TWO_PARTS), (64, 2, TWO_PARTS), (128, 3, TWO_PARTS))
        if sixteen_bit:
            many = int(elements == 32)  # registers for more programs
            ways = ((64, 3 + many, DIRECT), (64, 4 + many, DIRECT), (128, 3 + many, DIRECT))
        for step, programs, operands in ways:
            in_shared = shared_bytes_of_bits(order, elements, operands)
            if programs * in_shared <= _SHARED_BYTES_OF_MULTIPROCESSOR:
                found = bits_panel(order, parts, columns, rows, step, programs, operands)
                yield found
                if found.loops and programs > 2 and step == (64 if sixteen_bit else 128):
                    yield from _looped_bits(found)
                if not found.loops and sixteen_bit and step == 64 and programs * in_shared <= 131072:
                    yield replace(found, stages=2)
