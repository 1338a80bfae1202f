"""Special tokens spelled out in a text, found without a pattern of all of them: some vocabularies have thousands."""

from __future__ import annotations

import re
from collections.abc import Iterable


class Literals:
    """Cuts a text at strings: of those that begin at one place the longest counts."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = frozenset(filter(None, strings))
        lengths: dict[str, set[int]] = {}
        for string in self._strings:
            lengths.setdefault(string[0], set()).add(len(string))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        """By first character, longest first."""
        self._firsts = re.compile(f"[{''.join(map(re.escape, sorted(lengths)))}]") if lengths else None

    def cut(self, text: str) -> list[str]:
        """The text in pieces, which are these strings or have none of them; joined, they are the text."""
        pieces: list[str] = []
        begin = at = 0
        while self._firsts is not None and (found := self._firsts.search(text, at)) is not None:
            place = found.start()
            at = place + 1
            for length in self._lengths[text[place]]:
                if text[place : place + length] in self._strings:
                    at = place + length
                    pieces += (text[begin:place], text[place:at]) if begin < place else (text[place:at],)
                    begin = at
                    break
        if begin < len(text):
            pieces.append(text[begin:])
        return pieces
