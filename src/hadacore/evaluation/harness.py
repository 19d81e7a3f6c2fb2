"""Tasks of the lm-eval harness, answered by a model in batches that are stored as they come."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import disable_progress_bars
from lm_eval import simple_evaluate
from lm_eval.api import task as lm_eval_task
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from hadacore.evaluation.parts import Parts

_STORE_SECONDS = 2.0  # between two writes, so that a small model does not spend its time on files
# Loaders of the datasets library that read files from this machine.
_FILE_LOADERS = ("json", "csv", "parquet", "text", "arrow")

Progress = Callable[[int, int], None]  # inputs done, of all

Request = tuple[tuple[str, str], list[int], list[int]]
Answer = tuple[float, bool]


@dataclass(frozen=True)
class Tasks:
    """What lm-eval is to load.

    Attributes:
        entries: Names of tasks and groups, and configurations of task files.
        include: Folders of task files that only lm-eval can read.
        local: Whether all data is on this machine.
        digest: Of the task files and their data; changes when one of them does.
    """

    entries: tuple[str | dict[str, Any], ...]
    include: tuple[str, ...]
    local: bool
    digest: str


class _TaskFileLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads what a task file says; a function stays a mark, since lm-eval must import it."""


_TaskFileLoader.add_constructor("!function", lambda loader, node: _Function())


class _Function:
    pass


def _holds_function(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_function, value.values()))
    if isinstance(value, list):
        return any(map(_holds_function, value))
    return isinstance(value, _Function)


def find_tasks(names: Sequence[str]) -> Tasks:
    """Read task files among ``names``; other names are left to lm-eval.

    Paths of data in a task file are relative to the file.

    Raises:
        ValueError: A task file is missing, cannot be read, or names data that is missing.
    """
    entries: list[str | dict[str, Any]] = []
    include, digest, local = [], hashlib.sha256(), True
    for name in names:
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            entries.append(name)
            digest.update(name.encode())
            local = False
            continue
        try:
            content = path.read_text(encoding="utf-8")
            task = yaml.load(content, _TaskFileLoader)
        except OSError as error:
            raise ValueError(f"cannot read the task file {name}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ValueError(f"the task file {name} is no YAML: {error}") from error
        if not isinstance(task, dict) or not isinstance(task.get("task"), str):
            raise ValueError(f"the task file {name} must name its task, as in 'task: my_task'")
        digest.update(content.encode())
        if "include" in task or _holds_function(task):
            include.append(str(path.parent.resolve()))
            entries.append(task["task"])
            local = False
            continue
        for file in _resolve_data(task, path):
            digest.update(file.read_bytes())
        local = local and task.get("dataset_path") in _FILE_LOADERS
        entries.append(task)
    return Tasks(tuple(entries), tuple(include), local, digest.hexdigest()[:16])


def _resolve_data(task: dict[str, Any], path: Path) -> Iterator[Path]:
    """Make the data files of a task absolute, and yield them."""
    files = task.get("dataset_kwargs", {}).get("data_files")
    if files is None:
        return
    by_split = files if isinstance(files, dict) else {"train": files}
    resolved = {}
    for split, value in by_split.items():
        found = [path.parent.resolve() / file for file in ([value] if isinstance(value, str) else value)]
        for file in found:
            if not file.is_file():
                raise ValueError(f"the task file {path} names the data {file}, which is not there")
            yield file
        resolved[split] = [str(file) for file in found]
    task["dataset_kwargs"]["data_files"] = resolved


def task_manager(tasks: Tasks) -> TaskManager:
    """lm-eval's index of its tasks, which takes seconds, so without them where none is named."""
    return TaskManager(include_path=list(tasks.include) or None, include_defaults=not tasks.local)


class StoringModel(HFLM):  # type: ignore[misc]
    """lm-eval's model, whose answers are stored under ``part`` batch by batch, and read from there if they are.

    A batch holds inputs of one length, so that there is no padding that could take part in a scale. Inputs that several
    requests share, as those of answers with one token, are computed once. The batches depend on the requests alone, so a run
    that was interrupted computes the same ones.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, max_length: int | None = None) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about options that it is not given here
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.parts: Parts | None = None
        self.part = ""
        self.report: Progress = lambda done, of: None

    def store_in(self, parts: Parts, part: str, report: Progress) -> None:
        """Where answers go from now on, and whom to tell."""
        self.parts, self.part, self.report = parts, part, report

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        assert self.parts is not None
        members: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise ValueError(f"an answer has {len(continuation)} tokens, more than the model's {self.max_length}")
            members.setdefault(tuple((context + continuation)[-(self.max_length + 1) :][:-1]), []).append(index)
        inputs = sorted(members, key=lambda ids: (-len(ids), ids))
        digest = hashlib.sha256(
            json.dumps([self.batch_size_per_gpu, [(c, a) for _, c, a in requests]]).encode()
        ).hexdigest()
        answers: dict[int, Answer] = {}
        done = 0
        for name in self.parts.names(self.part):
            stored = self.parts.read(name)
            if stored["requests"] != digest:
                raise ValueError(
                    f"{self.parts.folder / name}.json answers other questions than these; the tasks have changed. Delete "
                    f"{self.parts.folder} to start again"
                )
            answers.update({int(index): (value, greedy) for index, (value, greedy) in stored["answers"].items()})
            done += stored["inputs"]
        self.report(done, len(inputs))
        pending: dict[int, Answer] = {}
        since, first = time.monotonic(), done
        for batch in _batches(inputs[done:], int(self.batch_size_per_gpu)):
            pending.update(self._answer(batch, members, requests))
            done += len(batch)
            if time.monotonic() - since >= _STORE_SECONDS or done == len(inputs):
                part = {"requests": digest, "inputs": done - first, "answers": pending}
                self.parts.write(f"{self.part}/{first:08d}", part)
                answers.update(pending)
                pending, first, since = {}, done, time.monotonic()
            self.report(done, len(inputs))
        return [answers[index] for index in range(len(requests))]

    def _answer(
        self, batch: list[tuple[int, ...]], members: dict[tuple[int, ...], list[int]], requests: list[Request]
    ) -> dict[int, Answer]:
        # A large vocabulary times a long context would fill the memory, and only the answers' logits are looked at.
        longest = max(len(requests[index][2]) for ids in batch for index in members[ids])
        kept = {"logits_to_keep": longest} if self._keeps_logits else {}
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor(batch, device=self.device), use_cache=False, **kept).logits
        found = {}
        for ids, of_input in zip(batch, logits, strict=True):
            for index in members[ids]:
                answer = torch.tensor(requests[index][2], device=self.device)
                rows = of_input[-len(answer) :].double().log_softmax(-1)
                value = float(rows.gather(-1, answer[:, None]).sum())
                found[index] = (value, bool((rows.argmax(-1) == answer).all()))
        return found

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Answer]:
        """As lm-eval's, without its progress bar, which would tear up ours."""
        answers: list[Answer] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Refused: text has an option of its own."""
        raise ValueError(
            f"the task {requests[0].task_name} measures perplexity; name tasks with answers to choose from, and pass the text "
            "with --text"
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Refused: paired log-likelihoods need given answers."""
        raise ValueError(
            f"the task {requests[0].task_name} has the model write its answers; name tasks with answers to choose from, such as "
            "mmlu"
        )


def _batches(inputs: Sequence[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    batch: list[tuple[int, ...]] = []
    for ids in inputs:
        if batch and (len(batch) == size or len(ids) != len(batch[0])):
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """lm-eval shows a bar for the making of requests, which has no option."""
    shown = lm_eval_task.tqdm
    lm_eval_task.tqdm = functools.partial(shown, disable=True)
    try:
        yield
    finally:
        lm_eval_task.tqdm = shown


def answer_tasks(
    model: StoringModel, tasks: Tasks, manager: TaskManager, num_fewshot: int | None, limit: int | None
) -> list[dict[str, Any]]:
    """Run tasks and return one entry a question: task, number, digest, context, right answer, log-likelihoods, right or not.

    Raises:
        ValueError: There is no such task, or it is not one of choices.
    """
    for entry in tasks.entries:
        if isinstance(entry, str) and entry not in manager.all_tasks:
            raise ValueError(
                f"lm-eval has no task {entry!r}; 'lm-eval ls tasks' lists those it has, and a file of your own ends in .yaml"
            )
    disable_progress_bars()
    entries = [dict(entry) if isinstance(entry, dict) else entry for entry in tasks.entries]
    try:
        with _no_bars():
            found = simple_evaluate(
                model=model, tasks=entries, num_fewshot=num_fewshot, limit=limit, bootstrap_iters=0, log_samples=True,
                task_manager=manager,
            )  # fmt: skip
    except (ConnectionError, FileNotFoundError) as error:  # of the datasets library, which looks on the hub
        raise ValueError(
            f"cannot load the data of the tasks, which needs the network or a filled cache: {error}"
        ) from error
    return [_question(task, sample) for task, samples in sorted(found["samples"].items()) for sample in samples]


def _question(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    values = [float(answer[0]) for answer in sample["filtered_resps"]]
    answers = [arguments[1] for arguments in sample["arguments"]]
    target = sample["target"]
    if isinstance(target, str) and len(values) > 1:
        stripped = [answer.strip() for answer in answers]
        target = stripped.index(target.strip()) if target.strip() in stripped else None
    elif len(values) == 1:
        target = 0
    if not isinstance(target, int) or not 0 <= target < len(values) or "acc" not in sample:
        raise ValueError(
            f"the task {task} must have one right answer among several and the metric acc, got the answer "
            f"{sample['target']!r} and {sorted(sample['metrics'])}"
        )
    return {
        "task": task,
        "question": sample["doc_id"],
        "digest": sample["doc_hash"][:16],
        "context": sample["arguments"][0][0],
        "target": target,
        "log_likelihoods": values,
        "right": bool(sample["acc"]),
    }
