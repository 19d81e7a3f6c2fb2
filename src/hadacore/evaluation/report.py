"""What an evaluation says: numbers by row, as JSON and as Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hadacore.evaluation.rows import PUBLISHED_ERROR, REFERENCE, Row
from hadacore.evaluation.run import Results, Settings
from hadacore.evaluation.statistics import Mean, Paired, compare, mean

#: The text of a number that there is none of.
NOTHING = ""


@dataclass(frozen=True)
class Summary:
    """One row of the table.

    Attributes:
        row: Which.
        questions: How many were answered.
        accuracy: Share of right answers; None without tasks. Over all tasks, each question counts the same.
        by_task: Accuracy of each task.
        paired: Against the reference; None for the reference and without tasks.
        divergence: Mean KL divergence of the next token's distribution from the reference's, in nats; the error is over
            segments. None for the reference.
        agreement: Share of positions with the same most likely token as the reference.
        perplexity: ``exp`` of the mean loss.
    """

    row: Row
    questions: int
    accuracy: Mean | None
    by_task: dict[str, Mean]
    paired: Paired | None
    divergence: Mean | None
    agreement: float
    perplexity: float


def summarize(rows: Sequence[Row], results: Results) -> list[Summary]:
    """One summary a row, in their order."""
    return [_summary(row, results) for row in rows]


def _summary(row: Row, results: Results) -> Summary:
    segments = results.segments[row.name]
    positions = sum(segment["positions"] for segment in segments)
    loss = math.fsum(segment["loss"] * segment["positions"] for segment in segments) / positions
    agreement = math.fsum(segment["agreement"] * segment["positions"] for segment in segments) / positions
    accuracy, by_task, paired = None, {}, None
    questions = results.questions.get(row.name, [])
    if questions:
        accuracy = mean([float(question["right"]) for question in questions])
        for task in dict.fromkeys(question["task"] for question in questions):
            by_task[task] = mean([float(question["right"]) for question in questions if question["task"] == task])
        if row.name != REFERENCE:
            before = results.questions[REFERENCE]
            paired = compare(
                [q["right"] for q in questions], [q["right"] for q in before],
                [q["log_likelihoods"][q["target"]] for q in questions],
                [q["log_likelihoods"][q["target"]] for q in before],
            )  # fmt: skip
    divergence = None if row.name == REFERENCE else mean([segment["divergence"] for segment in segments])
    return Summary(row, len(questions), accuracy, by_task, paired, divergence, agreement, math.exp(loss))


def columns_for(settings: Settings) -> tuple[str, ...]:
    """Headings of the table."""
    answers = (
        ("accuracy, %", "change, points", "lost, won", "McNemar p", "log-likelihood, nats") if settings.tasks else ()
    )
    published = ("published, %",) if "mmlu" in settings.tasks else ()
    return ("attention", *answers, "KL, nats", "same token, %", "perplexity", *published)


def cells_of(summary: Summary, settings: Settings) -> tuple[str, ...]:
    """A row of the table as text, under :func:`columns_for`."""
    cells = [summary.row.title]
    if settings.tasks:
        paired = summary.paired
        cells.append(NOTHING if summary.accuracy is None else _with_error(summary.accuracy, 100, ".2f", sign=False))
        if paired is None:
            cells += [NOTHING] * 4
        else:
            cells += [
                _with_error(paired.accuracy_change, 100, ".2f"), f"{paired.lost}, {paired.won}", f"{paired.p_value:.3f}",
                _with_error(paired.log_likelihood_change, 1, ".4f"),
            ]  # fmt: skip
    cells.append(NOTHING if summary.divergence is None else f"{summary.divergence.value:.2e}")
    cells.append(NOTHING if summary.divergence is None else f"{100 * summary.agreement:.2f}")
    cells.append(f"{summary.perplexity:.4f}")
    if "mmlu" in settings.tasks:
        cells.append(NOTHING if summary.row.published is None else f"{summary.row.published:.2f}")
    return tuple(cells)


def _with_error(value: Mean, factor: float, form: str, sign: bool = True) -> str:
    error = NOTHING if math.isnan(value.error) else f" ± {factor * value.error:{form}}"
    return f"{factor * value.value:{'+' if sign else ''}{form}}{error}"


def notes_for(settings: Settings, results: Results, made_with: Mapping[str, str | None], questions: int) -> list[str]:
    """What a reader must know to understand the table, one sentence an entry."""
    notes = []
    if settings.tasks:
        shots = "as the tasks say" if settings.num_fewshot is None else str(settings.num_fewshot)
        notes.append(f"{questions} questions of {', '.join(settings.tasks)}; examples before each: {shots}.")
        notes.append(
            "After ± stands one standard error. Changes are against the first row on the same questions: accuracy, answers lost "
            "and won with McNemar's exact test, and the log-likelihood of the right answer."
        )
    count = len(results.segments[REFERENCE])
    tokens = sum(segment["positions"] for segment in results.segments[REFERENCE])
    notes.append(
        f"KL divergence of the next token's distribution from the first row's, the same most likely token, and perplexity: "
        f"{tokens} tokens in {count} segment{'s' if count != 1 else ''} of {results.text}."
    )
    if settings.dtype != "float16":
        notes.append(f"Model and unquantized attention are in {settings.dtype} here, not float16.")
    if settings.outliers is not None:
        notes.append(
            f"The model was changed: {settings.outliers}, seed {settings.outliers.seed}, which leaves its function as it is; "
            f"logits of the first row changed by at most {results.outlier_difference:g}."
        )
    if "mmlu" in settings.tasks:
        notes.append(
            f"Published: MMLU of Llama-3.1-8B, arXiv 2412.08832; one standard error of each is {PUBLISHED_ERROR:.2f} points."
        )
    versions = ", ".join(
        f"{name} {made_with[name]}" for name in ("hadacore", "commit", "torch", "transformers", "lm_eval")
    )
    notes.append(f"{made_with['gpu']}; {versions}.")
    return notes


def markdown(title: str, summaries: Sequence[Summary], settings: Settings, notes: Sequence[str]) -> str:
    """The table and its notes."""
    columns = columns_for(settings)
    lines = [f"# {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cells_of(summary, settings)) + " |" for summary in summaries]
    tasks = list(summaries[0].by_task)
    if len(tasks) > 1:
        lines += ["", "Accuracy by task, %:", "", "| task | " + " | ".join(s.row.name for s in summaries) + " |"]
        lines.append("|" + "---|" * (len(summaries) + 1))
        for task in tasks:
            values = [_with_error(summary.by_task[task], 100, ".2f", sign=False) for summary in summaries]
            lines.append(f"| {task} | " + " | ".join(values) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def as_json(
    summaries: Sequence[Summary], settings: Settings, results: Results, made_with: Mapping[str, str | None]
) -> str:
    """Everything but the single questions; a number that there is none of is null."""
    rows = [{"name": summary.row.name, **asdict(summary)} for summary in summaries]
    details = {
        "settings": asdict(settings), "made_with": dict(made_with), "outlier_difference": results.outlier_difference,
        "rows": rows,
    }  # fmt: skip
    return json.dumps(_without_nan(details), indent=2, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def question_lines(rows: Sequence[Row], results: Results) -> str:
    """JSON lines, one a question: what it was, and each row's log-likelihoods."""
    lines = []
    for index, question in enumerate(results.questions[REFERENCE]):
        entry = {name: question[name] for name in ("task", "question", "digest", "target")}
        for row in rows:
            entry[row.name] = results.questions[row.name][index]["log_likelihoods"]
        lines.append(json.dumps(entry) + "\n")
    return "".join(lines)
