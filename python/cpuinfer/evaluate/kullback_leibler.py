"""How far a model's predictions are from a reference's, token by token: KL(reference || model) over a text."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpuinfer.errors import InvalidRequest
from cpuinfer.evaluate.estimates import Estimate, mean_of_blocks
from cpuinfer.evaluate.identity import Subject, Text
from cpuinfer.evaluate.likelihood import Perplexity, Reading, WindowLoss
from cpuinfer.evaluate.scoring import Model, Progress, logits_before, logits_of
from cpuinfer.evaluate.windows import Span, Windows

if TYPE_CHECKING:
    from cpuinfer.evaluate.rows import Row, RowDivergence
    from cpuinfer.llm import LLM


@dataclass(frozen=True, slots=True)
class WindowDivergence:
    """What one window scored: sums over its tokens.

    Attributes:
        start: index, in the text, of the first token scored.
        tokens: how many.
        divergence: in nats.
        same_top: tokens for which both models have the same likeliest one.
        reference_loss, loss: negative log-probabilities of the text's tokens, in nats.
    """

    start: int
    tokens: int
    divergence: float
    same_top: int
    reference_loss: float
    loss: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """A model beside its reference.

    Attributes:
        tokens: compared.
        divergence: mean KL(reference || model) of a token, nats; errors take windows as independent blocks.
        median, percentile_90, percentile_99, largest: of the tokens' KL.
        same_top: share of tokens for which both models have the same likeliest one.
        probability_rms: root mean square of the difference in probability of the text's token.
        reference_perplexity, perplexity: of the text.
        perplexity_ratio: the model's by the reference's; its interval is that of the tokens' differences, and so much
            narrower than of either.
        items: the windows.
    """

    model: Subject
    reference: Subject
    text: Text
    windows: Windows
    tokens: int
    divergence: Estimate
    median: float
    percentile_90: float
    percentile_99: float
    largest: float
    same_top: Estimate
    probability_rms: float
    reference_perplexity: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate
    items: tuple[WindowDivergence, ...]


def divergence(
    llm: LLM,
    text: str | Path,
    reference: LLM | str | Path,
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """KL(reference || model) of each token of a text, over whole vocabularies.

    Windows are as in `perplexity`.  Logits are compared as they come: of both models some tens of MB are held.

    Args:
        reference: another open model of the same vocabulary, or a file of `save_logits`, which then says the windows.
        window, stride, progress: see `perplexity`.

    Raises InvalidRequest, saying what differs, if the two do not read the text as the same tokens.
    """
    if isinstance(reference, (str, Path)):
        source: _Reference = _StoredReference(Path(reference), llm, text, window=window, stride=stride)
    else:
        source = _OpenReference(reference, llm, text, window=window, stride=stride)
    from cpuinfer.evaluate.rows import RowComparer

    comparer = RowComparer(llm.vocabulary)
    reading, tokens = source.reading, []
    items = []
    for span, rows in zip(reading.spans, source.windows(), strict=True):
        context, continuation = reading.windows.pair(reading.tokens, span)
        own = logits_before(llm, context, continuation)
        found = [comparer.compare(*pair) for pair in zip(rows, own, continuation, strict=True)]
        items.append(_window(span, found))
        tokens += [(row.divergence, math.exp(row.logprob) - math.exp(row.reference_logprob)) for row in found]
        if progress is not None:
            progress(len(tokens), reading.scored)
    return _summary(reading, source.subject, items, tokens)


def save_logits(
    llm: LLM | Model,
    text: str | Path,
    path: Path,
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Write a model's log-probabilities over a text to a file for `divergence`: 2 bytes a token and entry of the
    vocabulary (see cpuinfer.evaluate.logits_file).  Returns the text's perplexity.

    The file has its name once it is whole.  Raises OSError where it can't be written.
    """
    from cpuinfer.evaluate.logits_file import LogitsWriter

    reading = Reading(llm, text, window=window, stride=stride)
    items: list[WindowLoss] = []
    done = 0
    with LogitsWriter(
        Path(path),
        model=reading.subject,
        text=reading.text,
        windows=reading.windows,
        tokens=reading.tokens,
        scored=reading.scored,
    ) as writer:
        pairs = list(reading.pairs())
        for span, (_, continuation), rows in zip(reading.spans, pairs, logits_of(llm, pairs), strict=True):
            loss = -math.fsum(writer.add(row, target) for row, target in zip(rows, continuation, strict=True))
            items.append(WindowLoss(span.start, span.tokens, loss))
            done += span.tokens
            if progress is not None:
                progress(done, reading.scored)
    return reading.perplexity(items)


class _Reference(ABC):
    """Where the other rows come from, window by window."""

    reading: Reading
    subject: Subject

    @abstractmethod
    def windows(self) -> Iterator[Iterator[Row]]:
        """The rows of each window, to be taken before the next."""


class _OpenReference(_Reference):
    def __init__(self, llm: LLM, other: LLM, text: str | Path, *, window: int | None, stride: int | None) -> None:
        self._llm = llm
        context = min(llm.context, other.context)
        self.reading = Reading(other, text, window=window, stride=stride, context=context)
        own = Reading(llm, text, window=self.reading.windows.window, stride=self.reading.windows.stride)
        self.subject = own.subject
        names = f"{own.subject.name} and {self.reading.subject.name}"
        if own.subject.vocabulary != self.reading.subject.vocabulary:
            sizes = f"{own.subject.vocabulary} and {self.reading.subject.vocabulary}"
            raise InvalidRequest(f"{names} have vocabularies of {sizes}: they can't be compared")
        if own.subject.tokenizer != self.reading.subject.tokenizer or own.tokens != self.reading.tokens:
            raise InvalidRequest(f"{names} have different tokenizers: their predictions can't be compared")
        if own.windows != self.reading.windows:
            raise InvalidRequest(
                f"{names} begin a text with different tokens: {own.windows.bos} and {self.reading.windows.bos}"
            )

    def windows(self) -> Iterator[Iterator[Row]]:
        return (logits_before(self._llm, *pair) for pair in self.reading.pairs())


class _StoredReference(_Reference):
    def __init__(self, path: Path, llm: LLM, text: str | Path, *, window: int | None, stride: int | None) -> None:
        from cpuinfer.evaluate.logits_file import LogitsFile, check_same_reading

        self._file = LogitsFile(path)
        self.subject = self._file.model
        theirs = self._file.windows
        for name, asked, stored in (("window", window, theirs.window), ("stride", stride, theirs.stride)):
            if asked not in (None, stored):
                raise InvalidRequest(f"{name}: {asked}, but the logits in {path} are of {stored}: leave it out")
        self.reading = Reading(llm, text, window=theirs.window, stride=theirs.stride)
        check_same_reading(
            self._file,
            self.reading.subject,
            self.reading.tokens,
            self.reading.windows.bos,
            self.reading.text.name,
        )

    def windows(self) -> Iterator[Iterator[Row]]:
        rows = self._file.rows()
        return (_take(rows, span.tokens) for span in self.reading.spans)


def _take(rows: Iterator[Row], count: int) -> Iterator[Row]:
    """As itertools.islice, but without asking for one row more."""
    for _ in range(count):
        yield next(rows)


def _window(span: Span, rows: list[RowDivergence]) -> WindowDivergence:
    return WindowDivergence(
        start=span.start,
        tokens=span.tokens,
        divergence=math.fsum(row.divergence for row in rows),
        same_top=sum(row.same_top for row in rows),
        reference_loss=-math.fsum(row.reference_logprob for row in rows),
        loss=-math.fsum(row.logprob for row in rows),
    )


def _summary(
    reading: Reading, reference: Subject, items: list[WindowDivergence], tokens: list[tuple[float, float]]
) -> Divergence:
    import numpy as np

    counts = [item.tokens for item in items]
    median, p90, p99 = np.quantile([value for value, _ in tokens], [0.5, 0.9, 0.99]).tolist()
    differences = [item.loss - item.reference_loss for item in items]
    return Divergence(
        model=reading.subject,
        reference=reference,
        text=reading.text,
        windows=reading.windows,
        tokens=len(tokens),
        divergence=mean_of_blocks([item.divergence for item in items], counts).within(0, math.inf),
        median=median,
        percentile_90=p90,
        percentile_99=p99,
        largest=max(value for value, _ in tokens),
        same_top=mean_of_blocks([item.same_top for item in items], counts).within(0, 1),
        probability_rms=math.sqrt(math.fsum(change * change for _, change in tokens) / len(tokens)),
        reference_perplexity=mean_of_blocks([item.reference_loss for item in items], counts).exponential(),
        perplexity=mean_of_blocks([item.loss for item in items], counts).exponential(),
        perplexity_ratio=mean_of_blocks(differences, counts).exponential(),
        items=tuple(items),
    )
