"""What every evaluation asks of a model: log-probabilities, or logits, of tokens given those before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from cpuinfer.describe import PAGE_TOKENS
from cpuinfer.request import Logits, Scoring

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cpuinfer.llm import LLM

Progress = Callable[[int, int], None]
"""Called with what is done and the whole."""
Tokens = Sequence[int]

CHUNK = 32 << 20
"""Bytes of logits that a step gives at most, or those of a page of tokens where that is more."""


def score_after(llm: LLM, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[list[float]]:
    """For each (context, continuation), the natural log-probability of each token of the continuation.

    All run together.  A context that several share is computed once, as far as it fills pages of the cache: the tokens
    on its last page are computed with each continuation.
    """
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
