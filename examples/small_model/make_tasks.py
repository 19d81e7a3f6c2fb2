"""Makes the small model's evaluation data from the part of its corpus that it was not trained on.

    python examples/small_model/make_tasks.py

Reads ``model/test.jsonl`` and writes ``questions.jsonl``, multiple choice in MMLU's fields (question, choices, answer): 160
characters of a text, how it goes on for 8, and three continuations from elsewhere that follow the same four characters (or
as many as there are three for); and ``text.jsonl``, pieces of 1024 characters for perplexity. The same input always gives the
same files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import string
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
CONTEXT, CONTINUATION, PIECE = 160, 8, 1024  # characters, each one byte
SUFFIX = 4  # characters that wrong answers follow too, where there are enough
STRIDE = 80  # characters between two questions of a document: contexts overlap, answers do not
QUESTIONS, PIECES, QUESTIONS_OF_A_DOCUMENT, PIECES_OF_A_DOCUMENT = 600, 64, 160, 20
ALLOWED = set(string.printable) - set("\r\x0b\x0c")
SEED = 20260


def plain(text: str) -> bool:
    return set(text) <= ALLOWED


def worth_asking(context: str, continuation: str) -> bool:
    """Whether lm-eval leaves both as they are (it moves trailing blanks), and the answer is more than blanks."""
    blanks = sum(character.isspace() for character in continuation)
    return not context[-1].isspace() and plain(context + continuation) and blanks <= CONTINUATION // 2


def positions(documents: list[dict[str, str]], generator: random.Random) -> list[tuple[int, int]]:
    """(document, position) of questions, in random order."""
    found = []
    for index, document in enumerate(documents):
        text = document["text"]
        starts = list(range(CONTEXT, len(text) - CONTINUATION, STRIDE))
        generator.shuffle(starts)
        good = [p for p in starts if worth_asking(text[p - CONTEXT : p], text[p : p + CONTINUATION])]
        found += [(index, p) for p in good[:QUESTIONS_OF_A_DOCUMENT]]
    generator.shuffle(found)
    return found


def continuations(documents: list[dict[str, str]]) -> dict[str, list[tuple[int, int]]]:
    """Where a continuation could begin, by the characters before it: by the last one, the last two, up to SUFFIX."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, document in enumerate(documents):
        text = document["text"]
        for p in range(SUFFIX, len(text) - CONTINUATION):
            if worth_asking(text[p - SUFFIX : p], text[p : p + CONTINUATION]):
                for length in range(1, SUFFIX + 1):
                    found[text[p - length : p]].append((index, p))
    return found


def wrong_answers(
    documents: list[dict[str, str]],
    after: dict[str, list[tuple[int, int]]],
    index: int,
    p: int,
    generator: random.Random,
) -> list[str] | None:
    """Three continuations from elsewhere, after as many of the context's last characters as there are three for."""
    text = documents[index]["text"]
    right = text[p : p + CONTINUATION]
    wrong: list[str] = []
    for length in range(SUFFIX, 0, -1):
        places = [place for place in after[text[p - length : p]] if place[0] != index or abs(place[1] - p) > CONTEXT]
        others = {documents[i]["text"][q : q + CONTINUATION] for i, q in places} - {right, *wrong}
        wrong += generator.sample(sorted(others), min(len(others), 3 - len(wrong)))
        if len(wrong) == 3:
            return wrong
    return None


def questions(documents: list[dict[str, str]], generator: random.Random) -> list[dict[str, object]]:
    after = continuations(documents)
    made = []
    for index, p in positions(documents, generator):
        text = documents[index]["text"]
        wrong = wrong_answers(documents, after, index, p, generator)
        if wrong is None:
            continue
        answer = generator.randrange(4)
        made.append(
            {
                "question": text[p - CONTEXT : p],
                "choices": [*wrong[:answer], text[p : p + CONTINUATION], *wrong[answer:]],
                "answer": answer,
                "source": f"{documents[index]['name']}:{p}",
            }
        )
        if len(made) == QUESTIONS:
            break
    return made


def pieces(documents: list[dict[str, str]], generator: random.Random) -> list[dict[str, str]]:
    made = []
    for document in documents:
        text = document["text"]
        starts = [p for p in range(0, len(text) - PIECE + 1, PIECE) if plain(text[p : p + PIECE])]
        generator.shuffle(starts)
        made += [
            {"source": f"{document['name']}:{p}", "text": text[p : p + PIECE]} for p in starts[:PIECES_OF_A_DOCUMENT]
        ]
    generator.shuffle(made)
    return made[:PIECES]


def write(path: Path, entries: list[dict[str, object]] | list[dict[str, str]]) -> None:
    content = "".join(json.dumps(entry) + "\n" for entry in entries)
    aside = path.with_suffix(".partial")
    aside.write_text(content, encoding="utf-8")
    aside.replace(path)
    print(
        f"{path}: {len(entries)} entries, {len(content)} bytes, sha256 {hashlib.sha256(content.encode()).hexdigest()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=Path, default=HERE / "model" / "test.jsonl")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    documents = [json.loads(line) for line in arguments.test.read_text(encoding="utf-8").splitlines()]
    generator = random.Random(SEED)
    write(arguments.out / "questions.jsonl", questions(documents, generator))
    write(arguments.out / "text.jsonl", pieces(documents, generator))


if __name__ == "__main__":
    main()
