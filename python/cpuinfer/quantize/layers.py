"""One layer quantised: what its matrices read is measured, then each is rounded by the method asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import CpuInferError
from cpuinfer.graph import Graph
from cpuinfer.ops import Glu, Linears, Op, inputs
from cpuinfer.quantize.block import blocks, matrices
from cpuinfer.quantize.folding import Folding, fold
from cpuinfer.quantize.forward import Floats, State, Table, batches, run_stage
from cpuinfer.quantize.operators import Forward
from cpuinfer.quantize.quantised import Quantised, squares
from cpuinfer.quantize.recipe import Recipe
from cpuinfer.quantize.scheme import Scheme
from cpuinfer.quantize.stages import Stage, op_inputs
from cpuinfer.quantize.statistics import Statistics

SAMPLE = 512
"""Inputs of each matrix kept as they are, for methods that try things out."""
TOGETHER = 4096
"""Tokens whose products are added to a Hessian at once."""


@dataclass(slots=True)
class Layer:
    """A stage being quantised: its weights in fp32, and what comes of them."""

    graph: Graph
    stage: Stage
    recipe: Recipe
    schemes: Mapping[str, Scheme]
    """By name, of the matrices to be rounded."""
    values: dict[str, Floats | Table]
    """What a matrix is taken to be from here on: once it is rounded, what the rounded one is."""
    executor: Executor | None = None
    results: dict[str, Quantised] = field(default_factory=dict)
    changed: dict[str, Floats] = field(default_factory=dict)
    """Tensors that stay floats, and took in what a matrix gave away."""
    errors: dict[str, float] = field(default_factory=dict)
    """Of each matrix: the squared error weighted by what its inputs are, relative to the weighted square."""

    @property
    def rounded(self) -> list[str]:
        """The matrices to be rounded, in the order they are read."""
        return [name for names in self.stage.shared_inputs() for name in names if name in self.schemes]

    def matrix(self, name: str) -> Floats:
        """A matrix in memory."""
        values = self.values[name]
        return values[np.arange(len(values))] if isinstance(values, Table) else values

    def measure(self, states: Sequence[State], texts: Sequence[Sequence[int]]) -> dict[str, Statistics]:
        """What the matrices read, by name, as the stage is now; those that share an input share the statistics."""
        return self._measure(self.stage, states, texts)

    def advance(self, states: Sequence[State], texts: Sequence[Sequence[int]], *, last: bool = False) -> list[State]:
        """All sequences through the stage, op by op: each op's matrices are rounded when what they read is known, and
        then used as they have become.  So one pass measures and goes on, and each matrix is fitted to inputs that all
        rounding before it has changed.

        last: the states after it are not wanted.
        """
        forward = Forward(self.graph, self.values, executor=self.executor)
        known = [dict(state) for state in states]
        rounded = {i for i, op in enumerate(self.stage.ops) if self.schemes.keys() & set(matrices(op))}
        for i, op in enumerate(self.stage.ops):
            if i in rounded:
                self.round(self._look(op, known, texts, forward), (), states)
            if last and i >= max(rounded, default=-1):
                return []
            needed = {value for each in self.stage.ops[i + 1 :] for value in inputs(each)} | self.stage.kept
            for state, tokens in zip(known, texts, strict=True):
                state.update(forward.apply(op, state, tokens))
                for value in state.keys() - needed:
                    del state[value]
        return known

    def _look(
        self, op: Op, states: Sequence[State], texts: Sequence[Sequence[int]], forward: Forward
    ) -> dict[str, Statistics]:
        if not isinstance(op, (Linears, Glu)):
            return self._measure(Stage(self.stage.name, (op,), frozenset()), states, texts)
        found = self._empty(op_inputs(op))
        for some in batches(states, TOGETHER):
            x = np.concatenate([forward.reads(op, state) for state in states[some]])
            for one in {id(one): one for one in found.values()}.values():
                one.add(x)
        return found

    def _measure(self, stage: Stage, states: Sequence[State], texts: Sequence[Sequence[int]]) -> dict[str, Statistics]:
        shared = self._empty(stage.shared_inputs())
        first = {id(one): name for name, one in reversed(shared.items())}

        def observe(name: str, x: Floats) -> None:
            one = shared.get(name)
            if one is not None and first[id(one)] == name and len(x):
                one.add(x.reshape(-1, one.k))

        run_stage(
            self.graph, stage, self.values, states, texts, observe=observe, executor=self.executor, only_observe=True
        )
        return shared

    def _empty(self, shared_inputs: Iterable[Sequence[str]]) -> dict[str, Statistics]:
        found: dict[str, Statistics] = {}
        gptq, awq = self.recipe.method == "gptq", self.recipe.method == "awq"
        for names in shared_inputs:
            wanted = [name for name in names if name in self.schemes]
            if wanted:
                k = self.matrix(wanted[0]).shape[1]
                hessian, capacity = gptq and self.stage.is_layer, SAMPLE if awq else 0
                one = Statistics.empty(k, hessian=hessian, capacity=capacity, seed=self.recipe.seed)
                found |= dict.fromkeys(wanted, one)
        return found

    def round(self, statistics: Mapping[str, Statistics], foldings: Iterable[Folding], states: Sequence[State]) -> None:
        """The matrices that were measured, by the recipe's method; those of a head by importance."""
        if self.recipe.method == "autoround" and self.stage.is_layer:
            self._learn(statistics, states)
            return
        scaled: dict[str, Floats] = {}
        if self.recipe.method == "awq" and self.stage.is_layer:
            for folding in foldings:
                if set(folding.weights) <= self.schemes.keys() and folding.source in self.values:
                    scaled |= self._fold(folding, statistics)
        for name, measured in statistics.items():
            before, counted = self.matrix(name), measured.mean_square
            if name in scaled:
                counted = counted / scaled[name] ** 2  # what the folded model's matrix reads
            self.take(name, self._round(name, measured, counted), before, counted)

    def take(self, name: str, result: Quantised, before: Floats, counted: Floats) -> None:
        """A matrix is rounded; counted [k]: the mean square of each of its inputs."""
        after = result.values(self.schemes[name])
        self.errors[name] = weighted_error(before, after, counted)
        self.results[name], self.values[name] = result, after

    def _learn(self, statistics: Mapping[str, Statistics], states: Sequence[State]) -> None:
        from cpuinfer.quantize.auto_round import Options, auto_round

        block = next(block for block in blocks(self.graph) if block.name == self.stage.name)
        before = {name: self.matrix(name) for name in self.stage.weights()}
        learned = auto_round(
            block,
            before,
            np.stack([state[block.input] for state in states]),
            {name: self.schemes[name] for name in self.rounded},
            importance={name: statistics[name].mean_square for name in self.rounded},
            options=Options(iterations=self.recipe.iterations, search=True, seed=self.recipe.seed),
        )
        for name, result in learned.weights.items():
            self.take(name, result, before[name], statistics[name].mean_square)

    def _fold(self, folding: Folding, statistics: Mapping[str, Statistics]) -> dict[str, Floats]:
        from cpuinfer.quantize.awq import search_scales

        names = folding.weights
        found = search_scales(
            [self.matrix(name) for name in names],
            statistics[names[0]],
            [self.schemes[name] for name in names],
            tied=folding.tying(),
        )
        if found.exponent == 0 and (found.scale == 1).all():
            return {}
        for name, values in fold(folding, found.scale, self._float).items():
            self.values[name] = values.astype(np.float32, copy=False)
            if name not in self.schemes:
                self.changed[name] = self.values[name]  # type: ignore[assignment]
        return dict.fromkeys(names, found.scale)

    def _float(self, name: str) -> npt.NDArray[np.floating]:
        return self.matrix(name)

    def _round(self, name: str, statistics: Statistics, counted: Floats) -> Quantised:
        w, scheme = self.matrix(name), self.schemes[name]
        try:
            if self.recipe.method == "gptq" and self.stage.is_layer:
                from cpuinfer.quantize.gptq import gptq

                order = self.recipe.order
                return gptq(w, statistics, scheme, damping=self.recipe.damping, order=order)  # type: ignore[arg-type]
            fit = scheme.fit(w, counted)
            return Quantised(scheme.codes(w, fit), fit)
        except CpuInferError as error:
            raise type(error)(f"{name}: {error}") from None


def weighted_error(before: Floats, after: Floats, counted: Floats) -> float:
    """The squared error, each column counted [k] times, by the square of what was, counted so too."""
    total = squares(before, counted)
    return squares(before - after, counted) / total if total else 0.0
