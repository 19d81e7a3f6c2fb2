"""Times the transform on the CPU beside a copy of the same bytes, and writes a CSV.

    python benchmarks/cpu.py --out benchmarks/results/cpu/transform.csv
    python benchmarks/cpu.py --weight          # a 4096 x 14336 bfloat16 weight, rotated on both sides

Every round times the copy and the transform of every size one after the other, on buffers in turn so that nothing is in
a cache; what is written is the median of the rounds. Outputs exist beforehand for both.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import hadacore
from hadacore.backends.cpu import native
from hadacore.benchmarking import provenance
from hadacore.elements import BY_NAME

SIZES = (8, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 12, 1536, 3072, 5120, 10240, 14336, 28672)
ELEMENTS = 1 << 22
BUFFER_BYTES = 192 << 20  # of all buffers of a run: several times the last-level cache
ROUNDS = 9
COLUMNS = (
    "threads", "dtype", "size", "elements", "copy_us", "hadacore_us", "ratio", "commit", "cpu", "isa", "torch",
)  # fmt: skip


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str, threads: int, sizes: list[int], rounds: int) -> Iterator[dict[str, object]]:
    element = BY_NAME[name]
    torch.set_num_threads(threads)
    count = max(2, BUFFER_BYTES // (2 * ELEMENTS * element.bytes))
    buffers = [
        (torch.randn(ELEMENTS).to(element.dtype), torch.zeros(ELEMENTS, dtype=element.dtype)) for _ in range(count)
    ]
    turn = 0

    def next_views(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal turn
        turn = (turn + 1) % count
        rows = ELEMENTS // size
        x, y = buffers[turn]
        return x[: rows * size].view(rows, size), y[: rows * size].view(rows, size)

    copies: dict[int, list[float]] = {size: [] for size in sizes}
    transforms: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            for _ in range(2):
                x, y = next_views(size)
                copies[size].append(seconds(lambda x=x, y=y: y.copy_(x)))
                x, y = next_views(size)
                transforms[size].append(seconds(lambda x=x, y=y: hadacore.hadamard_transform(x, out=y)))
    for size in sizes:
        copy, transform = statistics.median(copies[size]) * 1e6, statistics.median(transforms[size]) * 1e6
        yield {
            "threads": threads,
            "dtype": name,
            "size": size,
            "elements": ELEMENTS // size * size,
            "copy_us": f"{copy:.1f}",
            "hadacore_us": f"{transform:.1f}",
            "ratio": f"{transform / copy:.3f}",
            "commit": provenance.commit(),
            "cpu": provenance.processor(),
            "isa": native.instruction_set() or "pytorch",
            "torch": torch.__version__,
        }


def rotate_weight(threads: int) -> tuple[float, float]:
    """Seconds for the columns and the rows of a weight, best of three."""
    torch.set_num_threads(threads)
    weight = torch.randn(4096, 14336).bfloat16()
    best = (float("inf"), float("inf"))
    for _ in range(3):
        rows = seconds(lambda: hadacore.hadamard_transform_(weight))
        columns = seconds(lambda: hadacore.hadamard_transform_(weight.T))
        best = min(best, (columns, rows), key=sum)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="CSV to write; by default only the table is printed")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--dtypes", default="float32,float16,bfloat16,float64")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--weight", action="store_true", help="time the rotation of a weight instead")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.threads.split(",")]
    if arguments.weight:
        for threads in counts:
            columns, rows = rotate_weight(threads)
            print(f"{threads} threads: {rows:.3f} s rows, {columns:.3f} s columns, {rows + columns:.3f} s")
        return
    sizes = [int(size) for size in arguments.sizes.split(",")]
    lines = []
    for name in arguments.dtypes.split(","):
        for threads in counts:
            for line in measure(name, threads, sizes, arguments.rounds):
                lines.append(line)
                print(
                    "{threads} {dtype:9} {size:6} copy {copy_us:>8} us, transform {hadacore_us:>8} us, {ratio}".format(
                        **line
                    )
                )
                sys.stdout.flush()
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
