"""Next-token distributions of a row against those of the reference, on plain text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hadacore.evaluation.models import use_recipe
from hadacore.evaluation.rows import REFERENCE

_POSITIONS_AT_ONCE = 128  # in float64: 128 x 128k tokens are 131 MB
SHORTEST = 16  # tokens; a shorter text says little about attention


@dataclass(frozen=True)
class Divergence:
    """A row on one segment of text.

    Attributes:
        positions: Predicted tokens.
        divergence: Mean over them of ``sum_t p(t) (log p(t) - log q(t))`` in nats, p the reference and q the row.
        loss: Mean of ``-log q(next token)`` in nats.
        agreement: Share of positions where both think the same token the most likely.
        largest_difference: Of two logits.
    """

    positions: int
    divergence: float
    loss: float
    agreement: float
    largest_difference: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read_texts(path: Path) -> list[str]:
    """The text of a file; of JSON lines, their ``text`` fields.

    Raises:
        ValueError: The file cannot be read, or a line has no text.
    """
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            return [content]
        return [str(json.loads(line)["text"]) for line in content.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the text {path}: {error}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{path} must hold JSON lines with a "text" field: {error!r}') from error


def segments_of(tokenizer: Any, texts: Sequence[str], count: int, length: int) -> list[list[int]]:
    """Token ids of up to ``count`` segments of ``length`` tokens, cut from one text, or the last ones of each of several.

    Raises:
        ValueError: There is not even one segment of 16 tokens.
    """
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if len(ids) == 1:
        cut = [ids[0][i : i + length] for i in range(0, len(ids[0]), length)][:count]
        found = [part for part in cut if len(part) == length] or cut[:1]
    else:
        found = [part[-length:] for part in ids[:count]]
    found = [part for part in found if len(part) >= SHORTEST]
    if not found:
        raise ValueError(f"the text must have {SHORTEST} tokens or more, got {max(map(len, ids), default=0)}")
    return found


def logits_of(model: Any, ids: Sequence[int]) -> Tensor:
    """``(tokens, vocabulary)`` in the model's type."""
    with torch.no_grad():
        batch = torch.tensor([list(ids)], device=model.device)
        logits: Tensor = model(input_ids=batch, use_cache=False).logits[0]
    return logits


def compare_logits(reference: Tensor, logits: Tensor, ids: Sequence[int]) -> Divergence:
    """The divergence of logits ``(tokens, vocabulary)`` from the reference, computed in float64."""
    following = torch.tensor(list(ids[1:]), device=logits.device)
    total = loss = largest = 0.0
    agree = 0
    for start in range(0, len(following), _POSITIONS_AT_ONCE):
        rows = slice(start, min(start + _POSITIONS_AT_ONCE, len(following)))
        before, now = reference[rows].double(), logits[rows].double()
        largest = max(largest, float((before - now).abs().max()))
        p, q = before.log_softmax(-1), now.log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
        loss -= float(q.gather(-1, following[rows, None]).sum())
        agree += int((p.argmax(-1) == q.argmax(-1)).sum())
    n = len(following)
    return Divergence(n, total / n, loss / n, agree / n, largest)


def measure_segment(model: Any, ids: Sequence[int], recipes: Sequence[str]) -> dict[str, Divergence]:
    """Every recipe on one segment; the reference's logits are computed once.

    Raises:
        ValueError: Logits are not finite.
    """
    use_recipe(model, REFERENCE)
    reference = logits_of(model, ids)
    found = {}
    for recipe in recipes:
        logits = reference
        if recipe != REFERENCE:
            use_recipe(model, recipe)
            logits = logits_of(model, ids)
        found[recipe] = compare_logits(reference, logits, ids)
        if not math.isfinite(found[recipe].divergence):
            raise ValueError(f"the logits of {recipe} are not finite; the model may need another --dtype")
    return found
