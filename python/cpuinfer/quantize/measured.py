"""What the matrices of the unrounded model read, as mean squares: measured once, for all sizes that are tried."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpuinfer.loader import Blueprint
from cpuinfer.quantize.calibrated import restored, state_arrays
from cpuinfer.quantize.forward import Floats, State, read_stage, run_stage
from cpuinfer.quantize.outcome import Progress
from cpuinfer.quantize.stages import Stage, cut
from cpuinfer.quantize.statistics import Statistics
from cpuinfer.quantize.work import Work

TEXTS = 8
"""Of the stretches that calibration has.  A mean of squares needs fewer than a matrix of products: on two models of 4M
weights in 3 and 4 bits, 8 stretches of 512 tokens give the KL of 128 within its standard error, 4 up to 14 % more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The measuring of a model."""

    blueprint: Blueprint
    texts: Sequence[Sequence[int]]
    threads: int
    progress: Progress

    def mean_squares(self, target: Path, facts: Mapping[str, str]) -> dict[str, Floats]:
        """[k] of every matrix that reads something, by name.  Kept beside the target; a killed run goes on."""
        key = hashlib.sha256(json.dumps(["mean squares", dict(facts)], sort_keys=True).encode()).hexdigest()[:16]
        work = Work(target, key)
        stages, texts = cut(self.blueprint.graph), spread(self.texts, TEXTS)
        done = work.finished()
        states = restored(work, done, stages, len(texts))
        with ThreadPoolExecutor(self.threads) as executor:
            for i in range(done, len(stages)):
                self.progress(f"{stages[i].name}: measured", i / len(stages))
                found, states = self._measure(stages[i], states, texts, executor, last=i + 1 == len(stages))
                work.save(i, found, state_arrays(states))
        arrays = [work.stage(i) for i in range(len(stages))]
        return {name: found.astype(np.float32) for each in arrays for name, found in each.items()}

    def _measure(
        self,
        stage: Stage,
        states: Sequence[State],
        texts: Sequence[Sequence[int]],
        executor: ThreadPoolExecutor,
        *,
        last: bool,
    ) -> tuple[dict[str, npt.NDArray[np.generic]], list[State]]:
        source = self.blueprint.source.weights
        values = read_stage(stage, source)
        groups = list(stage.shared_inputs())
        found = {names[0]: Statistics.empty(source[names[0]].shape[1], hessian=False) for names in groups}

        def observe(name: str, x: Floats) -> None:
            if name in found and len(x):
                found[name].add(x)

        graph = self.blueprint.graph
        states = run_stage(graph, stage, values, states, texts, observe=observe, executor=executor, only_observe=last)
        return {name: found[names[0]].mean_square for names in groups for name in names}, states


def spread(texts: Sequence[Sequence[int]], count: int) -> Sequence[Sequence[int]]:
    """At most so many, from all parts."""
    there = len(texts)
    return [texts[i * there // count] for i in range(count)] if there > count else texts
