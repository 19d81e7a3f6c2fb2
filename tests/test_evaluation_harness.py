"""Tasks of lm-eval: task files, answers batch by batch, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from hadacore.evaluation import harness
from hadacore.evaluation.harness import StoringModel, answer_tasks, find_tasks
from hadacore.evaluation.models import use_recipe
from hadacore.evaluation.parts import Parts
from tests.small_models import random_model, save_model, write_task


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager()


class CountingModel(StoringModel):
    """Counts its batches, and fails in the one with number ``fail_at``."""

    batches: list[list[tuple[int, ...]]]
    fail_at = -1

    def _answer(self, batch: Any, members: Any, requests: Any) -> Any:
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(batch)
        return super()._answer(batch, members, requests)


def make(tokenizer: Any, folder: Path, batch_size: int = 2, settings: dict[str, Any] | None = None) -> CountingModel:
    model = CountingModel(random_model(), tokenizer, batch_size)
    use_recipe(model.model, "fp8_rotated")
    model.batches = []
    model.store_in(Parts(folder, settings or {}), "row", lambda done, of: None)
    return model


def test_answers_are_those_of_lm_eval(tokenizer: Any, manager: TaskManager, tmp_path: Path) -> None:
    """But for padding, which lm-eval lets take part in scales: so with an unquantized recipe."""
    model = make(tokenizer, tmp_path / "parts")
    use_recipe(model.model, "fp16")
    tasks = find_tasks([str(write_task(tmp_path))])
    questions = answer_tasks(model, tasks, manager, None, None)
    plain = HFLM(pretrained=model.model, tokenizer=tokenizer, batch_size=4)
    expected = answer_tasks(plain, find_tasks([str(write_task(tmp_path))]), manager, None, None)
    assert len(questions) == 8 and {len(q["log_likelihoods"]) for q in questions} == {4}
    for question, other in zip(questions, expected, strict=True):
        assert question["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-4)
        best = max(range(4), key=question["log_likelihoods"].__getitem__)
        assert question["right"] == (best == question["target"])


def test_a_batch_has_one_length_and_computes_shared_inputs_once(
    tokenizer: Any, manager: TaskManager, tmp_path: Path
) -> None:
    model = make(tokenizer, tmp_path / "parts", batch_size=3)
    answer_tasks(model, find_tasks([str(write_task(tmp_path, 12))]), manager, None, None)
    inputs = [ids for batch in model.batches for ids in batch]
    assert all(len({len(ids) for ids in batch}) == 1 and len(batch) <= 3 for batch in model.batches)
    assert max(map(len, model.batches)) == 3
    assert len(inputs) == len(set(inputs))
    # Of 12 questions, four have answers of one byte, whose four inputs are the context alone, four of two, four of three.
    assert len(inputs) == 4 + 4 * 4 + 4 * 4


def test_answers_do_not_depend_on_the_batch(tokenizer: Any, manager: TaskManager, tmp_path: Path) -> None:
    """Scales are of one sequence each, so only the order of sums inside a product may differ."""
    found = []
    for size in (1, 4):
        model = make(tokenizer, tmp_path / f"parts{size}", batch_size=size)
        questions = answer_tasks(model, find_tasks([str(write_task(tmp_path))]), manager, None, None)
        found.append(torch.tensor([q["log_likelihoods"] for q in questions]))
    assert torch.allclose(found[0], found[1], atol=2e-3)


def test_an_interrupted_row_goes_on(
    tokenizer: Any, manager: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_STORE_SECONDS", 0.0)
    task = str(write_task(tmp_path))
    whole = make(tokenizer, tmp_path / "whole")
    expected = answer_tasks(whole, find_tasks([task]), manager, None, None)

    first = make(tokenizer, tmp_path / "parts")
    first.fail_at = 5
    with pytest.raises(KeyboardInterrupt):
        answer_tasks(first, find_tasks([task]), manager, None, None)
    second = make(tokenizer, tmp_path / "parts")
    done: list[tuple[int, int]] = []
    assert second.parts is not None
    second.store_in(second.parts, "row", lambda inputs, of: done.append((inputs, of)))
    assert answer_tasks(second, find_tasks([task]), manager, None, None) == expected
    assert first.batches + second.batches == whole.batches and len(first.batches) == 5
    inputs = sum(map(len, whole.batches))
    assert done[0] == (sum(map(len, first.batches)), inputs) and done[-1] == (inputs, inputs)

    third = make(tokenizer, tmp_path / "parts")
    with pytest.raises(ValueError, match="answers other questions than these; the tasks have changed"):
        answer_tasks(third, find_tasks([str(write_task(tmp_path / "other", 7))]), manager, None, None)


def test_limit_and_examples(tokenizer: Any, manager: TaskManager, tmp_path: Path) -> None:
    model = make(tokenizer, tmp_path / "parts")
    task = str(write_task(tmp_path, fewshot_split="test", fewshot_config={"sampler": "first_n"}))
    questions = answer_tasks(model, find_tasks([task]), manager, 2, 3)
    assert len(questions) == 3
    assert all(question["context"].count("number") == 3 for question in questions)


@pytest.mark.parametrize(
    ("kind", "metric", "message"),
    [
        ("generate_until", "exact_match", "has the model write its answers; name tasks with answers to choose from"),
        ("loglikelihood_rolling", "bits_per_byte", "measures perplexity; name tasks with answers to choose from"),
        ("multiple_choice", "acc_norm", "must have one right answer among several and the metric acc, got"),
    ],
)
def test_tasks_of_other_kinds_are_refused(
    tokenizer: Any, manager: TaskManager, tmp_path: Path, kind: str, metric: str, message: str
) -> None:
    changes: dict[str, Any] = {"output_type": kind, "metric_list": [{"metric": metric}]}
    if kind != "multiple_choice":
        changes["doc_to_target"] = "question"
    model = make(tokenizer, tmp_path / "parts")
    with pytest.raises(ValueError, match=message):
        answer_tasks(model, find_tasks([str(write_task(tmp_path, **changes))]), manager, None, None)


def test_unknown_task(tokenizer: Any, manager: TaskManager, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lm-eval has no task 'mmlv'; .*a file of your own ends in \.yaml"):
        answer_tasks(make(tokenizer, tmp_path / "parts"), find_tasks(["mmlv"]), manager, None, None)


def test_data_out_of_reach(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("Couldn't reach 'cais/mmlu' on the Hub")

    monkeypatch.setattr(harness, "simple_evaluate", refuse)
    tasks = find_tasks([str(write_task(tmp_path))])
    with pytest.raises(ValueError, match=r"needs the network or a filled cache: Couldn't reach 'cais/mmlu'"):
        answer_tasks(make(tokenizer, tmp_path / "parts"), tasks, harness.task_manager(tasks), None, None)


def test_task_files(tmp_path: Path) -> None:
    path = write_task(tmp_path)
    tasks = find_tasks([str(path), "mmlu"])
    assert tasks.entries[1] == "mmlu" and not tasks.local
    assert isinstance(tasks.entries[0], dict)
    assert tasks.entries[0]["dataset_kwargs"]["data_files"] == {"test": [str(tmp_path / "data.jsonl")]}
    alone = find_tasks([str(path)])
    assert alone.local and alone.include == ()
    (tmp_path / "data.jsonl").write_text("{}\n")
    assert find_tasks([str(path)]).digest != alone.digest
    function = tmp_path / "function.yaml"
    function.write_text("task: with_function\ndoc_to_text: !function own.text\n")
    found = find_tasks([str(function)])
    assert found.entries == ("with_function",) and found.include == (str(tmp_path),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read the task file .*task\.yaml: No such file"),
        ("task: [", r"the task file .* is no YAML"),
        ("- a list", r"must name its task, as in 'task: my_task'"),
        ("dataset_path: json", r"must name its task"),
        (
            "task: t\ndataset_path: json\ndataset_kwargs: {data_files: nowhere.jsonl}",
            r"names the data .*nowhere\.jsonl, which is not there",
        ),
    ],
)
def test_task_file_errors(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "task.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        find_tasks([str(path)])
