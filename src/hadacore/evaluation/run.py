"""An evaluation: every row on every question and every segment of text, continued where it was interrupted."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hadacore.benchmarking.provenance import package_version, provenance
from hadacore.evaluation.models import DTYPES, fingerprint, load_model, use_recipe
from hadacore.evaluation.outliers import OutlierChannels, add_outlier_channels
from hadacore.evaluation.parts import Parts
from hadacore.evaluation.rows import REFERENCE, Row
from hadacore.evaluation.texts import logits_of, measure_segment, read_texts, segments_of

if TYPE_CHECKING:
    from hadacore.evaluation.harness import Tasks

NAME = "hadacore-eval"
# Logits on it are compared before and after outlier channels are added.
_SENTENCE = "The quick brown fox jumps over the lazy dog; 0123456789 times, it says."

#: Called with a row or "text", what is done, and of how much.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What to evaluate, and how.

    Attributes:
        model: A folder, or a name on the hub.
        tasks: Tasks of lm-eval, and task files.
        num_fewshot: Examples before a question; None is what the task says.
        limit: The first so many questions of each task; None for all.
        batch_size: Inputs of one length that are computed together.
        dtype: Of the model, and so of the reference's attention.
        outliers: Outlier channels to add.
        text: File for divergence and perplexity; None takes the contexts of the first questions.
        segments: Segments of text, at most.
        segment_tokens: Tokens of a segment, at most.

    Raises:
        ValueError: A number is not positive, or no such dtype.
    """

    model: str
    tasks: tuple[str, ...]
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    dtype: str = "float32"
    outliers: OutlierChannels | None = None
    text: str | None = None
    segments: int = 16
    segment_tokens: int = 512

    def __post_init__(self) -> None:
        if not self.tasks and self.text is None:
            raise ValueError("nothing to evaluate: name tasks, such as mmlu or a task file, or a text")
        for name in ("limit", "batch_size", "segments"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if self.segment_tokens < 16:
            raise ValueError(f"segment_tokens must be 16 or more, got {self.segment_tokens}")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"num_fewshot must be 0 or more, got {self.num_fewshot}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")


@dataclass
class Results:
    """What was measured.

    Attributes:
        questions: By row, one entry a question, in the same order in every row.
        segments: By row, one entry a segment of text.
        outlier_difference: Largest difference of two logits of the reference with and without outlier channels, on the first
            segment; None without them.
        text: What the segments are of.
    """

    questions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    segments: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    outlier_difference: float | None = None
    text: str = ""


class Evaluation:
    """A run on a device into a folder.

    Args:
        settings: What to evaluate.
        rows: The rows, the reference first.
        device: Where.
        folder: Where to write; what an interrupted run left in it is used.

    Raises:
        ValueError: The folder holds a run of other settings, or a task file or text cannot be read.
    """

    def __init__(self, settings: Settings, rows: Sequence[Row], device: torch.device, folder: Path) -> None:
        self.settings, self.rows, self.device, self.folder = settings, tuple(rows), device, folder
        self.tasks: Tasks | None = None
        if settings.tasks:  # lm-eval is needed for these alone
            from hadacore.evaluation.harness import find_tasks

            self.tasks = find_tasks(settings.tasks)
        self.texts = None if settings.text is None else read_texts(Path(settings.text))
        versions = {name: package_version(name) for name in ("transformers", "lm_eval")}
        self.made_with = {**provenance(device), **versions}
        compared = {
            **asdict(settings),
            "model_files": fingerprint(settings.model),
            "task_files": None if self.tasks is None else self.tasks.digest,
            "text_file": None if self.texts is None else _digest(self.texts),
            **{name: self.made_with[name] for name in ("gpu", "hadacore", "commit", "torch", *versions)},
        }
        self.parts = Parts(folder / f"{NAME}.parts", compared)
        self.results = Results(text="" if settings.text is None else Path(settings.text).name)

    @property
    def remaining(self) -> int:
        """Rows whose questions are not all answered."""
        return 0 if self.tasks is None else sum(self.parts.read(f"row-{row.name}") is None for row in self.rows)

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer, with outlier channels if there are to be any; loaded when something is left to measure."""
        model, tokenizer = load_model(self.settings.model, self.settings.dtype, self.device)
        if self.settings.outliers is not None:
            ids = tokenizer(_SENTENCE)["input_ids"]
            use_recipe(model, REFERENCE)
            before = logits_of(model, ids).double()
            add_outlier_channels(model, self.settings.outliers)
            self.parts.write("outliers", {"difference": float((logits_of(model, ids).double() - before).abs().max())})
        return model, tokenizer

    def measure(self, progress: Progress = lambda what, done, of: None) -> Results:
        """Measure what is not measured yet.

        Raises:
            ValueError: The model, a task or the attention of a row does not work; the message says why.
        """
        if self.tasks is not None:
            self._answer(progress)
        self._read_text(progress)
        stored = self.parts.read("outliers")
        if stored is not None:
            self.results.outlier_difference = stored["difference"]
        return self.results

    def _answer(self, progress: Progress) -> None:
        from hadacore.evaluation.harness import StoringModel, answer_tasks, task_manager

        assert self.tasks is not None
        answering: StoringModel | None = None
        for row in self.rows:
            name = f"row-{row.name}"
            questions = self.parts.read(name)
            if questions is None:
                model, tokenizer = self._loaded
                if answering is None:
                    answering = StoringModel(model, tokenizer, self.settings.batch_size)
                    manager = task_manager(self.tasks)
                use_recipe(model, row.name)
                answering.store_in(self.parts, row.name, lambda done, of, row=row: progress(row.name, done, of))  # type: ignore[misc]
                questions = answer_tasks(answering, self.tasks, manager, self.settings.num_fewshot, self.settings.limit)
                self.parts.write(name, questions)
                self.parts.remove(row.name)
            progress(row.name, 1, 1)
            self.results.questions[row.name] = questions
        reference = [_identity(question) for question in self.results.questions[REFERENCE]]
        for name, questions in self.results.questions.items():
            if [_identity(question) for question in questions] != reference:
                raise ValueError(
                    f"the rows {REFERENCE} and {name} answered different questions; the tasks have changed. Delete "
                    f"{self.parts.folder} to start again"
                )

    def _read_text(self, progress: Progress) -> None:
        if self.texts is None:
            self.results.text = "the contexts of the first questions"
        ids = self.parts.read("segments")
        if ids is None:
            ids = self._segments()
            self.parts.write("segments", ids)
        self.results.segments = {row.name: [] for row in self.rows}
        for index, segment in enumerate(ids):
            part = f"text/{index:05d}"
            known: dict[str, Any] = self.parts.read(part) or {}
            missing = [row.name for row in self.rows if row.name not in known]
            if missing:
                known |= {
                    name: found.as_dict() for name, found in measure_segment(self._loaded[0], segment, missing).items()
                }
                self.parts.write(part, known)
            for row in self.rows:
                self.results.segments[row.name].append(known[row.name])
            progress("text", index + 1, len(ids))

    def _segments(self) -> list[list[int]]:
        texts = self.texts
        if texts is None:
            contexts = dict.fromkeys(question["context"] for question in self.results.questions[REFERENCE])
            texts = list(contexts)[: self.settings.segments]
        model, tokenizer = self._loaded
        longest = getattr(model.config, "max_position_embeddings", None) or self.settings.segment_tokens
        return segments_of(tokenizer, texts, self.settings.segments, min(self.settings.segment_tokens, longest))


def _identity(question: dict[str, Any]) -> tuple[Any, ...]:
    return question["task"], question["question"], question["digest"], question["target"]


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]
