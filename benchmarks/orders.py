"""Times every dimension of today's models that is no power of two, beside a copy of the same bytes.

    python benchmarks/orders.py --out benchmarks/results/GPU/orders.csv

float16 and bfloat16 at about 2^23 and 2^25 elements and float32 at 2^25, cold; the sizes of large feed-forward layers also at
1, 8 and 64 rows; transforms above 32768 at 2^26 elements. Errors are those of 16 rows against float64, over correct rounding.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import torch

import hadacore
from hadacore.benchmarking.accuracy import error_ratio, exact_transform
from hadacore.benchmarking.copy import time_copy
from hadacore.benchmarking.provenance import provenance
from hadacore.benchmarking.timing import COLD, Arena, time_operation
from hadacore.matrices import factor

DIMENSIONS = (
    80, 96, 112, 160, 192, 576, 768, 896, 960, 1152, 1408, 1536, 2304, 2560, 2880, 3072, 3584, 3840, 4608, 4864, 5120, 5376, 5632,
    6144, 6400, 6656, 6912, 7168, 8960, 9216, 9728, 10240, 10944, 11008, 12288, 13696, 13824, 14336, 15360, 17408, 17920, 18432,
    18944, 20480, 21504, 22016, 22528, 25600, 27648, 28672, 29568, 33792, 36864, 53248,
)  # fmt: skip
FEW_ROWS = (11008, 14336, 18944, 28672)
LARGE = (1 << 16, 1 << 20, 1 << 26)
FIELDS = ("dtype", "dimension", "base_order", "rows", "copy_us", "copy", "hadacore_us", "ratio", "error_ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    origin = provenance(torch.device("cuda", 0))
    lines = []
    for dtype, counts in ((torch.float16, (2**23, 2**25)), (torch.bfloat16, (2**23, 2**25)), (torch.float32, (2**25,))):
        arena = Arena(dtype, torch.device("cuda", 0), 2**26 + 2**17)
        points = [(n, max(1, round(count / n))) for n in DIMENSIONS for count in counts]
        points += [(n, 2**26 // n) for n in LARGE]
        if dtype == torch.float16:
            points += [(n, rows) for n in FEW_ROWS for rows in (1, 8, 64)]
        for n, rows in points:
            workload = arena.workload(rows * n, COLD)
            copy_us, copy = time_copy(workload)
            workload = workload.rows_of(n)
            us = time_operation(lambda x, y: hadacore.hadamard_transform(x, out=y), workload)
            x = torch.randn(min(16, 2**26 // n), n, device="cuda").to(dtype)
            error = error_ratio(hadacore.hadamard_transform(x), exact_transform(x)) if n < 2**26 else float("nan")
            line = (str(dtype).removeprefix("torch."), n, factor(n).base_order, rows, f"{copy_us:.3f}", copy, f"{us:.3f}",
                    f"{us / copy_us:.4f}", f"{error:.6f}")  # fmt: skip
            lines.append((*line, *origin.values()))
            print(*line, flush=True)
    partial = arguments.out.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*FIELDS, *origin))
        writer.writerows(lines)
    partial.replace(arguments.out)
    worst = max(float(line[8]) for line in lines if line[0] != "float32" and line[8] != "nan")
    print(f"largest error ratio, 16-bit: {worst}", file=sys.stderr)


if __name__ == "__main__":
    main()
