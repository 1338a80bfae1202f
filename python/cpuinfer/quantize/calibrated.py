"""A model quantised layer by layer on calibration text, finished layers kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest
from cpuinfer.formats.canonical import FloatRows
from cpuinfer.graph import Graph
from cpuinfer.loader import Blueprint
from cpuinfer.ops import Embed
from cpuinfer.quantize import scheme as schemes
from cpuinfer.quantize.folding import foldings
from cpuinfer.quantize.forward import State, read_stage, run_stage
from cpuinfer.quantize.layers import Layer
from cpuinfer.quantize.outcome import Outcome, Progress, outcome
from cpuinfer.quantize.recipe import FLOATS, Recipe
from cpuinfer.quantize.result import plain
from cpuinfer.quantize.scheme import Scheme
from cpuinfer.quantize.stages import Stage, cut
from cpuinfer.quantize.threaded import Threaded
from cpuinfer.quantize.work import Work, row_arrays
from cpuinfer.weight import Weight

ON_WHOLE_LAYERS = ("awq", "autoround")
"""Methods that choose for several matrices of a layer together, so that all are measured before any is rounded."""


@dataclass(slots=True, kw_only=True)
class Calibrated:
    """The run of a recipe."""

    blueprint: Blueprint
    recipe: Recipe
    texts: Sequence[Sequence[int]]
    work: Work
    threads: int
    progress: Progress = lambda _what, _share: None

    def run(self) -> Outcome:
        """Go on from what is finished, to the end."""
        graph = self.blueprint.graph
        stages = cut(graph)
        done = self.work.finished()
        states = restored(self.work, done, stages, len(self.texts))
        with ThreadPoolExecutor(self.threads) as executor:
            for i in range(done, len(stages)):
                self.progress(stages[i].name, i / len(stages))
                last = i + 1 == len(stages)
                states = self._advance(graph, stages[i], i, states, executor, last=last)
        self.progress("layers", 1.0)
        return outcome(self.blueprint, self.recipe, self.work, stages)

    def _advance(
        self, graph: Graph, stage: Stage, index: int, states: list[State], executor: ThreadPoolExecutor, *, last: bool
    ) -> list[State]:
        weights = {name: self.blueprint.source.weights[name] for name in stage.weights()}
        values = read_stage(stage, weights | {name: self._plain(name) for name in self._tables() & weights.keys()})
        layer = Layer(graph, stage, self.recipe, self._schemes(stage, executor), values, executor)
        if self.recipe.method in ON_WHOLE_LAYERS:
            if layer.rounded:
                folded = foldings(graph) if self.recipe.method == "awq" else ()
                layer.round(layer.measure(states, self.texts), folded, states)
            after = [] if last else run_stage(graph, stage, layer.values, states, self.texts, executor=executor)
        else:
            after = layer.advance(states, self.texts, last=last)
        self.work.save(index, self._arrays(layer), state_arrays(after))
        return after

    def _plain(self, name: str) -> Weight:
        return plain(self.blueprint.source.weights[name], self.recipe.encodings.get(name), "opt-rtn")

    def _schemes(self, stage: Stage, executor: ThreadPoolExecutor) -> dict[str, Scheme]:
        """Of what a stage multiplies with; tables are rounded apart, and a head that is one is with them."""
        tables = self._tables()
        found: dict[str, Scheme] = {}
        for name in stage.weights():
            encoding = self.recipe.encodings.get(name, "F32")
            if encoding not in FLOATS and name not in tables:
                found[name] = Threaded(schemes.find(encoding), executor, self.threads)
        return found

    def _tables(self) -> set[str]:
        embeds = [op for op in self.blueprint.graph.ops if isinstance(op, Embed)]
        return {name for op in embeds for name in (op.table, op.positions) if name is not None}

    def _arrays(self, layer: Layer) -> dict[str, npt.NDArray[np.generic]]:
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        for name, result in layer.results.items():
            arrays |= row_arrays(f"{name}/", layer.schemes[name].rows(result.codes, result.fit))
            if result.order is not None:
                arrays[f"{name}/order"] = result.order
            arrays[f"{name}/error"] = np.array(layer.errors[name])
        for name, values in layer.changed.items():
            arrays |= row_arrays(f"{name}/", FloatRows(np.atleast_2d(values), "f32"))
        return arrays


def restored(work: Work, done: int, stages: Sequence[Stage], texts: int) -> list[State]:
    """What the stage after the last finished one goes on from, of so many sequences."""
    if not done:
        return [{} for _ in range(texts)]
    if done == len(stages):
        return []
    arrays, kept = work.state(done - 1), sorted(stages[done - 1].kept, key=lambda value: value.index)
    expected = {f"{i}/{value.index}" for i in range(texts) for value in kept}
    if arrays.keys() != expected:
        raise InvalidRequest(f"{work.folder}: is of another run: delete it")
    return [{value: arrays[f"{i}/{value.index}"] for value in kept} for i in range(texts)]


def state_arrays(states: Sequence[State]) -> dict[str, npt.NDArray[np.generic]]:
    """What is gone on from, to be saved."""
    return {f"{i}/{value.index}": x for i, state in enumerate(states) for value, x in state.items()}
