"""The corpus of the small model: text that comes with Python, split by document.

Documents are the sources of the standard library (with its tests, where they are installed), the topics of ``help()``
and the licence. For one Python version the corpus is always the same, and :attr:`Corpus.digest` proves it.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Not Python's own, generated, or tables of characters that hold no language.
EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "encodings", "cjkencodings", "_bundled"}
EXCLUDED_FILES = {"pydoc_data/topics.py"}  # its topics are documents of their own
LARGEST_FILE = 300_000  # bytes; what is larger is a table
SHARES = {"validation": 1, "test": 4}  # of 100 documents each; the others are trained on


@dataclass(frozen=True)
class Document:
    """A text and its name: a path below the standard library, ``topic:NAME`` or ``LICENSE.txt``."""

    name: str
    text: str

    @property
    def part(self) -> str:
        """``train``, ``validation`` or ``test``.

        By name without what changes when a module becomes a package, so that a name's part is the same in every Python.
        """
        name = self.name.removesuffix(".py").removesuffix("/__init__")
        draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
        for part, share in SHARES.items():
            if draw < share:
                return part
            draw -= share
        return "train"


@dataclass(frozen=True)
class Corpus:
    """All documents, sorted by name."""

    documents: tuple[Document, ...]

    def part(self, part: str) -> tuple[Document, ...]:
        """The documents of ``train``, ``validation`` or ``test``."""
        return tuple(document for document in self.documents if document.part == part)

    @property
    def digest(self) -> str:
        """SHA-256 over all names and texts."""
        total = hashlib.sha256()
        for document in self.documents:
            total.update(json.dumps([document.name, document.text]).encode())
        return total.hexdigest()


def _sources(folder: Path) -> Iterable[Document]:
    for path in folder.rglob("*.py"):
        name = path.relative_to(folder).as_posix()
        machine_made = name.startswith(("_sysconfigdata", "config-"))  # differs between two builds of one version
        if machine_made or name in EXCLUDED_FILES or EXCLUDED_FOLDERS & set(path.relative_to(folder).parts):
            continue
        content = path.read_bytes()
        if not content.strip() or len(content) > LARGEST_FILE:
            continue
        try:
            yield Document(name, content.decode().replace("\r\n", "\n"))
        except UnicodeDecodeError:  # tests of other encodings
            continue


def load_corpus() -> Corpus:
    """Read the corpus of the running Python."""
    folder = Path(sysconfig.get_path("stdlib"))
    documents = list(_sources(folder))
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out; the digest tells
        topics = {}
    documents += [Document(f"topic:{name}", text) for name, text in topics.items()]
    licence = folder / "LICENSE.txt"
    if licence.is_file():
        documents.append(Document(licence.name, licence.read_text(encoding="utf-8")))
    return Corpus(tuple(sorted(documents, key=lambda document: document.name)))
