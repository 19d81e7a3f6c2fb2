"""The table of Triton configurations: which kernel a size runs on, how it divides a row, and its launch.

What a row's elements are added to in which order (kernel, parts, columns) follows from size and type alone, so a result
does not depend on the number of rows. ``benchmarks/tune_triton.py`` times the candidates; the table holds the fastest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from hadacore.backends.triton.bases import base_bits, padded

LARGEST_SIZE = 1 << 15
LARGEST_ORDER = 2048  # of a base matrix, as in the CUDA backend
LARGEST_FUSED_ORDER = 256  # up to here one program holds all of a row, as a scale for the row needs

# PRODUCT of kernels.panel.
SYLVESTER, DIRECT, THREE_PARTS, IEEE = range(4)

_SMALLEST_PRODUCT = 16  # M, N and K of tl.dot
_PANEL_COLUMNS = 64
_BLOCK_OF_MANY = 128  # result rows of a program where several share a row
_VECTOR_AND_LANES = 7  # index bits of 16 bytes of float32 a lane
# Of a base that is sums of parts; above, additions are as dear as a product, and registers too few.
_LARGEST_SUMMED_ORDER = 28
_NVIDIA_REGISTERS = 65536  # of a multiprocessor

# Shared memory of a program, signs included, as compiled for sm_90.
_SHARED_BYTES_OF_256 = 172032 + 1024  # a base of 256 x 256 and a panel of 64 columns
_SHARED_BYTES_OF_256_BY_64 = 106496 + 1024  # 64 columns of that base at a time
_SHARED_BYTES_OF_WIDE = 149504 + 1024  # 32 rows of 1024 columns, two stages
_SHARED_BYTES_OF_HELD = 106496 + 1024  # a base in 3 x 3 blocks of 64 x 64, and a panel of 64 columns
_SHARED_BYTES_OF_MANY = {128: 81920 + 1024, 256: 141312 + 1024}  # by block
_SHARED_BYTES_OF_TILE = {64: 112640 + 1024, 128: 174080 + 1024}  # by block: 256 columns, two stages
_SHARED_BYTES_OF_16384 = 114688 + 1024
_SHARED_BYTES_OF_32768 = {2: 155648 + 1024, 3: 206848 + 1024}  # by stages


@dataclass(frozen=True)
class Configuration:
    """A kernel and its launch.

    Attributes:
        kernel: ``"short_rows"``, ``"panel"``, ``"butterflies"`` or ``"sums"``, functions in ``kernels.py``.
        rows: Rows that a program holds at a time.
        parts: Parts of a row, in registers of their own; of ``sums`` those of a part, which stand in M above the rows.
        columns: Elements of a part, of a panel those of one of its rows.
        warps: Warps of a program.
        stages: Rows on their way from memory, the one at work included.
        programs: Programs for each multiprocessor, at most; they loop over the rows.
        order: Of the base matrix, with the bits of the columns that are merged into it, or of Sylvester's in its place.
        block: Result rows of the base in one product, a power of two.
        held: Blocks that a program computes, from a base that it keeps in shared memory where there are several.
        step: Columns of the base in one product, a power of two.
        product: SYLVESTER, DIRECT, THREE_PARTS or IEEE; of ``sums`` SYLVESTER, or IEEE for additions alone.
        warp_bits: Index bits that a warp holds, whose butterflies are shuffles; those above go through shared memory.
        registers: Of a thread on NVIDIA GPUs, at most; 0 is as the compiler likes.
    """

    kernel: str
    rows: int
    parts: int
    columns: int
    warps: int
    stages: int
    programs: int
    order: int = 1
    block: int = 1
    step: int = 1
    product: int = SYLVESTER
    warp_bits: int = _VECTOR_AND_LANES
    held: int = 1
    registers: int = 0

    @property
    def size(self) -> int:
        """Elements of a row."""
        return self.order * self.parts * self.columns

    @property
    def blocks(self) -> int:
        """Programs that share a row; each reads all of it."""
        return -(-self.order // (self.block * self.held)) if self.kernel == "panel" else 1

    @property
    def works_in_place(self) -> bool:
        """Whether a row is read as a whole before any of it is written."""
        return self.blocks == 1

    def beside_signs(self) -> Configuration:
        """The configuration where signs are read: they are on their way beside the rows, so a large tile has a stage less."""
        large = self.block >= 128 and self.block * self.rows * self.parts * self.columns >= 32768
        return replace(self, stages=max(1, self.stages - 1)) if large else self

    def grid(self, rows: int, multiprocessors: int) -> tuple[int, int]:
        """Programs to launch for ``rows`` rows."""
        return max(1, min(-(-rows // self.rows), self.programs * multiprocessors)), self.blocks

    def constants(self) -> dict[str, int | bool]:
        """The compile-time arguments of the kernel."""
        log2_columns = self.columns.bit_length() - 1
        if self.kernel == "butterflies":
            return {
                "ROWS": self.rows,
                "COLUMNS": self.columns,
                "LOG2_COLUMNS": log2_columns,
                "WARP_BITS": self.warp_bits,
                "STAGES": self.stages,
            }
        if self.kernel == "sums":
            return {
                "ORDER": self.order,
                "BASE": base_bits(self.order),
                "ROWS": self.rows,
                "LOG2_ROWS": self.rows.bit_length() - 1,
                "UPPER": self.parts,
                "LOG2_UPPER": self.parts.bit_length() - 1,
                "COLUMNS": self.columns,
                "LOG2_COLUMNS": log2_columns,
                "EXACT": self.product == SYLVESTER,
                "WARP_BITS": self.warp_bits,
                "STAGES": self.stages,
            }
        shared = {
            "ROWS": self.rows,
            "PARTS": self.parts,
            "LOG2_PARTS": self.parts.bit_length() - 1,
            "COLUMNS": self.columns,
            "STAGES": self.stages,
        }
        if self.kernel == "short_rows":
            return shared
        return {
            **shared,
            "ORDER": self.order,
            "BASE_ORDER": padded(self.order),
            "M": self.block,
            "M_BLOCKS": self.held,
            "K": self.step,
            "K_STEPS": -(-self.order // self.step),
            "KEPT": self.held > 1 or self.step >= self.order,
            "LOG2_COLUMNS": log2_columns,
            "PRODUCT": self.product,
            "WARP_BITS": self.warp_bits,
            "SPLIT": self.product in (SYLVESTER, DIRECT) and self.columns >= _SMALLEST_PRODUCT,
        }

    def __str__(self) -> str:
        shape = f"{self.rows} x ({self.order} x {self.parts} x {self.columns})"
        if self.kernel == "panel":
            shape += f", base in {self.held} blocks of {self.block} x {self.step}"
        return f"{self.kernel} {shape}, {self.warps} warps, {self.stages} stages, {self.programs} programs"


def _sylvester_panel(order: int, parts: int, columns: int, warps: int, stages: int, programs: int) -> Configuration:
    return Configuration("panel", 1, parts, columns, warps, stages, programs, order, order, order, SYLVESTER)


def _butterflies(rows: int, log2_size: int, warps: int, programs: int, stages: int = 1) -> Configuration:
    warp_bits = log2_size if warps == 1 else _VECTOR_AND_LANES
    return Configuration("butterflies", rows, 1, 1 << log2_size, warps, stages, programs, warp_bits=warp_bits)


# float16 and bfloat16, by log2 of the size; bfloat16 as float16. The fastest candidates on an H200, cold, by the larger of the
# ratios to a copy at 2^23 and 2^25 elements. Programs loop over rows: more than a multiprocessor holds are a second wave, which
# is no loss where each has one tile.
_SIXTEEN_BIT: dict[int, Configuration] = {
    0: _butterflies(512, 0, 1, 128),
    **{k: _butterflies(1024 >> k, k, 1, 128) for k in range(1, 4)},
    4: Configuration("short_rows", 128, 1, 16, 4, 1, 128),
    5: Configuration("short_rows", 64, 1, 32, 4, 1, 128),
    6: Configuration("short_rows", 64, 1, 64, 4, 1, 128),
    7: Configuration("short_rows", 64, 2, 64, 4, 2, 8),
    8: Configuration("short_rows", 32, 4, 64, 4, 2, 4),
    9: Configuration("short_rows", 16, 8, 64, 4, 2, 4),
    10: replace(_sylvester_panel(64, 1, 16, 4, 3, 4), rows=2),
    11: _sylvester_panel(64, 1, 32, 4, 3, 7),
    12: _sylvester_panel(64, 1, 64, 4, 3, 4),
    13: _sylvester_panel(64, 4, 32, 4, 2, 4),
    14: _sylvester_panel(64, 4, 64, 4, 2, 2),
    15: _sylvester_panel(128, 8, 32, 8, 3, 1),
}

# AMD's registers hold a fragment of a product twice or more, and its programs have 64 KiB of shared memory: more warps, and no
# rows on their way. Chosen by the compiler's report for gfx942, not by time.
_SIXTEEN_BIT_AMD: dict[int, Configuration] = {
    **_SIXTEEN_BIT,
    7: Configuration("short_rows", 64, 1, 128, 8, 1, 4),
    8: Configuration("short_rows", 16, 2, 128, 4, 1, 8),
    9: Configuration("short_rows", 16, 4, 128, 8, 1, 4),
    10: Configuration("short_rows", 16, 8, 128, 8, 1, 4),
    11: _sylvester_panel(64, 1, 32, 4, 1, 8),
    12: _sylvester_panel(64, 1, 64, 8, 1, 4),
    13: _sylvester_panel(64, 2, 64, 8, 1, 4),
    14: _sylvester_panel(64, 4, 64, 8, 1, 4),
    15: _sylvester_panel(64, 8, 64, 8, 1, 4),
}


# float32, by log2 of the size, measured as above. A warp that holds 2048 elements needs no shared memory, but four are faster.
_FLOAT32: dict[int, Configuration] = {
    **{k: _butterflies(512 >> k, k, 1, 128) for k in range(10)},
    10: _butterflies(2, 10, 1, 128),
    11: _butterflies(1, 11, 4, 32),
    12: _butterflies(1, 12, 8, 16),
    13: _butterflies(1, 13, 8, 4),
    14: _butterflies(1, 14, 8, 4),
    15: _butterflies(1, 15, 16, 4),
}


def choose(log2_size: int, sixteen_bit: bool, amd: bool = False, shared_bytes: int = 0) -> Configuration:
    """The configuration of a power of two, on an AMD GPU or another, whose programs may have so much shared memory."""
    if not sixteen_bit:
        return _FLOAT32[log2_size]
    if amd:
        return _SIXTEEN_BIT_AMD[log2_size]
    found = _SIXTEEN_BIT[log2_size]
    if log2_size == 14 and shared_bytes < _SHARED_BYTES_OF_16384:
        return replace(found, stages=1)
    if log2_size == 15 and shared_bytes < _SHARED_BYTES_OF_32768[3]:
        fits = shared_bytes >= _SHARED_BYTES_OF_32768[2]
        return _sylvester_panel(128, 4, 64, 8, 2, 1) if fits else _sylvester_panel(64, 8, 64, 8, 1, 1)
    return found


def choose_base(
    order: int, log2_columns: int, product: int, amd: bool = False, shared_bytes: int = 0, callers: bool = False
) -> Configuration:
    """The configuration of a size ``order * 2^log2_columns``.

    Args:
        order: Of the base matrix.
        log2_columns: k.
        product: DIRECT, THREE_PARTS or IEEE.
        amd: Whether the GPU is AMD's, of which nothing has been timed.
        shared_bytes: Shared memory that a program may have.
        callers: Whether the base matrix is the caller's, not one that the library knows.
    """
    plain, found = _panel_of_base(order, log2_columns, product, amd, shared_bytes), None
    all_columns = 1 << log2_columns
    if amd or product == IEEE:
        return plain
    if product == THREE_PARTS:
        # A part has a float4 a lane; below 8 columns rows are shorter than a sector of memory.
        summed = not callers and order <= _LARGEST_SUMMED_ORDER and all_columns >= 8
        found = _summed_float32(order, all_columns) if summed else None
    elif order <= 128:
        if order == 12 and 16 <= all_columns <= _PANEL_COLUMNS and not callers:
            rows = max(16, 512 // all_columns)
            found = Configuration("sums", rows, 1, all_columns, 4, 2, 2, order, product=SYLVESTER)
        else:
            found = _tile_of_256_columns(order, log2_columns, shared_bytes, callers)
    elif order <= 192 and all_columns <= _PANEL_COLUMNS and shared_bytes >= _SHARED_BYTES_OF_HELD:
        found = replace(plain, block=64, step=64, held=3, warps=4, stages=1, programs=2)
    elif order > LARGEST_FUSED_ORDER:
        found = _many_blocks(plain, shared_bytes)
    return found or plain


def _summed_float32(order: int, all_columns: int) -> Configuration:
    """A base as sums of parts of 128 elements a warp."""
    warps = max(1, all_columns >> _VECTOR_AND_LANES)
    rows = max(1, (1 << _VECTOR_AND_LANES) // all_columns)
    bits = min(all_columns.bit_length() - 1, _VECTOR_AND_LANES)
    programs = max(1, 64 // warps)
    return Configuration("sums", rows, 1, all_columns, warps, 1, programs, order, product=IEEE, warp_bits=bits)


def _tile_of_256_columns(order: int, log2_columns: int, shared_bytes: int, callers: bool) -> Configuration | None:
    """64 or 128 rows of 256 columns, with bits of the columns merged into the base until it has that many."""
    bits = max(0, log2_columns - 8)
    block = _power_above(order) << bits
    if log2_columns < 8 or (bits and callers) or shared_bytes < _SHARED_BYTES_OF_TILE.get(block, 1 << 30):
        return None
    warps, programs = (4, 4) if block == 64 else (8, 1)
    return Configuration("panel", 1, 8, 32, warps, 2, programs, order << bits, block, block, DIRECT)


def _many_blocks(plain: Configuration, shared_bytes: int) -> Configuration | None:
    """A base whose blocks are programs: 64 columns of a panel, or of short ones side by side, for each block of it."""
    columns, order = plain.columns, plain.order
    if plain.parts > 1 or shared_bytes < _SHARED_BYTES_OF_MANY[128]:
        return None
    rows = max(1, _PANEL_COLUMNS // columns)
    # Blocks of 256 pad more orders, and spill where H of the columns has order 64.
    large = -(-order // 256) * 256 == -(-order // 128) * 128 and columns < _PANEL_COLUMNS
    if large and shared_bytes >= _SHARED_BYTES_OF_MANY[256]:
        return replace(plain, rows=rows, block=256, step=64, warps=8, stages=1, programs=1)
    return replace(plain, rows=rows, block=128, step=64, warps=4, stages=1, programs=2)


def _panel_of_base(order: int, log2_columns: int, product: int, amd: bool, shared_bytes: int) -> Configuration:
    """A panel with parts of 64 columns and more, which takes every size."""
    all_columns = 1 << log2_columns
    # Fewer, wider parts where there are many: 28672 keeps in 128 registers what it spills as 16 parts of 64 (float16, sm_90).
    wide = 2 * _PANEL_COLUMNS if product == DIRECT else 4 * _PANEL_COLUMNS
    columns = min(all_columns, wide if all_columns >= 1024 else _PANEL_COLUMNS)
    whole = order <= LARGEST_FUSED_ORDER
    block = max(_SMALLEST_PRODUCT, _power_above(order)) if whole else _BLOCK_OF_MANY
    if product == DIRECT:
        # The base stays in shared memory where it fits, else it is read again for each row.
        fits = order <= 128 or (whole and shared_bytes >= _SHARED_BYTES_OF_256)
        step = block if fits else 64 if amd or not whole or shared_bytes >= _SHARED_BYTES_OF_256_BY_64 else 32
        rows = max(1, _PANEL_COLUMNS // columns) if columns < _SMALLEST_PRODUCT else 1
    else:
        step = _SMALLEST_PRODUCT  # each step of 16 is summed on its own
        rows = max(1, _SMALLEST_PRODUCT // columns)
    parts = all_columns // columns
    elements = block * rows * all_columns
    in_four = 8192 if amd or block == 256 else 16384
    warps = 4 if elements <= in_four else 8 if elements <= 2 * in_four or not amd else 16
    stages = 1 if step < block or block > 128 or amd else 3 if elements <= 2048 else 2
    if not amd and step == block and elements >= 32768 and shared_bytes < _SHARED_BYTES_OF_WIDE:
        stages = 1
    programs = 1 if step == block == 256 else max(1, 16 // warps)
    # The compiler takes 133 registers for what 128 hold, and four programs become three and a second wave.
    capped = product == DIRECT and block <= 32 and elements == 8192 and not amd
    registers = _NVIDIA_REGISTERS // (32 * warps * programs) if capped else 0
    return Configuration(
        "panel", rows, parts, columns, warps, stages, programs, order, block, step, product, registers=registers
    )


def _power_above(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()


def candidates(log2_size: int, sixteen_bit: bool, shared_bytes: int = 0) -> Iterator[Configuration]:
    """Configurations worth timing for a power of two, that of the table first."""
    return _each_once(choose(log2_size, sixteen_bit, shared_bytes=shared_bytes), _space(log2_size, sixteen_bit))


def base_candidates(order: int, log2_columns: int, product: int, shared_bytes: int = 0) -> Iterator[Configuration]:
    """Configurations worth timing for a size ``order * 2^log2_columns``, the chosen one first."""
    mine = choose_base(order, log2_columns, product, shared_bytes=shared_bytes)
    return _each_once(mine, _base_space(_panel_of_base(order, log2_columns, product, False, shared_bytes)))


def _each_once(mine: Configuration, others: Iterable[Configuration]) -> Iterator[Configuration]:
    return iter(dict.fromkeys((mine, *others)))


def _space(log2_size: int, sixteen_bit: bool) -> Iterator[Configuration]:
    if not sixteen_bit or log2_size < 4:
        for log2_tile, warps in ((9, 1), (10, 1), (11, 1), (11, 2), (11, 4), (12, 1), (12, 4), (12, 8), (13, 8)):
            if max(log2_size, 9) <= log2_tile <= max(log2_size, 11):
                yield _butterflies(1 << (log2_tile - log2_size), log2_size, warps, 32 // warps)
                yield _butterflies(1 << (log2_tile - log2_size), log2_size, warps, 128 // warps)
        if log2_size >= 13:
            for warps, programs in ((8, 4), (16, 2), (16, 4), (32, 1), (32, 2)):
                yield _butterflies(1, log2_size, warps, programs)
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
                yield replace(_sylvester_panel(64, 1, 1 << log2_size - 6, 4, stages, programs), rows=rows)
        for stages, programs in ((3, 10), (3, 12), (4, 8), (4, 9)):
            yield _sylvester_panel(64, 1, 1 << log2_size - 6, 4, stages, programs)
    if log2_size == 15:
        for parts, stages, programs in ((4, 3, 1), (8, 2, 1), (8, 2, 2), (8, 3, 1)):
            yield _sylvester_panel(128, parts, 256 // parts, 8, stages, programs)
    for order, columns in ((32, 16), (64, 16), (32, 32), (64, 32), (64, 64), (128, 64), (128, 128)):
        parts, rest = divmod(1 << log2_size, order * columns)
        if rest or parts > 16 or order * columns * 16 < 1 << log2_size:
            continue
        for warps in (4, 8, 16):
            if 128 * warps <= 1 << log2_size <= 4096 * warps and (warps == 4 or 512 * warps <= 1 << log2_size):
                resident = 16 if log2_size >= 13 else 32
                for stages, programs in ((2, resident // 2), (2, resident), (1, 512)):
                    yield _sylvester_panel(order, parts, columns, warps, stages, max(1, programs // warps))
                if log2_size <= 12:
                    yield _sylvester_panel(order, parts, columns, warps, 3, max(1, resident // warps))


def _base_space(mine: Configuration) -> Iterator[Configuration]:
    yield mine
    for warps, stages in itertools.product((4, 8, 16), (1, 2, 3)):
        yield replace(mine, warps=warps, stages=stages, programs=max(1, 16 // warps))
    if 128 < mine.order <= LARGEST_FUSED_ORDER and mine.product == DIRECT:
        for block, warps, stages in itertools.product((128, 256), (8, 16), (1, 2)):
            yield replace(mine, block=block, step=256, warps=warps, stages=stages, programs=1)
    if mine.parts > 1:
        for warps, stages in itertools.product((8, 16), (1, 2)):
            wider = replace(mine, parts=mine.parts // 2, columns=2 * mine.columns)
            yield replace(wider, warps=warps, stages=stages, programs=max(1, 16 // warps))
    sixteen_bit, all_columns = mine.product == DIRECT, mine.parts * mine.columns
    if mine.order <= _LARGEST_SUMMED_ORDER:
        yield from _sums(mine.order, all_columns, sixteen_bit)
    if sixteen_bit and mine.order <= LARGEST_FUSED_ORDER // 4:
        yield from _merged(mine.order, all_columns)
    for block in (32, 64):
        held = -(-mine.order // block)
        # 96 registers of a thread hold results, and 72 KiB of shared memory the base, so that two programs fit.
        if sixteen_bit and mine.blocks == 1 and 2 <= held <= 4 and held * block * mine.rows * all_columns <= 12288:
            whole = replace(mine, parts=1, columns=all_columns, block=block, step=block, held=held, warps=4)
            for stages, programs in itertools.product((1, 2), (1, 2)):
                yield replace(whole, stages=stages, programs=programs)
    if sixteen_bit and mine.blocks > 1:
        for rows, block, warps in itertools.product((2, 4, 8), (64, 128, 256), (4, 8)):
            if 1024 * warps <= block * rows * all_columns <= 2048 * warps:
                yield replace(mine, rows=rows, block=block, step=64, warps=warps, stages=1, programs=max(1, 8 // warps))


def _sums(order: int, all_columns: int, sixteen_bit: bool) -> Iterator[Configuration]:
    """The base as sums of parts; a part is 16 rows of a product, or four to a lane where there is none."""
    if sixteen_bit and all_columns >= _SMALLEST_PRODUCT:
        columns = min(all_columns, _PANEL_COLUMNS)
        parts = all_columns // columns
        for in_m, warps, stages in itertools.product((16, 32), (4, 8), (1, 2)):
            if parts <= in_m and 32 * warps <= order * in_m * columns // 32 <= 160 * warps:
                for programs in (8, 12, 16):
                    rows = in_m // parts
                    programs = max(1, programs // warps)
                    yield Configuration("sums", rows, parts, columns, warps, stages, programs, order, product=SYLVESTER)
        return
    for warps, in_lane in itertools.product((1, 2, 4, 8, 16), (4, 8)):
        part = 32 * warps * in_lane
        if all_columns <= part <= max(all_columns, 512) and 32 <= order * in_lane <= 192:
            bits = all_columns.bit_length() - 1 if warps == 1 else _VECTOR_AND_LANES
            for programs in (16, 64):
                yield Configuration(
                    "sums", part // all_columns, 1, all_columns, warps, 1, max(1, programs // warps), order,
                    product=IEEE, warp_bits=bits,
                )  # fmt: skip


def _merged(order: int, all_columns: int) -> Iterator[Configuration]:
    """Bits of the columns as part of the base: 14336 is 28 x 512, of which 32 x 512 are computed, and 56 x 256, of 64 x 256."""
    bits = 1
    while order << bits <= 128 and all_columns >> bits >= _SMALLEST_PRODUCT:
        merged, rest = order << bits, all_columns >> bits
        bits += 1
        block = _power_above(merged)
        if block < 64:
            continue
        for columns, in_n in itertools.product((16, 32, 64), (1, 2, 4)):
            parts = rest // columns
            elements = block * in_n * rest
            if columns > rest or parts > 8 or (in_n > 1 and in_n * rest > _PANEL_COLUMNS) or elements > 32768:
                continue
            warps = 4 if block * elements <= 1 << 20 else 8
            for stages, programs in ((2, 8), (2, 16), (3, 16), (3, 32)):
                if programs == 8 or elements <= 4096 or (programs == 16 and elements <= 16384):
                    yield Configuration(
                        "panel", in_n, parts, columns, warps, stages, max(1, programs // warps), merged, block, block, DIRECT
                    )  # fmt: skip
