"""What every evaluation asks of a model: log-probabilities, or logits, of tokens given those before them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cpuinfer.describe import PAGE_TOKENS
from cpuinfer.request import Logits, Scoring

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cpuinfer.llm import LLM
    from cpuinfer.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""Called with what is done and the whole."""
Tokens = Sequence[int]

CHUNK = 32 << 20
"""Bytes of logits that a step gives at most, or those of a page of tokens where that is more."""


class Model(ABC):
    """A model that is computed by other means than an LLM's, as far as evaluations ask.  Attributes: as an LLM's."""

    path: Path
    tokenizer: Tokenizer
    vocabulary: int
    context: int
    isa: str
    kv_cache: str
    deterministic: bool

    @abstractmethod
    def logits_before(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> Iterator[Iterator[npt.NDArray[np.float32]]]:
        """As the function of this name, of each pair; each is taken before the next."""

    def score_after(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
        """As the function of this name."""
        from cpuinfer.evaluate.rows import logprob

        return [
            [logprob(row, target) for row, target in zip(rows, continuation, strict=True)]
            for rows, (_, continuation) in zip(self.logits_before(pairs), pairs, strict=True)
        ]


def logits_of(llm: LLM | Model, pairs: Iterable[tuple[Tokens, Tokens]]) -> Iterator[Iterator[npt.NDArray[np.float32]]]:
    """``logits_before`` of each pair, each to be taken before the next."""
    if isinstance(llm, Model):
        return llm.logits_before(list(pairs))
    return (logits_before(llm, *pair) for pair in pairs)


def score_after(llm: LLM | Model, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
    """For each (context, continuation), the natural log-probability of each token of the continuation.

    All run together.  A context that several share is computed once, as far as it fills pages of the cache: the tokens
    on its last page are computed with each continuation.
    """
    if isinstance(llm, Model):
        return llm.score_after(pairs)
    shared = [list(context) for context, count in Counter(tuple(c) for c, _ in pairs).items() if count > 1]
    long = [context for context in shared if len(context) > PAGE_TOKENS]
    llm.run([Scoring(context, [-1] * len(context)) for context in long])
    requests = [
        Scoring([*context, *continuation[:-1]], [*[-1] * (len(context) - 1), *continuation])
        for context, continuation in pairs
    ]
    llm.run(requests)
    return [request.scores[len(context) - 1 :] for request, (context, _) in zip(requests, pairs, strict=True)]


def logits_before(llm: LLM, context: Tokens, continuation: Tokens) -> Iterator[npt.NDArray[np.float32]]:
    """The logits from which each token of the continuation would be drawn, a row of `vocabulary` at a time.

    A row is valid until the next is taken; no more than CHUNK bytes of them are held.
    """
    first = len(context) - 1
    skipped = first // PAGE_TOKENS * PAGE_TOKENS
    pages = max(1, CHUNK // (4 * llm.vocabulary * PAGE_TOKENS))
    request = Logits([*context, *continuation[:-1]], skipped=skipped, most_rows=pages * PAGE_TOKENS)
    unwanted = first - skipped
    for _ in llm.follow(request):
        while request.rows:
            for row in request.rows.popleft():
                if unwanted == 0:
                    yield row
                else:
                    unwanted -= 1
