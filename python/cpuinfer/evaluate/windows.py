"""Cuts a text's tokens into windows such that each token is scored once, with context before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cpuinfer.errors import InvalidRequest

WINDOW = 512
"""Positions of a window, unless asked for otherwise or the model has fewer."""


@dataclass(frozen=True, slots=True)
class Span:
    """One window: token indices of the text, where [begin, start) is context and [start, end) is scored."""

    begin: int
    start: int
    end: int

    @property
    def tokens(self) -> int:
        """How many are scored."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Windows:
    """How a text was cut.

    Attributes:
        window: most positions a model reads at a time, the beginning-of-sequence token included.
        stride: tokens scored by every window but the first, which scores as many as it has, and the last.
        bos: the token every window begins with, as the tokenizer adds one to a text; None where it adds none, and the
            text's first token is then not scored, having nothing before it.
    """

    window: int
    stride: int
    bos: int | None

    def spans(self, count: int) -> list[Span]:
        """The windows of so many tokens.  Raises InvalidRequest where there is nothing to score.

        The last token of a window is predicted, not read: a window of n positions scores up to n tokens.
        """
        prefix = 0 if self.bos is None else 1
        first = 1 - prefix
        if count <= first:
            raise InvalidRequest(f"a text of {count} tokens has none with another before it: expected a longer text")
        spans = []
        start, scored = first, self.window
        while start < count:
            end = min(start + scored, count)
            spans.append(Span(max(0, end - 1 - (self.window - prefix)), start, end))
            start, scored = end, self.stride
        return spans

    def pair(self, tokens: Sequence[int], span: Span) -> tuple[list[int], list[int]]:
        """(context, continuation) of a window."""
        prefix = [] if self.bos is None else [self.bos]
        return [*prefix, *tokens[span.begin : span.start]], list(tokens[span.start : span.end])


def choose(*, window: int | None, stride: int | None, context: int, bos: int | None) -> Windows:
    """The windows asked for, or the default: 512 positions, or the model's `context` if less; half of them a stride.

    Raises InvalidRequest for what does not fit.
    """
    window = min(WINDOW, context) if window is None else window
    if isinstance(window, bool) or not isinstance(window, int) or not 1 <= window <= context:
        raise InvalidRequest(f"window: {window!r}, expected 1 to {context}, the context of the model as it is open")
    stride = max(1, window // 2) if stride is None else stride
    if isinstance(stride, bool) or not isinstance(stride, int) or not 1 <= stride <= window:
        raise InvalidRequest(f"stride: {stride!r}, expected 1 to {window}, the window")
    return Windows(window, stride, bos)
