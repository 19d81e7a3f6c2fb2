"""``hadacore eval`` from end to end, on tiny random models: tables, files, continuing, errors."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")

import torch
from typer.testing import CliRunner

from hadacore.cli.app import app
from hadacore.evaluation.parts import Parts
from hadacore.evaluation.report import markdown, notes_for, summarize
from hadacore.evaluation.rows import ROWS, rows_named
from hadacore.evaluation.run import Evaluation, Results, Settings
from hadacore.evaluation.texts import compare_logits, read_texts, segments_of
from tests.small_models import save_model, write_task


def run(*arguments: str | Path, code: int = 0) -> str:
    """The output of ``hadacore eval`` on the CPU with line breaks and frames taken out, after its exit code was checked."""
    result = CliRunner().invoke(app, ["eval", "--device", "cpu", *map(str, arguments)])
    text = re.sub(r"[│╭╮╰╯─\s]+", " ", result.output)
    assert result.exit_code == code, (text, result.exception)
    assert "Traceback" not in text
    return text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def whole(model: Path, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with every row."""
    out = tmp_path_factory.mktemp("whole")
    run("--model", model, "--tasks", task, "--segments", "3", "--out", out)
    return out


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "hadacore-eval.json").read_text())


def test_table_names_every_row(model: Path, task: Path, tmp_path: Path, no_network: None) -> None:
    text = run("--model", model, "--tasks", task, "--limit", "3", "--segments", "1", "--out", tmp_path)
    for row in ROWS:
        assert row.title in text
    for heading in ("accuracy, %", "McNemar p", "log-likelihood, nats", "KL, nats", "perplexity"):
        assert heading in text
    assert "3 questions of" in text and "Model and unquantized attention are in float32 here" in text
    assert "published" not in text  # which is of mmlu
    assert (tmp_path / "hadacore-eval.png").read_bytes().startswith(b"\x89PNG")


def test_numbers(whole: Path) -> None:
    found = read(whole)
    assert [row["name"] for row in found["rows"]] == [row.name for row in ROWS]
    reference, *others = found["rows"]
    assert reference["questions"] == 8 and reference["paired"] is None and reference["divergence"] is None
    assert reference["agreement"] == 1.0
    lines = [json.loads(line) for line in (whole / "hadacore-eval-questions.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    for row in others:
        assert row["divergence"]["value"] > 0
        right = [max(range(4), key=line[row["name"]].__getitem__) == line["target"] for line in lines]
        assert row["accuracy"]["value"] == pytest.approx(sum(right) / 8)
        change = [line[row["name"]][line["target"]] - line["fp16"][line["target"]] for line in lines]
        assert row["paired"]["log_likelihood_change"]["value"] == pytest.approx(sum(change) / 8)
    by_name = {row["name"]: row["divergence"]["value"] for row in others}
    assert by_name["int4_kv"] > 3 * by_name["int8"]  # four bits against eight
    # The same rotation by other means: the same numbers but for the order of sums.
    assert by_name["fp8_explicit"] == pytest.approx(by_name["fp8_rotated"], rel=0.5)
    table = (whole / "hadacore-eval.md").read_text()
    assert all(f"| {row.title} |" in table for row in ROWS)


def test_a_finished_run_is_only_printed_again(model: Path, task: Path, whole: Path, monkeypatch: Any) -> None:
    before = read(whole)
    monkeypatch.setattr("hadacore.evaluation.run.load_model", None)  # calling it would fail
    text = run("--model", model, "--tasks", task, "--segments", "3", "--out", whole)
    assert "0 of 10 rows to answer" in text and read(whole) == before


def test_rows_can_be_added(model: Path, task: Path, whole: Path, tmp_path: Path) -> None:
    arguments = ("--model", model, "--tasks", task, "--segments", "3", "--out", tmp_path)
    run(*arguments, "--rows", "int8")
    assert [row["name"] for row in read(tmp_path)["rows"]] == ["fp16", "int8"]
    assert "1 of 3 rows to answer" in run(*arguments, "--rows", "fp8,int8")
    wanted = [row for row in read(whole)["rows"] if row["name"] in ("fp16", "fp8", "int8")]
    assert read(tmp_path)["rows"] == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "7"], "made with limit None, now 7"),
        (["--batch-size", "4"], "made with batch_size 8, now 4"),
        (["--dtype", "bfloat16"], "made with dtype 'float32', now 'bfloat16'"),
        (["--outlier-channels", "1"], "made with outliers None, now {'pairs': 1, 'factor': 16.0, 'seed': 0}"),
    ],
)
def test_other_options_are_refused(model: Path, task: Path, whole: Path, options: list[str], message: str) -> None:
    text = run("--model", model, "--tasks", task, "--segments", "3", "--out", whole, *options, code=2)
    assert message in text and "name another folder with --out" in text


def test_another_model_or_task_in_the_same_place_is_refused(tmp_path: Path) -> None:
    model, task = save_model(tmp_path / "model"), write_task(tmp_path / "task")
    arguments = (
        "--model",
        model,
        "--tasks",
        task,
        "--limit",
        "1",
        "--segments",
        "1",
        "--rows",
        "fp16",
        "--out",
        tmp_path,
    )
    run(*arguments)
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "made with model_files" in run(*arguments, code=2)
    (model / "model.safetensors").write_bytes(content)
    run(*arguments)
    (task.parent / "data.jsonl").write_text((task.parent / "data.jsonl").read_text().replace("number", "Number"))
    assert "made with task_files" in run(*arguments, code=2)


def test_killed_and_continued(model: Path, task: Path, whole: Path, tmp_path: Path) -> None:
    """kill -9 between two writes, wherever that is: what is on disk is whole, and the rest is computed."""
    command = [
        sys.executable, "-c", "from hadacore.evaluation import harness; harness._STORE_SECONDS = 0; "
        "from hadacore.cli import main; main()", "eval", "--device", "cpu", "--model", model, "--tasks", task, "--segments",
        "3", "--out", tmp_path,
    ]  # fmt: skip
    parts = tmp_path / "hadacore-eval.parts"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for wait_for in ("fp8_rotated/*.json", "text/00001.json"):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while not list(parts.glob(wait_for)):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "hadacore-eval.json").exists()
        for path in parts.rglob("*.json"):
            json.loads(path.read_text())
        kept = {path: path.stat().st_mtime_ns for path in parts.glob("row-*.json")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "0 of 10 rows to answer" in result.stdout  # all were there at the last kill
    assert kept == {path: path.stat().st_mtime_ns for path in parts.glob("row-*.json")}
    assert read(tmp_path)["rows"] == read(whole)["rows"]


def test_outlier_channels_are_labelled(model: Path, task: Path, whole: Path, tmp_path: Path) -> None:
    text = run(
        "--model", model, "--tasks", task, "--segments", "3", "--rows", "int4_kv", "--outlier-channels", "2",
        "--outlier-factor", "32", "--out", tmp_path,
    )  # fmt: skip
    assert "tiny-llama: tiny (outlier channels added)" in text
    assert "4 channels of each K head and 2 of each V head times 32, seed 0" in text
    assert "logits of the first row changed by at most 0." in text
    reference, changed = read(tmp_path)["rows"]
    before = {row["name"]: row for row in read(whole)["rows"]}
    assert reference == before["fp16"]
    assert changed["divergence"]["value"] > before["int4_kv"]["divergence"]["value"]


def test_text_alone(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "some.txt"
    text.write_text("The same line again, and once more. " * 40)
    out = run(
        "--model",
        model,
        "--text",
        text,
        "--segments",
        "2",
        "--segment-tokens",
        "100",
        "--rows",
        "fp8",
        "--out",
        tmp_path,
    )
    assert "198 tokens in 2 segments of some.txt" in out and "accuracy" not in out
    assert not (tmp_path / "hadacore-eval-questions.jsonl").exists()
    assert read(tmp_path)["rows"][1]["accuracy"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--model: needs a model's folder or its name on the hub"),
        (["--model", "MODEL"], "nothing to evaluate: name tasks, such as mmlu or a task file, or a text"),
        (["--model", "/nowhere/model", "--tasks", "TASK"], "cannot load the model '/nowhere/model'"),
        (["--model", "MODEL", "--tasks", "missing.yaml"], "cannot read the task file missing.yaml"),
        (["--model", "MODEL", "--tasks", "TASK", "--rows", "fp4"], "rows must be some of fp16, fp8, "),
        (["--model", "MODEL", "--tasks", "TASK", "--limit", "0"], "limit must be 1 or more, got 0"),
        (["--model", "MODEL", "--tasks", "TASK", "--batch-size", "0"], "batch_size must be 1 or more, got 0"),
        (["--model", "MODEL", "--tasks", "TASK", "--segments", "0"], "segments must be 1 or more, got 0"),
        (["--model", "MODEL", "--tasks", "TASK", "--segment-tokens", "8"], "segment_tokens must be 16 or more, got 8"),
        (["--model", "MODEL", "--tasks", "TASK", "--num-fewshot", "-1"], "num_fewshot must be 0 or more, got -1"),
        (["--model", "MODEL", "--tasks", "TASK", "--dtype", "int8"], "one of float16, bfloat16, float32, got 'int8'"),
        (
            ["--model", "MODEL", "--tasks", "TASK", "--outlier-channels", "1", "--outlier-factor", "3"],
            "must be a power of two, such as 16, got 3.0",
        ),
        (["--model", "MODEL", "--text", "TASK", "--limit", "3"], "--limit: needs --tasks"),
        (
            ["--model", "MODEL", "--tasks", "TASK", "--outlier-factor", "4"],
            "--outlier-factor: needs --outlier-channels",
        ),
        (["--model", "MODEL", "--text", "missing.txt"], "cannot read the text missing.txt"),
    ],
)
def test_errors(model: Path, task: Path, tmp_path: Path, options: list[str], message: str) -> None:
    places = {"MODEL": str(model), "TASK": str(task)}
    assert message in run(*[places.get(option, option) for option in options], "--out", tmp_path, code=2)


@pytest.mark.parametrize("module", ["lm_eval", "hadacore.integrations.transformers"])
def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    text = run("--model", tmp_path, "--tasks", "x.yaml", "--out", tmp_path, code=1)
    assert "need transformers, and lm-eval for tasks" in text and 'pip install "hadacore[eval]"' in text


def test_text_needs_no_lm_eval(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.split(".")[0] == "lm_eval" or name.endswith("evaluation.harness")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    text = tmp_path / "some.txt"
    text.write_text("The same line again, and once more. " * 10)
    assert "1 segment of some.txt" in run(
        "--model", model, "--text", text, "--segments", "1", "--rows", "fp8", "--out", tmp_path
    )


# ---- experiments -----------------------------------------------------------------------------------


def test_fa3_error(tmp_path: Path) -> None:
    text = run("--experiment", "fa3-error", "--sequences", "128,256", "--head-dims", "64", "--out", tmp_path)
    assert "| sequence | head size | format | scale per | not rotated |" in text
    assert "| 128 | 64 | fp8_e4m3 | tensor |" in text and "| 256 | 64 | fp8_e4m3 | token |" in text
    for ending in ("csv", "json", "md", "png"):
        assert f"fa3_error.{ending}" in text and (tmp_path / f"fa3_error.{ending}").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--experiment", "fa4-error"], "--experiment: expected fa3-error, got 'fa4-error'"),
        (
            ["--experiment", "fa3-error", "--model", "m"],
            "--model: is about a model, and --experiment fa3-error has none",
        ),
        (["--experiment", "fa3-error", "--batch-size", "8"], "--batch-size: is about a model"),
        (["--experiment", "fa3-error", "--sequences", "many"], "expected whole numbers, got 'many'"),
        (["--experiment", "fa3-error", "--head-dims", "0"], "got 0"),
        (["--model", "m", "--head-dims", "64"], "--head-dims: needs --experiment"),
    ],
)
def test_experiment_errors(tmp_path: Path, options: list[str], message: str) -> None:
    assert message in run(*options, "--out", tmp_path, code=2)


# ---- texts, parts, summaries -----------------------------------------------------------------------


def test_divergence_of_known_distributions() -> None:
    """Two outcomes: p = (3/4, 1/4), q = (1/2, 1/2), at every position."""
    reference = torch.tensor([[3.0, 1.0]]).log().repeat(301, 1)
    logits = torch.zeros(301, 2)
    found = compare_logits(reference, logits, [0] * 301)
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert found.positions == 300
    assert found.divergence == pytest.approx(float(expected), abs=1e-7)
    assert found.loss == pytest.approx(float(torch.tensor(2.0).log()), abs=1e-7)
    assert found.largest_difference == pytest.approx(float(torch.tensor(3.0).log()), abs=1e-6)
    assert compare_logits(reference, reference, [0] * 301).divergence == 0.0
    assert compare_logits(reference, -reference, [0] * 301).agreement == 0.0


def test_segments() -> None:
    def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    text = "".join(chr(ord("a") + i % 26) for i in range(100))
    assert [len(part) for part in segments_of(tokenizer, [text], 9, 30)] == [30, 30, 30]
    assert segments_of(tokenizer, [text], 1, 30) == [list(text[:30].encode())]
    assert [len(part) for part in segments_of(tokenizer, [text], 9, 300)] == [100]
    assert segments_of(tokenizer, [text, text[:20], "short"], 9, 30) == [
        list(text[-30:].encode()),
        list(text[:20].encode()),
    ]
    with pytest.raises(ValueError, match="the text must have 16 tokens or more, got 5"):
        segments_of(tokenizer, ["short"], 9, 30)


def test_text_files(tmp_path: Path) -> None:
    lines = tmp_path / "text.jsonl"
    lines.write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert read_texts(lines) == ["one", "two"]
    lines.write_text('{"words": "one"}\n')
    with pytest.raises(ValueError, match=r'must hold JSON lines with a "text" field'):
        read_texts(lines)


def test_parts_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(tmp_path / "parts", {"limit": 3})
    parts.write("row/a", [1])
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        parts.write("row/a", [2])
    with pytest.raises(KeyboardInterrupt):
        parts.write("row/b", [2])
    monkeypatch.undo()
    again = Parts(tmp_path / "parts", {"limit": 3})
    assert again.names("row") == ["row/a"] and again.read("row/a") == [1] and again.read("row/b") is None
    with pytest.raises(ValueError, match=r"holds results made with limit 3, now 4\. Use the same options"):
        Parts(tmp_path / "parts", {"limit": 4})
    again.remove("row")
    assert again.names("row") == [] and again.read("row/a") is None


def test_tasks_are_summed_by_question(tmp_path: Path) -> None:
    def question(task: str, right: bool) -> dict[str, Any]:
        return {"task": task, "right": right, "target": 0, "log_likelihoods": [-1.0, -2.0]}

    questions = [question("a", True), question("a", False), question("a", False), question("b", True)]
    segment = {"positions": 1, "loss": 0.0, "divergence": 0.0, "agreement": 1.0}
    (summary,) = summarize(rows_named(["fp16"]), Results({"fp16": questions}, {"fp16": [segment]}))
    assert summary.accuracy is not None and summary.accuracy.value == 0.5
    assert {name: found.value for name, found in summary.by_task.items()} == {"a": pytest.approx(1 / 3), "b": 1.0}


def test_published_numbers_stand_beside_mmlu() -> None:
    questions = [
        {"task": f"mmlu_{subject}", "right": right, "target": 0, "log_likelihoods": [-1.0]}
        for subject, right in (("anatomy", True), ("law", False), ("law", True))
    ]
    segment = {"positions": 10, "loss": 1.0, "divergence": 0.001, "agreement": 0.9}
    rows = rows_named(["fp8", "int8"])
    results = Results({row.name: questions for row in rows}, {row.name: [segment, segment] for row in rows})
    settings = Settings("some/model", ("mmlu",), num_fewshot=5, dtype="float16")
    made_with = dict.fromkeys(("gpu", "hadacore", "commit", "torch", "transformers", "lm_eval"), "1")
    summaries = summarize(rows, results)
    text = markdown("Some title", summaries, settings, notes_for(settings, results, made_with, 3))
    assert "| FP16 attention | 66.67 ± 33.33 |  |  |  |  |  |  | 2.7183 | 65.38 |" in text
    assert "| FP8, no rotation | 66.67 ± 33.33 | +0.00 ± 0.00 | 0, 0 | 1.000 | +0.0000 ± 0.0000 |" in text
    assert "| 1.00e-03 | 90.00 | 2.7183 | 64.40 |" in text
    assert "| mmlu_law | 50.00 ± 50.00 | 50.00 ± 50.00 | 50.00 ± 50.00 |" in text
    assert "one standard error of each is 0.40 points" in text and "examples before each: 5" in text
    assert "not float16" not in text


def test_rows_must_have_answered_the_same_questions(model: Path, task: Path, tmp_path: Path) -> None:
    settings = Settings(str(model), (str(task),), limit=2, segments=1)
    evaluation = Evaluation(settings, rows_named(["fp8"]), torch.device("cpu"), tmp_path)
    evaluation.measure()
    other = evaluation.parts.read("row-fp8")
    other[0]["digest"] = "0"
    evaluation.parts.write("row-fp8", other)
    with pytest.raises(ValueError, match="rows fp16 and fp8 answered different questions"):
        Evaluation(settings, rows_named(["fp8"]), torch.device("cpu"), tmp_path).measure()
