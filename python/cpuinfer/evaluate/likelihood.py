"""Perplexity of a text: how likely a model takes it to be, by windows over all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cpuinfer.errors import InvalidRequest
from cpuinfer.evaluate.estimates import Estimate, mean_of_blocks
from cpuinfer.evaluate.identity import Subject, Text, bos_of, encode, identify, read_text, subject
from cpuinfer.evaluate.scoring import Model, Progress, score_after
from cpuinfer.evaluate.windows import Windows, choose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cpuinfer.llm import LLM


@dataclass(frozen=True, slots=True)
class WindowLoss:
    """What one window scored.

    Attributes:
        start: index, in the text, of the first token scored.
        tokens: how many.
        loss: the sum of their negative log-probabilities, in nats.
    """

    start: int
    tokens: int
    loss: float


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The likelihood of a text.

    Attributes:
        tokens: scored: all of the text's, but the first one if the tokenizer adds no BOS.
        loss: mean negative log-probability of a token, in nats; its error takes windows as independent blocks, since
            neighbouring tokens are not.
        perplexity: exp of it.
        bits_per_byte: of the text in UTF-8, which models of different vocabularies may be compared by.
        items: the windows.
    """

    model: Subject
    text: Text
    windows: Windows
    tokens: int
    loss: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate
    items: tuple[WindowLoss, ...]


def perplexity(
    llm: LLM,
    text: str | Path,
    *,
    window: int | None = None,
    stride: int | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> Perplexity:
    """The perplexity of a text, or of a file's.

    Windows begin as the model's tokenizer begins a text: with BOS if it adds one.  Each token is scored once, with at
    least `window - stride` positions before it, but for the text's first ones.  What spells a control token is text.

    Args:
        window: positions of a window; None takes 512, or the context if that is less.
        stride: tokens scored by a window after the first; None takes half the window.
        batch: windows that run together, which changes no result.
        progress: called with the tokens scored and all of them.

    Raises InvalidRequest for an empty text, or one of a single token where no BOS is added.
    """
    check_batch(batch)
    reading = Reading(llm, text, window=window, stride=stride)
    items: list[WindowLoss] = []
    spans = iter(reading.spans)
    while chunk := list(islice(spans, batch)):
        found = score_after(llm, [reading.windows.pair(reading.tokens, span) for span in chunk])
        items += [
            WindowLoss(span.start, span.tokens, -math.fsum(scores)) for span, scores in zip(chunk, found, strict=True)
        ]
        if progress is not None:
            progress(sum(item.tokens for item in items), reading.scored)
    return reading.perplexity(items)


class Reading:
    """A text as a model is to read it."""

    def __init__(
        self, llm: LLM | Model, text: str | Path, *, window: int | None, stride: int | None, context: int | None = None
    ) -> None:
        """`context`: of the model, or of another that is to read the same windows."""
        name, characters = read_text(text)
        self.tokens = encode(llm.tokenizer, characters)
        context = llm.context if context is None else context
        self.windows = choose(window=window, stride=stride, context=context, bos=bos_of(llm.tokenizer))
        try:
            self.spans = self.windows.spans(len(self.tokens))
        except InvalidRequest as error:
            raise InvalidRequest(f"{name}: {error}") from None
        self.subject = subject(llm)
        self.text = identify(name, characters, len(self.tokens))
        self.scored = sum(span.tokens for span in self.spans)
        unscored = b"".join(map(llm.tokenizer.token_bytes, self.tokens[: self.spans[0].start]))
        self.bytes = max(1, self.text.bytes - len(unscored))

    def perplexity(self, items: Sequence[WindowLoss]) -> Perplexity:
        """From what the windows scored."""
        loss = mean_of_blocks([item.loss for item in items], [item.tokens for item in items])
        return Perplexity(
            model=self.subject,
            text=self.text,
            windows=self.windows,
            tokens=self.scored,
            loss=loss,
            perplexity=loss.exponential(),
            bits_per_byte=loss.scaled(self.scored / self.bytes / math.log(2)),
            items=tuple(items),
        )

    def pairs(self) -> Iterator[tuple[list[int], list[int]]]:
        """(context, continuation) of each window."""
        return (self.windows.pair(self.tokens, span) for span in self.spans)


def check_batch(batch: int) -> None:
    """Refuse what is no number of windows or questions."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InvalidRequest(f"batch: {batch!r}, expected an integer of at least 1")
