"""Stages: which index bits of a row a configuration contracts, in which order, by what, and who holds them.

A Walsh-Hadamard transform of size ``2^k`` is one 2x2 butterfly on each of the ``k`` index bits, in any order. A stage
contracts some bits at once; a schedule is sound if its stages contract every bit exactly once, which
:func:`check_bits` checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hadacore.kernels.base_configurations import BASE_OF_FLOAT32, BaseConfiguration, OrderConfiguration
from hadacore.kernels.columns import ColumnsConfiguration
from hadacore.kernels.configurations import TILE_LOG2, KernelConfiguration
from hadacore.kernels.fragment_configurations import FragmentConfiguration
from hadacore.kernels.warpgroup_configurations import WarpgroupConfiguration

TENSOR_CORES_EXACT = "Tensor Cores"
TENSOR_CORES_SPLIT = "Tensor Cores, high + low"
TENSOR_CORES_CUT = "Tensor Cores, 11 bits"  # of significand, where codes follow
REGISTERS = "registers"
LANES = "lanes"
EXCHANGE = "exchange"


@dataclass(frozen=True)
class Stage:
    """One step of a transform.

    Attributes:
        unit: What computes it: one of the constants of this module.
        bits: The index bits it contracts, lowest first.
        holder: Who holds those bits when it starts.
        note: Instruction and rounding.
        base_order: Order of the base matrix, if it contracts the index above all bits as well.
    """

    unit: str
    bits: tuple[int, ...]
    holder: str
    note: str
    base_order: int = 1

    @property
    def radix(self) -> int:
        """Points of the transform that the stage contracts."""
        return self.base_order << len(self.bits)


def _first_product(c: KernelConfiguration | OrderConfiguration, shape: str) -> str:
    """What the first product is, and what it multiplies. ``shape``: of an instruction, up to its K."""
    if c.fusion is None or c.fusion.prologue is None:
        return f"{shape}k16 on the input"
    if c.element_code == 2:
        return f"{shape}k16 on the prologue's values"
    if isinstance(c, BaseConfiguration):
        return f"{shape}k16 on the prologue's values as bfloat16 high + low"
    return f"{shape}k8 on the prologue's values as tf32"


def _second_product(c: KernelConfiguration | OrderConfiguration, shape: str) -> tuple[str, str]:
    """What a product of accumulators is, and what it makes of them. ``shape``: of an instruction, up to its K."""
    if c.fusion is None or (isinstance(c, BaseConfiguration) and c.base == BASE_OF_FLOAT32):
        return TENSOR_CORES_SPLIT, f"{shape}k16 twice, accumulators as bfloat16 high + low"
    return TENSOR_CORES_CUT, f"{shape}k8, accumulators as tf32"


def _tile_stages(configuration: KernelConfiguration) -> list[Stage]:
    bits = min(configuration.log2_size, TILE_LOG2)
    if configuration.element_code == 2:
        groups = [(REGISTERS, range(2), "position in a 16-byte vector"), (LANES, range(2, 7), "lane bits 0 to 4")]
        groups.append((REGISTERS, range(7, 8), "which of two vectors"))
        return _butterflies(groups, bits)
    if bits <= 4:
        groups = [(REGISTERS, range(3), "position in a 16-byte vector"), (LANES, range(3, 8), "lane bits 0 to 4")]
        return _butterflies(groups, bits)
    first = _first_product(configuration, "mma.m16n8")
    if bits == 8:
        exact = f"{first}, fp32 accumulators"
        unit, note = _second_product(configuration, "mma.m16n8")
        return [
            Stage(TENSOR_CORES_EXACT, (0, 1, 3, 4), "position bits 0 1, lane bits 0 1", exact),
            Stage(unit, (2, 5, 6, 7), "which product, lane bits 2 3 4", note),
        ]
    data_as_a = f"{first} as A, fp32 accumulators"
    product = Stage(TENSOR_CORES_EXACT, (0, 2, 3, 4), "position bits 0 2, lane bits 0 1", data_as_a)
    groups = [(REGISTERS, range(1, 2), "accumulator half"), (LANES, range(5, 8), "lane bits 2 to 4")]
    return [product, *_butterflies(groups, bits)]


def _butterflies(groups: list[tuple[str, range, str]], bits: int) -> list[Stage]:
    stages = []
    for unit, candidates, holder in groups:
        contracted = tuple(b for b in candidates if b < bits)
        if contracted:
            note = "fp32 butterflies" + (" by shfl.sync.bfly" if unit == LANES else "")
            stages.append(Stage(unit, contracted, holder, note))
    return stages


def stages_of(configuration: KernelConfiguration) -> tuple[Stage, ...]:
    """The stages of a configuration, in the order in which they run.

    Raises:
        ValueError: Some index bit would be contracted twice or never.
    """
    stages = _tile_stages(configuration)
    top = TILE_LOG2 + configuration.log2_tiles
    if configuration.log2_tiles:
        stages.append(Stage(REGISTERS, tuple(range(TILE_LOG2, top)), "which of a warp's tiles", "fp32 butterflies"))
    if top < configuration.log2_size:
        holders = f"{configuration.warps} warps" + (
            f" x {configuration.cluster} blocks" if configuration.cluster > 1 else ""
        )
        memory = "distributed shared memory" if configuration.cluster > 1 else "shared memory"
        note = f"fp32 butterflies after one trip through {memory}"
        stages.append(Stage(EXCHANGE, tuple(range(top, configuration.log2_size)), holders, note))
    check_bits(stages, configuration.log2_size, str(configuration))
    return tuple(stages)


def base_stages(configuration: BaseConfiguration) -> tuple[Stage, ...]:
    """The stages of ``base_rows.cu``: the base with the bits merged into it, then the columns that a warp holds.

    Raises:
        ValueError: Some index bit would be contracted twice or never.
    """
    c = configuration
    log2_columns = c.log2_size + c.log2_merge - c.halves
    first = _first_product(c, "wgmma.m64n64" if c.wgmma else "mma.m16n8")
    parts = " on three bfloat16 parts" if c.element_code == 2 else ""
    if c.base == BASE_OF_FLOAT32:
        parts = f" on bfloat16 parts of both, {c.products} products"
    log2_size = c.log2_size - c.halves  # the highest column bit of a panel may be the base's
    merged = tuple(range(log2_size, log2_columns))
    panel = "rows of the panel" + (", in shared memory" if c.stages else "")
    note = f"{c.order} multiply-adds an element, {first}{parts}, fp32 accumulators"
    if c.halves:
        panel += ", and its highest column bit"
        note += "; two additions of the input"
    stages = [Stage(TENSOR_CORES_EXACT, merged, panel, note, c.order << c.halves >> c.log2_merge)]
    unit, second = _second_product(c, "wgmma.m64n64" if c.wide else "mma.m16n8")
    columns = range(log2_size)
    vector = c.log2_group - 3
    if c.wide:
        stages.append(Stage(unit, tuple(columns[:6]), "accumulators and lane bits 0 1", second))
        groups = [(REGISTERS, columns[6:], "which group of columns")]
    elif c.wgmma:
        stages.append(Stage(unit, tuple(columns[:4]), "accumulators and lane bits 0 1", second))
        groups = [(REGISTERS, columns[4:6], "which product"), (REGISTERS, columns[6:], "which group of columns")]
    elif c.element_code != 2 and c.log2_size >= 6:
        stages.append(Stage(unit, (0, 3, 4, 5), "accumulators and lane bits 0 1", second))
        groups = [(REGISTERS, range(1, 3), "which product"), (REGISTERS, columns[6:], "which group of columns")]
    else:
        groups = [
            (REGISTERS, range(vector), "which product"),
            (LANES, range(vector, vector + 2), "lane bits 0 1"),
            (REGISTERS, range(vector + 2, c.log2_size), "accumulator pair, which group of columns"),
        ]
    stages += _butterflies(groups, log2_size)
    check_bits(stages, log2_columns, str(c))
    return tuple(stages)


def fragment_stages(configuration: FragmentConfiguration) -> tuple[Stage, ...]:
    """The stages of ``fragment_rows.cu``: the base with the bits merged into it, then the columns that are left.

    Raises:
        ValueError: Some index bit would be contracted twice or never.
    """
    c = configuration
    log2_columns = c.log2_size + c.log2_merge
    note = f"{c.order} multiply-adds an element, {_first_product(c, 'mma.m16n8')}, fp32 accumulators"
    merged = tuple(range(c.log2_size, log2_columns))
    stages = [Stage(TENSOR_CORES_EXACT, merged, "rows of the panel", note, c.order >> c.log2_merge)]
    groups = [(REGISTERS, range(c.log2_size), "which product, accumulator pair")]
    if c.log2_size >= 4:
        unit, second = _second_product(c, "mma.m16n8")
        bits = (0, 1, 2, 3) if c.log2_size == 4 else (0, 2, 3, 4)
        stages.append(Stage(unit, bits, "accumulators and lane bits 0 1", second))
        groups = [(REGISTERS, range(1, 2), "which product")] if c.log2_size == 5 else []
    stages += _butterflies(groups, log2_columns)
    check_bits(stages, log2_columns, str(c))
    return tuple(stages)


def warpgroup_stages(configuration: WarpgroupConfiguration) -> tuple[Stage, ...]:
    """The stages of ``warpgroup_rows.cu``: the columns, then the base with the bits merged into it.

    Raises:
        ValueError: Some index bit would be contracted twice or never.
    """
    c = configuration
    log2_columns = c.log2_size + c.log2_merge
    exact = f"{_first_product(c, 'wgmma.m64')}, fp32 accumulators"
    tensor_bits = c.tensor_shares.bit_length() - 1
    first = (*range(6), *range(c.log2_size - tensor_bits, c.log2_size))
    stages = [Stage(TENSOR_CORES_EXACT, first, "columns of the panel, in shared memory", exact)]
    between = tuple(range(6, c.log2_size - tensor_bits))
    if between:
        stages.append(Stage(REGISTERS, between, "which group of columns", "fp32 butterflies, highest bit first"))
    merged = tuple(range(c.log2_size, log2_columns))
    unit, note = _second_product(c, "wgmma.m64")
    note = f"{c.order} multiply-adds an element, {note}"
    stages.append(Stage(unit, merged, "accumulators and lane bits 0 1", note, c.order >> c.log2_merge))
    check_bits(stages, log2_columns, str(c))
    return tuple(stages)


def column_stages(configuration: ColumnsConfiguration, first_bit: int) -> tuple[Stage, ...]:
    """The stages of ``columns.cu``, where the lowest index bit that it contracts is ``first_bit`` of the row."""
    middle, end = first_bit + configuration.lower_bits, first_bit + configuration.log2_points
    return (
        Stage(REGISTERS, tuple(range(first_bit, middle)), "which of a thread's points", "fp32 butterflies"),
        Stage(
            EXCHANGE,
            tuple(range(middle, end)),
            f"threads of {configuration.warps} warps",
            "fp32 butterflies after one trip through shared memory",
        ),
    )


def check_bits(stages: Sequence[Stage], log2_size: int, of: str) -> None:
    """Check that the stages contract every index bit of a row exactly once.

    Raises:
        ValueError: Some index bit would be contracted twice or never.
    """
    contracted = sorted(bit for stage in stages for bit in stage.bits)
    if contracted != list(range(log2_size)):
        raise ValueError(f"index bits {contracted} are contracted, expected 0..{log2_size - 1}: {of}")
