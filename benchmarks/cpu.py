"""Times the transform on the CPU beside a copy of the same bytes, and writes a CSV.

    python benchmarks/cpu.py --out benchmarks/results/cpu/transform.csv
    python benchmarks/cpu.py --quantize --out benchmarks/results/cpu/quantize.csv
    python benchmarks/cpu.py --weight          # a 4096 x 14336 bfloat16 weight, rotated on both sides

Every round times the copy and the transform of every size one after the other, on buffers in turn so that nothing is in
a cache; what is written is the median of the undisturbed rounds. (The smallest would be a copy at a moment when the
memory is fast: it varies by half in a virtual machine, and a transform less.) Outputs exist beforehand for both.
Quantization is timed through the public function, which makes its outputs, beside a copy of the bytes it reads and
writes and beside the composed path.
"""

from __future__ import annotations

import argparse
import csv
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import hadacore
from hadacore.backends.cpu import native
from hadacore.benchmarking import provenance
from hadacore.elements import BY_NAME
from hadacore.formats import BY_NAME as FORMATS
from hadacore.formats import Quantizer
from hadacore.quantization.composed import Rotation, composed

SIZES = (8, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 12, 1536, 3072, 5120, 10240, 14336, 28672)
DTYPES = ("float32", "float16", "bfloat16", "float64")
ELEMENTS = 1 << 22
BUFFER_BYTES = 192 << 20  # of all buffers of a run: several times the last-level cache
ROUNDS = 20
COLUMNS = (
    "threads", "dtype", "size", "elements", "copy_us", "hadacore_us", "ratio", "commit", "cpu", "isa", "torch",
)  # fmt: skip

QUANTIZED_SIZES = (128, 1024, 4096, 14336, 16384)
QUANTIZED_FORMATS = ("int8", "int4", "fp8_e4m3", "fp8_e5m2", "mxfp8", "mxfp4", "nvfp4")
QUANTIZED_DTYPES = ("float32", "bfloat16")
QUANTIZED_COLUMNS = (
    "threads", "dtype", "size", "format", "elements", "copy_us", "composed_us", "hadacore_us", "ratio", "over_composed",
    "commit", "cpu", "isa", "torch",
)  # fmt: skip


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def typical(times: list[float]) -> float:
    """The median of those up to twice the smallest: others are of rounds in which a thread had no processor."""
    return statistics.median(time for time in times if time <= 2 * min(times))


def measure(name: str, threads: int, sizes: list[int], rounds: int) -> Iterator[dict[str, object]]:
    element = BY_NAME[name]
    torch.set_num_threads(threads)
    count = BUFFER_BYTES // (2 * ELEMENTS * element.bytes) | 1  # odd, so that copy and transform both see every one
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
        copy, transform = typical(copies[size]) * 1e6, typical(transforms[size]) * 1e6
        yield {
            "threads": threads,
            "dtype": name,
            "size": size,
            "elements": ELEMENTS // size * size,
            "copy_us": f"{copy:.1f}",
            "hadacore_us": f"{transform:.1f}",
            "ratio": f"{transform / copy:.3f}",
            **_machine(),
        }


def measure_quantization(name: str, threads: int, rounds: int) -> Iterator[dict[str, object]]:
    """The same for rotation and quantization, one scale a row or the format's block."""
    element = BY_NAME[name]
    torch.set_num_threads(threads)
    count = BUFFER_BYTES // (2 * ELEMENTS * element.bytes) | 1
    inputs = [torch.randn(ELEMENTS).to(element.dtype) for _ in range(count)]
    outputs = [torch.zeros(ELEMENTS * element.bytes, dtype=torch.uint8) for _ in range(count)]
    turn = 0

    def next_input() -> torch.Tensor:
        nonlocal turn
        turn = (turn + 1) % count
        return inputs[turn]

    for size in QUANTIZED_SIZES:
        elements = ELEMENTS // size * size
        for wanted in QUANTIZED_FORMATS:
            found = FORMATS[wanted]
            block = size if found.default == "row" else int(found.default)
            quantizer = Quantizer(found, block, swizzled=found.can_swizzle)
            moved = elements * element.bytes + elements * found.encoding.bits // 8
            moved += elements // block * found.scale_dtype.itemsize
            fused_call = functools.partial(hadacore.hadamard_quantize, format=wanted)
            composed_call = functools.partial(
                composed,
                rotation=Rotation(size, size**-0.5, False),
                signs=None,
                quantizer=quantizer,
                scale=None,
                seed=None,
                prologue=None,
                operands=(),
                residual=None,
            )
            times: dict[str, list[float]] = {"copy": [], "composed": [], "fused": []}
            for _ in range(rounds):
                for kind, some in times.items():
                    x = next_input()[:elements].view(-1, size)
                    if kind == "copy":  # of half the bytes, each of which is read and written
                        source, target = next_input().view(torch.uint8)[: moved // 2], outputs[turn][: moved // 2]
                        some.append(seconds(functools.partial(target.copy_, source)))
                    elif kind == "fused":
                        some.append(seconds(functools.partial(fused_call, x)))
                    elif len(some) < 3:  # many times slower, and three are enough to say so
                        some.append(seconds(functools.partial(composed_call, x)))
            copy, slow, fused = (typical(times[kind]) * 1e6 for kind in ("copy", "composed", "fused"))
            yield {
                "threads": threads,
                "dtype": name,
                "size": size,
                "format": wanted,
                "elements": elements,
                "copy_us": f"{copy:.1f}",
                "composed_us": f"{slow:.1f}",
                "hadacore_us": f"{fused:.1f}",
                "ratio": f"{fused / copy:.3f}",
                "over_composed": f"{fused / slow:.3f}",
                **_machine(),
            }


def _machine() -> dict[str, object]:
    return {
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
    parser.add_argument("--dtypes", help="by default all four, and two of them with --quantize")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quantize", action="store_true", help="time rotation with quantization instead")
    parser.add_argument("--weight", action="store_true", help="time the rotation of a weight instead")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.threads.split(",")]
    if arguments.weight:
        for threads in counts:
            columns, rows = rotate_weight(threads)
            print(f"{threads} threads: {rows:.3f} s rows, {columns:.3f} s columns, {rows + columns:.3f} s")
        return
    sizes = [int(size) for size in arguments.sizes.split(",")]
    default = QUANTIZED_DTYPES if arguments.quantize else DTYPES
    dtypes = arguments.dtypes.split(",") if arguments.dtypes else default
    lines = []
    for name in dtypes:
        for threads in counts:
            if arguments.quantize:
                measured = measure_quantization(name, threads, arguments.rounds)
            else:
                measured = measure(name, threads, sizes, arguments.rounds)
            for line in measured:
                lines.append(line)
                what = (
                    "{threads} {dtype:9} {size:6} {format:9}" if arguments.quantize else "{threads} {dtype:9} {size:6}"
                )
                print(
                    (what + " copy {copy_us:>8} us, transform {hadacore_us:>8} us, {ratio}").format(**line), flush=True
                )
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, QUANTIZED_COLUMNS if arguments.quantize else COLUMNS)
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
