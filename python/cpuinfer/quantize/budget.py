"""A type for every matrix under a budget of bits: each is measured under each type, then the bits are shared out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cpuinfer.errors import InvalidRequest
from cpuinfer.ops import Embed
from cpuinfer.quantize import scheme as schemes
from cpuinfer.quantize.allocation import allocate
from cpuinfer.quantize.flow import Model
from cpuinfer.quantize.forward import State, read_stage, run_stage
from cpuinfer.quantize.layers import Layer, weighted_error
from cpuinfer.quantize.outcome import Progress
from cpuinfer.quantize.recipe import FLOATS, Recipe, fitting_encoding
from cpuinfer.quantize.stages import Stage, cut
from cpuinfer.quantize.work import Work
from cpuinfer.weight import Weight

CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "gguf": ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    "compressed-tensors": ("int4:g128:asym", "int4:g32:asym", "int8:g128:sym"),
    "cpuinfer": tuple(f"int{bits}:g64:asym" for bits in (2, 3, 4, 5, 6, 8)),
}
"""By kind of file; GPTQ's has one type for all."""
FLOAT_BITS = {"F32": 32.0, "F16": 16.0, "BF16": 16.0}
Errors = dict[str, list[float]]
"""By matrix, for each of its candidates: the weighted squared error by the weighted square, as ``Layer.errors``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What is shared out, and among what."""

    kind: str
    """Of file."""
    bits: float
    """A weight, over all matrices."""
    chosen: Mapping[str, str]
    """Where nothing is measured: embeddings, floats, and what was asked for by name."""
    fixed: frozenset[str]
    """Names of which `chosen` counts."""
    tensors: Mapping[str, tuple[str, ...]]
    """The matrices of each tensor of the file, which take one type together."""
    facts: Mapping[str, str]
    """Of the model and the text, as ``Recipe.facts``."""

    @property
    def key(self) -> str:
        """Sixteen letters that stand for what is measured, with the facts of the model and the text."""
        told = json.dumps([self.kind, CANDIDATES[self.kind], sorted(self.chosen.items()), dict(self.facts)])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def groups(self, model: Model) -> list[tuple[str, ...]]:
        """The matrices to choose for, those of one tensor together."""
        graph = model.blueprint.graph
        read = {name for stage in cut(graph) for names in stage.shared_inputs() for name in names}
        tables = {op.table for op in graph.ops if isinstance(op, Embed)}
        free = {name for name in read if self.chosen.get(name, "F32") not in FLOATS} - tables - self.fixed
        return [parts for parts in self.tensors.values() if set(parts) <= free]

    def __post_init__(self) -> None:
        if self.kind not in CANDIDATES:
            raise InvalidRequest(f"--bpw: {self.kind} files have one type for all, expected {', '.join(CANDIDATES)}")


def candidates(kind: str, weight: Weight) -> list[str]:
    """The types that a matrix may take, as far as they fit its rows, each once."""
    fitted = (fitting_encoding(name, weight.shape[1]) for name in CANDIDATES[kind])
    return list(dict.fromkeys(each for each in fitted if each not in FLOATS))


def bits_of(encoding: str) -> float:
    """A weight."""
    return FLOAT_BITS[encoding] if encoding in FLOATS else schemes.find(encoding).bits_per_weight


def share(budget: Budget, model: Model, work: Work, progress: Progress) -> dict[str, str]:
    """The encoding of every matrix: of least total error, each relative to its own output, within the budget.

    Raises InvalidRequest where the smallest types take more.
    """
    weights = model.blueprint.source.weights
    groups = budget.groups(model)
    names = [name for parts in groups for name in parts]
    if not names:
        raise InvalidRequest("--bpw: the model has no matrix to choose a type for")
    open_to = {name: candidates(budget.kind, weights[name]) for name in names}
    errors = measure(model, open_to, work, progress)
    shape = len(groups), max(map(len, open_to.values()))
    cost, size = np.full(shape, np.inf), np.full(shape, np.inf)
    for i, parts in enumerate(groups):
        for j, encoding in enumerate(open_to[parts[0]]):
            cost[i, j] = sum(errors[name][j] for name in parts)
            size[i, j] = sum(_count(weights[name]) for name in parts) * bits_of(encoding)
    others = sum(_count(weights[name]) * bits_of(each) for name, each in budget.chosen.items() if name not in open_to)
    total = sum(_count(weights[name]) for name in budget.chosen)
    least = (others + float(size.min(axis=1).sum())) / total
    if least > budget.bits:
        raise InvalidRequest(f"--bpw {budget.bits:g}: the smallest types this file takes are {least:.2f} bits a weight")
    found = allocate(cost, size, budget.bits * total - others)
    taken = {name: open_to[name][j] for parts, j in zip(groups, found.choices, strict=True) for name in parts}
    return {**budget.chosen, **taken}


def measure(model: Model, open_to: Mapping[str, Sequence[str]], work: Work, progress: Progress) -> Errors:
    """What each candidate does to each matrix, stage by stage, each run with its own weights; a killed run goes on."""
    graph, texts = model.blueprint.graph, model.texts()
    stages, errors = cut(graph), Errors()
    done = work.finished()
    states: list[State] = [{} for _ in texts]
    if 0 < done < len(stages):
        arrays = work.state(done - 1)
        states = [{v: arrays[f"{i}/{v.index}"] for v in stages[done - 1].kept} for i in range(len(texts))]
    for i, stage in enumerate(stages):
        if i >= done:
            progress(f"{stage.name}: measured", i / len(stages))
            layer = _layer(model, stage, open_to)
            own = _errors(layer, open_to, states, texts)
            states = run_stage(graph, stage, layer.values, states, texts) if i + 1 < len(stages) else []
            kept = {f"{n}/{value.index}": x for n, state in enumerate(states) for value, x in state.items()}
            work.save(i, {f"{name}/error": np.asarray(each) for name, each in own.items()}, kept)
        for name, each in work.stage(i).items():
            errors[name.removesuffix("/error")] = each.tolist()
    return errors


def _layer(model: Model, stage: Stage, open_to: Mapping[str, Sequence[str]]) -> Layer:
    values = read_stage(stage, model.blueprint.source.weights)
    found = {name: schemes.find(open_to[name][0]) for name in stage.weights() if name in open_to}
    return Layer(model.blueprint.graph, stage, Recipe(method="importance", encodings={}, label=""), found, values)


def _errors(
    layer: Layer, open_to: Mapping[str, Sequence[str]], states: Sequence[State], texts: Sequence[Sequence[int]]
) -> Errors:
    if not layer.rounded:
        return {}
    statistics = layer.measure(states, texts)
    errors = Errors()
    for name in layer.rounded:
        w, counted = layer.matrix(name), statistics[name].mean_square
        errors[name] = []
        for encoding in open_to[name]:
            scheme = schemes.find(encoding)
            fit = scheme.fit(w, counted)
            errors[name].append(weighted_error(w, scheme.values(scheme.codes(w, fit), fit), counted))
    return errors


def _count(weight: Weight) -> int:
    return weight.shape[0] * weight.shape[1]
