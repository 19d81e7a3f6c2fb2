"""The commands. Each reads its options, calls what does the work, and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement as Width
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hadacore import __version__
from hadacore.backends import cpu
from hadacore.backends.cuda.cache import cache_folder
from hadacore.benchmarking.grid import DTYPES, Grid, default_grid
from hadacore.benchmarking.measure import Measurement
from hadacore.benchmarking.pictures import PicturesUnavailableError, check_matplotlib
from hadacore.benchmarking.provenance import device_name
from hadacore.benchmarking.report import write_csv, write_whole
from hadacore.benchmarking.timing import REGIMES
from hadacore.cli import compiling, demo, evaluate, information
from hadacore.cli.bench import Benchmark
from hadacore.cli.options import choices, chosen_device, element_dtype, integers, names, user_errors
from hadacore.elements import ELEMENTS
from hadacore.errors import BackendUnavailableError
from hadacore.evaluation.models import DTYPES as MODEL_DTYPES
from hadacore.evaluation.models import EvaluationUnavailableError
from hadacore.evaluation.report import cells_of, columns_for
from hadacore.evaluation.rows import ROWS, rows_named
from hadacore.evaluation.run import Settings
from hadacore.experiments import fa3_error_table, run_fa3_error, write_fa3_error
from hadacore.kernels.architectures import CHECKED
from hadacore.plan import plan as make_plan

_WIDEST_TABLE = 400  # characters
_EVERY_DTYPE = tuple(element.name for element in ELEMENTS)

app = typer.Typer(
    name="hadacore",
    help="Hadamard transforms on Tensor Cores at the speed of a copy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _console(stderr: bool = False) -> Console:
    # Made for each command: the streams may have been replaced since this module was imported.
    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=_console(stderr=True), transient=True,
    )  # fmt: skip


def _fail(message: str) -> typer.Exit:
    _console(stderr=True).print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)
    return typer.Exit(1)


def _device(name: str | None) -> torch.device:
    try:
        return chosen_device(name)
    except BackendUnavailableError as error:
        raise _fail(str(error)) from error


def _need_matplotlib(advice: str = "") -> None:
    try:
        check_matplotlib()
    except PicturesUnavailableError as error:
        raise _fail(f"{error}{advice}") from error


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", no_wrap=True)
    return table


def _print_files(console: Console, files: tuple[Path, ...]) -> None:
    for file in files:
        console.print(f"wrote {escape(str(file))}", soft_wrap=True)


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


_Out = Annotated[Path, typer.Option("--out", help="Folder to write to.", file_okay=False)]
_Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda; by default the GPU where there is one.")]


@app.command("demo")
def demo_command(
    out: _Out = Path(),
    elements: Annotated[
        int | None, typer.Option(help="Elements of a prefill tensor; 33554432, and 2097152 on the CPU, by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = "float16",
    device: _Device = None,
    seed: Annotated[int, typer.Option(help="Seed of the activations.")] = 0,
) -> None:
    """Show what a rotation does to quantization errors of attention activations, and what it costs."""
    torch_dtype = element_dtype(dtype, DTYPES)
    where = _device(device)
    _need_matplotlib()
    if elements is None:
        elements = demo.PREFILL_ELEMENTS if where.type == "cuda" else demo.PREFILL_ELEMENTS_CPU
    with user_errors("--elements"):
        shapes = demo.shapes_for(elements)
    with user_errors("--seed"):
        generator = torch.Generator(where).manual_seed(seed)
    console = _console()
    console.print(f"{device_name(where)}, {dtype}", style="dim")

    errors = list(demo.measure_errors(shapes, torch_dtype, where, generator))
    formats = [number_format.name for number_format in demo.FORMATS]
    table = _table(
        "Quantization error in %, one scale per tensor: without -> with rotation", "activations", "", *formats, left=2
    )
    for index, entry in enumerate(errors):
        cells = [_before_after(*entry.by_format[name]) for name in formats]
        again = index > 0 and errors[index - 1].shape == entry.shape
        table.add_row("" if again else f"{entry.shape.model} {entry.shape.phase}", entry.kind, *cells)
    console.print(table)

    times = list(demo.measure_times(shapes, torch_dtype, where))
    table = _table("Time of one rotation", "model", "phase", "elements", "copy, µs", "rotation, µs", "ratio", left=2)
    for time in times:
        table.add_row(
            time.shape.model, time.shape.phase, f"{time.shape.elements:,}", f"{time.copy_us:,.2f}",
            f"{time.hadacore_us:,.2f}", f"{time.ratio:.2f}",
        )  # fmt: skip
    console.print(table)
    if where.type == "cpu":
        console.print(f"On the CPU: {cpu.support().reason}.\n", style="dim")

    csv, picture = out / "hadacore-demo.csv", out / "hadacore-demo.png"
    write_csv(csv, demo.CSV_COLUMNS, demo.csv_rows(errors, times, dtype))
    write_whole(picture, demo.draw(*demo.picture_activations(torch_dtype, where, generator)))
    _print_files(console, (csv, picture))


def _before_after(before: float, after: float) -> str:
    style = "green" if after < 0.97 * before else "red" if after > 1.03 * before else "default"
    return f"{100 * before:5.2f} -> [{style}]{100 * after:5.2f}[/]"


@app.command("bench")
def bench_command(
    sizes: Annotated[str | None, typer.Option(help="Transform sizes, such as 128,4096.")] = None,
    elements: Annotated[str | None, typer.Option(help="Element counts, such as 8192,33554432.")] = None,
    dtypes: Annotated[str | None, typer.Option(help=f"Some of {','.join(DTYPES)}.")] = None,
    regimes: Annotated[str | None, typer.Option(help="hot (same buffers), cold (round 300 MB), or hot,cold.")] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Measure the transform in place, too.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few points instead of the whole default grid.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was killed.")] = False,
    pictures: Annotated[bool, typer.Option(help="Draw PNG pictures and an HTML page.")] = True,
    out: _Out = Path(),
    device: _Device = None,
) -> None:
    """Measure times against a copy and against other installed packages; write a table, pictures and a page."""
    where = _device(device)
    if pictures:
        _need_matplotlib(", or leave the pictures out with --no-pictures")
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
        benchmark = Benchmark(grid, where, out, in_place=in_place, resume=resume)
    console = _console()
    console.print(f"{device_name(where)}, {benchmark.remaining} of {len(grid.points())} points to measure", style="dim")
    for name, reason in benchmark.missing.items():
        console.print(f"{escape(name)} is left out: {escape(reason)}", style="dim", soft_wrap=True)
    with _progress() as bar:
        task = bar.add_task("measuring", total=benchmark.remaining)

        def advance(measurement: Measurement) -> None:
            p = measurement.point
            bar.update(task, advance=1, description=f"{p.dtype} {p.size} x {p.elements // p.size}, {p.regime}")

        try:
            benchmark.measure(advance)
        except torch.OutOfMemoryError as error:
            raise _fail(
                "the GPU's memory is too small for this grid; name fewer --elements. What was measured so far is in "
                f"{benchmark.table.partial}; --resume continues it. ({str(error).splitlines()[0]})"
            ) from error
    files = benchmark.finish(pictures)
    console.print(_summary(benchmark))
    for name, reason in benchmark.failures.items():
        console.print(f"{escape(name)} {escape(reason)}", style="yellow", soft_wrap=True)
    _print_files(console, files)


def _summary(benchmark: Benchmark) -> Table:
    """Ratios to a copy by type, regime and element count: best, median and worst over the sizes."""
    table = _table("Time over that of a copy", "type", "regime", "elements", "best", "median", "worst", left=2)
    groups: dict[tuple[str, str, int], list[float]] = {}
    for row in benchmark.table.rows:
        key = row["dtype"], row["regime"], int(row["elements"])
        groups.setdefault(key, []).append(float(row["hadacore_us"]) / float(row["copy_us"]))
    for (dtype, regime, elements), ratios in groups.items():
        ratios.sort()
        middle = ratios[len(ratios) // 2]
        table.add_row(dtype, regime, f"{elements:,}", f"{ratios[0]:.2f}", f"{middle:.2f}", f"{ratios[-1]:.2f}")
    return table


@app.command("eval")
def eval_command(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="A model's folder, or its name on the hub.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Tasks of lm-eval, such as mmlu, and task files (.yaml).")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before a question; else what the task says.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many questions of each task.")] = None,
    rows: Annotated[
        str | None, typer.Option(help=f"Some of {','.join(row.name for row in ROWS)}; fp16 always.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Inputs of one length that are computed together.")] = 8,
    dtype: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(MODEL_DTYPES)}; float16, and float32 on the CPU, by default.")
    ] = None,
    outlier_channels: Annotated[
        int, typer.Option(help="Add so many outlier channel pairs to each K head, and channels to each V head.", min=0)
    ] = 0,
    outlier_factor: Annotated[float, typer.Option(help="By what they are multiplied, a power of two.")] = 16.0,
    text: Annotated[Path | None, typer.Option(help="Text for KL divergence and perplexity.", dir_okay=False)] = None,
    segments: Annotated[int, typer.Option(help="Segments of that text, at most.")] = 16,
    segment_tokens: Annotated[int, typer.Option(help="Tokens of a segment, at most.")] = 512,
    experiment: Annotated[
        str | None, typer.Option(help=f"An experiment instead of a model: {', '.join(evaluate.EXPERIMENTS)}.")
    ] = None,
    sequences: Annotated[str, typer.Option(help="Sequence lengths of the experiment.")] = "512,1024,2048,4096,8192",
    head_dims: Annotated[str, typer.Option(help="Head sizes of the experiment.")] = "64,128",
    out: _Out = Path(),
    device: _Device = None,
) -> None:
    """Compare a model's accuracy with attention in FP8, INT8 and INT4, with and without rotation."""
    evaluate.check_options(context, experiment)
    where = _device(device)
    _need_matplotlib()
    if experiment is not None:
        _fa3_error(integers(sequences, "--sequences"), integers(head_dims, "--head-dims"), out, where)
        return
    if model is None:
        raise typer.BadParameter("needs a model's folder or its name on the hub", param_hint="--model")
    console = _console()
    with user_errors():
        settings = Settings(
            model, () if tasks is None else names(tasks, "--tasks"), num_fewshot=num_fewshot, limit=limit,
            batch_size=batch_size, dtype=dtype or ("float16" if where.type == "cuda" else "float32"),
            outliers=evaluate.outlier_channels(outlier_channels, outlier_factor), text=None if text is None else str(text),
            segments=segments, segment_tokens=segment_tokens,
        )  # fmt: skip
        wanted = rows_named(None if rows is None else names(rows, "--rows"))
        try:
            evaluation = evaluate.start(settings, wanted, where, out)
        except EvaluationUnavailableError as error:
            raise _fail(str(error)) from error
    console.print(f"{device_name(where)}, {evaluation.remaining} of {len(wanted)} rows to answer", style="dim")
    with _progress() as bar:
        bars = {name: bar.add_task(name, total=None, start=False) for name in (*(row.name for row in wanted), "text")}

        def advance(what: str, done: int, of: int) -> None:
            bar.start_task(bars[what])
            bar.update(bars[what], completed=done, total=of)

        try:
            with user_errors():
                summaries, notes, files = evaluate.finish(evaluation, advance)
        except torch.OutOfMemoryError as error:
            raise _fail(
                f"memory is too small for this; use a smaller --batch-size than {batch_size} in another folder. What was "
                f"measured so far is in {evaluation.parts.folder}. ({str(error).splitlines()[0]})"
            ) from error
    table = _table(evaluate.title_of(settings), *columns_for(settings))
    for summary in summaries:
        table.add_row(*cells_of(summary, settings))
    # Wider than many a terminal, and better wrapped by that than cut off.
    whole = Width.get(console, console.options.update(width=_WIDEST_TABLE), table).maximum
    console.width = max(console.width, whole)
    console.print(table, crop=False)
    for note in notes:
        console.print(escape(note), style="dim", soft_wrap=True)
    _print_files(console, files)


def _fa3_error(sequences: tuple[int, ...], head_dims: tuple[int, ...], out: Path, where: torch.device) -> None:
    console = _console()
    console.print(device_name(where), style="dim")
    with _progress() as bar:
        task = bar.add_task("fa3-error", total=None)
        with user_errors():
            rows = run_fa3_error(
                sequences=sequences, head_dims=head_dims, device=where,
                progress=lambda done, of: bar.update(task, completed=done, total=of),
            )  # fmt: skip
    console.print(fa3_error_table(rows), soft_wrap=True, markup=False)
    _print_files(console, write_fa3_error(rows, out, where))


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
    console = _console()
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
    all_variants: Annotated[bool, typer.Option("--all-variants", help="Same as --signs --strided.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail if a kernel keeps anything in local memory (spills).")
    ] = False,
    jobs: Annotated[int | None, typer.Option(help="Processes; by default as many as are worth it.")] = None,
) -> None:
    """Fill a kernel cache for given sizes, types and architectures; needs no GPU. For container images."""
    with user_errors():
        kernels = compiling.kernels_for(
            compiling.ALL_SIZES if sizes is None else integers(sizes, "--sizes"), names(dtypes, "--dtypes"),
            names(arch, "--arch"), signs=signs or all_variants, strided=strided or all_variants,
        )  # fmt: skip
    folder = cache or cache_folder()
    with _progress() as bar:
        task = bar.add_task("compiling", total=len(kernels))

        def advance(result: compiling.Compiled) -> None:
            bar.update(
                task, advance=1, description=f"{result.kernel.architecture} 2^{result.kernel.configuration.log2_size}"
            )

        try:
            with user_errors():
                results = compiling.compile_all(kernels, folder, check=check, jobs=jobs, progress=advance)
        except BackendUnavailableError as error:
            raise _fail(str(error)) from error
    console = _console()
    console.print(_compiled_table(results, check))
    console.print(f"in {escape(str(information.cache_state(folder)))}", soft_wrap=True)
    failures = [r for r in results if r.failure is not None]
    spilling = [r for r in results if r.spills]
    for r in failures[:10]:
        console.print(f"[red]failed[/] {_named(r)}: {escape(r.failure or '')}", soft_wrap=True)
    for r in spilling[:10]:
        console.print(f"[red]spills[/] {_named(r)}: {escape(str(r.resources))}", soft_wrap=True)
    if failures or spilling:
        raise _fail(f"{len(failures)} of {len(results)} kernels failed to compile, {len(spilling)} spill")


def _named(result: compiling.Compiled) -> str:
    kernel = result.kernel
    variant = f"signs {kernel.configuration.signs}, strided {int(kernel.configuration.strided)}"
    return escape(f"{kernel.architecture} {kernel.dtype} {kernel.configuration}, {variant}")


def _compiled_table(results: list[compiling.Compiled], check: bool) -> Table:
    columns = ["", "kernels", "compiled", "cached", "failed", "kB", *(["registers", "spill"] if check else [])]
    table = _table("Kernels", *columns)
    groups: dict[tuple[str, str], list[compiling.Compiled]] = {}
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
        table.add_row(f"{architecture} {dtype}", *map(str, counts))
    return table
