"""``hadacore eval``: runs an evaluation into a folder, then writes its table, numbers and picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import typer

from hadacore.benchmarking.report import write_whole
from hadacore.evaluation import report
from hadacore.evaluation.models import check_packages
from hadacore.evaluation.outliers import OutlierChannels
from hadacore.evaluation.picture import draw
from hadacore.evaluation.rows import Row
from hadacore.evaluation.run import NAME, Evaluation, Progress, Settings

#: What ``--experiment`` takes.
EXPERIMENTS = ("fa3-error",)

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


def outlier_channels(pairs: int, factor: float) -> OutlierChannels | None:
    """What ``--outlier-channels`` and ``--outlier-factor`` say; None for no channels."""
    return OutlierChannels(pairs, factor) if pairs else None


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
