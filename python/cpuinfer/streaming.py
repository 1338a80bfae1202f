"""Text of an answer as it grows: whole characters from tokens, and nothing past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from cpuinfer.tokenizer import Tokenizer


class Detokenizer:
    """Tokens to text, one at a time, in time that does not grow with the answer.

    All that is returned, joined, is the text of the bytes of all tokens but control tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        """The characters this token completes; what it begins is held back."""
        if token_id in self._tokenizer.control_ids:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Finds stop strings in a stream, however it is cut into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop string was met: the answer ends before it.

        Of several stop strings the one that is complete first counts, as if the text came by single characters; of
        those, the longest.
        """
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        safe = len(text) - kept
        self._held = text[safe:]
        return text[:safe], False

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
