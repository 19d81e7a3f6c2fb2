"""Checks and times Triton configurations against a copy, on the GPU at hand.

    python benchmarks/tune_triton.py --table-only --out DIR
    python benchmarks/tune_triton.py --out DIR
    python benchmarks/tune_triton.py --measured triton-candidates.csv --seconds 90 --out DIR
    python benchmarks/tune_triton.py --sizes 28672 --fields fused,inner --seconds 90 --out DIR

The first line times the table alone, in half a minute; the third what an earlier run has no times of, the last one candidates
with one of these fields of a configuration at another value than its default.

First several processes compile each candidate and check it: against the float64 transform, a row with NaN beside others, and
the same bits for one row as for many. Then one process times, cold, those that are right: the table's configurations
first, then the others as long as --seconds last. Prints a table and writes ``triton-candidates.csv``, or ``triton.csv`` of
the table alone, what failed included. A candidate that fails, crashes its process or takes too long is a line of the table,
and the rest goes on.

The table in ``hadacore/backends/triton/configurations.py`` holds the fastest of each size.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hadacore.backends import triton
from hadacore.backends.triton.candidates import base_candidates, candidates
from hadacore.backends.triton.configurations import DIRECT, THREE_PARTS, Configuration
from hadacore.backends.triton.launch import shared_bytes
from hadacore.benchmarking import provenance
from hadacore.benchmarking.report import write_csv
from hadacore.benchmarking.timing import COLD_BYTES
from hadacore.elements import BY_NAME
from hadacore.matrices import factor

POWERS = tuple(1 << k for k in range(16))
ORDERS = (768, 5120, 11008, 13696, 14336, 28672)
DTYPES = ("float16", "float32")
ELEMENTS = (1 << 25, 1 << 23)
#: Error over that of correct rounding; float32 rounds at every step, about sqrt(log2 n) times, and more with a base.
ERROR_LIMITS = {"float16": 1.002, "bfloat16": 1.002, "float32": 12.0}
#: Times over a copy, cold, at 2^23 elements and more, by largest size.
TARGETS = ((4096, 1.25), (32768, 2.0))
CHECKERS = min(16, os.cpu_count() or 1)
JOB_SECONDS = 90.0
COLUMNS = (
    "gpu", "commit", "torch", "triton", "dtype", "hadamard_size", "of_table", *Configuration.__dataclass_fields__,
    "error_ratio", "elements", "us", "copy_us", "ratio", "status",
)  # fmt: skip

Job = dict[str, Any]


def product_of(dtype: str) -> int:
    """How a library's base is applied to a type."""
    return THREE_PARTS if dtype == "float32" else DIRECT


def jobs_for(sizes: list[int], dtypes: list[str]) -> list[Job]:
    """Candidates of each size and type, that of the table first."""
    jobs: list[Job] = []
    shared = shared_bytes(device_at_hand())
    for dtype in dtypes:
        for size in sizes:
            found = factor(size)
            if found.base_order == 1:
                space = candidates(found.log2, dtype != "float32", shared)
            else:
                space = base_candidates(found.base_order, found.log2, product_of(dtype), shared)
            for index, c in enumerate(space):
                jobs.append({"dtype": dtype, "size": size, "rank": index, "configuration": asdict(c)})
    return jobs


def identity(dtype: str, size: int | str, configuration: dict[str, Any]) -> tuple[str, ...]:
    """What makes two candidates the same; a field that an earlier run did not have is at its default."""
    fields = Configuration.__dataclass_fields__.values()
    return (dtype, str(size), *(str(configuration.get(field.name, field.default)) for field in fields))


def sets_a_field(configuration: dict[str, Any], names: list[str]) -> bool:
    """Whether one of these fields is not at its default.

    Raises:
        ValueError: A configuration has no such field.
    """
    fields = Configuration.__dataclass_fields__
    unknown = sorted(set(names) - set(fields))
    if unknown:
        raise ValueError(f"fields must be those of a configuration ({', '.join(fields)}), got {', '.join(unknown)}")
    return any(configuration[name] != fields[name].default for name in names)


def measured_candidates(file: Path) -> set[tuple[str, ...]]:
    """The candidates that the CSV of an earlier run has times of."""
    with file.open(newline="") as lines:
        return {
            identity(row["dtype"], row["hadamard_size"], row) for row in csv.DictReader(lines) if row["status"] == "ok"
        }


def device_at_hand() -> torch.device:
    """The GPU; the CPU where Triton interprets, to try this script."""
    return torch.device("cuda" if torch.cuda.is_available() else "xpu" if torch.xpu.is_available() else "cpu")


# ---- in a worker ------------------------------------------------------------------------------------------


def _operation(job: Job, device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], None]:
    from hadacore.backends.triton.launch import base_for, launch

    c, size = Configuration(**job["configuration"]), job["size"]
    base = base_for(torch.empty(0, dtype=BY_NAME[job["dtype"]].dtype, device=device), c)

    def run(x: torch.Tensor, y: torch.Tensor) -> None:
        launch(c, x.view(-1, size), y.view(-1, size), size**-0.5, base=base)

    return run


def check(job: Job, device: torch.device) -> Job:
    """The error of a candidate; raises where it is wrong."""
    from hadacore.benchmarking.accuracy import error_ratio, exact_transform

    size, dtype = job["size"], BY_NAME[job["dtype"]].dtype
    run = _operation(job, device)
    torch.manual_seed(size)
    x = torch.randn(max(5, min(2053, 2**18 // size + 1)), size, device=device).to(dtype)
    y = torch.full_like(x, math.nan)
    run(x, y)
    ratio = error_ratio(y, exact_transform(x))
    if not ratio <= ERROR_LIMITS[job["dtype"]]:
        raise ValueError(f"wrong: error ratio {ratio:.6g}")
    alone = torch.empty_like(x[:1])
    run(x[2:3], alone)
    if not torch.equal(alone[0], y[2]):
        raise ValueError("wrong: a row alone has other bits than among others")
    x[1, size // 2] = math.nan
    poisoned = torch.empty_like(y)
    run(x, poisoned)
    kept = torch.arange(x.shape[0], device=device) != 1
    if not torch.equal(poisoned[kept], y[kept]) or torch.isfinite(poisoned[1]).any():
        raise ValueError("wrong: NaN reached another row, or did not reach all of its own")
    return {"error_ratio": ratio}


def _time_copy(workload: Any) -> float:
    from hadacore.benchmarking.copy import tensor_copy, time_copy
    from hadacore.benchmarking.timing import time_operation
    from hadacore.errors import BackendUnavailableError

    try:
        return time_copy(workload)[0]
    except BackendUnavailableError:  # the project's own copy is a CUDA kernel
        return time_operation(tensor_copy, workload)


class Timer:
    """Times candidates on shared buffers."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.arena: Any = None
        self.dtype = ""
        self.copies: dict[int, float] = {}

    def __call__(self, job: Job) -> Job:
        """Microseconds of a candidate and of a copy."""
        from hadacore.benchmarking.timing import COLD, Arena, time_operation

        if self.dtype != job["dtype"]:
            self.arena = None
            self.arena = Arena(BY_NAME[job["dtype"]].dtype, self.device, job["largest"], cold_bytes=job["cold_bytes"])
            self.dtype, self.copies = job["dtype"], {}
        elements = job["elements"] // job["size"] * job["size"]
        workload = self.arena.workload(elements, COLD)
        if elements not in self.copies:
            self.copies[elements] = _time_copy(workload)
        us = time_operation(_operation(job, self.device), workload)
        return {"us": us, "copy_us": self.copies[elements], "measured_elements": elements}


def work() -> None:
    """Read jobs, one JSON a line, and answer each with one."""
    device = device_at_hand()
    timer = Timer(device)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = timer(job) if "elements" in job else check(job, device)
            if device.type != "cpu":
                torch.get_device_module(device).synchronize()
        except Exception as error:  # any failure is a line of the table; a broken context ends the process
            answer = {"failure": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}
            answer["broken"] = "CUDA error" in str(error) or "HIP error" in str(error)
        print("answer " + json.dumps(answer), flush=True)
        if answer.get("broken"):
            return


# ---- in the parent ----------------------------------------------------------------------------------------


class Worker:
    """A process that answers jobs; a new one takes the place of one that died or hangs."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[str | None] = queue.Queue()

    def _start(self) -> None:
        command = [sys.executable, __file__, "--worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, args=(self.process, self.lines), daemon=True).start()

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    def answer(self, job: Job) -> Job:
        """What the process says, or a failure."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        assert self.process is not None and self.process.stdin is not None
        deadline = time.monotonic() + JOB_SECONDS
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            while True:
                line = self.lines.get(timeout=max(0.1, deadline - time.monotonic()))
                if line is None:
                    self.stop()
                    return {"failure": "the process ended"}
                if line.startswith("answer "):
                    found: Job = json.loads(line.removeprefix("answer "))
                    if found.pop("broken", False):
                        self.stop()
                    return found
        except queue.Empty:
            self.stop()
            return {"failure": f"no answer in {JOB_SECONDS:.0f} s"}
        except OSError as error:
            self.stop()
            return {"failure": f"the process ended: {error}"}

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def check_all(jobs: list[Job], checkers: int, deadline: float) -> None:
    """Add error_ratio or failure to every job."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def run() -> None:
        worker = Worker()
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                break
            job.update(worker.answer(job) if time.monotonic() < deadline else {"failure": "not checked: out of time"})
        worker.stop()

    threads = [threading.Thread(target=run) for _ in range(checkers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def time_all(jobs: list[Job], counts: list[int], cold_bytes: int, deadline: float) -> Iterator[Job]:
    """Each job that is right with its times, one for each element count."""
    worker = Worker()
    for job in jobs:
        for elements in counts:
            if "failure" in job:
                yield {**job, "elements": elements}
                break
            if time.monotonic() > deadline:
                yield {**job, "elements": elements, "failure": "not timed: out of time"}
                continue
            asked = {k: job[k] for k in ("dtype", "size", "configuration")}
            asked |= {"elements": elements, "largest": max(counts), "cold_bytes": cold_bytes}
            yield {**job, "elements": elements, **worker.answer(asked)}
    worker.stop()


def row_of(job: Job, made_with: dict[str, str | None]) -> dict[str, Any]:
    """A line of the CSV."""
    us, copy_us = job.get("us"), job.get("copy_us")
    return {
        **{name: made_with.get(name) or "" for name in ("gpu", "commit", "torch", "triton")},
        "dtype": job["dtype"],
        "hadamard_size": job["size"],
        "of_table": int(job["rank"] == 0),
        **job["configuration"],
        "error_ratio": f"{job['error_ratio']:.6f}" if "error_ratio" in job else "",
        "elements": job.get("measured_elements", job["elements"]),
        "us": f"{us:.3f}" if us is not None else "",
        "copy_us": f"{copy_us:.3f}" if copy_us is not None else "",
        "ratio": f"{us / copy_us:.4f}" if us is not None and copy_us else "",
        "status": job.get("failure", "ok"),
    }


def print_summary(rows: list[dict[str, Any]]) -> None:
    """For each type, size and element count: the table's ratio, the best, and what is missed."""
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row["ratio"]:
            groups.setdefault((row["dtype"], row["hadamard_size"], row["elements"]), []).append(row)
    print(f"{'type':10}{'size':>7}{'elements':>10}{'copy us':>9}{'table':>8}{'best':>8}  best configuration")
    for (dtype, size, elements), members in sorted(groups.items()):
        mine = next((r["ratio"] for r in members if r["of_table"]), "failed")
        best = min(members, key=lambda r: float(r["ratio"]))
        limit = next((ratio for largest, ratio in TARGETS if size <= largest), math.inf)
        mark = "" if float(best["ratio"]) <= limit else f"  misses {limit}"
        c = Configuration(**{name: best[name] for name in Configuration.__dataclass_fields__})
        print(f"{dtype:10}{size:7}{elements:10}{best['copy_us']:>9}{mine:>8}{best['ratio']:>8}  {c}{mark}")
    failures = [row for row in rows if row["status"] != "ok"]
    for row in failures[:40]:
        c = Configuration(**{name: row[name] for name in Configuration.__dataclass_fields__})
        print(f"FAILED {row['dtype']} {row['hadamard_size']} {c}: {row['status']}")
    print(f"{len(rows) - len(failures)} lines measured, {len(failures)} failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="", help="comma-separated; powers of two and some sizes m * 2^k by default")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--elements", default=",".join(map(str, ELEMENTS)))
    parser.add_argument("--cold-bytes", type=int, default=COLD_BYTES, help="that a round over the buffers covers")
    parser.add_argument("--checkers", type=int, default=CHECKERS, help="processes that compile and check")
    parser.add_argument("--seconds", type=float, default=270.0, help="time for everything")
    parser.add_argument("--table-only", action="store_true", help="only the configurations of the table")
    parser.add_argument(
        "--measured", type=Path, help="CSV of an earlier run; of its candidates only the table's are timed again"
    )
    parser.add_argument(
        "--fields", default="", help="comma-separated fields; beside the table's, only candidates that set one of them"
    )
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return
    support = triton.support()
    if not support:
        sys.exit(f"benchmarks/tune_triton.py cannot run: {support.reason}")
    start = time.monotonic()
    sizes = [int(s) for s in arguments.sizes.split(",") if s] or [*POWERS, *ORDERS]
    jobs = jobs_for(sizes, arguments.dtypes.split(","))
    if arguments.table_only:
        jobs = [job for job in jobs if job["rank"] == 0]
    if arguments.measured:
        known = measured_candidates(arguments.measured)
        jobs = [
            job
            for job in jobs
            if job["rank"] == 0 or identity(job["dtype"], job["size"], job["configuration"]) not in known
        ]
    if arguments.fields:
        names = arguments.fields.split(",")
        jobs = [job for job in jobs if sets_a_field(job["configuration"], names) or job["rank"] == 0]
    # The table's first, then each size in turn, in case time runs out; the largest first, as they take longest to compile.
    jobs.sort(key=lambda job: (job["rank"], -job["size"]))
    check_all(jobs, arguments.checkers, start + 0.55 * arguments.seconds)
    print(f"checked {len(jobs)} candidates in {time.monotonic() - start:.0f} s", flush=True)
    # Types one after the other would rebuild the buffers twice only; the table's still come first.
    jobs.sort(key=lambda job: (job["rank"] > 0, job["dtype"], job["rank"], job["size"]))
    made_with = provenance.provenance(device_at_hand())
    target = arguments.out / ("triton.csv" if arguments.table_only else "triton-candidates.csv")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    counts = [int(e) for e in arguments.elements.split(",")]
    for done in time_all(jobs, counts, arguments.cold_bytes, start + arguments.seconds):
        rows.append(row_of(done, made_with))
        if len(rows) % 50 == 0:
            write_csv(target, COLUMNS, rows)
    write_csv(target, COLUMNS, rows)
    print_summary(rows)
    print(f"wrote {target} after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
