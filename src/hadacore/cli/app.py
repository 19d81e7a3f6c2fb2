"""The commands. Each reads its options, calls what does the work, and prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hadacore import __version__
from hadacore.backends import cpu
from hadacore.backends.cuda.cache import cache_folder
from hadacore.backends.triton.compiling import TARGETS as TRITON_TARGETS
from hadacore.benchmarking import quantizing
from hadacore.benchmarking.grid import DTYPES, Grid, default_grid
from hadacore.benchmarking.measure import Measurement
from hadacore.benchmarking.provenance import device_name
from hadacore.benchmarking.report import write_csv, write_whole
from hadacore.benchmarking.timing import REGIMES
from hadacore.cli import compiling, compiling_triton, demo, demo_quantize, evaluate, information
from hadacore.cli.bench import Benchmark
from hadacore.cli.bench_quantize import QuantizeBenchmark, summary
from hadacore.cli.options import choices, element_dtype, integers, names, user_errors
from hadacore.cli.printing import coloured, table
from hadacore.cli.terminal import (
    Device,
    Out,
    device_or_exit,
    failure,
    need_matplotlib,
    new_console,
    new_progress,
    print_files,
)
from hadacore.elements import ELEMENTS
from hadacore.errors import BackendUnavailableError
from hadacore.kernels.architectures import CHECKED
from hadacore.plan import plan as make_plan

_EVERY_DTYPE = tuple(element.name for element in ELEMENTS)

app = typer.Typer(
    name="hadacore",
    help="Hadamard transforms on Tensor Cores at the speed of a copy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"hadacore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_bench_app = typer.Typer()
app.add_typer(_bench_app, name="bench")


@app.command("demo")
def demo_command(
    out: Out = Path(),
    elements: Annotated[
        int | None, typer.Option(help="Elements of a prefill tensor; 33554432, and 2097152 on the CPU, by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = "float16",
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Seed of the activations.")] = 0,
) -> None:
    """Show what a rotation does to quantization errors of activations, and what it costs alone and with the quantizer."""
    torch_dtype = element_dtype(dtype, DTYPES)
    where = device_or_exit(device)
    need_matplotlib()
    if elements is None:
        elements = demo.PREFILL_ELEMENTS if where.type == "cuda" else demo.PREFILL_ELEMENTS_CPU
    with user_errors("--elements"):
        shapes = demo.shapes_for(elements)
    with user_errors("--seed"):
        generator = torch.Generator(where).manual_seed(seed)
    console = new_console()
    console.print(f"{device_name(where)}, {dtype}", style="dim")

    errors = list(demo.measure_errors(shapes, torch_dtype, where, generator))
    formats = [number_format.name for number_format in demo.FORMATS]
    lines = table(
        "Quantization error in %, one scale per tensor: without -> with rotation", "activations", "", *formats, left=2
    )
    for index, entry in enumerate(errors):
        cells = [_before_after(*entry.by_format[name]) for name in formats]
        again = index > 0 and errors[index - 1].shape == entry.shape
        lines.add_row("" if again else f"{entry.shape.model} {entry.shape.phase}", entry.kind, *cells)
    console.print(lines)

    times = list(demo.measure_times(shapes, torch_dtype, where))
    lines = table("Time of one rotation", "model", "phase", "elements", "copy, µs", "rotation, µs", "ratio", left=2)
    for time in times:
        lines.add_row(
            time.shape.model, time.shape.phase, f"{time.shape.elements:,}", f"{time.copy_us:,.2f}",
            f"{time.hadacore_us:,.2f}", f"{time.ratio:.2f}",
        )  # fmt: skip
    console.print(lines)
    if where.type == "cpu":
        console.print(f"On the CPU: {cpu.support().reason}.\n", style="dim")

    csv, picture = out / "hadacore-demo.csv", out / "hadacore-demo.png"
    write_csv(csv, demo.CSV_COLUMNS, demo.csv_rows(errors, times, dtype))
    write_whole(picture, demo.draw(*demo.picture_activations(torch_dtype, where, generator)))
    files = _demo_of_quantization(console, out, torch_dtype, elements, where, generator)
    print_files(console, (csv, picture, *files))


def _demo_of_quantization(
    console: Console,
    out: Path,
    dtype: torch.dtype,
    elements: int,
    where: torch.device,
    generator: torch.Generator,
) -> tuple[Path, ...]:
    """Errors of every format and times of the fused call; returns the files."""
    x = demo_quantize.gated_activations(demo_quantize.ROWS, demo_quantize.N, generator).to(dtype)
    errors = list(demo_quantize.measure_format_errors(x))
    console.print(demo_quantize.error_table(errors))
    name = str(dtype).removeprefix("torch.")
    times = list(demo_quantize.measure_fused_times(name, elements, where)) if name in quantizing.DTYPES else []
    if times:
        console.print(demo_quantize.time_table(times))
    else:
        console.print(f"Quantizing is measured in {' or '.join(quantizing.DTYPES)}.\n", style="dim")
    csv, picture = out / "hadacore-demo-quantize.csv", out / "hadacore-demo-quantize.png"
    write_csv(csv, demo_quantize.CSV_COLUMNS, demo_quantize.csv_rows(errors))
    write_whole(picture, demo_quantize.draw(errors, times, device_name(where)))
    return csv, picture


def _before_after(before: float, after: float) -> str:
    return f"{100 * before:5.2f} -> {coloured(before, after)}"


@_bench_app.callback(invoke_without_command=True)
def bench_command(
    context: typer.Context,
    sizes: Annotated[str | None, typer.Option(help="Transform sizes, such as 128,4096.")] = None,
    elements: Annotated[str | None, typer.Option(help="Element counts, such as 8192,33554432.")] = None,
    dtypes: Annotated[str | None, typer.Option(help=f"Some of {','.join(DTYPES)}.")] = None,
    regimes: Annotated[str | None, typer.Option(help="hot (same buffers), cold (round 300 MB), or hot,cold.")] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Measure the transform in place, too.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few points instead of the whole default grid.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was killed.")] = False,
    pictures: Annotated[bool, typer.Option(help="Draw PNG pictures and an HTML page.")] = True,
    out: Out = Path(),
    device: Device = None,
    backend: Annotated[str | None, typer.Option(help="cpu, cuda or triton; by default the device's.")] = None,
) -> None:
    """Measure times against a copy and against other installed packages; write a table, pictures and a page.

    `hadacore bench quantize` measures rotation with quantization.
    """
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    where = device_or_exit(device, backend)
    if pictures:
        need_matplotlib(", or leave the pictures out with --no-pictures")
    default = default_grid(where.type, quick)
    if quick and None not in (sizes, elements, dtypes):
        raise typer.BadParameter("--sizes, --elements and --dtypes leave nothing to shorten", param_hint="--quick")
    with user_errors():
        grid = Grid(
            default.sizes if sizes is None else integers(sizes, "--sizes"),
            default.elements if elements is None else integers(elements, "--elements"),
            default.dtypes if dtypes is None else choices(dtypes, DTYPES, "--dtypes"),
            default.regimes if regimes is None else choices(regimes, REGIMES, "--regimes"),
        )
        benchmark = Benchmark(grid, where, out, in_place=in_place, resume=resume, backend=backend)
    console = new_console()
    console.print(
        f"{device_name(where)}, backend {benchmark.backend}, {benchmark.remaining} of {len(grid.points())} points to measure",
        style="dim",
    )
    for name, reason in benchmark.missing.items():
        console.print(f"{escape(name)} is left out: {escape(reason)}", style="dim", soft_wrap=True)
    with new_progress() as bar:
        task = bar.add_task("measuring", total=benchmark.remaining)

        def advance(measurement: Measurement) -> None:
            p = measurement.point
            bar.update(task, advance=1, description=f"{p.dtype} {p.size} x {p.elements // p.size}, {p.regime}")

        try:
            benchmark.measure(advance)
        except torch.OutOfMemoryError as error:
            raise failure(
                "the GPU's memory is too small for this grid; name fewer --elements. What was measured so far is in "
                f"{benchmark.table.partial}; --resume continues it. ({str(error).splitlines()[0]})"
            ) from error
    files = benchmark.finish(pictures)
    console.print(_summary(benchmark))
    for name, reason in benchmark.failures.items():
        console.print(f"{escape(name)} {escape(reason)}", style="yellow", soft_wrap=True)
    print_files(console, files)


def _refuse_options_before(context: typer.Context) -> None:
    """Options of ``bench`` itself, which a sub-command would not look at."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"is an option of `hadacore bench`; write it after {context.invoked_subcommand}",
                param_hint=parameter.opts[0],
            )


@_bench_app.command("quantize")
def bench_quantize_command(
    sizes: Annotated[str | None, typer.Option(help="Sizes of rows with many rows, such as 128,14336.")] = None,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(quantizing.DTYPES)}.")] = quantizing.DTYPES[0],
    quick: Annotated[bool, typer.Option("--quick", help="A few points instead of the whole default grid.")] = False,
    chains: Annotated[
        bool | None,
        typer.Option(help="Measure the unfused chain, compiled by torch.compile; by default on a GPU only."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was killed.")] = False,
    pictures: Annotated[bool, typer.Option(help="Draw a PNG picture.")] = True,
    out: Out = Path(),
    device: Device = None,
) -> None:
    """Measure rotation with quantization against a copy of the same bytes and against the unfused chain."""
    where = device_or_exit(device)
    if pictures:
        need_matplotlib(", or leave the picture out with --no-pictures")
    if chains is None:
        chains = where.type == "cuda"
    with user_errors():
        grid = quantizing.default_grid(where.type, dtype, quick)
        if sizes is not None:
            grid = replace(grid, sizes=integers(sizes, "--sizes"))
        benchmark = QuantizeBenchmark(grid, where, out, chains=chains, resume=resume)
    console = new_console()
    console.print(f"{device_name(where)}, {benchmark.remaining} of {len(grid.cases())} points to measure", style="dim")
    if where.type == "cpu":
        console.print(
            "No GPU: small sizes on the CPU, beside a copy of the inputs.",
            style="dim", soft_wrap=True,
        )  # fmt: skip
    with new_progress() as bar:
        task = bar.add_task("measuring", total=benchmark.remaining)
        benchmark.measure(lambda measured: bar.update(task, advance=1, description=str(measured.case)))
    files = benchmark.finish(pictures)
    title = "Rotation with quantization: worst time / copy, least speedup over the chain"
    lines = table(title, "", "rows", "fused", "n <= 4096", "above", "speedup", left=2)
    for line in summary(benchmark.table.rows, min(grid.elements)):
        lines.add_row(*line)
    console.print(lines)
    print_files(console, files)


def _summary(benchmark: Benchmark) -> Table:
    """Ratios to a copy by type, regime and element count: best, median and worst over the sizes."""
    lines = table("Time over that of a copy", "type", "regime", "elements", "best", "median", "worst", left=2)
    groups: dict[tuple[str, str, int], list[float]] = {}
    for row in benchmark.table.rows:
        key = row["dtype"], row["regime"], int(row["elements"])
        groups.setdefault(key, []).append(float(row["hadacore_us"]) / float(row["copy_us"]))
    for (dtype, regime, elements), ratios in groups.items():
        ratios.sort()
        middle = ratios[len(ratios) // 2]
        lines.add_row(dtype, regime, f"{elements:,}", f"{ratios[0]:.2f}", f"{middle:.2f}", f"{ratios[-1]:.2f}")
    return lines


app.command("eval")(evaluate.eval_command)


@app.command("plan")
def plan_command(
    n: Annotated[int, typer.Argument(help="Elements of the last dimension.")],
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(_EVERY_DTYPE)}.")] = "float16",
    rows: Annotated[int, typer.Option(help="Rows of N elements.")] = 8192,
    block_size: Annotated[int | None, typer.Option(help="Transform blocks of so many elements.")] = None,
    arch: Annotated[str | None, typer.Option(help="GPU architecture to plan for, such as sm_90a.")] = None,
    multiprocessors: Annotated[
        int | None, typer.Option(help="Multiprocessors of that GPU; 132 (H100, H200) by default.", min=1)
    ] = None,
    signs: Annotated[bool, typer.Option("--signs", help="With random signs.")] = False,
    inverse: Annotated[bool, typer.Option("--inverse", help="The inverse transform.")] = False,
) -> None:
    """Print how a transform will be computed: matrix, stages, kernel, launch, bytes."""
    if multiprocessors is not None and arch is None:
        raise typer.BadParameter("needs --arch, the GPU that has so many", param_hint="--multiprocessors")
    torch_dtype = element_dtype(dtype, _EVERY_DTYPE)
    with user_errors():
        made = make_plan(
            n, torch_dtype, rows=rows, block_size=block_size, signs=signs, inverse=inverse, architecture=arch,
            multiprocessors=multiprocessors,
        )  # fmt: skip
    typer.echo(str(made))
    if inverse and not signs:
        typer.echo("  inverse  the matrix is symmetric, so this is also the forward plan")
    if arch is not None and made.backend == "cpu":
        typer.echo(f"  note     {dtype} is transformed on the CPU only, whatever --arch says")


@app.command("info")
def info_command() -> None:
    """Print versions, GPUs, backends with the reason when one is unavailable, and the kernel cache."""
    console = new_console()
    for title, entries in information.sections():
        console.print(title, style="bold")
        width = max(len(name) for name, _ in entries)
        for name, value in entries:
            console.print(f"  {escape(name):<{width}}  {escape(value)}", soft_wrap=True)


@app.command("compile")
def compile_command(
    sizes: Annotated[str | None, typer.Option(help="Transform sizes, such as 128,4096; all by default.")] = None,
    dtypes: Annotated[str, typer.Option(help="Element types.")] = ",".join(compiling.DTYPES),
    arch: Annotated[str, typer.Option(help="GPU architectures.")] = ",".join(CHECKED),
    cache: Annotated[
        Path | None, typer.Option(help="Folder to fill; by default the one that is used at run time.", file_okay=False)
    ] = None,
    signs: Annotated[bool, typer.Option("--signs", help="Also with random signs before and after.")] = False,
    strided: Annotated[bool, typer.Option("--strided", help="Also for rows with gaps.")] = False,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Instead of the transform's kernels those that quantize to these formats, with the default granularity, or "
            "FORMAT:GRANULARITY, such as fp8_e4m3,int4:128."
        ),
    ] = None,
    prologue: Annotated[
        str | None, typer.Option(help=f"With these before the transform: {', '.join(compiling.PROLOGUES)}.")
    ] = None,
    all_variants: Annotated[bool, typer.Option("--all-variants", help="Same as --signs --strided.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail if a kernel keeps anything in local memory (spills).")
    ] = False,
    jobs: Annotated[int | None, typer.Option(help="Processes; by default as many as are worth it.")] = None,
) -> None:
    """Fill a kernel cache for given sizes, types and architectures; needs no GPU. For container images."""
    if prologue is not None and quantize is None:
        raise typer.BadParameter("needs --quantize, what follows the transform", param_hint="--prologue")
    wanted = compiling.ALL_SIZES if sizes is None else integers(sizes, "--sizes")
    types, architectures = names(dtypes, "--dtypes"), names(arch, "--arch")
    with user_errors():
        requests = compiling.quantized(
            () if quantize is None else names(quantize, "--quantize"),
            () if prologue is None else names(prologue, "--prologue"),
        )
        kernels = compiling.kernels_for(
            wanted,
            types,
            architectures,
            signs=signs or all_variants,
            strided=strided or all_variants,
            quantize=requests,
        )
    console = new_console()
    if sizes is not None:  # nobody asked for each size of the default
        for what, reason in compiling.without_kernel(wanted, types, architectures, requests).items():
            console.print(f"[yellow]no kernel[/] for {escape(what)}: {escape(reason)}", soft_wrap=True)
    folder = cache or cache_folder()
    with new_progress() as bar:
        task = bar.add_task("compiling", total=len(kernels))

        def advance(result: compiling.Compiled) -> None:
            bar.update(
                task, advance=1, description=f"{result.kernel.architecture} 2^{result.kernel.configuration.log2_size}"
            )

        try:
            with user_errors():
                results = compiling.compile_all(kernels, folder, check=check, jobs=jobs, progress=advance)
        except BackendUnavailableError as error:
            raise failure(str(error)) from error
    console.print(compiling.compiled_table(results, check))
    console.print(f"in {escape(str(information.cache_state(folder)))}", soft_wrap=True)
    failures = [r for r in results if r.failure is not None]
    spilling = [r for r in results if r.spills]
    for r in failures[:10]:
        console.print(f"[red]failed[/] {escape(compiling.named(r))}: {escape(r.failure or '')}", soft_wrap=True)
    for r in spilling[:10]:
        console.print(f"[red]spills[/] {escape(compiling.named(r))}: {escape(str(r.resources))}", soft_wrap=True)
    if failures or spilling:
        raise failure(f"{len(failures)} of {len(results)} kernels failed to compile, {len(spilling)} spill")


@app.command("check-triton")
def check_triton_command(
    sizes: Annotated[
        str | None, typer.Option(help="Transform sizes; powers of two and some others by default.")
    ] = None,
    dtypes: Annotated[str, typer.Option(help="Element types.")] = ",".join(compiling_triton.DTYPES),
    arch: Annotated[str, typer.Option(help="NVIDIA's and AMD's architectures.")] = ",".join(TRITON_TARGETS),
    jobs: Annotated[int | None, typer.Option(help="Processes; by default as many as are worth it.")] = None,
) -> None:
    """Compile the Triton backend's kernels for GPUs that are not here; print registers, spills and shared memory."""
    with user_errors():
        kernels = compiling_triton.kernels_for(
            compiling_triton.ALL_SIZES if sizes is None else integers(sizes, "--sizes"), names(dtypes, "--dtypes"),
            names(arch, "--arch"),
        )  # fmt: skip
    with new_progress() as bar:
        task = bar.add_task("compiling", total=len(kernels))
        try:
            with user_errors():
                results = compiling_triton.check_all(kernels, jobs, lambda checked: bar.update(task, advance=1))
        except BackendUnavailableError as error:
            raise failure(str(error)) from error
    console = new_console()
    lines = table("Triton kernels", "", "kernels", "registers", "spilling", "spilled bytes", "shared bytes")
    for target, dtype in dict.fromkeys((r.kernel.target, r.kernel.dtype) for r in results):
        members = [r.compiled for r in results if (r.kernel.target, r.kernel.dtype) == (target, dtype) and r.compiled]
        columns = (
            len(members), max((c.registers for c in members), default=0), sum(c.spilled_bytes > 0 for c in members),
            max((c.spilled_bytes for c in members), default=0), max((c.shared_bytes for c in members), default=0),
        )  # fmt: skip
        lines.add_row(f"{target} {dtype}", *map(str, columns))
    console.print(lines)
    bad = [r for r in results if r.failure is not None or r.does_not_fit]
    for r in bad[:10]:
        why = r.failure or f"needs {r.compiled.shared_bytes if r.compiled else 0} bytes of shared memory, too many"
        where = f"{r.kernel.target} {r.kernel.dtype} {r.kernel.configuration}"
        console.print(f"[red]failed[/] {escape(where)}: {escape(why)}", soft_wrap=True)
    if bad:
        raise failure(f"{len(bad)} of {len(results)} kernels do not compile, or do not fit")
