"""Small random models in transformers' format, and the scripts of examples/small_model, for tests of evaluations."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "small_model"


def load_script(name: str) -> ModuleType:
    """The script ``examples/small_model/<name>.py``, imported but not run."""
    specification = importlib.util.spec_from_file_location(f"small_model_{name}", EXAMPLE / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def random_model(kind: str = "llama", **options: Any) -> Any:
    """A random model of two layers: 4 query heads, 2 kv heads of 16 channels, over bytes."""
    import transformers

    configuration, model = {
        "llama": ("LlamaConfig", "LlamaForCausalLM"),
        "mistral": ("MistralConfig", "MistralForCausalLM"),
        "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
        "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    }[kind]
    sizes: dict[str, Any] = {"vocab_size": 264, "bos_token_id": 256, "eos_token_id": 256}
    if kind == "gpt2":
        sizes |= {"n_embd": 64, "n_layer": 2, "n_head": 4}
    else:
        sizes |= {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "initializer_range": 0.2,
            "pad_token_id": 256,
        }  # fmt: skip
    config = getattr(transformers, configuration)(**{**sizes, **options})
    torch.manual_seed(1)
    made = getattr(transformers, model)(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("bias", "norm.weight")):  # zeros and ones would hide what is done to them
                parameter.normal_(1.0, 0.3)
    return made


def save_model(folder: Path, kind: str = "llama") -> Path:
    """A random model and the byte tokenizer in a folder."""
    random_model(kind).save_pretrained(folder)
    load_script("train").write_tokenizer(folder)
    return folder


def write_task(folder: Path, questions: int = 8, **changes: Any) -> Path:
    """A task file with its data: questions of several lengths, answers of 1 to 3 bytes, so that inputs of one length mix them."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(questions):
        choices = [["a", "b", "c", "d"], ["to", "an", "it", "of"], ["the", "and", "was", "his"]][index % 3]
        entry = {
            "question": "And so on; " * (1 + index % 4) + "number" + str(index),
            "choices": choices,
            "answer": index % 4,
        }
        lines.append(json.dumps(entry) + "\n")
    (folder / "data.jsonl").write_text("".join(lines))
    task = {
        "task": "tiny_task", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "data.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "question", "doc_to_choice": "choices",
        "doc_to_target": "answer", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**task, **changes}))
    return path
