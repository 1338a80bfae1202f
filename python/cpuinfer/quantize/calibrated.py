"""A model quantised layer by layer on calibration text, finished layers kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest
from cpuinfer.formats.canonical import FloatRows, Rows
from cpuinfer.graph import Graph
from cpuinfer.loader import Blueprint
from cpuinfer.ops import Embed
from cpuinfer.quantize import scheme as schemes
from cpuinfer.quantize.folding import foldings
from cpuinfer.quantize.forward import Floats, State, Table, read_matrix, read_stage, run_stage
from cpuinfer.quantize.layers import Layer
from cpuinfer.quantize.recipe import FLOATS, Recipe
from cpuinfer.quantize.result import as_floats, as_scheme, plain
from cpuinfer.quantize.scheme import Scheme
from cpuinfer.quantize.stages import Stage, cut
from cpuinfer.quantize.threaded import Threaded
from cpuinfer.quantize.work import Work, row_arrays, sliced
from cpuinfer.weight import Weight

Progress = Callable[[str, float], None]
"""Takes what is being done and the share that is done."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A quantised model, before it is a file."""

    weights: Mapping[str, Weight]
    """By our name, all that the graph reads."""
    errors: Mapping[str, float]
    """Of matrices that were looked at, as ``Layer.errors``."""


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
        states = self._restored(done, stages)
        with ThreadPoolExecutor(self.threads) as executor:
            for i in range(done, len(stages)):
                self.progress(stages[i].name, i / len(stages))
                last = i + 1 == len(stages)
                states = self._advance(graph, stages[i], i, states, executor, last=last)
        self.progress("layers", 1.0)
        return self._outcome(stages)

    def _advance(
        self, graph: Graph, stage: Stage, index: int, states: list[State], executor: ThreadPoolExecutor, *, last: bool
    ) -> list[State]:
        source = self.blueprint.source.weights
        tables = {op.table for op in stage.ops if isinstance(op, Embed)}
        values: dict[str, Floats | Table] = {**read_stage(stage, source, frozenset(tables))}
        values |= {name: Table(self._plain(name)) for name in tables}
        values |= {name: read_matrix(self._plain(name)) for name in self._tables() & values.keys() - tables}
        layer = Layer(graph, stage, self.recipe, self._schemes(stage, executor), values)
        if layer.rounded:
            folded = foldings(graph) if self.recipe.method == "awq" else ()
            layer.round(layer.measure(states, self.texts), folded, states)
        after = [] if last else run_stage(graph, stage, layer.values, states, self.texts)
        self.work.save(index, self._arrays(layer), _state_arrays(after))
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

    def _restored(self, done: int, stages: Sequence[Stage]) -> list[State]:
        """What the stage after the last finished one goes on from."""
        if not done:
            return [{} for _ in self.texts]
        if done == len(stages):
            return []
        arrays, kept = self.work.state(done - 1), sorted(stages[done - 1].kept, key=lambda value: value.index)
        expected = {f"{i}/{value.index}" for i in range(len(self.texts)) for value in kept}
        if arrays.keys() != expected:
            raise InvalidRequest(f"{self.work.folder}: is of another run: delete it")
        return [{value: arrays[f"{i}/{value.index}"] for value in kept} for i in range(len(self.texts))]

    def _outcome(self, stages: Sequence[Stage]) -> Outcome:
        source = self.blueprint.source.weights
        weights: dict[str, Weight] = {}
        errors: dict[str, float] = {}
        for index in range(len(stages)):
            for name, kind in self.work.names(index).items():
                weights[name] = self._kept(index, name, source[name], kind)
                if "error" in kind:
                    errors[name] = float(self.work.stage(index, f"{name}/error")[f"{name}/error"])
        for name in self.blueprint.graph.used:
            if name not in weights:
                weights[name] = self._plain(name)
        return Outcome({name: weights[name] for name in self.blueprint.graph.used}, errors)

    def _kept(self, index: int, name: str, source: Weight, kind: set[str]) -> Weight:
        encoding = self.recipe.encodings.get(name, "F32")
        if "codes" not in kind and "raw" not in kind:

            def floats(begin: int, end: int) -> Rows:
                return sliced(self.work.rows(index, f"{name}/", "F32"), begin, end)

            changed = as_floats(source, floats)
            return changed if encoding == "F32" else plain(changed, encoding, "opt-rtn")

        def rows(begin: int, end: int) -> Rows:
            return sliced(self.work.rows(index, f"{name}/", encoding), begin, end)

        order = self.work.stage(index, f"{name}/order").get(f"{name}/order") if "order" in kind else None
        return as_scheme(source, schemes.find(encoding), rows, order)


def _state_arrays(states: Sequence[State]) -> dict[str, Floats]:
    return {f"{i}/{value.index}": x for i, state in enumerate(states) for value, x in state.items()}
