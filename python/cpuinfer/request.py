"""What a caller is waiting for: a generation, scores or logits of one sequence, as the scheduler sees it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cpuinfer.errors import Cancelled
from cpuinfer.results import Chunk, FinishReason, Timings, TokenLogprob
from cpuinfer.streaming import Detokenizer, StopMatcher

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cpuinfer import _core
    from cpuinfer.sampling import SamplingParams
    from cpuinfer.tokenizer import Tokenizer

Want = Literal["nothing", "sample", "scores", "logits"]


@dataclass(frozen=True, slots=True)
class Feed:
    """The tokens a sequence takes in one step, and what is wanted of them."""

    tokens: Sequence[int]
    want: Want
    targets: Sequence[int] | None = None


NO_SEQUENCE = -1
"""Not admitted yet, or no longer."""
NO_LIMIT = 1 << 30
"""Of tokens in a step."""


class Request(ABC):
    """One sequence's work.  Subclasses say what each step feeds and what to do with its result."""

    sampler: _core.Sampler | None = None

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = list(prompt)
        self.fed = 0
        """Tokens the sequence holds."""
        self.reused = 0
        """Of these, tokens of the prompt that another sequence had computed."""
        self.sequence: int = NO_SEQUENCE
        self.pages = 0
        """Cache pages set aside for it."""
        self.done = False
        self.error: Exception | None = None
        self.cancelled = False
        self.dropped = False
        """Nobody waits for it any more."""

    @property
    def most_tokens(self) -> int:
        """The most positions it can come to need."""
        return len(self.prompt)

    @property
    def most_feed(self) -> int:
        """Tokens of its next step, at most: whole pages of the cache."""
        return NO_LIMIT

    @property
    def reusable(self) -> Sequence[int]:
        """The tokens whose results it can do without if another sequence has computed them, and the one after them."""
        return ()

    @property
    def ready(self) -> bool:
        """There is something for the caller to take."""
        return self.done

    def begin(self) -> None:  # noqa: B027, most have nothing to do
        """Called when the scheduler admits it."""

    @abstractmethod
    def next_feed(self, end: int) -> Feed:
        """The tokens after the `fed` first ones, up to the `end` of the prompt's; of an answer, the last one."""

    @abstractmethod
    def receive(self, feed: Feed, result: Any) -> None:
        """Take the result of a feed; `fed` still counts the tokens before it."""

    def fail(self, error: Exception) -> None:
        """End with an error for the caller."""
        self.error = error
        self.done = True

    def finish_cancelled(self) -> None:
        """End because someone asked to; a part of the result would pass for all of it."""
        self.fail(Cancelled("cancelled before its end"))


class Scoring(Request):
    """After each token of a text, the log-probability of a target, where there is one."""

    def __init__(self, prompt: Sequence[int], targets: Sequence[int]) -> None:
        """`targets`: one for each token, -1 where nothing is asked."""
        super().__init__(prompt)
        self.targets = list(targets)
        self.scores = [0.0] * len(self.prompt)
        """Natural; 0 where nothing is asked."""

    @property
    def reusable(self) -> Sequence[int]:
        first = next((i for i, target in enumerate(self.targets) if target >= 0), len(self.prompt) - 1)
        return self.prompt[: first + 1]

    def next_feed(self, end: int) -> Feed:
        targets = self.targets[self.fed : end]
        return Feed(self.prompt[self.fed : end], "scores" if max(targets, default=-1) >= 0 else "nothing", targets)

    def receive(self, feed: Feed, result: npt.NDArray[np.float32] | None) -> None:
        end = self.fed + len(feed.tokens)
        if result is not None:
            self.scores[self.fed : end] = map(float, result)
        self.done = end == len(self.prompt)


class Logits(Request):
    """The logits after each token of a text but the first ones, which the caller may take as they come."""

    def __init__(self, prompt: Sequence[int], *, skipped: int = 0, most_rows: int = NO_LIMIT) -> None:
        """`skipped`: tokens whose logits are not wanted.  `most_rows`: of a step.  Both in whole pages of the cache."""
        super().__init__(prompt)
        self.rows: deque[npt.NDArray[np.float32]] = deque()
        self._skipped = skipped
        self._most_rows = most_rows

    @property
    def most_feed(self) -> int:
        return self._skipped - self.fed if self.fed < self._skipped else self._most_rows

    @property
    def ready(self) -> bool:
        return self.done or bool(self.rows)

    def next_feed(self, end: int) -> Feed:
        return Feed(self.prompt[self.fed : end], "nothing" if end <= self._skipped else "logits")

    def receive(self, feed: Feed, result: npt.NDArray[np.float32] | None) -> None:
        if result is not None:
            self.rows.append(result)
        self.done = self.fed + len(feed.tokens) == len(self.prompt)


class Generation(Request):
    """An answer: sampled tokens turned into text, until something ends it."""

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        seed: int,
        sampler: _core.Sampler,
        tokenizer: Tokenizer,
        context: int,
    ) -> None:
        super().__init__(prompt)
        self.params = params
        self.seed = seed
        self.sampler = sampler
        self.chunks: deque[Chunk] = deque()
        self.finish_reason: FinishReason | None = None
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopMatcher(params.stop_strings())
        self._ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else tokenizer.eos_ids)
        # The last token of an answer is sampled but never fed, so one more fits than positions are left.
        room = context - len(self.prompt) + 1
        self._limit = room if params.max_tokens is None else min(params.max_tokens, room)
        self._pending: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._submitted = time.perf_counter()
        self._begun = self._first = self._last = self._submitted
        self.generated = 0
        self._next = -1

    @property
    def most_tokens(self) -> int:
        return len(self.prompt) + self._limit - 1

    @property
    def reusable(self) -> Sequence[int]:
        return self.prompt

    @property
    def ready(self) -> bool:
        return self.done or bool(self.chunks)

    def begin(self) -> None:
        self._begun = time.perf_counter()

    def next_feed(self, end: int) -> Feed:
        if self.fed >= len(self.prompt):
            return Feed([self._next], "sample")
        return Feed(self.prompt[self.fed : end], "sample" if end == len(self.prompt) else "nothing")

    def receive(self, feed: Feed, result: Any) -> None:
        if feed.want == "nothing":
            return
        token, logprob, top = result
        self._last = time.perf_counter()
        if self.generated == 0:
            self._first = self._last
        self.generated += 1
        self._next = token
        self._pending.append(token)
        if self.params.logprobs is not None:
            self._logprobs.append(TokenLogprob(token, self._tokenizer.token_text(token), logprob, tuple(top)))
        if token in self._ends:
            self._emit(*self._rest("stop"))
            return
        text, hit = self._stops.feed(self._detokenizer.add(token))
        if hit:
            self._emit(text, "stop")
        elif self.generated >= self._limit:
            rest, reason = self._rest("length")
            self._emit(text + rest, reason)
        else:
            self._emit(text, None)

    def finish_cancelled(self) -> None:
        self._emit(*self._rest("cancelled"))

    def timings(self) -> Timings:
        """So far."""
        return Timings(
            prompt_tokens=len(self.prompt),
            prompt_seconds=self._first - self._begun,
            generated_tokens=self.generated,
            generate_seconds=self._last - self._first,
            first_token_seconds=self._first - self._submitted,
            reused_tokens=self.reused,
        )

    def _rest(self, reason: FinishReason) -> tuple[str, FinishReason]:
        """What was held back, and why the answer ends: a stop string may be complete only now."""
        text, hit = self._stops.feed(self._detokenizer.finish())
        return (text, "stop") if hit else (text + self._stops.finish(), reason)

    def _emit(self, text: str, reason: FinishReason | None) -> None:
        self.finish_reason = reason
        self.done = reason is not None
        if not (text or self._pending or reason):
            return
        logprobs = self._logprobs if self.params.logprobs is not None else None
        timings = self.timings() if reason else None
        self.chunks.append(Chunk(text, self._pending, logprobs, reason, timings, self.seed))
        self._pending, self._logprobs = [], []
