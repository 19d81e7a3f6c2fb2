"""``hadacore eval``: runs an evaluation into a folder, then writes its table, numbers and picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.measure import Measurement as Width

from hadacore.benchmarking.provenance import device_name
from hadacore.benchmarking.report import write_whole
from hadacore.cli.options import integers, names, user_errors
from hadacore.cli.printing import table
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
from hadacore.evaluation import report
from hadacore.evaluation.models import DTYPES, EvaluationUnavailableError, check_packages
from hadacore.evaluation.outliers import OutlierChannels
from hadacore.evaluation.picture import draw
from hadacore.evaluation.rows import ROWS, Row, rows_named
from hadacore.evaluation.run import NAME, Evaluation, Progress, Settings
from hadacore.experiments import fa3_error_table, run_fa3_error, write_fa3_error

#: What ``--experiment`` takes.
EXPERIMENTS = ("fa3-error",)

_WIDEST_TABLE = 400  # characters
_OF_EXPERIMENTS = {"sequences", "head_dims"}
_OF_TASKS = {"num_fewshot", "limit", "batch_size"}
_OF_BOTH = {"experiment", "out", "device"}


def check_options(context: typer.Context, experiment: str | None) -> None:
    """Refuse options that would do nothing, such as those of a model beside an experiment."""
    if experiment is not None and experiment not in EXPERIMENTS:
        raise typer.BadParameter(f"expected {' or '.join(EXPERIMENTS)}, got {experiment!r}", param_hint="--experiment")
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    reasons: dict[str, str] = {}
    if experiment is None:
        reasons |= dict.fromkeys(_OF_EXPERIMENTS, "needs --experiment")
        if "tasks" not in given:
            reasons |= dict.fromkeys(_OF_TASKS, "needs --tasks")
        if "outlier_channels" not in given:
            reasons["outlier_factor"] = "needs --outlier-channels, how many there are to be"
    else:
        of_a_model = given - _OF_EXPERIMENTS - _OF_BOTH
        reasons |= dict.fromkeys(of_a_model, f"is about a model, and --experiment {experiment} has none")
    for name in sources:
        if name in given and name in reasons:
            raise typer.BadParameter(reasons[name], param_hint="--" + name.replace("_", "-"))


def title_of(settings: Settings) -> str:
    """What was evaluated, for headings."""
    parts = [Path(settings.model).name or settings.model]
    if settings.tasks:
        parts.append(
            ", ".join(Path(task).stem if Path(task).suffix in (".yaml", ".yml") else task for task in settings.tasks)
        )
    if settings.outliers is not None:
        parts.append("outlier channels added")
    return ": ".join(parts[:2]) + ("" if len(parts) < 3 else f" ({parts[2]})")


def start(settings: Settings, rows: Sequence[Row], device: torch.device, folder: Path) -> Evaluation:
    """An evaluation that is ready to measure; a local model with local tasks is loaded without asking the network.

    Raises:
        EvaluationUnavailableError: A package is missing.
        ValueError: As :class:`hadacore.evaluation.run.Evaluation` says.
    """
    # All of these are read when the libraries are imported, so they are set before.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if Path(settings.model).is_dir() and all(Path(task).suffix in (".yaml", ".yml") for task in settings.tasks):
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ.setdefault(name, "1")
    check_packages(bool(settings.tasks))
    return Evaluation(settings, rows, device, folder)


def finish(evaluation: Evaluation, progress: Progress) -> tuple[list[report.Summary], list[str], tuple[Path, ...]]:
    """Measure what is left and write every file. Returns summaries, notes, and the files."""
    settings, rows, made_with = evaluation.settings, evaluation.rows, evaluation.made_with
    results = evaluation.measure(progress)
    summaries = report.summarize(rows, results)
    notes = report.notes_for(settings, results, made_with, summaries[0].questions)
    title = title_of(settings)
    contents: dict[str, str | bytes] = {
        ".json": report.as_json(summaries, settings, results, made_with),
        ".md": report.markdown(title, summaries, settings, notes),
        ".png": draw(summaries, title),
    }
    if settings.tasks:
        contents["-questions.jsonl"] = report.question_lines(rows, results)
    files = []
    for ending, content in contents.items():
        files.append(evaluation.folder / f"{NAME}{ending}")
        write_whole(files[-1], content)
    return summaries, notes, tuple(files)


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
        str | None, typer.Option(help=f"One of {', '.join(DTYPES)}; float16, and float32 on the CPU, by default.")
    ] = None,
    outlier_channels: Annotated[
        int, typer.Option(help="Add so many outlier channel pairs to each K head, and channels to each V head.", min=0)
    ] = 0,
    outlier_factor: Annotated[float, typer.Option(help="By what they are multiplied, a power of two.")] = 16.0,
    text: Annotated[Path | None, typer.Option(help="Text for KL divergence and perplexity.", dir_okay=False)] = None,
    segments: Annotated[int, typer.Option(help="Segments of that text, at most.")] = 16,
    segment_tokens: Annotated[int, typer.Option(help="Tokens of a segment, at most.")] = 512,
    experiment: Annotated[
        str | None, typer.Option(help=f"An experiment instead of a model: {', '.join(EXPERIMENTS)}.")
    ] = None,
    sequences: Annotated[str, typer.Option(help="Sequence lengths of the experiment.")] = "512,1024,2048,4096,8192",
    head_dims: Annotated[str, typer.Option(help="Head sizes of the experiment.")] = "64,128",
    out: Out = Path(),
    device: Device = None,
) -> None:
    """Compare a model's accuracy with attention in FP8, INT8 and INT4, with and without rotation."""
    check_options(context, experiment)
    where = device_or_exit(device)
    need_matplotlib()
    if experiment is not None:
        _fa3_error(integers(sequences, "--sequences"), integers(head_dims, "--head-dims"), out, where)
        return
    if model is None:
        raise typer.BadParameter("needs a model's folder or its name on the hub", param_hint="--model")
    console = new_console()
    with user_errors():
        outliers = OutlierChannels(outlier_channels, outlier_factor) if outlier_channels else None
        settings = Settings(
            model, () if tasks is None else names(tasks, "--tasks"), num_fewshot=num_fewshot, limit=limit,
            batch_size=batch_size, dtype=dtype or ("float16" if where.type == "cuda" else "float32"), outliers=outliers,
            text=None if text is None else str(text), segments=segments, segment_tokens=segment_tokens,
        )  # fmt: skip
        wanted = rows_named(None if rows is None else names(rows, "--rows"))
        try:
            evaluation = start(settings, wanted, where, out)
        except EvaluationUnavailableError as error:
            raise failure(str(error)) from error
    console.print(f"{device_name(where)}, {evaluation.remaining} of {len(wanted)} rows to answer", style="dim")
    with new_progress() as bar:
        bars = {name: bar.add_task(name, total=None, start=False) for name in (*(row.name for row in wanted), "text")}

        def advance(what: str, done: int, of: int) -> None:
            bar.start_task(bars[what])
            bar.update(bars[what], completed=done, total=of)

        try:
            with user_errors():
                summaries, notes, files = finish(evaluation, advance)
        except torch.OutOfMemoryError as error:
            raise failure(
                f"memory is too small for this; use a smaller --batch-size than {batch_size} in another folder. What was "
                f"measured so far is in {evaluation.parts.folder}. ({str(error).splitlines()[0]})"
            ) from error
    lines = table(title_of(settings), *report.columns_for(settings))
    for summary in summaries:
        lines.add_row(*report.cells_of(summary, settings))
    # Wider than many a terminal, and better wrapped by that than cut off.
    whole = Width.get(console, console.options.update(width=_WIDEST_TABLE), lines).maximum
    console.width = max(console.width, whole)
    console.print(lines, crop=False)
    for note in notes:
        console.print(escape(note), style="dim", soft_wrap=True)
    print_files(console, files)


def _fa3_error(sequences: tuple[int, ...], head_dims: tuple[int, ...], out: Path, where: torch.device) -> None:
    console = new_console()
    console.print(device_name(where), style="dim")
    with new_progress() as bar:
        task = bar.add_task("fa3-error", total=None)
        with user_errors():
            rows = run_fa3_error(
                sequences=sequences, head_dims=head_dims, device=where,
                progress=lambda done, of: bar.update(task, completed=done, total=of),
            )  # fmt: skip
    console.print(fa3_error_table(rows), soft_wrap=True, markup=False)
    print_files(console, write_fa3_error(rows, out, where))
