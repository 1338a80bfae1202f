"""A stand-in for a loaded model, which the command line's tests open instead of one: it repeats what it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from cpuinfer.errors import ContextFull
from cpuinfer.results import Chunk, Completion, FinishReason, Timings
from cpuinfer.sampling import SamplingParams

FOREVER = "forever"
"""A prompt with this word is answered until the answer is cancelled."""


class FakeLLM:
    """One token a word.  Remembers how it was opened and what it was asked."""

    path = Path("fake.gguf")
    context = 2048
    config = SimpleNamespace(context=2048)
    vocabulary = 100
    isa = "scalar"
    threads = 2
    has_chat_template = True

    def __init__(self) -> None:
        self.opened: dict[str, object] = {}
        self.asked: list[object] = []
        self.params: list[SamplingParams] = []
        self._cancelled = threading.Event()

    def stream(self, prompt: str, params: SamplingParams) -> Iterator[Chunk]:
        return self._say(prompt, prompt, params)

    def stream_chat(self, messages: Sequence[Mapping[str, str]], params: SamplingParams) -> Iterator[Chunk]:
        return self._say([dict(message) for message in messages], messages[-1]["content"], params)

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Completion:
        """Each prompt token takes 1 ms, each generated one 10 ms."""
        self.asked.append(list(prompt))
        self.params.append(params)
        count = params.max_tokens or 1
        timings = Timings(len(prompt), len(prompt) * 1e-3, count, (count - 1) * 1e-2, len(prompt) * 1e-3)
        return Completion("", [0] * count, "length", list(prompt), 0, timings)

    def cancel(self) -> None:
        self._cancelled.set()

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _say(self, asked: object, text: str, params: SamplingParams) -> Iterator[Chunk]:
        self.asked.append(asked)
        self.params.append(params)
        self._cancelled.clear()
        words = ["You ", "said: ", *text.split(" ")]
        if len(words) > self.context:
            said = f"the prompt has {len(words)} tokens and does not fit the context of {self.context}"
            raise ContextFull(said, tokens=len(words))
        return self._chunks(words, params)

    def _chunks(self, words: list[str], params: SamplingParams) -> Iterator[Chunk]:
        limit = params.max_tokens or len(words) + 1
        ids: list[int] = []
        for i, word in enumerate(words[:limit]):
            ids.append(i)
            yield Chunk(word if i in (0, 1) or i == len(words) - 1 else word + " ", [i], seed=7)
        while FOREVER in words and not self._cancelled.wait(0.01):
            ids.append(0)
            yield Chunk(" more", [0], seed=7)
        reason: FinishReason = "length" if limit <= len(words) else "stop"
        if self._cancelled.is_set():
            reason = "cancelled"
        timings = Timings(len(words), 0.5, len(ids), 0.25, 0.5)
        yield Chunk("", [], finish_reason=reason, timings=timings, seed=7)


def open_fake(spec: str | None, **options: object) -> FakeLLM:
    """As cpuinfer.cli.model.open_model."""
    llm = FakeLLM()
    llm.opened = {"spec": spec, **options}
    return llm
