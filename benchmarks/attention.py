"""FP8 attention end to end on a GPU: FlashAttention-3 in bfloat16 and FP8, rotation and quantization beside it, and the error.

    python benchmarks/attention.py --flash-attention PATH/_vllm_fa3_C.abi3.so --out benchmarks/results/GPU/attention.csv

Causal, times are those of replayed CUDA graphs, hot. ``prepare`` is the rotation of queries and keys and the FP8 codes and scales
of queries, keys and values by this package, without rotary embedding; ``prepare_plain`` does not rotate, and
``prepare_rotated_values`` rotates the values too, whose output ``rotate_back`` rotates back. ``unfused`` does what ``prepare``
does by a chain of PyTorch operations that torch.compile has compiled, the rotation being a product with the matrix in bfloat16.
``whole`` is ``prepare`` and FP8 attention in one call.

Errors are relative to float64, of up to 2048 queries at the end, on FlashAttention-3's inputs with rare outliers, by
FlashAttention-3 and by the emulation. Ends with 1 if a target is missed: at 8192 tokens ``prepare`` takes at most a tenth of
FP8 attention's time, and less than ``unfused``; everywhere both errors agree to 5 per cent. Takes under 3 minutes.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hadacore import hadamard_matrix
from hadacore.attention import RECIPES, AttentionRecipe, Engine, VllmEngine, engines, quantized_attention
from hadacore.attention.engines import known_engines
from hadacore.attention.operands import Operands, prepare, rotate_back
from hadacore.attention.visibility import Visibility
from hadacore.benchmarking.provenance import provenance
from hadacore.benchmarking.timing import Workload, time_operation
from hadacore.experiments import fa3_inputs

SHARE_OF_ATTENTION = 0.10
ERROR_AGREEMENT = 0.05
ERROR_QUERIES = 2048
BFLOAT16 = RECIPES["fp16"]  # not quantized: in the type of the inputs
PLAIN = RECIPES["fp8"]
ROTATED = AttentionRecipe("fp8_e4m3", rotate=True)
ROTATED_VALUES = RECIPES["fp8_rotated"]


@dataclass(frozen=True)
class Case:
    """Sizes; the first is what the target is about."""

    batch: int
    queries: int
    keys: int
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128

    @property
    def name(self) -> str:
        return f"{self.batch} x {self.queries} x {self.keys}, {self.heads}/{self.kv_heads} x {self.head_dim}"

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        shapes = ((self.queries, self.heads), (self.keys, self.kv_heads), (self.keys, self.kv_heads))
        q, k, v = (torch.randn(self.batch, *shape, self.head_dim, device=device).bfloat16() for shape in shapes)
        return q, k, v

    def outlier_inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """With rare outliers, for the last queries only."""
        generator = torch.Generator().manual_seed(0)
        sequences = []
        for _ in range(self.batch):
            _, k, v = fa3_inputs(self.keys, self.kv_heads, self.head_dim, generator, device)
            q, _, _ = fa3_inputs(min(self.queries, ERROR_QUERIES), self.heads, self.head_dim, generator, device)
            sequences.append((q, k, v))
        q, k, v = (torch.cat(parts).bfloat16() for parts in zip(*sequences, strict=True))
        return q, k, v


CASES = (Case(1, 8192, 8192), Case(2, 4096, 4096), Case(1, 32768, 32768), Case(16, 1, 8192))
TIMES = (
    "flash_bf16",
    "flash_fp8",
    "prepare",
    "prepare_plain",
    "prepare_rotated_values",
    "rotate_back",
    "unfused",
    "whole",
)
FIELDS = (
    "case", "engine", *(f"{name}_us" for name in TIMES), "prepare_share", "fp8_speedup", "whole_speedup",
    "error_flash", "error_emulated", "error_ratio", "error_flash_plain", "error_flash_bf16",
)  # fmt: skip


def unfused_chain(case: Case, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """What one writes without this package, compiled: two products with the matrix, and codes of three tensors."""
    matrix = (hadamard_matrix(case.head_dim, device=device) * case.head_dim**-0.5).bfloat16()

    def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
        grouped = x.unflatten(2, (case.kv_heads, -1))
        scale = grouped.float().abs().amax((1, 3, 4)).clamp(min=1e-12) / 448.0
        codes = (grouped.float() / scale[:, None, :, None, None]).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
        return codes.flatten(2, 3), scale

    def chain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (*quantize(q @ matrix), *quantize(k @ matrix), *quantize(v))

    return torch.compile(chain, dynamic=False)


def measure_times(case: Case, engine: Engine, device: torch.device) -> dict[str, float]:
    """Microseconds by name."""
    q, k, v = case.inputs(device)
    visible, scale = Visibility(causal=True), case.head_dim**-0.5
    half, codes = prepare(q, k, v, BFLOAT16), prepare(q, k, v, ROTATED)
    workload = Workload(((q, torch.empty_like(q)),), 0, None)
    chain = unfused_chain(case, device)

    def attend(operands: Operands) -> Tensor:
        return engine.attend(operands, visible, scale, torch.bfloat16, None, None)

    def timed(operation: Callable[[], object]) -> float:
        def call(x: Tensor, y: Tensor) -> None:
            operation()

        return time_operation(call, workload)

    output = attend(codes)
    return {
        "flash_bf16": timed(lambda: attend(half)),
        "flash_fp8": timed(lambda: attend(codes)),
        "prepare": timed(lambda: prepare(q, k, v, ROTATED)),
        "prepare_plain": timed(lambda: prepare(q, k, v, PLAIN)),
        "prepare_rotated_values": timed(lambda: prepare(q, k, v, ROTATED_VALUES)),
        "rotate_back": timed(lambda: rotate_back(output, None)),
        "unfused": timed(lambda: chain(q, k, v)),
        "whole": timed(lambda: quantized_attention(q, k, v, recipe=ROTATED, causal=True, engine=engine)),
    }


def measure_errors(case: Case, engine: Engine, device: torch.device) -> dict[str, float]:
    """Relative L2 errors against float64 of the same bfloat16 inputs."""
    q, k, v = case.outlier_inputs(device)
    # Heads one by one: the scores of all of them in float64 would fill the memory.
    group = case.heads // case.kv_heads
    exact = torch.cat(
        [
            quantized_attention(
                q[:, :, h : h + 1].double(), k[:, :, h // group, None].double(), v[:, :, h // group, None].double(),
                recipe="fp16", causal=True, engine="emulated",
            )
            for h in range(case.heads)
        ],
        2,
    )  # fmt: skip

    def error(recipe: AttentionRecipe, by: Engine | str) -> float:
        y = quantized_attention(q, k, v, recipe=recipe, causal=True, engine=by)
        return float((y.double() - exact).norm() / exact.norm())

    return {
        "error_flash": error(ROTATED, engine),
        "error_emulated": error(ROTATED, "emulated"),
        "error_flash_plain": error(PLAIN, engine),
        "error_flash_bf16": error(BFLOAT16, engine),
    }


def measure(case: Case, engine: Engine, device: torch.device) -> dict[str, str]:
    """One line of the table."""
    times = measure_times(case, engine, device)
    errors = measure_errors(case, engine, device)
    share = times["prepare"] / times["flash_fp8"]
    ratio = errors["error_flash"] / errors["error_emulated"]
    return {
        "case": case.name,
        "engine": engine.name,
        **{f"{name}_us": f"{times[name]:.2f}" for name in TIMES},
        "prepare_share": f"{share:.4f}",
        "fp8_speedup": f"{times['flash_bf16'] / times['flash_fp8']:.4f}",
        "whole_speedup": f"{times['flash_bf16'] / times['whole']:.4f}",
        **{name: f"{value:.6f}" for name, value in errors.items()},
        "error_ratio": f"{ratio:.4f}",
    }


def missed_targets(lines: list[dict[str, str]]) -> list[str]:
    """What was not reached, in words."""
    missed = []
    for line in lines:
        if line["case"] == CASES[0].name:
            if float(line["prepare_share"]) > SHARE_OF_ATTENTION:
                missed.append(
                    f"{line['case']}: prepare takes {float(line['prepare_share']):.1%} of FP8 attention, more than 10 %"
                )
            if float(line["prepare_us"]) >= float(line["unfused_us"]):
                missed.append(
                    f"{line['case']}: prepare takes {line['prepare_us']} us, the compiled chain {line['unfused_us']} us"
                )
        if abs(float(line["error_ratio"]) - 1) > ERROR_AGREEMENT:
            missed.append(f"{line['case']}: FlashAttention-3's error is {line['error_ratio']} times the emulation's")
    return missed


def choose_engine(path: Path | None, device: torch.device) -> Engine:
    """FlashAttention-3, from a library or from wherever it is installed."""
    candidates = known_engines()[:-1] if path is None else (VllmEngine(path),)
    for engine in candidates:
        if engine.support(device):
            return engine
    reasons = {e.name: e.support(device).reason for e in candidates}
    sys.exit("no FlashAttention-3: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def write(path: Path, lines: list[dict[str, str]], origin: dict[str, str | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*FIELDS, *origin))
        writer.writeheader()
        writer.writerows({**line, **origin} for line in lines)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--flash-attention", type=Path, help="vLLM's _vllm_fa3_C.abi3.so, where no FlashAttention-3 is installed"
    )
    parser.add_argument("--cases", default="", help="numbers from 0, such as 0,1; all by default")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cases = [CASES[int(number)] for number in arguments.cases.split(",")] if arguments.cases else CASES
    if not torch.cuda.is_available():
        sys.exit(f"this benchmark needs a GPU of compute capability 9.0: {engines('cpu')}")
    device = torch.device("cuda", 0)
    engine = choose_engine(arguments.flash_attention, device)
    lines = []
    for case in cases:
        torch.manual_seed(0)
        with torch.inference_mode():
            lines.append(measure(case, engine, device))
        print(*(f"{name}={value}" for name, value in lines[-1].items()), flush=True)
    write(arguments.out, lines, provenance(device))
    missed = missed_targets(lines)
    for message in missed:
        print(f"MISSED {message}", file=sys.stderr)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
