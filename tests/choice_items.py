"""Questions of four choices made from text: which continuation belongs to the beginning of a stretch?"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ITEMS = 4000
CHOICES = 4
CONTEXT_WORDS, CONTINUATION_WORDS = 40, 12
"""About: both end where a word does."""


def write(path: Path, documents: Sequence[str], *, seed: int, items: int = ITEMS) -> int:
    """A JSON object a line: context, choices, answer (the right one's index).  Returns how many there are.

    Wrong choices are right for other stretches, none of the same document where there are enough.
    """
    generator = random.Random(seed)
    pieces = [piece for number, text in enumerate(documents) for piece in _pieces(text, number)]
    generator.shuffle(pieces)
    made = [item for piece in pieces[:items] if (item := _item(piece, pieces, generator))]
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in made), encoding="utf-8")
    return len(made)


def _pieces(text: str, document: int) -> Iterator[tuple[str, str, int]]:
    """Context and continuation of one stretch after another, paragraphs joined."""
    stretch = re.compile(rf"((?:\S+\s+){{{CONTEXT_WORDS - 1}}}\S+)((?:\s+\S+){{{CONTINUATION_WORDS}}})")
    for found in stretch.finditer(text):
        yield found[1], found[2], document


def _item(
    piece: tuple[str, str, int], pieces: Sequence[tuple[str, str, int]], generator: random.Random
) -> dict[str, object] | None:
    context, truth, document = piece
    others = list({other for _, other, number in generator.sample(pieces, min(len(pieces), 24)) if number != document})
    if len(others) < CHOICES - 1:
        return None
    choices = [truth, *generator.sample(sorted(others), CHOICES - 1)]
    generator.shuffle(choices)
    return {"context": context, "choices": choices, "answer": choices.index(truth)}
