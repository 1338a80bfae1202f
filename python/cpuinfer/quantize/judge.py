"""How close a quantised model stays to its source on text it was not calibrated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from cpuinfer.errors import NumericalError
from cpuinfer.evaluate import choices, divergence, save_logits
from cpuinfer.llm import LLM
from cpuinfer.loader import Blueprint
from cpuinfer.quantize.forward import read_matrix
from cpuinfer.quantize.streamed import Streamed
from cpuinfer.weight import Weight

if TYPE_CHECKING:
    from cpuinfer.evaluate import Divergence, Question

WINDOW = 512
LETTERS = 32_000
"""Of the held-out text, which are some 8,000 tokens of English."""
STREAMED_FROM = 1 << 30
"""Bytes of a source, as it would be loaded, from which on it is taken through its texts stage by stage: a fixed number,
for results should not depend on what memory is free."""
QUESTIONS = 64
"""Answered together by a source that is read anew for each lot."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A candidate beside the source."""

    divergence: Divergence
    accuracy: float | None
    """Of multiple choice, by the model's log-probability of a choice; None without questions."""
    source_accuracy: float | None

    @property
    def loss(self) -> float:
        """What the goal is about: by how much perplexity is higher, or accuracy lower, whichever share is larger."""
        worse = self.divergence.perplexity_ratio.value - 1
        if self.accuracy is not None and self.source_accuracy:
            worse = max(worse, 1 - self.accuracy / self.source_accuracy)
        return worse


class Judge:
    """The source's log-probabilities over a held-out text, in a file while it is needed."""

    def __init__(
        self,
        blueprint: Blueprint,
        text: str,
        folder: Path,
        *,
        threads: int | None,
        questions: Sequence[Question] = (),
    ) -> None:
        self._blueprint = blueprint
        self._text = text[:LETTERS]
        self._threads = threads
        self._questions = questions
        self._context = min(2 * WINDOW, blueprint.config.context)
        self._window = min(WINDOW, self._context)
        self._path = folder / "source-logits.safetensors"
        self._accuracy: float | None = None

    def __enter__(self) -> Judge:
        try:
            with self._source() as model:
                save_logits(model, self._text, self._path, window=self._window, stride=self._window)
                self._accuracy = self._answers(model)
        except NumericalError as error:
            raise self._explained(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)

    def verdict(self, weights: Mapping[str, Weight]) -> Verdict:
        """Of the source with other weights."""
        source = replace(self._blueprint.source, weights=weights)
        with self._opened(replace(self._blueprint, source=source)) as llm:
            found = divergence(llm, self._text, self._path)
            return Verdict(found, self._answers(llm), self._accuracy)

    def _explained(self, error: NumericalError) -> NumericalError:
        """The error, or one that names the weight it comes of."""
        for weight in self._blueprint.source.weights.values():
            if not np.isfinite(read_matrix(weight)).all():
                return NumericalError(f"{self._blueprint.source.path}: {weight.name}: holds NaN or infinity")
        return error

    def _opened(self, blueprint: Blueprint) -> LLM:
        return LLM(blueprint, threads=self._threads, context=self._context, prefix_cache=0, deterministic=True)

    def _source(self) -> AbstractContextManager[LLM | Streamed]:
        used = self._blueprint.graph.used
        if sum(self._blueprint.tensor(name).packed_bytes for name in used) < STREAMED_FROM:
            return self._opened(self._blueprint)
        return nullcontext(Streamed(self._blueprint, context=self._context, threads=self._threads))

    def _answers(self, model: LLM | Streamed) -> float | None:
        if not self._questions:
            return None
        batch = QUESTIONS if isinstance(model, Streamed) else 8
        found = choices(model, self._questions, normalise="token", letters=False, batch=batch)
        return found.accuracy.accuracy.value
