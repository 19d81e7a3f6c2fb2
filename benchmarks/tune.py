"""Times kernel configurations against each other and against a copy, on the GPU at hand.

    python benchmarks/tune.py --sizes 128,4096 --dtype float16 --out DIR

For each size it takes the space of configurations below (not only those of the table), checks that all give the same
bits and the right ones, times each on several element counts, hot and cold, and prints, for each workload, the
configurations from fastest to slowest as a ratio to the fastest copy. This is where the table of configurations comes
from; the raw times go to a CSV.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from hadacore.backends.cuda.launch import kernel_arguments, launch_prepared, prepare
from hadacore.benchmarking.accuracy import error_ratio, exact_transform
from hadacore.benchmarking.copy import time_copy
from hadacore.benchmarking.timing import COLD, HOT, Arena, Workload, time_operation
from hadacore.elements import BY_NAME
from hadacore.kernels.architectures import Architecture, architecture_of
from hadacore.kernels.configurations import (
    AFTER_LOADS,
    AFTER_WAIT,
    BEFORE_EXCHANGE,
    KernelConfiguration,
    candidates,
    choose,
)

WORKLOADS = [
    (2**12, HOT),
    (2**16, HOT),
    (2**16, COLD),
    (2**19, COLD),
    (2**21, COLD),
    (2**23, HOT),
    (2**23, COLD),
    (2**25, COLD),
]


def space(code: int, log2_size: int, architecture: Architecture) -> Iterator[KernelConfiguration]:
    """Configurations worth trying for a size."""
    registers = 65536
    if log2_size <= 11:
        tiles = max(0, log2_size - 8)
        for warps, units in itertools.product((2, 4, 8), (1, 2, 4)):
            if units << tiles > 8:
                continue
            for threads_resident in (512, 1024, 2048):
                blocks = max(1, threads_resident // (32 * warps))
                needed = 24 + 12 * (units << tiles) * (2 if code == 2 else 1) + 8 * (1 << tiles)
                if registers // threads_resident >= needed:
                    yield KernelConfiguration("warp_rows", code, log2_size, tiles, warps, units, minimum_blocks=blocks)
    if log2_size >= 10:
        for tiles, log2_cluster, prefetch, passes in itertools.product((1, 2, 3), (0, 1, 2, 3), (False, True), (1, 2)):
            log2_warps = log2_size - 8 - tiles - log2_cluster
            if not 1 <= log2_warps <= 5:
                continue
            if passes == 2 and not (log2_size == 15 and code == 2):
                continue
            if (8 << tiles) // passes >> (log2_warps + log2_cluster) < 2 or log2_cluster > tiles:
                continue
            if log2_cluster and (prefetch or passes > 1):
                continue
            warps = 1 << log2_warps
            for warps_resident in (16, 24, 32):
                if (tiles == 3 and warps_resident > 16) or warps > warps_resident:
                    continue
                configuration = KernelConfiguration(
                    "exchange_rows", code, log2_size, tiles, warps, cluster=1 << log2_cluster, passes=passes,
                    prefetch=prefetch, minimum_blocks=max(1, min(32, warps_resident // warps)),
                )  # fmt: skip
                fits = configuration.shared_bytes * configuration.minimum_blocks <= architecture.shared_memory_per_block
                if configuration.runs_on(architecture) and (fits or warps_resident == 16):
                    yield configuration


def points_of(configuration: KernelConfiguration) -> tuple[int, ...]:
    """From where on a kernel can let the next one start."""
    return (AFTER_WAIT, AFTER_LOADS) + ((BEFORE_EXCHANGE,) if configuration.kernel == "exchange_rows" else ())


def _operation(configuration: KernelConfiguration, rows: int):  # type: ignore[no-untyped-def]
    size, device = configuration.size, torch.cuda.current_device()
    prepared = prepare(configuration, rows, device)

    def run(x: torch.Tensor, y: torch.Tensor) -> None:
        launch_prepared(prepared, device, kernel_arguments(x, y, size**-0.5, rows, size, None, None))

    return run


def _check(configuration: KernelConfiguration, workload: Workload, reference: torch.Tensor | None) -> torch.Tensor:
    x, y = workload.pairs[0]
    rows = min(x.shape[0], 97)
    y.fill_(float("nan"))
    _operation(configuration, rows)(x[:rows], y[:rows])
    ratio = error_ratio(y[:rows], exact_transform(x[:rows]))
    if not ratio < 1.01 and configuration.element_code != 2:
        print(f"WRONG {configuration}: error ratio {ratio}", file=sys.stderr)
    result = y[:rows].clone()
    if reference is not None and not torch.equal(result, reference):
        print(f"DIFFERENT BITS {configuration}", file=sys.stderr)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", required=True, help="comma-separated")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--elements", default="", help="comma-separated; all of WORKLOADS by default")
    parser.add_argument(
        "--programmatic", action="store_true", help="also try each with programmatic launch, from every point on"
    )
    parser.add_argument("--top", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    element = BY_NAME[arguments.dtype]
    capability = torch.cuda.get_device_capability()
    architecture = architecture_of(capability)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    wanted = {int(e) for e in arguments.elements.split(",") if e}
    workloads = [w for w in WORKLOADS if not wanted or w[0] in wanted]
    sizes = [int(s) for s in arguments.sizes.split(",")]
    arena = Arena(element.dtype, torch.device("cuda", 0), max(e for e, _ in workloads))
    copies = {w: time_copy(arena.workload(*w)) for w in workloads}
    lines = []
    for size in sizes:
        log2_size = size.bit_length() - 1
        configurations = list(dict.fromkeys(space(element.cuda_code, log2_size, architecture)))
        of_table = [c.configuration for c in candidates(element.cuda_code, log2_size, architecture)]
        if arguments.programmatic and architecture.has_programmatic_launch:
            alone = configurations
            configurations = alone + [replace(c, programmatic=p) for c in alone for p in points_of(c)]
        configurations = list(dict.fromkeys([*of_table, *configurations]))
        reference = None
        for configuration in configurations:
            reference = _check(configuration, arena.workload(max(2**16, size), HOT).rows_of(size), reference)
        for elements, regime in workloads:
            if elements < size:
                continue
            rows = elements // size
            workload = arena.workload(elements, regime).rows_of(size)
            copy_us, copy_name = copies[elements, regime]
            timed = sorted(
                ((time_operation(_operation(c, rows), workload), c) for c in configurations), key=lambda pair: pair[0]
            )
            chosen = choose(element.cuda_code, log2_size, rows, capability, processors)
            mine = next(us for us, c in timed if c == chosen)
            print(
                f"{element.name} {size} x {elements} {regime}: copy {copy_us:.2f} us ({copy_name}), table {mine / copy_us:.3f}"
            )
            for us, configuration in timed[: arguments.top]:
                print(f"    {us / copy_us:.3f}  {configuration}, min blocks {configuration.minimum_blocks}")
            for us, configuration in timed:
                lines.append([element.name, size, elements, regime, f"{copy_us:.3f}", f"{us:.3f}", f"{us / copy_us:.4f}",
                              str(configuration), configuration.minimum_blocks])  # fmt: skip
            sys.stdout.flush()
    target = arguments.out / f"tune_{element.name}_{'_'.join(map(str, sizes))}.csv"
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        header = "dtype,hadamard_size,elements,regime,copy_us,us,ratio,configuration,minimum_blocks"
        writer.writerow(header.split(","))
        writer.writerows(lines)


if __name__ == "__main__":
    main()
