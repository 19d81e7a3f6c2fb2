"""Times configurations of sizes ``m * 2^k`` and of kernels that quantize against a copy, on the GPU at hand.

    python benchmarks/tune_kernels.py --sizes 896,14336 --out DIR
    python benchmarks/tune_kernels.py --sizes 128,4096,14336 --format fp8_e4m3 --prologue --out DIR
    python benchmarks/tune_kernels.py --sizes 3584,14336,18944 --format nvfp4 --block 16 --out DIR

``benchmarks/tune.py`` is for the plain transform of powers of two. For each size this takes the space below, not only the
table: for ``m * 2^k`` also other numbers of column bits merged into the base, which give other bits. Processes compile first;
then one process checks each candidate against float64 (codes: against the table's configuration, to three in a hundred, as values
go from one product to the next in 11 bits of significand) and times those that are right, cold, those of the table first, as
long as --seconds last. Prints the best of each size and element count, and writes ``kernel-candidates.csv``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import torch

from hadacore.backends.cuda import compiler
from hadacore.backends.cuda.launch import kernel_arguments, launch_prepared, prepare
from hadacore.backends.cuda.quantize import PrologueOperands, ScaleMatrix
from hadacore.benchmarking import provenance
from hadacore.benchmarking.accuracy import error_ratio, exact_transform
from hadacore.benchmarking.copy import time_copy, time_narrower_copy
from hadacore.benchmarking.report import write_csv, write_whole
from hadacore.benchmarking.timing import COLD, Arena, Operation, Workload, time_operation
from hadacore.elements import BY_CUDA_CODE, BY_NAME
from hadacore.formats import BY_NAME as FORMATS
from hadacore.formats import Quantizer
from hadacore.kernels.architectures import Architecture, architecture_of
from hadacore.kernels.base_configurations import (
    MAXIMUM_LOG2_COLUMNS,
    BaseConfiguration,
    OrderConfiguration,
    base_candidates,
    has_halves,
)
from hadacore.kernels.configurations import (
    AFTER_LOADS,
    AFTER_WAIT,
    BEFORE_EXCHANGE,
    TILE_LOG2,
    KernelConfiguration,
    candidates,
)
from hadacore.kernels.fragment_configurations import FragmentConfiguration
from hadacore.kernels.fusion import Fusion, fused_prologue, fusion_of, scale_factor
from hadacore.kernels.source import constants, kernel_source
from hadacore.kernels.warpgroup_configurations import PRODUCER_REGISTERS, WarpgroupConfiguration
from hadacore.matrices import factor
from hadacore.prologues import GatedActivation

Configuration = KernelConfiguration | OrderConfiguration

ELEMENTS = (1 << 23, 1 << 25)
COMPILERS = 14
COLUMNS = (
    "gpu", "commit", "torch", "dtype", "size", "format", "prologue", "of_table", "elements", "us", "copy_us", "ratio",
    "registers", "spilled_bytes", "minimum_blocks", "programmatic", "columns", "configuration",
)  # fmt: skip


def powers(code: int, log2_size: int) -> Iterator[KernelConfiguration]:
    """Configurations of a power of two that quantizes; blocks of 512 to 2048 threads a multiprocessor."""
    if log2_size <= 10:
        tiles = max(0, log2_size - TILE_LOG2)
        for warps, units, threads, programmatic in itertools.product(
            (2, 4, 8), (1, 2, 4), (768, 1024, 1536, 2048), (AFTER_WAIT, AFTER_LOADS)
        ):
            if units << tiles <= 4 and (programmatic == AFTER_LOADS) == (units << tiles > 1):
                blocks = threads // (32 * warps)
                yield KernelConfiguration(
                    "warp_rows", code, log2_size, tiles, warps, units, minimum_blocks=blocks, programmatic=programmatic
                )
        return
    for tiles, log2_cluster, prefetch, warps_resident, programmatic in itertools.product(
        (1, 2, 3), (0, 1, 2), (False, True), (16, 24, 32, 48), (AFTER_LOADS, BEFORE_EXCHANGE)
    ):
        log2_warps = log2_size - TILE_LOG2 - tiles - log2_cluster
        if not 1 <= log2_warps <= 5 or log2_cluster > tiles or (log2_cluster and prefetch):
            continue
        warps = 1 << log2_warps
        if warps > warps_resident or (tiles == 3 and warps_resident > 16) or (tiles == 2 and warps_resident > 32):
            continue
        if (8 << tiles) >> (log2_warps + log2_cluster) >= 2:
            yield KernelConfiguration(
                "exchange_rows", code, log2_size, tiles, warps, cluster=1 << log2_cluster, prefetch=prefetch,
                minimum_blocks=min(32, warps_resident // warps), programmatic=programmatic,
            )  # fmt: skip


def with_base(code: int, order: int, log2_columns: int) -> Iterator[BaseConfiguration]:
    """Configurations of ``order * 2^log2_columns``."""
    for merged in range(max(0, log2_columns - MAXIMUM_LOG2_COLUMNS), log2_columns - 2):
        dense, log2_size = order << merged, log2_columns - merged
        if dense > 1024 or (log2_size < 5 and log2_columns > 5) or (dense > 256 and log2_size < 6 and order < 128):
            continue
        yield from of_panel(BaseConfiguration(code, dense, merged, log2_size, -(-dense // 16)), False)
    if BY_CUDA_CODE[code].bytes == 2 and has_halves(order, log2_columns):
        yield from of_panel(BaseConfiguration(code, order // 2, 0, log2_columns + 1, -(-order // 32)), True)


def of_panel(plain: BaseConfiguration, halves: bool) -> Iterator[BaseConfiguration]:
    """Configurations of one panel, by warps, blocks and products."""
    order_tiles = plain.order_tiles
    small = order_tiles * plain.groups <= 4  # from global memory as well as by panels; mma.sync as well as wgmma
    large = order_tiles > 16  # without the next row on its way too, and by one block more a row
    products = [(False, False), (True, False), *([(True, True)] if plain.log2_size >= plain.log2_group else [])]
    for (wgmma, wide), tiles, stages, more in itertools.product(products, (1, 2, 3, 4), (0, 1, 2), range(1 + large)):
        warps = -(-order_tiles // tiles)
        splits = -(-warps // 16) + more
        warps = -(-warps // splits)
        if wgmma:
            warps = -(-warps // 4) * 4
        accumulators = 32 * tiles * plain.groups
        if accumulators > 192 or stages < (0 if small else 1 if large else 2) or (tiles == 4 and plain.groups > 1):
            continue
        if not wgmma and order_tiles * plain.groups > 14 and accumulators < 128:
            continue  # twice as slow as wgmma wherever it was tried
        for units in {1, max(1, 4 // warps)} if stages == 0 or not wgmma else {1}:
            threads = 32 * warps * units
            if 65536 // threads < accumulators + 24:
                continue
            most = min(65536 // (threads * (accumulators + 44)), 1536 // threads, 8)
            for blocks in {max(1, most), max(1, most - 1)} if small else {max(1, most)}:
                drifts = (False, True)[: 1 + (wgmma and stages == 2 and blocks == 1)]
                for drift, paired in itertools.product(drifts, (False, True)):
                    try:
                        yield replace(
                            plain, tiles=tiles, order_warps=warps, units=units, stages=stages, splits=splits,
                            minimum_blocks=blocks, wgmma=wgmma, wide=wide, halves=halves, drift=drift, paired=paired,
                        )  # fmt: skip
                    except ValueError:
                        continue


def by_fragments(code: int, order: int, log2_columns: int) -> Iterator[FragmentConfiguration]:
    """Configurations of ``order * 2^log2_columns`` by ``fragment_rows.cu``, without a quantizer."""
    for merged, warps in itertools.product(range(log2_columns), (1, 2, 4, 8)):
        try:
            plain = FragmentConfiguration(code, order << merged, merged, log2_columns - merged, warps)
        except ValueError:
            continue
        registers = 3 * plain.order_tiles**2 + 30
        for of_multiprocessor in (8, 12, 16, 20, 24, 28, 32, 40):  # warps
            if of_multiprocessor % warps == 0 and of_multiprocessor * 32 * registers <= 65536:
                yield replace(plain, minimum_blocks=of_multiprocessor // warps)


def by_warpgroups(code: int, order: int, log2_columns: int, fusion: Fusion | None) -> Iterator[WarpgroupConfiguration]:
    """Configurations of ``order * 2^log2_columns`` by ``warpgroup_rows.cu``. Where codes follow, also with the next row in the
    panel's place, and with two blocks a row."""
    with_codes = (False, True) if fusion else (False,)
    for merged, warpgroups, shared, overlap, refilled in itertools.product(
        range(log2_columns), (1, 2), with_codes, (False,) if fusion else (False, True), with_codes
    ):
        try:
            plain = WarpgroupConfiguration(
                code, order << merged, merged, log2_columns - merged, warpgroups, overlap=overlap,
                column_splits=1 + shared, tensor_shares=warpgroups << shared, stages=1 if refilled else 2,
                refilled=refilled, fusion=fusion,
            )  # fmt: skip
        except ValueError:
            continue
        registers = (plain.own_groups * plain.panel_rows + plain.own_rows) // 2 + 26
        if plain.order > 112 or registers > 250 or (overlap and plain.own_groups == 1):
            continue
        if fusion and (plain.order < 24 or (shared and plain.size < 12288) or plain.log2_size > 9):
            continue
        for producers in (0, 1, 2) if refilled and fusion and fusion.prologue else (0,):
            most = min(65536 // (128 * (warpgroups * max(64, registers) + PRODUCER_REGISTERS * producers)), 8)
            for blocks in range(max(1, most - 1), most + 2):
                yield replace(plain, minimum_blocks=blocks, producers=producers)


def fits(c: Configuration, architecture: Architecture) -> bool:
    """Whether as many blocks as it says fit a multiprocessor."""
    return c.runs_on(architecture) and c.minimum_blocks <= architecture.blocks_that_fit(c.shared_bytes)


def of_table(code: int, size: int, fusion: Fusion | None, architecture: Architecture) -> list[Configuration]:
    """Those of the table."""
    if size & (size - 1) == 0:
        return [c.configuration for c in candidates(code, size.bit_length() - 1, architecture, fusion)]
    matrix = factor(size)
    return [*base_candidates(code, matrix.base_order, matrix.log2, architecture, fusion=fusion)]


def all_candidates(
    code: int, size: int, fusion: Fusion | None, architecture: Architecture, kernel: str = ""
) -> list[Configuration]:
    """Those of the table, then the others, of one kernel if it is named."""
    matrix = factor(size)
    found: Iterable[Configuration]
    if matrix.base_order == 1:
        found = powers(code, matrix.log2)
    else:
        found = itertools.chain(
            with_base(code, matrix.base_order, matrix.log2),
            by_warpgroups(code, matrix.base_order, matrix.log2, fusion),
            by_fragments(code, matrix.base_order, matrix.log2) if fusion is None else (),
        )
    mine, others = of_table(code, size, fusion, architecture), []
    for c in found:
        if kernel not in ("", c.kernel):
            continue
        try:
            others.append(c if c.fusion == fusion else replace(c, fusion=fusion))
        except ValueError:
            continue  # the quantizer's blocks do not fit
    return list(dict.fromkeys([*mine, *(c for c in others if fits(c, architecture))]))


def compile_one(job: tuple[Configuration, str]) -> tuple[int, int]:
    """Compile into the cache; registers and spilled bytes."""
    configuration, architecture = job
    log = StringIO()
    try:
        compiler.cached_compile(
            kernel_source(configuration), constants(configuration), architecture, refresh=True, log=log
        )
        found = compiler.parse_report(log.getvalue())
    except Exception as error:  # whatever is wrong with a candidate, the others go on
        print(f"NOT COMPILED {configuration}: {str(error)[:200]!r}")
        return 0, -1
    return found.registers, found.spill_store_bytes


def compile_all(configurations: list[Configuration], architecture: str, path: Path) -> list[tuple[int, int]]:
    """Registers and spilled bytes of each; ``path`` keeps what is compiled already."""
    known: dict[str, list[int]] = json.loads(path.read_text()) if path.exists() else {}
    keys = [f"{architecture} {constants(c)}" for c in configurations]
    missing = [(key, c) for key, c in zip(keys, configurations, strict=True) if key not in known]
    with multiprocessing.get_context("spawn").Pool(COMPILERS) as pool:
        found = pool.map(compile_one, [(c, architecture) for _, c in missing], chunksize=2)
    known |= {key: list(pair) for (key, _), pair in zip(missing, found, strict=True)}
    write_whole(path, json.dumps(known))
    return [(known[key][0], known[key][1]) for key in keys]


def operation(c: Configuration, rows: int, quantizer: Quantizer | None) -> Operation:
    """The launch of a configuration; codes go to the beginning of the output."""
    size, device = c.size, torch.cuda.current_device()
    prepared = prepare(c, rows, device)
    scales = torch.empty(rows * (1 if quantizer is None else size // quantizer.block), device="cuda")

    def run(x: torch.Tensor, y: torch.Tensor) -> None:
        arguments = kernel_arguments(x, y, size**-0.5, rows, size, None, None)
        if quantizer is not None:
            if c.fusion is not None and c.fusion.prologue is not None:
                arguments += PrologueOperands().arguments()
            arguments += ScaleMatrix(scales, None, scale_factor(quantizer), rows, 0).arguments()
        launch_prepared(prepared, device, arguments)

    return run


def codes_of(y: torch.Tensor, elements: int, quantizer: Quantizer) -> torch.Tensor:
    """The bytes of the codes that :func:`operation` has written to the beginning of an output."""
    return y.view(torch.uint8).flatten()[: elements * quantizer.format.encoding.bits // 8]


def time_of_copy(workload: Workload, quantizer: Quantizer | None, reads: int) -> float:
    """Microseconds of a copy of what is read, ``reads`` tensors of 16 bits an element with codes, and of what is written."""
    if quantizer is None:
        return time_copy(workload)[0]
    return time_narrower_copy(workload, reads * 16 // quantizer.format.encoding.bits)


def is_right(c: Configuration, x: torch.Tensor, quantizer: Quantizer | None, expected: torch.Tensor | None) -> bool:
    """Whether 40 rows are transformed, or quantized, as they should be."""
    rows, y = min(40, x.shape[0]), torch.full_like(x[:40], float("nan"))
    operation(c, rows, quantizer)(x[:rows], y)
    torch.cuda.synchronize()
    if quantizer is None:
        return error_ratio(y[:rows], exact_transform(x[:rows])) < (1.002 if c.element_code != 2 else 12)
    codes = codes_of(y, rows * c.size, quantizer).clone()
    return expected is None or float((codes != expected).double().mean()) < 3e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", required=True, help="comma-separated")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--format", default="", help="of codes that follow; with a scale per row")
    parser.add_argument("--block", type=int, default=0, help="or with a scale for so many elements")
    parser.add_argument("--prologue", action="store_true", help="with silu_mul of one tensor of gates and ups")
    parser.add_argument("--kernel", default="", help="besides the table, only configurations of this one")
    parser.add_argument("--elements", default=",".join(map(str, ELEMENTS)))
    parser.add_argument("--compile-only", action="store_true", help="needs the GPU for its architecture alone")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    start, element = time.monotonic(), BY_NAME[arguments.dtype]
    arguments.out.mkdir(parents=True, exist_ok=True)
    architecture = architecture_of(torch.cuda.get_device_capability())
    counts = [int(count) for count in arguments.elements.split(",")]
    quantizers: dict[int, Quantizer | None] = {}
    jobs: list[tuple[int, bool, Configuration]] = []
    for size in map(int, arguments.sizes.split(",")):
        quantizer = Quantizer(FORMATS[arguments.format], arguments.block or size) if arguments.format else None
        prologue = fused_prologue(GatedActivation("silu", "gate_up"), size) if arguments.prologue else None
        fusion = None if quantizer is None else fusion_of(quantizer, size, False, prologue)
        quantizers[size] = quantizer
        mine = of_table(element.cuda_code, size, fusion, architecture)
        jobs += [
            (size, c in mine, c)
            for c in all_candidates(element.cuda_code, size, fusion, architecture, arguments.kernel)
        ]
    resources = compile_all([c for _, _, c in jobs], architecture.name, arguments.out / "kernel-resources.json")
    print(f"compiled {len(jobs)} candidates in {time.monotonic() - start:.0f} s", flush=True)
    if arguments.compile_only:
        return
    reads = 2 if arguments.prologue else 1
    device = torch.device("cuda", 0)
    arena = Arena(element.dtype, device, reads * (max(counts) + 2**17))
    made_with = provenance.provenance(device)
    of_all = {name: made_with[name] for name in ("gpu", "commit", "torch")}
    of_all |= {"dtype": arguments.dtype, "format": arguments.format, "prologue": str(int(arguments.prologue))}
    lines: list[dict[str, object]] = []
    order = sorted(range(len(jobs)), key=lambda i: (not jobs[i][1], resources[i][1] > 0))
    copies: dict[int, float] = {}
    expected: dict[int, torch.Tensor] = {}
    wrong = 0
    for i in order:
        size, is_of_table, c = jobs[i]
        if time.monotonic() - start > arguments.seconds:
            print("time is up")
            break
        quantizer = quantizers[size]
        sample = arena.workload(reads * 40 * size, COLD).pairs[0][0].view(40, reads * size)
        try:
            right = is_right(c, sample, quantizer, expected.get(size))
        except Exception as error:
            print(f"FAILED {size} {c}: {error}")
            right = False
        if not right:
            wrong += 1
            print(f"WRONG {size} {c}")
            continue
        if quantizer is not None and size not in expected:
            y = torch.empty_like(sample)
            operation(c, 40, quantizer)(sample, y)
            expected[size] = codes_of(y, 40 * size, quantizer).clone()
        for count in counts:
            rows = max(1, round(count / size))
            workload = arena.workload(reads * rows * size, COLD)
            if rows * size not in copies:
                copies[rows * size] = time_of_copy(workload, quantizer, reads)
            us, copy_us = time_operation(operation(c, rows, quantizer), workload), copies[rows * size]
            lines.append(
                {
                    **of_all, "size": size, "of_table": int(is_of_table), "elements": count, "us": f"{us:.3f}",
                    "copy_us": f"{copy_us:.3f}", "ratio": f"{us / copy_us:.4f}", "registers": resources[i][0],
                    "spilled_bytes": resources[i][1], "minimum_blocks": c.minimum_blocks, "programmatic": c.programmatic,
                    "columns": 0 if isinstance(c, KernelConfiguration) else c.log2_size, "configuration": str(c),
                }
            )  # fmt: skip
    print_best(lines, quantizers, counts)
    write_csv(arguments.out / "kernel-candidates.csv", COLUMNS, lines)
    print(f"{len(lines)} lines, {wrong} wrong, {time.monotonic() - start:.0f} s")


def print_best(lines: list[dict[str, object]], sizes: Iterable[int], counts: list[int]) -> None:
    """The fastest of each size and element count, beside the table's."""
    for size, count in itertools.product(sizes, counts):
        mine = [line for line in lines if line["size"] == size and line["elements"] == count]
        mine.sort(key=lambda line: float(str(line["us"])))
        table = min((float(str(line["ratio"])) for line in mine if line["of_table"]), default=float("nan"))
        print(f"{size} x {count}: table {table:.3f}, {len(mine)} timed")
        for line in mine[:3]:
            print(
                f"    {line['ratio']} {line['configuration']}, {line['minimum_blocks']} blocks, {line['registers']} registers, "
                f"{line['spilled_bytes']} spilled, programmatic {line['programmatic']}"
            )


if __name__ == "__main__":
    main()
