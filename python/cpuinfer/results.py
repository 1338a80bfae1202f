"""What generation gives back: completions, chunks of a stream, scores and timings, as plain immutable data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]
"""stop: an end token or stop string; length: max_tokens or the context was reached; cancelled: by the caller."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of one token under the model's raw logits, with the likeliest alternatives."""

    token_id: int
    text: str
    logprob: float
    top: Sequence[tuple[int, float]] = ()
    """(token id, log-probability), likeliest first."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Times in seconds.  Prompt time ends, and time to first token is read, when the first token is chosen."""

    prompt_tokens: int
    prompt_seconds: float
    generated_tokens: int
    generate_seconds: float
    """From the first token to the last: generated_tokens - 1 steps."""
    first_token_seconds: float
    """From the request to the first token, waiting included."""
    reused_tokens: int = 0
    """Of the prompt, its beginning that an earlier or running request had computed, taken as it was."""

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens computed per second, those reused not counted."""
        return (self.prompt_tokens - self.reused_tokens) / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def generate_rate(self) -> float:
        """Decoded tokens per second."""
        steps = self.generated_tokens - 1
        return steps / self.generate_seconds if steps > 0 and self.generate_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_token_ids: list[int]
    seed: int
    timings: Timings
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer as it is decoded: whole characters only.  The last one carries finish_reason and timings."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probability of every token of a text given those before it."""

    token_ids: list[int]
    logprobs: list[float | None]
    """One per token; None for the first, which nothing precedes."""

    @property
    def total(self) -> float:
        """Sum of the log-probabilities, natural."""
        return sum(value for value in self.logprobs if value is not None)

    @property
    def perplexity(self) -> float:
        """exp(- mean log-probability); 1 for a text of fewer than two tokens."""
        scored = sum(value is not None for value in self.logprobs)
        return math.exp(-self.total / scored) if scored else 1.0
