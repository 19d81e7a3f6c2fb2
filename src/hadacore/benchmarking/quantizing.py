"""Measures rotation with quantization: the fused call, the unfused chain, and a copy of the same bytes, back to back.

Everything is cold. The copy reads the inputs and writes as many bytes as the codes have (:func:`time_narrower_copy`), but
for the scales, which are at most an eighth (NVFP4) of them; on the CPU, where there is no such kernel, it copies the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hadacore.benchmarking import unfused
from hadacore.benchmarking.copy import time_copy, time_narrower_copy
from hadacore.benchmarking.report import PROVENANCE_COLUMNS, Row
from hadacore.benchmarking.timing import COLD, COLD_BYTES, Arena, Operation, Workload, time_operation
from hadacore.elements import BY_NAME as ELEMENTS
from hadacore.formats import BY_NAME, PER_ROW, Granularity
from hadacore.matrices import check_size
from hadacore.prologues import GATE_UP, SEPARATE, Prologue, RotaryEmbedding, rope, silu_mul
from hadacore.quantization import cuda_heads
from hadacore.quantization.functional import hadamard_quantize
from hadacore.quantization.plan import plan_quantize
from hadacore.quantization.query_key import PER_HEAD, PER_TOKEN, quantize_query_key

QUANTIZE, QUERY_KEY = "quantize", "query_key"
NO_PROLOGUE, ROPE = "", "rope"
SILU_GATE_UP, SILU_SEPARATE = f"silu_mul:{GATE_UP}", f"silu_mul:{SEPARATE}"

DTYPES = ("bfloat16", "float16")
#: Dimensions of today's models beside the powers of two.
MODEL_SIZES = (3584, 5120, 11008, 14336, 18944, 28672)
SIZES = (*(1 << k for k in range(7, 16)), *MODEL_SIZES)

#: Format, granularity and prologue. Those of the first group have a target for the chain and are measured beside it at every
#: size; the others at CHAIN_SIZES, since a compilation takes a second or more.
_AGAINST_CHAIN = (
    ("fp8_e4m3", PER_ROW, NO_PROLOGUE),
    ("int8", PER_ROW, NO_PROLOGUE),
    ("fp8_e4m3", PER_ROW, SILU_GATE_UP),
    ("fp8_e4m3", PER_ROW, SILU_SEPARATE),
    ("int8", PER_ROW, SILU_GATE_UP),
    ("int8", PER_ROW, SILU_SEPARATE),
)
_OTHERS: tuple[tuple[str, Granularity, str], ...] = (
    ("fp8_e4m3", 128, NO_PROLOGUE),
    ("int4", PER_ROW, NO_PROLOGUE),
    ("mxfp8", 32, NO_PROLOGUE),
    ("mxfp4", 32, NO_PROLOGUE),
    ("nvfp4", 16, NO_PROLOGUE),
)
HEAD_SIZE = 128
CHAIN_SIZES = (4096, 14336)
_FEW_ROWS_AGAINST_CHAIN = _AGAINST_CHAIN[:3]

Kind = tuple[str, Granularity, str]


@dataclass(frozen=True)
class Heads:
    """Queries and keys: ``(batch, tokens, heads, size)`` and ``(batch, tokens, kv_heads, size)``."""

    batch: int
    tokens: int
    heads: int
    kv_heads: int

    @property
    def rows(self) -> int:
        """Heads of all tokens, queries and keys."""
        return self.batch * self.tokens * (self.heads + self.kv_heads)


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        operation: ``"quantize"`` or ``"query_key"``.
        dtype: Of the inputs.
        size: Elements of a rotated row.
        rows: Rows.
        format: The format's name.
        granularity: What shares a scale.
        prologue: ``""``, ``"silu_mul:gate_up"``, ``"silu_mul:separate"`` or ``"rope"``.
        against_chain: Whether the unfused chain is measured, too.
        heads: Of ``"query_key"``.
    """

    operation: str
    dtype: str
    size: int
    rows: int
    format: str
    granularity: Granularity
    prologue: str = NO_PROLOGUE
    against_chain: bool = field(default=False, compare=False)
    heads: Heads | None = None

    @property
    def elements(self) -> int:
        """Elements that are quantized."""
        return self.rows * self.size

    @property
    def inputs(self) -> int:
        """Elements that are read for each that is quantized."""
        return 2 if self.prologue in (SILU_GATE_UP, SILU_SEPARATE) else 1

    @property
    def reads(self) -> int:
        """Bytes of input for each byte of codes."""
        bits = 8 * ELEMENTS[self.dtype].dtype.itemsize
        return self.inputs * bits // BY_NAME[self.format].encoding.bits

    @property
    def block(self) -> int:
        """Elements of a row that share a scale."""
        return int(self.granularity) if isinstance(self.granularity, int) else self.size

    def __str__(self) -> str:
        prologue = f"{self.prologue} " if self.prologue else ""
        return f"{prologue}{self.format} {self.granularity}, {self.rows} x {self.size}"


@dataclass(frozen=True)
class QuantizeGrid:
    """What is measured.

    Attributes:
        dtype: Of the inputs.
        sizes: Sizes of rows.
        elements: About how many elements are quantized; the last count is measured beside the chain.
        kinds: Formats, granularities and prologues.
        chain_sizes: Sizes at which every kind is measured beside the chain; the first six kinds are at all.
        few_rows: Row counts of small measurements.
        few_rows_sizes: Their sizes.
        heads: Queries and keys of head dimension 128, or None.
        granularities: Of the scales of queries and keys.

    Raises:
        TypeError, ValueError: A size without a transform, a count below 1, another type.
    """

    dtype: str = DTYPES[0]
    sizes: tuple[int, ...] = SIZES
    elements: tuple[int, ...] = (2**23, 2**25)
    kinds: tuple[Kind, ...] = (*_AGAINST_CHAIN, *_OTHERS)
    chain_sizes: tuple[int, ...] = CHAIN_SIZES
    few_rows: tuple[int, ...] = (1, 8, 64)
    few_rows_sizes: tuple[int, ...] = (4096, 14336, 28672)
    heads: Heads | None = Heads(2, 4096, 32, 8)
    granularities: tuple[str, ...] = (PER_HEAD, PER_TOKEN)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for size in self.sizes:
            check_size(size)
            if size < HEAD_SIZE:
                raise ValueError(f"sizes must be {HEAD_SIZE} or more, got {size}")
        for count in self.elements:
            if count < 1:
                raise ValueError(f"element counts must be 1 or more, got {count}")

    def cases(self) -> tuple[Case, ...]:
        """All lines, those on as much data together."""
        return tuple(dict.fromkeys((*self._many_rows(), *self._few_rows(), *self._query_key())))

    def _many_rows(self) -> Iterator[Case]:
        for size in self.sizes:
            for count in self.elements:
                for kind in self.kinds:
                    case = Case(QUANTIZE, self.dtype, size, max(1, round(count / size)), *kind)
                    if size % case.block == 0:
                        chain = count == self.elements[-1] and (kind in _AGAINST_CHAIN or size in self.chain_sizes)
                        yield replace(case, against_chain=chain)

    def _few_rows(self) -> Iterator[Case]:
        for size in self.few_rows_sizes:
            for rows in self.few_rows:
                for kind in self.kinds:
                    yield Case(QUANTIZE, self.dtype, size, rows, *kind, kind in _FEW_ROWS_AGAINST_CHAIN)

    def _query_key(self) -> Iterator[Case]:
        if self.heads is None:
            return
        for granularity in self.granularities:
            yield Case(
                QUERY_KEY, self.dtype, HEAD_SIZE, self.heads.rows, "fp8_e4m3", granularity, ROPE, True, self.heads
            )


def default_grid(device_type: str, dtype: str = DTYPES[0], quick: bool = False) -> QuantizeGrid:
    """The grid of ``hadacore bench quantize``; on the CPU a few small sizes, and fewer points when ``quick``."""
    if device_type != "cuda":
        return QuantizeGrid(
            dtype, (128, 4096) if quick else (128, 1024, 4096, 14336), (2**16,) if quick else (2**16, 2**20),
            few_rows=(8,), few_rows_sizes=(4096,), heads=Heads(1, 32, 8, 2),
        )  # fmt: skip
    if quick:
        return QuantizeGrid(
            dtype, (128, 1024, 4096, 14336, 32768), (2**25,), _FEW_ROWS_AGAINST_CHAIN, (), (8,), (14336,),
            granularities=(PER_HEAD,),
        )  # fmt: skip
    return QuantizeGrid(dtype)


@dataclass(frozen=True)
class Measured:
    """A case with its times in microseconds.

    Attributes:
        case: What was measured.
        fused: Whether one kernel does all of it.
        copy_us: Of the copy.
        hadacore_us: Of this package's call.
        chain_us: Of the unfused chain, or None.
    """

    case: Case
    fused: bool
    copy_us: float
    hadacore_us: float
    chain_us: float | None = None

    @property
    def ratio(self) -> float:
        """Time over that of the copy."""
        return self.hadacore_us / self.copy_us

    @property
    def speedup(self) -> float | None:
        """Time of the chain over ours."""
        return None if self.chain_us is None else self.chain_us / self.hadacore_us


_CASE_COLUMNS = ("operation", "dtype", "size", "rows", "elements", "format", "granularity", "prologue")
COLUMNS = (*_CASE_COLUMNS, "fused", "copy_us", "hadacore_us", "ratio", "chain_us", "speedup", *PROVENANCE_COLUMNS)


def row_of(measured: Measured, made_with: Mapping[str, str | None]) -> Row:
    """A measurement as text by column; a chain that was not measured leaves its columns empty."""
    case = measured.case
    row = {name: str(getattr(case, name)) for name in _CASE_COLUMNS} | {
        "fused": "yes" if measured.fused else "no",
        "copy_us": f"{measured.copy_us:.3f}",
        "hadacore_us": f"{measured.hadacore_us:.3f}",
        "ratio": f"{measured.ratio:.4f}",
        "chain_us": "" if measured.chain_us is None else f"{measured.chain_us:.3f}",
        "speedup": "" if measured.speedup is None else f"{measured.speedup:.3f}",
    }
    return row | {name: made_with.get(name) or "" for name in PROVENANCE_COLUMNS}


def key_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """What a row is about."""
    return tuple(row[name] for name in _CASE_COLUMNS)


def key_of_case(case: Case) -> tuple[str, ...]:
    """The same of a case."""
    return tuple(str(getattr(case, name)) for name in _CASE_COLUMNS)


def is_fused(case: Case, device: torch.device) -> bool:
    """Whether one kernel does all of it, as the plan says. Queries and keys are two launches of it, and per head two passes."""
    dtype = ELEMENTS[case.dtype].dtype
    if case.heads is None:
        prologue = _prologue_of(case)
        description = None if prologue is None else prologue.description
    else:
        description = RotaryEmbedding(False)
        if device.type != "cuda":
            return False
        for heads in (case.heads.heads, case.heads.kv_heads) if case.granularity == PER_HEAD else ():
            token = torch.empty(1, 1, heads, case.size, dtype=dtype, device=device)
            if cuda_heads.why_not(token, False) is not None:
                return False
    planned = plan_quantize(
        case.size, case.format, dtype, granularity=PER_ROW if case.heads else case.granularity, rows=case.rows,
        prologue=description, device=device,
    )  # fmt: skip
    return planned.fused and planned.prologue_reason is None


def _prologue_of(case: Case, up: Tensor | None = None) -> Prologue | None:
    """The prologue of a case, with the separate tensor that it reads."""
    if case.prologue == SILU_SEPARATE:
        return silu_mul(torch.empty(0) if up is None else up)
    return silu_mul(order=GATE_UP) if case.prologue == SILU_GATE_UP else None


def measure(
    grid: QuantizeGrid,
    device: torch.device,
    *,
    chains: bool = True,
    done: Collection[tuple[str, ...]] = (),
    cold_bytes: int = COLD_BYTES,
) -> Iterator[Measured]:
    """Measure every case that is not yet ``done``.

    Args:
        grid: The cases.
        device: Where.
        chains: Measure the unfused chain where a case says so.
        done: Keys of cases to leave out.
        cold_bytes: Bytes that a round over the cold buffers covers.
    """
    cases = [case for case in grid.cases() if key_of_case(case) not in done]
    if not cases:
        return
    largest = max(case.inputs * case.elements for case in cases)
    arena = Arena(ELEMENTS[grid.dtype].dtype, device, largest, cold_bytes=cold_bytes)
    copies: dict[tuple[int, int], float] = {}
    compiled_for = None
    with torch.no_grad():
        for case in cases:
            workload = arena.workload(case.inputs * case.elements, COLD)
            place = workload.elements, case.reads
            if place not in copies:
                on_gpu = device.type == "cuda"
                copies[place] = time_narrower_copy(workload, case.reads) if on_gpu else time_copy(workload)[0]
            if compiled_for != (case.operation, case.size, case.rows):
                unfused.forget_compiled()
                compiled_for = case.operation, case.size, case.rows
            yield _measure_case(case, workload, copies[place], chains and case.against_chain)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # outputs that were allocated in the graphs


def _measure_case(case: Case, workload: Workload, copy_us: float, chain: bool) -> Measured:
    device = workload.pairs[0][0].device
    make = _query_key_operations if case.operation == QUERY_KEY else _quantize_operations
    call, chain_of = make(case, device)
    hadacore_us = time_operation(call, workload)
    chain_us = time_operation(chain_of(), workload) if chain else None
    return Measured(case, is_fused(case, device), copy_us, hadacore_us, chain_us)


_UNFUSED_PROLOGUES: dict[str, Callable[..., Tensor] | None] = {
    NO_PROLOGUE: None,
    SILU_GATE_UP: unfused.silu_mul_gate_up,
    SILU_SEPARATE: unfused.silu_mul,
}


def _quantize_operations(case: Case, device: torch.device) -> tuple[Operation, Callable[[], Operation]]:
    rows, n = case.rows, case.size

    def inputs(x: Tensor) -> tuple[Tensor, ...]:
        return x.view(2, rows, n).unbind() if case.prologue == SILU_SEPARATE else (x.view(rows, -1),)

    def call(x: Tensor, y: Tensor) -> object:
        first, *others = inputs(x)
        prologue = _prologue_of(case, *others)
        return tuple(hadamard_quantize(first, case.format, granularity=case.granularity, prologue=prologue))

    def chain_of() -> Operation:
        chain = unfused.quantize_chain(case.format, case.block, _UNFUSED_PROLOGUES[case.prologue])
        return lambda x, y: chain(*inputs(x), out=y.view(-1)[: rows * n].view(rows, n))

    return call, chain_of


def _query_key_operations(case: Case, device: torch.device) -> tuple[Operation, Callable[[], Operation]]:
    heads, n = case.heads, case.size
    assert heads is not None
    cos, sin = rope_tables(heads.tokens, n, device)
    embedding = rope(cos, sin)

    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        q, k = x.view(-1).split(
            (heads.batch * heads.tokens * heads.heads * n, heads.batch * heads.tokens * heads.kv_heads * n)
        )
        return q.view(heads.batch, heads.tokens, heads.heads, n), k.view(heads.batch, heads.tokens, heads.kv_heads, n)

    def call(x: Tensor, y: Tensor) -> object:
        q, k = split(x)
        return tuple(quantize_query_key(q, k, rope=embedding, granularity=str(case.granularity)))

    def chain_of() -> Operation:
        chain = unfused.query_key_chain(heads.kv_heads, case.granularity == PER_TOKEN)

        def both(x: Tensor, y: Tensor) -> object:
            return [chain(part, cos, sin, out=out) for part, out in zip(split(x), split(y), strict=True)]

        return both

    return call, chain_of


def rope_tables(tokens: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of the usual frequencies, ``(tokens, n / 2)``."""
    frequencies = 10000.0 ** -(torch.arange(0, n, 2, device=device) / n)
    angles = torch.arange(tokens, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()
