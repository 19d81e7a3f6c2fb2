"""Loading what is evaluated, and telling one model from another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_HASHED_BYTES = 1 << 24  # of the beginning of each weight file, and as many of its end


class EvaluationUnavailableError(RuntimeError):
    """A package that evaluations need is missing; the message says what to install."""


def check_packages(tasks: bool) -> None:
    """Raise :class:`EvaluationUnavailableError` if models, or ``tasks`` where there are any, cannot be loaded."""
    try:
        import hadacore.integrations.transformers  # noqa: F401

        if tasks:
            import lm_eval  # noqa: F401
    except ImportError as error:
        raise EvaluationUnavailableError(
            f"evaluations need transformers, and lm-eval for tasks, which could not be imported ({error}). Install them with: "
            'pip install "hadacore[eval]"'
        ) from error


def fingerprint(model: str) -> str | None:
    """A digest of a local model's files: names, sizes, and the contents but for the middle of what is larger than 32 MiB.

    None for a model that is no folder here.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".bin", ".model", ".txt"):
            size = path.stat().st_size
            total.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
            with path.open("rb") as file:
                total.update(file.read(_HASHED_BYTES))
                if size > _HASHED_BYTES:
                    file.seek(max(_HASHED_BYTES, size - _HASHED_BYTES))
                    total.update(file.read())
    return total.hexdigest()[:16]


def load_model(model: str, dtype: str, device: torch.device) -> tuple[Any, Any]:
    """A causal language model in evaluation mode and its tokenizer, from a folder or the hub.

    Raises:
        ValueError: There is no such model, or its weights cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=DTYPES[dtype])
    except (OSError, ValueError) as error:  # what transformers raises for missing files, unknown types, no network
        what = "the folder" if Path(model).is_dir() else "a model of that name, for there is no such folder"
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot load the model {model!r} ({what}): {first}") from error
    return loaded.to(device).eval(), tokenizer


def use_recipe(model: Any, recipe: str) -> None:
    """Compute attention as a recipe of :data:`hadacore.attention.RECIPES` says, from the next call on."""
    from hadacore.integrations.transformers import PREFIX

    model.set_attn_implementation(PREFIX + recipe)
