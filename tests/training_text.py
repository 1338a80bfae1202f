"""Text to train small models on: manuals in Debian packages, else the standard library's; no paragraph twice; split.

Packages are fetched by `apt-get download`, which needs no root, and unpacked, not installed.  Their sources are plain
text: reStructuredText of Python (11 MB), POD of Perl (8 MB), AsciiDoc of git (3 MB).  Where a package cannot be had,
the docstrings of this interpreter's standard library and the plain text under /usr/share/doc take its place.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {"python3-doc": "*.rst.txt", "perl-doc": "*.pod", "git-doc": "*.txt"}
"""Debian package: its files of plain text."""
SHARES = {"calibration": 600_000, "validation": 300_000, "heldout": 500_000}
"""Bytes, about: whole documents are taken until there are as many."""
LARGEST_HELD_OUT = 80_000
"""Bytes of a document that may leave the training text, so that no part is one document."""
SMALLEST = 400
"""Bytes of a document: shorter ones are tables of contents."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents by part, none of whose paragraphs is in another."""

    train: tuple[str, ...]
    calibration: tuple[str, ...]
    validation: tuple[str, ...]
    heldout: tuple[str, ...]
    sources: str
    """What it was made of."""

    @property
    def digest(self) -> str:
        """Names the text: models trained on other text are trained anew."""
        parts = (self.train, self.calibration, self.validation, self.heldout)
        text = "\0\0".join("\0".join(part) for part in parts)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def collect(folder: Path, report: Report, *, most: int | None = None) -> Corpus:
    """The corpus; packages are kept in `folder`.  `most` bytes: a small one, of the standard library alone."""
    found, missing = [], []
    for package, pattern in PACKAGES.items() if most is None else ():
        documents = _of_package(folder / package, package, pattern, report)
        found += documents
        (missing if not documents else []).append(package)
    sources = ", ".join(name for name in PACKAGES if name not in missing) if most is None else ""
    if missing or most is not None:
        found += _docstrings(most)
        found += _plain_text(Path("/usr/share/doc")) if most is None else []
        sources += f"{', ' if sources else ''}standard library" + (" and /usr/share/doc" if most is None else "")
    documents = list(_without_repeats(found))
    random.Random(0).shuffle(documents)
    return split(documents, sources, most)


def split(documents: list[str], sources: str, most: int | None = None) -> Corpus:
    """Whole documents to each part."""
    left = most or sum(map(len, documents))
    shrink = min(1.0, left / 6 / sum(SHARES.values()))
    largest = min(LARGEST_HELD_OUT, left // 20)
    parts: dict[str, list[str]] = {name: [] for name in ("train", *SHARES)}
    room = {name: size * shrink for name, size in SHARES.items()}
    for document in documents:
        name = next((name for name in SHARES if room[name] > 0 and len(document) <= largest), "train")
        if name == "train" and left <= 0:
            continue
        parts[name].append(document)
        room[name] = room.get(name, 0) - len(document)
        left -= len(document)
    return Corpus(**{name: tuple(part) for name, part in parts.items()}, sources=sources)


def _of_package(folder: Path, package: str, pattern: str, report: Report) -> list[str]:
    """Its documents in order of name; none where it cannot be had."""
    if not folder.exists():
        report(f"fetching {package}")
        try:
            _unpack(package, folder)
        except (OSError, subprocess.CalledProcessError) as error:
            report(f"{package}: cannot be had ({error}); the standard library takes its place")
            return []
    paths = sorted(path for path in folder.rglob(pattern) if path.is_file() and not path.is_symlink())
    return [path.read_text(encoding="utf-8", errors="ignore") for path in paths]


def _unpack(package: str, folder: Path) -> None:
    """Fetch and unpack it beside `folder`, then take that name: what is there is whole."""
    partial = folder.with_name(f"partial-{folder.name}")
    partial.mkdir(parents=True, exist_ok=True)

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=partial, check=True, capture_output=True, text=True).stdout

    # python3-doc is empty but for what it depends on, python3.11-doc in Debian 12.
    depends = re.findall(r"Depends: (\S+-doc)$", run("apt-cache", "depends", package), re.MULTILINE)
    run("apt-get", "download", *(depends or [package]))
    for archive in partial.glob("*.deb"):
        run("dpkg-deb", "-x", archive.name, ".")
        archive.unlink()
    partial.rename(folder)


def _docstrings(most: int | None) -> list[str]:
    """Of the standard library: a document for each module; about twice as many characters as are asked for."""
    documents: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if most is not None and sum(map(len, documents)) > 2 * most:
            break
        if {"site-packages", "dist-packages", "test", "tests"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        documents.append("\n\n".join(text for text in found if text))
    return documents


def _plain_text(folder: Path) -> list[str]:
    paths = sorted(path for pattern in ("*.txt", "*.rst", "*.md") for path in folder.rglob(pattern) if path.is_file())
    return [path.read_text(encoding="utf-8", errors="ignore") for path in paths]


def _without_repeats(documents: Iterable[str]) -> Iterator[str]:
    """Each paragraph where it comes first, whatever its white space; documents left too short are left out."""
    seen: set[str] = set()
    for document in documents:
        kept = []
        for paragraph in re.split(r"\n\s*\n", document):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                kept.append(paragraph.rstrip())
        text = "\n\n".join(kept).strip() + "\n"
        if len(text) >= SMALLEST:
            yield text
