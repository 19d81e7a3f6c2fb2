"""Trains the small model: a byte-level language model of the Llama architecture on text that comes with Python.

    python examples/small_model/train.py --minutes 2 --out model

On an H100 two minutes are enough: what a Python without its tests brings along, 9 MB, is learned by heart from then on.
Needs transformers and no network. Writes ``model.safetensors`` (bfloat16), ``config.json``, the tokenizer, the test
part of the corpus (``test.jsonl``), and ``PROVENANCE.json``, each aside and then renamed: at the first improvement
after a minute since the last write, at the end of the time, and on SIGTERM or Ctrl-C. What is kept is the model with
the least loss on the validation part.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from corpus import Corpus, Document, load_corpus

END_OF_TEXT = 256  # between documents, and before the first; ids 0 to 255 are the bytes
VOCABULARY = 264  # a multiple of 8, so that Tensor Cores like the last product
LARGEST_WEIGHTS = 16_000_000  # bytes
SAVE_SECONDS = 60.0  # between two saves of an improving model


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of training; start and end take half a minute more")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--intermediate", type=int, default=768)
    parser.add_argument("--context", type=int, default=1024, help="bytes of a training example")
    parser.add_argument("--batch", type=int, default=32, help="examples of a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--validate-every", type=float, default=15.0, help="seconds")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {arguments.minutes}")
    if arguments.heads % arguments.kv_heads:
        parser.error(f"--heads must be a multiple of --kv-heads, got {arguments.heads} and {arguments.kv_heads}")
    return arguments


def token_ids(documents: tuple[Document, ...]) -> Tensor:
    """All documents as bytes, each after an end-of-text token."""
    pieces = []
    for document in documents:
        pieces.append(torch.tensor([END_OF_TEXT], dtype=torch.int16))
        pieces.append(torch.frombuffer(bytearray(document.text.encode()), dtype=torch.uint8).to(torch.int16))
    return torch.cat(pieces)


def make_model(arguments: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=arguments.hidden, intermediate_size=arguments.intermediate,
        num_hidden_layers=arguments.layers, num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.kv_heads, head_dim=arguments.head_dim,
        max_position_embeddings=arguments.context, tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT, eos_token_id=END_OF_TEXT, pad_token_id=END_OF_TEXT,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # Residual branches start small, as in GPT-2: 0.02 / sqrt(2 layers).
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(1 / math.sqrt(2 * arguments.layers))
    return model


def loss_of(model: torch.nn.Module, windows: Tensor, device: str) -> Tensor:
    """Mean loss in nats of predicting each window's tokens but the first."""
    windows = windows.to(device=device, dtype=torch.int64)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def learning_rate(peak: float, done: float) -> float:
    """Linear for the first 2 % of the time, then a cosine to a fiftieth of the peak."""
    if done < 0.02:
        return peak * done / 0.02
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def optimizer_for(model: torch.nn.Module, arguments: argparse.Namespace) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": arguments.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=arguments.device == "cuda")


class Stop:
    """Set by SIGTERM and Ctrl-C, so that training ends after the step in hand and saves."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True


def write_tokenizer(folder: Path) -> None:
    """A tokenizer whose ids are the bytes of UTF-8."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # The byte-level pre-tokenizer names bytes by printable characters; bytes that have none get those from 256 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab={names[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end)
    text = "def f(x):\n\treturn 'é\x00\x7f'  # → ok"
    ids = whole(text, add_special_tokens=False)["input_ids"]
    if ids != list(text.encode()) or whole.convert_tokens_to_ids(end) != END_OF_TEXT or whole.decode(ids) != text:
        raise RuntimeError(f"the tokenizer does not map text to its bytes: {ids}")
    whole.save_pretrained(folder)


def commit() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def save(folder: Path, model: LlamaForCausalLM, corpus: Corpus, provenance: dict[str, Any]) -> None:
    """Write everything into a folder beside, then rename each file into its place."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        copy.deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(aside)
        (aside / "generation_config.json").unlink(missing_ok=True)  # the model is for scoring
        write_tokenizer(aside)
        weights = aside / "model.safetensors"
        if weights.stat().st_size > LARGEST_WEIGHTS:
            raise RuntimeError(f"the weights have {weights.stat().st_size} bytes, more than {LARGEST_WEIGHTS}")
        with (aside / "test.jsonl").open("w", encoding="utf-8") as out:
            for document in corpus.part("test"):
                out.write(json.dumps({"name": document.name, "text": document.text}) + "\n")
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        (aside / "PROVENANCE.json").write_text(json.dumps({**provenance, "weights_sha256": digest}, indent=2) + "\n")
        for path in sorted(aside.iterdir(), key=lambda p: (p.name == "PROVENANCE.json", p.name)):
            path.chmod(0o644)
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(aside)


def main() -> None:
    started = time.monotonic()
    arguments = parse_arguments()
    device, stop = arguments.device, Stop()
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    corpus = load_corpus()
    train, validation = (token_ids(corpus.part(part)) for part in ("train", "validation"))
    length = arguments.context + 1
    windows = validation[: len(validation) // length * length].view(-1, length)[:: 1 if device == "cuda" else 16]
    model = make_model(arguments).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    print(f"{parameters:,} parameters, {len(train):,} bytes to train on, {device} {gpu or ''}", flush=True)

    forward = torch.compile(model) if arguments.compile else model
    optimizer = optimizer_for(model, arguments)
    generator = torch.Generator().manual_seed(arguments.seed)
    train = train.to(device)
    steps_into = torch.arange(length, device=device)
    bits = 1 / math.log(2)

    def validate() -> float:
        model.eval()
        with torch.no_grad():
            total = sum(loss_of(model, part, device).item() * len(part) for part in windows.split(arguments.batch))
        model.train()
        return total / len(windows) * bits

    best, best_state = math.inf, copy.deepcopy(model.state_dict())
    history: list[dict[str, float]] = []
    step, trained, saved = 0, time.monotonic(), time.monotonic()
    budget = 60 * arguments.minutes
    next_validation = arguments.validate_every

    def provenance() -> dict[str, Any]:
        return {
            "command": f"python examples/small_model/train.py --minutes {arguments.minutes:g}",
            "options": {k: v for k, v in vars(arguments).items() if k != "out"},
            "architecture": "LlamaForCausalLM, byte-level",
            "parameters": parameters,
            "corpus": {
                "python": platform.python_version(),
                "documents": len(corpus.documents),
                "sha256": corpus.digest,
                "bytes": {
                    p: sum(len(d.text.encode()) for d in corpus.part(p)) for p in ("train", "validation", "test")
                },
            },
            "steps": step,
            "tokens": step * arguments.batch * arguments.context,
            "seconds": round(time.monotonic() - trained, 1),
            "validation_bits_per_byte": round(best, 5),
            "losses": history,
            "gpu": gpu,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "transformers": transformers.__version__,
            "commit": commit() or os.environ.get("COMMIT"),
        }

    def save_best() -> None:
        holder = copy.deepcopy(model)
        holder.load_state_dict(best_state)
        save(arguments.out, holder, corpus, provenance())

    running = torch.zeros((), device=device)
    since = 0
    while True:
        elapsed = time.monotonic() - trained
        ending = elapsed >= budget or stop.asked
        if ending or elapsed >= next_validation:
            next_validation = elapsed + arguments.validate_every
            bits_per_byte = validate()
            train_bits = running.item() / max(since, 1) * bits
            running.zero_()
            since = 0
            entry = {"step": step, "seconds": elapsed, "train": train_bits, "validation": bits_per_byte}
            history.append({name: round(value, 4) for name, value in entry.items()})
            print(
                f"step {step:6d}  {elapsed:6.1f} s of {budget:.0f}  bits per byte: train {train_bits:.4f}, "
                f"validation {bits_per_byte:.4f}",
                flush=True,
            )
            if bits_per_byte < best:
                best = bits_per_byte
                best_state = {name: value.detach().clone() for name, value in model.state_dict().items()}
                if not ending and time.monotonic() - saved >= SAVE_SECONDS:
                    save_best()
                    saved = time.monotonic()
        if ending:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(arguments.learning_rate, elapsed / budget)
        starts = torch.randint(0, len(train) - length + 1, (arguments.batch, 1), generator=generator).to(device)
        loss = loss_of(forward, train[starts + steps_into], device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += loss.detach()
        since += 1
        step += 1
    if not math.isfinite(best):
        raise SystemExit(
            f"the loss is {best}: nothing is saved; try a smaller --learning-rate than {arguments.learning_rate}"
        )
    save_best()
    why = "stopped by a signal" if stop.asked else "time is up"
    size = (arguments.out / "model.safetensors").stat().st_size
    print(
        f"{why}: {step} steps, best validation {best:.4f} bits per byte, {size:,} bytes of weights in {arguments.out}, "
        f"{time.monotonic() - started:.0f} s in all"
    )


if __name__ == "__main__":
    main()
