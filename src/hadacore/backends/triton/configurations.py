"""The table of Triton configurations: which kernel a size runs on, how it divides a row, and its launch.

What a row's elements are added to in which order (kernel, parts, columns) follows from size and type alone, so a result
does not depend on the number of rows. ``benchmarks/tune_triton.py`` times the candidates of ``candidates.py``; the table
holds the fastest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hadacore.backends.triton.bases import base_bits, padded

LARGEST_SIZE = 1 << 15
LARGEST_ORDER = 2048  # of a base matrix, as in the CUDA backend
LARGEST_FUSED_ORDER = 256  # up to here one program holds all of a row, as a scale for the row needs

# PRODUCT of kernels.panel and bits.bits.
SYLVESTER, DIRECT, THREE_PARTS, IEEE, TWO_PARTS = range(5)

SMALLEST_PRODUCT = 16  # M, N and K of tl.dot
PANEL_COLUMNS = 64
_BLOCK_OF_MANY = 128  # result rows of a program where several share a row
VECTOR_AND_LANES = 7  # index bits of 16 bytes of float32 a lane
# Of a base that is sums of parts; above, additions are as dear as a product, and registers too few.
LARGEST_SUMMED_ORDER = 28
_NVIDIA_REGISTERS = 65536  # of a multiprocessor
_LARGEST_FLOAT32_AS_BITS = 14336  # elements of a row, all of which are in registers until their largest is known
_UNROLLED_BLOCKS = 3  # of a base as bits; more are a loop

# Shared memory of a program, signs included, as compiled for sm_90.
_SHARED_BYTES_OF_256 = 172032 + 1024  # a base of 256 x 256 and a panel of 64 columns
_SHARED_BYTES_OF_256_BY_64 = 106496 + 1024  # 64 columns of that base at a time
_SHARED_BYTES_OF_WIDE = 149504 + 1024  # 32 rows of 1024 columns, two stages
_SHARED_BYTES_OF_HELD = 106496 + 1024  # a base in 3 x 3 blocks of 64 x 64, and a panel of 64 columns
_SHARED_BYTES_OF_MANY = {128: 81920 + 1024, 256: 141312 + 1024}  # by block
_SHARED_BYTES_OF_TILE = {64: 112640 + 1024, 128: 188416 + 1024}  # by block: 256 columns, two stages
_SHARED_BYTES_OF_768 = 6 * (25088 + 1024)  # so that all programs of a multiprocessor fit
_SHARED_BYTES_OF_5120 = 3 * (73728 + 1024)
_SHARED_BYTES_OF_SUMS = 122880 + 1024  # 28 float32 parts of 1024, two stages
# What GPUs have whose products read right operands from shared memory. On others a warp has fragments of all of them: bits spill.
_SHARED_BYTES_FOR_BITS = 196608
_SHARED_BYTES_OF_16384 = 114688 + 1024
_SHARED_BYTES_OF_32768 = {2: 155648 + 1024, 3: 206848 + 1024}  # by stages


@dataclass(frozen=True)
class Configuration:
    """A kernel and its launch.

    Attributes:
        kernel: ``"short_rows"``, ``"panel"``, ``"bits"``, ``"butterflies"`` or ``"sums"``, functions in ``kernels.py``.
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
        product: SYLVESTER, DIRECT, THREE_PARTS, IEEE or TWO_PARTS; of ``sums`` SYLVESTER, or IEEE for additions alone.
        warp_bits: Index bits that a warp holds, whose butterflies are shuffles; those above go through shared memory.
        registers: Of a thread on NVIDIA GPUs, at most; 0 is as the compiler likes.
        ahead: Whether the loop over blocks of ``bits`` has the words of the next block on their way while it computes one.
        fetches: Whether rows are asked for before they are loaded, on NVIDIA GPUs: by ``panel`` the first, before the base is
            loaded, by ``bits`` the next, while these are computed.
        fused: Whether additions of values a shuffle apart are multiply-adds by 1 and -1.
        inner: Columns of the second product, 0 for all; bits of the columns above are additions in registers.
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
    warp_bits: int = VECTOR_AND_LANES
    held: int = 1
    registers: int = 0
    ahead: bool = False
    fetches: bool = False
    fused: bool = False
    inner: int = 0

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

    @property
    def loops(self) -> bool:
        """Whether the blocks of ``bits`` are a loop, which stores each."""
        return self.kernel == "bits" and self.held > _UNROLLED_BLOCKS

    @property
    def makes_codes(self) -> bool:
        """Whether a program has all of a row's results at a time, as a scale for the row needs."""
        return self.works_in_place and not self.loops

    def beside_signs(self) -> Configuration:
        """The configuration where signs are read: they are on their way beside the rows, so a large tile has a stage less."""
        if self.kernel == "bits":
            if self.product == TWO_PARTS:  # and take registers of rows that are all in them
                return replace(self, registers=0, programs=2)
            return replace(self, stages=1)
        if self.kernel == "sums" and self.product == IEEE and self.stages > 1:
            return replace(self, stages=1, programs=_programs_of_float32_sums(self.warps))
        elements = self.block * self.rows * self.parts * self.columns
        large = (self.block >= 128 and elements >= 32768) or (self.stages > 2 and elements >= 8192)
        return replace(self, stages=max(1, self.stages - 1)) if large else self

    def portable(self) -> Configuration:
        """The configuration where there is no PTX."""
        return replace(self, registers=0, fetches=False)

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
                "FUSED": self.fused,
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
        split = self.product in (SYLVESTER, DIRECT) and self.columns >= SMALLEST_PRODUCT
        inner = self.inner or self.columns
        shared |= {
            "INNER": inner,
            "LOG2_INNER": inner.bit_length() - 1,
            "FETCH": self.fetches,
            "FUSED": self.fused,
        }
        if self.kernel == "bits":
            steps, rest = divmod(self.order, self.step)
            tail = max(32, power_above(rest)) if rest else 0
            whole = tail == self.step
            return {
                **shared,
                "ORDER": self.order,
                "M": self.block,
                "M_BLOCKS": self.held,
                "K": self.step,
                "K_STEPS": steps + whole,
                "TAIL": 0 if whole else tail,
                "LOOP": self.loops,
                "AHEAD": self.ahead,
                "LOG2_COLUMNS": log2_columns,
                "PRODUCT": self.product,
                "WARP_BITS": self.warp_bits,
                "SPLIT": split,
            }
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
            "SPLIT": split,
        }

    def __str__(self) -> str:
        shape = f"{self.rows} x ({self.order} x {self.parts} x {self.columns})"
        if self.kernel in ("panel", "bits"):
            shape += f", base in {self.held} blocks of {self.block} x {self.step}"
        options = [name for name in ("ahead", "fetches", "fused") if getattr(self, name)]
        options += [f"{name} {getattr(self, name)}" for name in ("inner", "registers") if getattr(self, name)]
        launched = f"{self.warps} warps, {self.stages} stages, {self.programs} programs"
        return ", ".join((f"{self.kernel} {shape}", launched, *options))


def sylvester_panel(order: int, parts: int, columns: int, warps: int, stages: int, programs: int) -> Configuration:
    """A row as a panel whose base is Sylvester's."""
    return Configuration("panel", 1, parts, columns, warps, stages, programs, order, order, order, SYLVESTER)


def bits_panel(
    order: int, parts: int, columns: int, rows: int, step: int, programs: int, product: int
) -> Configuration:
    """A base as bits, 64 result rows after 64, in 4 warps."""
    # The compiler takes up to 193 registers for what 168 hold, with which three programs fit.
    capped = programs == 3 and (rows * parts * columns == 128 or product == TWO_PARTS)
    registers = _NVIDIA_REGISTERS // (128 * programs) // 8 * 8 if capped else 0
    return Configuration(
        "bits", rows, parts, columns, 4, 1, programs, order, 64, step, product, held=-(-order // 64), registers=registers
    )  # fmt: skip


def shared_bytes_of_bits(order: int, elements: int, product: int) -> int:
    """Of a program with ``elements`` columns, its matrix of the columns and a block of results included."""
    return 10240 + -(-order // 64) * 64 * elements * {DIRECT: 2, TWO_PARTS: 4}[product]


def butterflies_in(rows: int, log2_size: int, warps: int, programs: int, stages: int = 1) -> Configuration:
    """Rows in additions alone."""
    warp_bits = log2_size if warps == 1 else VECTOR_AND_LANES
    return Configuration("butterflies", rows, 1, 1 << log2_size, warps, stages, programs, warp_bits=warp_bits)


# float16 and bfloat16, by log2 of the size; bfloat16 as float16. The fastest candidates on an H200, cold, by the larger of the
# ratios to a copy at 2^23 and 2^25 elements. Programs loop over rows: more than a multiprocessor holds are a second wave, which
# is no loss where each has one tile.
_SIXTEEN_BIT: dict[int, Configuration] = {
    0: butterflies_in(512, 0, 1, 128),
    **{k: butterflies_in(1024 >> k, k, 1, 128) for k in range(1, 4)},
    4: Configuration("short_rows", 128, 1, 16, 4, 1, 128),
    5: Configuration("short_rows", 64, 1, 32, 4, 1, 128),
    6: Configuration("short_rows", 64, 1, 64, 4, 1, 128),
    7: Configuration("short_rows", 64, 2, 64, 4, 2, 8),
    8: Configuration("short_rows", 32, 4, 64, 4, 2, 4),
    9: Configuration("short_rows", 16, 8, 64, 4, 2, 4),
    10: replace(sylvester_panel(64, 1, 16, 4, 3, 4), rows=2),
    11: sylvester_panel(64, 1, 32, 4, 3, 7),
    12: sylvester_panel(64, 1, 64, 4, 3, 4),
    13: sylvester_panel(64, 4, 32, 4, 2, 4),
    14: sylvester_panel(64, 4, 64, 4, 2, 2),
    15: sylvester_panel(128, 8, 32, 8, 3, 1),
}

# AMD's registers hold a fragment of a product twice or more, and its programs have 64 KiB of shared memory: more warps, and no
# rows on their way. Chosen by the compiler's report for gfx942, not by time.
_SIXTEEN_BIT_AMD: dict[int, Configuration] = {
    **_SIXTEEN_BIT,
    7: Configuration("short_rows", 64, 1, 128, 8, 1, 4),
    8: Configuration("short_rows", 16, 2, 128, 4, 1, 8),
    9: Configuration("short_rows", 16, 4, 128, 8, 1, 4),
    10: Configuration("short_rows", 16, 8, 128, 8, 1, 4),
    11: sylvester_panel(64, 1, 32, 4, 1, 8),
    12: sylvester_panel(64, 1, 64, 8, 1, 4),
    13: sylvester_panel(64, 2, 64, 8, 1, 4),
    14: sylvester_panel(64, 4, 64, 8, 1, 4),
    15: sylvester_panel(64, 8, 64, 8, 1, 4),
}


# float32, by log2 of the size, measured as above. A warp that holds 2048 elements needs no shared memory, but four are faster.
_FLOAT32: dict[int, Configuration] = {
    **{k: butterflies_in(512 >> k, k, 1, 128) for k in range(10)},
    10: butterflies_in(2, 10, 1, 128),
    11: butterflies_in(1, 11, 4, 32),
    12: butterflies_in(1, 12, 8, 16),
    13: butterflies_in(1, 13, 8, 4),
    14: butterflies_in(1, 14, 8, 4),
    15: butterflies_in(1, 15, 16, 4),
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
        return sylvester_panel(128, 4, 64, 8, 2, 1) if fits else sylvester_panel(64, 8, 64, 8, 1, 1)
    return found


def choose_base(
    order: int, log2_columns: int, product: int, amd: bool = False, shared_bytes: int = 0, callers: bool = False,
    codes: bool = False,
) -> Configuration:  # fmt: skip
    """The configuration of a size ``order * 2^log2_columns``.

    Args:
        order: Of the base matrix.
        log2_columns: k.
        product: DIRECT, THREE_PARTS or IEEE.
        amd: Whether the GPU is AMD's, of which nothing has been timed.
        shared_bytes: Shared memory that a program may have.
        callers: Whether the base matrix is the caller's, not one that the library knows.
        codes: Whether the kernel makes codes, for which it has to have all of a row's results at a time.
    """
    plain, found = panel_of_base(order, log2_columns, product, amd, shared_bytes), None
    all_columns = 1 << log2_columns
    if amd or product == IEEE:
        return plain
    as_bits = None if callers else _as_bits(order, all_columns, product, shared_bytes)
    if as_bits is not None and (as_bits.makes_codes or not codes):
        # Results that are all in registers until their scale is known leave them to two programs.
        return replace(as_bits, registers=0, programs=2) if codes else as_bits
    if product == THREE_PARTS:
        # A part has a float4 a lane; below 8 columns rows are shorter than a sector of memory.
        if not callers and order <= LARGEST_SUMMED_ORDER and all_columns >= 8:
            found = _summed_float32(order, all_columns, shared_bytes, codes)
    elif order <= 128:
        if not callers:
            found = _small_base(order, all_columns, shared_bytes, codes)
        found = found or _tile_of_256_columns(order, log2_columns, shared_bytes, callers)
    elif order <= 192 and all_columns <= PANEL_COLUMNS and shared_bytes >= _SHARED_BYTES_OF_HELD:
        found = replace(plain, block=64, step=64, held=3, warps=4, stages=1, programs=2)
    elif order > LARGEST_FUSED_ORDER:
        found = _many_blocks(plain, shared_bytes)
    return found or plain


def _as_bits(order: int, all_columns: int, product: int, shared_bytes: int) -> Configuration | None:
    """Bases of 129 to 192 and of 257 to 512 with 32 or 64 columns."""
    if shared_bytes < _SHARED_BYTES_FOR_BITS:
        return None
    if not (128 < order <= 192 or LARGEST_FUSED_ORDER < order <= 512) or all_columns not in (32, 64):
        return None
    if product == DIRECT:
        found = bits_panel(order, 1, all_columns, PANEL_COLUMNS // all_columns, 64, 3, DIRECT)
        if not found.loops:
            return replace(found, stages=2)
        return replace(found, ahead=True, registers=168) if all_columns == 32 else found
    if order * all_columns > _LARGEST_FLOAT32_AS_BITS:
        return None
    if order > LARGEST_FUSED_ORDER:
        return replace(bits_panel(order, 1, all_columns, 1, 128, 3, TWO_PARTS), ahead=True, fused=True)
    return bits_panel(order, 1, all_columns, 1, 64, 3, TWO_PARTS)


def _small_base(order: int, all_columns: int, shared_bytes: int, codes: bool) -> Configuration | None:
    """Bits of the columns merged into a small base until its block of 64 rows is full; order 12 with fewer as sums. 28672 as
    two such blocks as bits, of which two programs fit."""
    if order == 12 and all_columns == 64 and shared_bytes >= _SHARED_BYTES_OF_768:
        found = Configuration("panel", 2, 1, 16, 4, 3, 6, 48, 64, 64, DIRECT)
        return found if codes else replace(found, programs=7, registers=72, fetches=True)
    if order == 28 and all_columns == 1024 and shared_bytes >= _SHARED_BYTES_FOR_BITS and not codes:
        return Configuration("bits", 1, 2, 128, 4, 1, 2, 112, 64, 128, DIRECT, held=2, fetches=True, inner=16)
    if order == 12 and 16 <= all_columns <= PANEL_COLUMNS:
        return Configuration("sums", max(16, 512 // all_columns), 1, all_columns, 4, 2, 2, order, product=SYLVESTER)
    if 16 < order <= 32 and all_columns == 256 and shared_bytes >= _SHARED_BYTES_OF_5120:
        return Configuration("panel", 1, 2, PANEL_COLUMNS, 4, 3, 3, 2 * order, 64, 64, DIRECT)
    return None


def _programs_of_float32_sums(warps: int) -> int:
    """Programs of one tile each."""
    return max(1, 64 // warps)


def _summed_float32(order: int, all_columns: int, shared_bytes: int, codes: bool) -> Configuration:
    """A base as sums of parts of 128 elements a warp."""
    warps = max(1, all_columns >> VECTOR_AND_LANES)
    rows = max(1, (1 << VECTOR_AND_LANES) // all_columns)
    bits = min(all_columns.bit_length() - 1, VECTOR_AND_LANES)
    stages, programs = 1, _programs_of_float32_sums(warps)
    # One program fills the registers of a multiprocessor, so nothing else hides its loads.
    if order == 28 and all_columns == 1024 and shared_bytes >= _SHARED_BYTES_OF_SUMS and not codes:
        stages, programs = 2, 1
    return Configuration("sums", rows, 1, all_columns, warps, stages, programs, order, product=IEEE, warp_bits=bits)


def _tile_of_256_columns(order: int, log2_columns: int, shared_bytes: int, callers: bool) -> Configuration | None:
    """64 or 128 rows of 256 columns, with bits of the columns merged into the base until it has that many."""
    bits = max(0, log2_columns - 8)
    block = power_above(order) << bits
    if log2_columns < 8 or (bits and callers) or shared_bytes < _SHARED_BYTES_OF_TILE.get(block, 1 << 30):
        return None
    if block == 64:
        return Configuration("panel", 1, 8, 32, 4, 2, 4, order << bits, block, block, DIRECT)
    return Configuration("panel", 1, 4, 64, 8, 2, 1, order << bits, block, block, DIRECT)


def _many_blocks(plain: Configuration, shared_bytes: int) -> Configuration | None:
    """A base whose blocks are programs: 64 columns of a panel, or of short ones side by side, for each block of it."""
    columns, order = plain.columns, plain.order
    if plain.parts > 1 or shared_bytes < _SHARED_BYTES_OF_MANY[128]:
        return None
    rows = max(1, PANEL_COLUMNS // columns)
    # Blocks of 256 pad more orders, and spill where H of the columns has order 64.
    large = -(-order // 256) * 256 == -(-order // 128) * 128 and columns < PANEL_COLUMNS
    if large and shared_bytes >= _SHARED_BYTES_OF_MANY[256]:
        return replace(plain, rows=rows, block=256, step=64, warps=8, stages=1, programs=1)
    return replace(plain, rows=rows, block=128, step=64, warps=4, stages=1, programs=2)


def panel_of_base(order: int, log2_columns: int, product: int, amd: bool, shared_bytes: int) -> Configuration:
    """A panel with parts of 64 columns and more, which takes every size."""
    all_columns = 1 << log2_columns
    # Fewer, wider parts where there are many: 28672 keeps in 128 registers what it spills as 16 parts of 64 (float16, sm_90).
    wide = 2 * PANEL_COLUMNS if product == DIRECT else 4 * PANEL_COLUMNS
    columns = min(all_columns, wide if all_columns >= 1024 else PANEL_COLUMNS)
    whole = order <= LARGEST_FUSED_ORDER
    block = max(SMALLEST_PRODUCT, power_above(order)) if whole else _BLOCK_OF_MANY
    if product == DIRECT:
        # The base stays in shared memory where it fits, else it is read again for each row.
        fits = order <= 128 or (whole and shared_bytes >= _SHARED_BYTES_OF_256)
        step = block if fits else 64 if amd or not whole or shared_bytes >= _SHARED_BYTES_OF_256_BY_64 else 32
        rows = max(1, PANEL_COLUMNS // columns) if columns < SMALLEST_PRODUCT else 1
    else:
        step = SMALLEST_PRODUCT  # each step of 16 is summed on its own
        rows = max(1, SMALLEST_PRODUCT // columns)
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


def power_above(value: int) -> int:
    """The smallest power of two that is not below a value."""
    return 1 << max(0, value - 1).bit_length()
