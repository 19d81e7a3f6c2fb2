"""``hadacore compile``: fills a kernel cache for given sizes, types and architectures, on a machine without a GPU."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from rich.table import Table

from hadacore.backends.cuda.cache import open_cache, refusal
from hadacore.backends.cuda.compiler import Resources, cache_key, cached_compile, parse_report, resources_of
from hadacore.backends.cuda.requirements import compiler_version
from hadacore.cli.terminal import new_table
from hadacore.elements import BY_NAME, CUDA_ELEMENTS
from hadacore.formats import Format, Granularity, Quantizer
from hadacore.kernels.architectures import BY_NAME as ARCHITECTURES
from hadacore.kernels.architectures import CHECKED
from hadacore.kernels.base_configurations import OrderConfiguration, base_candidates
from hadacore.kernels.configurations import (
    NO_SIGNS,
    SIGNS_AFTER,
    SIGNS_BEFORE,
    KernelConfiguration,
    candidates,
    maximum_log2_row,
)
from hadacore.kernels.fusion import Fusion, fused_prologue
from hadacore.kernels.passes import kernels_of
from hadacore.kernels.quantizing import find_fusion
from hadacore.kernels.source import Configuration, constants, kernel_source
from hadacore.matrices import MAXIMUM_SIZE, check_size, factor
from hadacore.prologues import description_of
from hadacore.quantization.arguments import check_format, check_granularity

# Sizes of models that between them use every line of the table for m * 2^k, and every way a size can be odd.
_ORDERS = (
    20, 80, 96, 160, 192, 288, 360, 768, 960, 1152, 1536, 1792, 1920, 2304, 2880, 3584, 5120, 8960, 11008, 12288, 13696,
    14336, 15360, 18944, 28672, 36864,
)  # fmt: skip
ALL_SIZES = (*(1 << k for k in range(MAXIMUM_SIZE.bit_length())), *_ORDERS)
DTYPES = tuple(element.name for element in CUDA_ELEMENTS)

#: Prologues with kernels that no table of theirs decides, as rotary embeddings' does.
PROLOGUES = (
    *(f"{activation}_mul:{layout}" for activation in ("silu", "gelu_tanh", "gelu_erf")
      for layout in ("separate", "gate_up", "up_gate")),
    "rms_norm", "rms_norm:residual",
)  # fmt: skip

# A worker imports torch before it compiles anything; fewer kernels than this are quicker without another one.
_KERNELS_PER_WORKER = 32


@dataclass(frozen=True)
class Kernel:
    """One kernel to compile."""

    dtype: str
    architecture: str
    configuration: Configuration


@dataclass(frozen=True)
class Compiled:
    """What became of a kernel.

    Attributes:
        kernel: Which.
        from_cache: The cache had it already.
        code_bytes: Size of its machine code.
        resources: The assembler's report, if asked for.
        failure: Why there is no kernel, or None.
    """

    kernel: Kernel
    from_cache: bool = False
    code_bytes: int = 0
    resources: Resources | None = None
    failure: str | None = None

    @property
    def spills(self) -> bool:
        """Whether the assembler reported local memory."""
        return self.resources is not None and not self.resources.stays_in_registers


@dataclass(frozen=True)
class Quantized:
    """A quantizing kernel's share of a request: ``FORMAT`` or ``FORMAT:GRANULARITY``, and a prologue's name or None."""

    format: Format
    granularity: Granularity
    prologue: str | None = None

    def __str__(self) -> str:
        before = f"{self.prologue} + " if self.prologue else ""
        return f"{before}{self.format.name} {self.granularity}"

    def fusion(self, element_code: int, size: int, architecture: str) -> Fusion | str:
        """What a kernel of this size does besides the transform, or why there is none. Rows are one transform each."""
        try:
            _, block = check_granularity(self.granularity, self.format, size)
        except ValueError as error:
            return str(error)
        quantizer = Quantizer(self.format, block, swizzled=self.format.can_swizzle)
        before = None if self.prologue is None else fused_prologue(description_of(self.prologue, 0.0), size)
        return find_fusion(element_code, size, size, quantizer, block == 0, False, ARCHITECTURES[architecture], before)


def quantized(formats: Iterable[str], prologues: Iterable[str] = ()) -> tuple[Quantized, ...]:
    """Requests for quantizing kernels.

    Args:
        formats: Such as ``"fp8_e4m3"``, with its default granularity, or ``"fp8_e4m3:128"``.
        prologues: Such as ``"silu_mul:gate_up"``; none is without any.

    Raises:
        ValueError: There is no such format, granularity or prologue.
    """
    requests = []
    before = tuple(prologues) or (None,)
    for name in before:
        if name is not None and name not in PROLOGUES:
            raise ValueError(f"prologue must be one of {', '.join(PROLOGUES)}, got {name!r}")
    for entry in formats:
        name, _, granularity = entry.partition(":")
        found = check_format(name)
        by_text = {str(allowed): allowed for allowed in found.granularities}
        if granularity and granularity not in by_text:
            raise ValueError(f"granularity of {name} must be one of {', '.join(by_text)}, got {granularity!r}")
        chosen = by_text[granularity] if granularity else found.default
        requests += [Quantized(found, chosen, prologue) for prologue in before]
    return tuple(requests)


def kernels_for(
    sizes: Iterable[int] = ALL_SIZES,
    dtypes: Iterable[str] = DTYPES,
    architectures: Iterable[str] = CHECKED,
    *,
    signs: bool = False,
    strided: bool = False,
    quantize: Iterable[Quantized] = (),
) -> tuple[Kernel, ...]:
    """Every configuration that could be chosen for these sizes, types and architectures.

    Args:
        sizes: Transform sizes.
        dtypes: Names of element types.
        architectures: Such as ``"sm_90a"``.
        signs: Also with random signs before, and after, the transform.
        strided: Also for rows with gaps, each of the above. Rows shorter than a 16-byte vector, and transforms in several
            passes, have no such kernel.
        quantize: Kernels that quantize instead of those of the transform alone. What has none is left out;
            :func:`without_kernel` says why.

    Raises:
        TypeError, ValueError: There is no such size, type or architecture.
    """
    sign_variants = (NO_SIGNS, SIGNS_BEFORE, SIGNS_AFTER) if signs else (NO_SIGNS,)
    requests = tuple(quantize)
    kernels: list[Kernel] = []
    for architecture, dtype, code, size in _targets(sizes, dtypes, architectures):
        fusions: list[Fusion | None] = [None]
        if requests:
            found = (request.fusion(code, size, architecture) for request in requests)
            fusions = [fusion for fusion in found if not isinstance(fusion, str)]
        for fusion in fusions:
            kernels += _kernels(code, size, dtype, architecture, sign_variants, strided, fusion)
    return tuple(dict.fromkeys(kernels))


def without_kernel(
    sizes: Iterable[int], dtypes: Iterable[str], architectures: Iterable[str], quantize: Iterable[Quantized]
) -> dict[str, str]:
    """What of a request no kernel does in one launch, and why: the operator is composed there, or refuses the size."""
    requests = tuple(quantize)
    reasons = {}
    for architecture, _, code, size in _targets(sizes, dtypes, architectures):
        for request in requests:
            fusion = request.fusion(code, size, architecture)
            if isinstance(fusion, str):
                reasons[f"{size} to {request}"] = fusion
    return reasons


def _targets(
    sizes: Iterable[int], dtypes: Iterable[str], architectures: Iterable[str]
) -> Iterator[tuple[str, str, int, int]]:
    """``(architecture, dtype, element code, size)``, each checked."""
    sizes, dtypes = tuple(sizes), tuple(dtypes)
    for architecture in architectures:
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
        for dtype in dtypes:
            code = BY_NAME[dtype].cuda_code if dtype in BY_NAME else None
            if code is None:
                raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
            for size in sizes:
                yield architecture, dtype, code, check_size(size)


def _configurations(
    code: int, size: int, architecture: str, transposed: bool, fusion: Fusion | None
) -> tuple[KernelConfiguration | OrderConfiguration, ...]:
    """Those of one launch, without signs."""
    matrix, target = factor(size), ARCHITECTURES[architecture]
    if matrix.base_order > 1:
        return base_candidates(code, matrix.base_order, matrix.log2, target, transposed=transposed, fusion=fusion)
    return tuple(candidate.configuration for candidate in candidates(code, matrix.log2, target, fusion))


def _kernels(
    code: int,
    size: int,
    dtype: str,
    architecture: str,
    sign_variants: tuple[int, ...],
    strided: bool,
    fusion: Fusion | None,
) -> Iterator[Kernel]:
    matrix, target = factor(size), ARCHITECTURES[architecture]
    if matrix.base_order == 1 and matrix.log2 > maximum_log2_row(code, target):
        for with_signs in sign_variants:
            for in_passes in kernels_of(code, matrix.log2, target, with_signs):
                yield Kernel(dtype, architecture, in_passes)
        return
    vector = BY_NAME[dtype].vector_elements
    stride_variants = (False, True) if strided and size >= vector and size % vector == 0 else (False,)
    # An inverse has another matrix where it is not symmetric.
    for transposed in (False,) if matrix.symmetric else (False, True):
        found = _configurations(code, size, architecture, transposed, fusion)
        for c, with_signs, with_strides in itertools.product(found, sign_variants, stride_variants):
            # Signs come after the transform exactly where it is the inverse.
            if matrix.symmetric or with_signs == NO_SIGNS or transposed == (with_signs == SIGNS_AFTER):
                yield Kernel(dtype, architecture, c.with_options(with_signs, with_strides))


def compile_one(kernel: Kernel, folder: Path, check: bool = False) -> Compiled:
    """Compile one kernel into ``folder``, unless it is there. With ``check``, have the assembler report on it."""
    c = kernel.configuration
    source, macros = kernel_source(c), constants(c)
    log = StringIO() if check else None
    try:
        compiled, from_cache = cached_compile(source, macros, kernel.architecture, folder=folder, log=log)
        if not from_cache and open_cache(folder).get(cache_key(source, macros, kernel.architecture)) is None:
            return Compiled(kernel, failure=f"{folder} could not be written; is it read-only, or the disk full?")
        # NVRTC older than the GPU gives PTX, which the driver assembles; there is nothing to report on yet.
        resources = None
        if log is not None and compiled.code_type == "cubin":
            resources = resources_of(c, kernel.architecture) if from_cache else parse_report(log.getvalue())
    except Exception as error:  # the compiler's own error types differ between releases; report it, go on with the rest
        return Compiled(kernel, failure=f"{type(error).__name__}: {error}")
    return Compiled(kernel, from_cache, len(compiled.code), resources)


def worker_count(jobs: int | None, kernels: int) -> int:
    """Processes to use: ``jobs``, or as many as there are processors and enough work for."""
    if jobs is not None:
        if jobs < 1:
            raise ValueError(f"jobs must be 1 or more, got {jobs}")
        return jobs
    return max(1, min(os.cpu_count() or 1, kernels // _KERNELS_PER_WORKER))


def _compiled(kernels: Sequence[Kernel], folder: Path, check: bool, workers: int) -> Iterator[Compiled]:
    work = functools.partial(compile_one, folder=folder, check=check)
    if workers == 1:
        yield from map(work, kernels)
        return
    # Not forked: torch has threads by now.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, kernels, chunksize=4)


def check_cache_folder(folder: Path) -> None:
    """Create the cache folder, or say why kernels cannot be kept in it.

    Raises:
        ValueError: It cannot be created or written, or others could write it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ValueError(f"the cache folder {folder} cannot be made: {error}") from error
    reason = refusal(folder)
    if reason is not None:
        raise ValueError(reason)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"the cache folder {folder} cannot be written")


def compile_all(
    kernels: Sequence[Kernel],
    folder: Path,
    *,
    check: bool = False,
    jobs: int | None = None,
    progress: Callable[[Compiled], None] = lambda compiled: None,
) -> list[Compiled]:
    """Compile kernels into a cache folder, in several processes.

    Args:
        kernels: As of :func:`kernels_for`.
        folder: The cache folder.
        check: Have the assembler report registers and spills of each.
        jobs: Processes; by default as many as are worth it.
        progress: Called with each result.

    Returns:
        One result for each kernel, in order; failures are among them.

    Raises:
        ValueError: The folder cannot be used.
        BackendUnavailableError: cuda-core or NVRTC is missing.
    """
    workers = worker_count(jobs, len(kernels))
    compiler_version()
    check_cache_folder(folder)
    results = []
    for compiled in _compiled(kernels, folder, check, workers):
        progress(compiled)
        results.append(compiled)
    return results


def named(result: Compiled) -> str:
    """A kernel with its variant, for messages."""
    kernel = result.kernel
    variant = f"signs {kernel.configuration.signs}, strided {int(kernel.configuration.strided)}"
    fusion = getattr(kernel.configuration, "fusion", None)
    if fusion is not None:
        variant += f", {fusion}"
    return f"{kernel.architecture} {kernel.dtype} {kernel.configuration}, {variant}"


def compiled_table(results: list[Compiled], check: bool) -> Table:
    """Kernels by architecture and type; with ``check``, most registers and how many spill."""
    columns = ["", "kernels", "compiled", "cached", "failed", "kB", *(["registers", "spill"] if check else [])]
    lines = new_table("Kernels", *columns)
    groups: dict[tuple[str, str], list[Compiled]] = {}
    for result in results:
        groups.setdefault((result.kernel.architecture, result.kernel.dtype), []).append(result)
    for (architecture, dtype), members in groups.items():
        failed = sum(r.failure is not None for r in members)
        cached = sum(r.from_cache for r in members)
        counts = [
            len(members),
            len(members) - failed - cached,
            cached,
            failed,
            sum(r.code_bytes for r in members) // 1000,
        ]
        if check:
            registers = max((r.resources.registers for r in members if r.resources is not None), default=0)
            counts += [registers, sum(r.spills for r in members)]
        lines.add_row(f"{architecture} {dtype}", *map(str, counts))
    return lines
