"""Plans: how a problem will be solved, as a value that prints itself.

A problem (size, type, rows, device) becomes a plan: the stages with the index bits each contracts, the kernel and its
launch, the bytes it moves. The CUDA text is specialised by the plan's configuration, the tests execute its stages in
plain PyTorch, and ``hadacore plan N`` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hadacore.backends import cpu
from hadacore.backends.cuda.composed import is_composed
from hadacore.backends.selection import default_backend
from hadacore.checks import check_base_matrix, check_block_size
from hadacore.elements import BY_CUDA_CODE, BY_DTYPE, ELEMENTS, Element
from hadacore.kernels.architectures import BY_NAME, Architecture, architecture_of
from hadacore.kernels.base_configurations import (
    BASE_SIGNS,
    BaseConfiguration,
    OrderConfiguration,
    base_source,
    choose_base,
)
from hadacore.kernels.configurations import KernelConfiguration, choose, maximum_log2_row, signs_placement
from hadacore.kernels.fragment_configurations import FragmentConfiguration
from hadacore.kernels.fusion import Fusion
from hadacore.kernels.passes import Passes, passes_of
from hadacore.kernels.stages import REGISTERS, Stage, base_stages, fragment_stages, stages_of, warpgroup_stages
from hadacore.kernels.warpgroup_configurations import WarpgroupConfiguration
from hadacore.matrices import describe, factor


@dataclass(frozen=True)
class Problem:
    """What is to be transformed.

    Attributes:
        n: Elements of the last dimension.
        size: Elements of one transform; divides ``n``.
        element: Element type.
        rows: Transforms of ``size`` elements.
        signs: Whether there are random signs.
        inverse: Whether the transpose is applied.
        base_order: Order of the caller's base, or 0 for this library's.
    """

    n: int
    size: int
    element: Element
    rows: int
    signs: bool = False
    inverse: bool = False
    base_order: int = 0

    @property
    def order(self) -> int:
        """Order of the base matrix; 1 for a power of two without one."""
        return self.base_order or factor(self.size).base_order

    @property
    def log2_columns(self) -> int:
        """k of the Sylvester factor 2^k."""
        return (self.size // self.order).bit_length() - 1

    @property
    def matrix(self) -> str:
        """The matrix in words."""
        if self.base_order:
            return f"the given base of order {self.order} (x) Sylvester(2^{self.log2_columns})"
        return describe(self.size)


@dataclass(frozen=True)
class Plan:
    """How a problem is solved.

    Attributes:
        problem: What is to be transformed.
        backend: ``"cuda"`` or ``"cpu"``.
        stages: Steps in order; together they contract every index bit exactly once.
        architecture: GPU architecture, or None on the CPU.
        multiprocessors: Multiprocessors of the GPU, or 0.
        configuration: The specialised kernel, or None on the CPU and where there are passes.
        passes: Of a size too large for one kernel, the passes over memory, or None.
    """

    problem: Problem
    backend: str
    stages: tuple[Stage, ...]
    architecture: Architecture | None = None
    multiprocessors: int = 0
    configuration: KernelConfiguration | OrderConfiguration | None = None
    passes: Passes | None = None

    @property
    def bytes_moved(self) -> int:
        """Bytes the transform must read and write, signs not counted."""
        return 2 * self.problem.rows * self.problem.size * self.problem.element.bytes

    @property
    def additions(self) -> int:
        """Additions of the textbook algorithm: one an element for each index bit, ``m - 1`` for a base of order m."""
        p = self.problem
        return p.rows * p.size * (p.log2_columns + p.order - 1)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the Tensor Cores for the base matrix, padding to whole fragments included."""
        c = self.configuration
        return self.problem.rows * c.multiply_adds if isinstance(c, OrderConfiguration) else 0

    @property
    def predicted_ratio(self) -> float | None:
        """Predicted time over that of a copy of the same bytes, for many rows; None where there is no model, as with codes."""
        if self.architecture is None or self.multiprocessors == 0 or self.configuration is None:
            return None
        if self.configuration.fusion is not None:
            return None
        return predicted_ratio(self.multiply_adds / max(1, self.problem.rows * self.problem.size), self.configuration)

    def _lines_of_passes(self, passes: Passes) -> list[str]:
        lines, stage = [], 1
        for number in range(len(passes.split)):
            stages, launches, c = passes.stages_of_pass(number), passes.of_pass(number), passes.configurations[number]
            source, target = passes.places_of_pass(number)
            lines.append(
                f"  pass {number + 1}   from {source.value} to {target.value}, {passes.bytes_of_pass(number):,} bytes"
            )
            lines += _lines_of_stages(stages, stage)
            stage += len(stages)
            blocks = c.grid(launches[0].units, self.multiprocessors) * c.cluster if launches else 0
            lines.append(f"  kernel   {c}")
            lines.append(
                f"  launch   {len(launches)} times {blocks} blocks of {c.threads} threads or fewer, {c.shared_bytes} bytes of "
                "shared memory a block"
            )
        if passes.workspace_elements:
            lines.append(f"  workspace  {4 * passes.workspace_elements:,} bytes, float32")
        return lines

    @property
    def where(self) -> str:
        """The backend, or the GPU, in words."""
        if self.architecture is None:
            return self.backend
        return f"{self.architecture.name}, {self.multiprocessors} multiprocessors"

    def steps(self) -> list[str]:
        """The matrix, what contracts its bits, and the kernels, a line each."""
        p = self.problem
        lines = [f"  matrix   {p.matrix}" + (f", {p.n // p.size} blocks a row" if p.n != p.size else "")]
        if p.signs:
            lines.append(f"  signs    {'after' if p.inverse else 'before'} the transform, on sign bits")
        if self.passes is not None:
            lines += self._lines_of_passes(self.passes)
        else:
            lines += _lines_of_stages(self.stages, 1)
        c = self.configuration
        if c is not None and self.architecture is not None:
            blocks = c.grid(p.rows, self.multiprocessors) * c.cluster
            shared_bytes = c.launched_bytes(self.architecture)
            lines.append(f"  kernel   {c}")
            lines.append(
                f"  launch   {blocks} blocks of {c.threads} threads, {shared_bytes} bytes of shared memory a block"
            )
        return lines

    def __str__(self) -> str:
        p = self.problem
        lines = [f"Plan for {p.rows} rows of {p.n}, {p.element.name}, on {self.where}", *self.steps()]
        lines.append(f"  moves    {self.bytes_moved:,} bytes; {self.additions:,} additions in the textbook algorithm")
        if self.multiply_adds:
            lines.append(f"  products {self.multiply_adds:,} multiply-adds for the base, padding included")
        ratio = self.predicted_ratio
        if ratio is not None:
            lines.append(f"  predicts {ratio:.2f} times a copy of the same bytes, for many rows on an H200")
        return "\n".join(lines)


def predicted_ratio(multiply_adds: float, configuration: KernelConfiguration | OrderConfiguration) -> float | None:
    """Time over a copy of the same bytes for many rows on an H200.

    Clocks of a multiprocessor for an element are fitted to the 54 sizes of docs/performance.md at 2^25 elements, off by 7 %
    (float32: 10 %) on the average: some for everything but the base's products; ``multiply_adds`` an element at what wgmma and
    mma.sync reach beside the rest; more where a block of several groups of columns is alone on a multiprocessor. A copy takes
    0.228 clocks for 2 bytes in and out. None for powers of two, which that page lists as measured, and for a caller's base,
    whose reads it does not count.
    """
    if isinstance(configuration, FragmentConfiguration):  # fitted to the sizes that it runs, off by 5 % at most
        return max(1.0, (0.234 + multiply_adds / 8000) / 0.228)
    if isinstance(configuration, WarpgroupConfiguration):  # fitted to the nine sizes that it runs, and 1536
        return max(1.0, (0.222 + multiply_adds / 9000 + 0.02 * (configuration.groups > 1)) / 0.228)
    if not isinstance(configuration, BaseConfiguration) or configuration.base != BASE_SIGNS:
        return None
    alone = 0.016 * (configuration.minimum_blocks == 1 and configuration.groups > 1)
    if BY_CUDA_CODE[configuration.element_code].dtype == torch.float32:
        return max(1.0, (0.37 + multiply_adds / 430 + alone) / 0.443)
    return max(1.0, (0.20 + multiply_adds / (1670 if configuration.wgmma else 1130) + alone) / 0.228)


def _lines_of_stages(stages: tuple[Stage, ...], first: int) -> list[str]:
    lines = []
    for number, stage in enumerate(stages, first):
        bits = " ".join(map(str, stage.bits))
        lines.append(
            f"  stage {number}  radix {stage.radix:<5} bits {bits or 'none':<12} in {stage.holder}: {stage.unit}, {stage.note}"
        )
    return lines


def _element(dtype: torch.dtype) -> Element:
    element = BY_DTYPE.get(dtype)
    if element is None:
        raise TypeError(f"dtype must be one of {', '.join(str(e.dtype) for e in ELEMENTS)}, got {dtype}")
    return element


def plan(
    n: int,
    dtype: torch.dtype = torch.float16,
    *,
    rows: int = 8192,
    block_size: int | None = None,
    base: Tensor | None = None,
    signs: bool = False,
    inverse: bool = False,
    device: torch.device | str | None = None,
    architecture: str | None = None,
    multiprocessors: int | None = None,
) -> Plan:
    """Plan a transform without running it.

    Args:
        n: Elements of the last dimension.
        dtype: Element type.
        rows: Rows of ``n`` elements.
        block_size: As in :func:`hadacore.hadamard_transform`.
        base: Likewise, on any device, also meta; only its shape and dtype are looked at.
        signs: Whether there are random signs.
        inverse: Whether the transpose is applied.
        device: The device to plan for; the current GPU if there is one, else the CPU.
        architecture: Plan for a GPU that is not here, such as ``"sm_90a"``; wants ``multiprocessors`` too.
        multiprocessors: Multiprocessors of that GPU; 132 (H100, H200) by default.

    Raises:
        TypeError, ValueError: As :func:`hadacore.hadamard_transform`; an unknown architecture.

    >>> print(plan(256, torch.bfloat16, rows=4, architecture="sm_90a"))  # doctest: +ELLIPSIS
    Plan for 4 rows of 256, bfloat16, on sm_90a, 132 multiprocessors
      matrix   H_256 = Sylvester(2^8), natural order, symmetric; construction version 1
      stage 1  radix 16    bits 0 1 3 4      in position bits 0 1, lane bits 0 1: Tensor Cores, mma.m16n8k16 on the input...
      stage 2  radix 16    bits 2 5 6 7      in which product, lane bits 2 3 4: Tensor Cores, high + low, ...
    ...
    """
    element = _element(dtype)
    order = 0
    if base is None:
        size = check_block_size(n, block_size)
    else:
        base, size = check_base_matrix(base, dtype, n, block_size)
        order = base.shape[0]
    if rows < 0:
        raise ValueError(f"rows must be 0 or more, got {rows}")
    problem = Problem(n, size, element, rows * (n // size), signs, inverse, order)
    has_base = base is not None or problem.order > 1
    target = _target(device, architecture, multiprocessors)
    if target is None or element.cuda_code is None:
        native = cpu.native.unavailable_reason() is None
        work = f"in {'float64' if element.bytes == 8 else 'float32'}, {'native kernels' if native else 'PyTorch operations'}"
        stages = tuple(Stage(REGISTERS, (bit,), "memory", f"butterflies {work}") for bit in range(problem.log2_columns))
        if has_base:
            product = Stage(REGISTERS, (), "memory", f"product with the base {work}", problem.order)
            # The native kernels multiply by the base last, the PyTorch path first.
            stages = (*stages, product) if native else (product, *stages)
        return Plan(problem, "cpu", stages)
    found, processors = target
    if has_base and is_composed(problem.order, problem.log2_columns):
        raise ValueError(
            f"size {size} runs as several smaller transforms with copies between them, which have no plan of their own; plan "
            f"block_size={problem.order << 8} and {size // (problem.order << 8)} instead"
        )
    if not has_base and size > 1 << maximum_log2_row(element.cuda_code, found):
        signs_are = signs_placement(signs, inverse)
        passes = passes_of(
            element.cuda_code, size.bit_length() - 1, problem.rows, found.capability, processors, signs_are, n // size
        )
        return Plan(problem, "cuda", passes.stages(), found, processors, passes=passes)
    return _single_launch(problem, found, processors, None if base is None else base.dtype)


def fused_plan(transform: Plan, dtype: torch.dtype, fusion: Fusion, base_dtype: torch.dtype | None) -> Plan:
    """The plan of the one launch on a GPU that does a planned transform of ``dtype`` and what ``fusion`` says besides.

    Raises:
        LookupError: No kernel does.
    """
    assert transform.architecture is not None
    problem = replace(transform.problem, element=_element(dtype))
    return _single_launch(problem, transform.architecture, transform.multiprocessors, base_dtype, fusion)


def _single_launch(
    problem: Problem, architecture: Architecture, processors: int, base_dtype: torch.dtype | None, fusion: Fusion | None = None
) -> Plan:  # fmt: skip
    """``base_dtype``: of the caller's base, or None."""
    code, capability = problem.element.cuda_code, architecture.capability
    assert code is not None
    signs = signs_placement(problem.signs, problem.inverse)
    chosen: KernelConfiguration | OrderConfiguration
    if problem.base_order or problem.order > 1:
        found = None if problem.base_order else factor(problem.size)
        chosen = choose_base(
            code, problem.order, problem.log2_columns, problem.rows, capability, processors, signs,
            base=base_source(code, None if base_dtype is None else base_dtype == torch.float32),
            transposed=found is not None and problem.inverse and not found.symmetric, fusion=fusion,
        )  # fmt: skip
    else:
        log2_size = problem.size.bit_length() - 1
        chosen = choose(code, log2_size, problem.rows, capability, processors, signs, False, fusion)
    return Plan(problem, "cuda", _stages(chosen), architecture, processors, chosen)


def _stages(configuration: KernelConfiguration | OrderConfiguration) -> tuple[Stage, ...]:
    if isinstance(configuration, FragmentConfiguration):
        return fragment_stages(configuration)
    if isinstance(configuration, WarpgroupConfiguration):
        return warpgroup_stages(configuration)
    return base_stages(configuration) if isinstance(configuration, BaseConfiguration) else stages_of(configuration)


def _target(
    device: torch.device | str | None, architecture: str | None, multiprocessors: int | None
) -> tuple[Architecture, int] | None:
    if architecture is not None:
        if architecture not in BY_NAME:
            raise ValueError(f"architecture must be one of {', '.join(BY_NAME)}, got {architecture!r}")
        return BY_NAME[architecture], multiprocessors or 132
    chosen = (
        torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    if chosen.type != "cuda":
        return None
    if default_backend("cuda") == "triton":
        raise ValueError(
            "plans are of the CUDA and the CPU backend, and tensors on this GPU go to Triton's, whose table is in "
            "hadacore.backends.triton.configurations; pass device='cpu', or an architecture"
        )
    properties = torch.cuda.get_device_properties(chosen)
    return architecture_of((properties.major, properties.minor)), properties.multi_processor_count
