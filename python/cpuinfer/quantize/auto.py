"""The search for the smallest model that stays close enough to its source: sizes upwards, cheap methods first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpuinfer.errors import InvalidRequest
from cpuinfer.quantize.flow import Made, Model, bits, quantise, refusal, size
from cpuinfer.quantize.judge import Judge, Verdict
from cpuinfer.quantize.outcome import Progress
from cpuinfer.quantize.recipe import FLOATS, Method, Recipe
from cpuinfer.quantize.scheme import find
from cpuinfer.weight import Weight

METHODS: tuple[Method, ...] = ("opt-rtn", "importance", "gptq")
THOROUGH: tuple[Method, ...] = (*METHODS, "autoround")
SLOW: tuple[Method, ...] = ("awq", "gptq", "autoround")
"""What is kept of these even if it is not chosen, so that a killed run need not do it again."""
HOPELESS = 8.0
"""Times the goal: after so large a loss a size is given up, and the next one's turn comes.  A choice, to save time."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One recipe, carried out and judged."""

    recipe: Recipe
    made: Made
    verdict: Verdict

    @property
    def weights(self) -> Mapping[str, Weight]:
        """All that the graph reads, by our name."""
        return self.made[0].weights

    @property
    def bits(self) -> float:
        """A weight, over all matrices."""
        return bits(self.weights)

    @property
    def bytes(self) -> int:
        """Of all weights."""
        return size(self.weights)


@dataclass(frozen=True, slots=True)
class Search:
    """What was tried, in order, and what is kept of it."""

    tried: tuple[Candidate, ...]
    kept: Candidate | None
    """None: nothing met the goal."""


def search(
    model: Model,
    labels: Sequence[str],
    recipe: Callable[[str, Method], Recipe],
    judge: Judge,
    target: Path,
    *,
    goal: float | None,
    methods: Sequence[Method] = METHODS,
    progress: Progress = lambda _what, _share: None,
    found: Callable[[Candidate], None] = lambda _candidate: None,
) -> Search:
    """Try `methods` on each of `labels`, from the smallest model on.

    goal: the largest loss accepted (see ``Verdict.loss``): the first candidate within it is kept, which is the smallest
    there is among those tried; a size whose first method loses more than HOPELESS times the goal is left at that.
    None: everything is tried, and the least divergence is kept.
    """
    tried: list[Candidate] = []
    methods = [method for method in methods if len(methods) == 1 or refusal(model.blueprint.graph, method) is None]
    for label in by_size(model, labels, recipe, methods[0]):
        for method in methods:
            wanted = recipe(label, method)
            made = quantise(model, wanted, target, progress, keep=True)
            progress(f"{label} {method}: judged", 1.0)
            candidate = Candidate(wanted, made, judge.verdict(made[0].weights))
            tried.append(candidate)
            found(candidate)
            if goal is None:
                continue
            if candidate.verdict.loss <= goal:
                return Search(tuple(tried), candidate)
            _let_go(candidate)
            if candidate.verdict.loss > HOPELESS * goal:
                break
    if goal is not None:
        return Search(tuple(tried), None)
    return Search(tuple(tried), min(tried, key=lambda each: each.verdict.divergence.divergence.value))


def _let_go(candidate: Candidate) -> None:
    """Delete what was kept of a candidate that will not be written, unless it took long."""
    work = candidate.made[1]
    if work is not None and candidate.recipe.method not in SLOW:
        work.delete()


def by_size(
    model: Model, labels: Sequence[str], recipe: Callable[[str, Method], Recipe], method: Method
) -> Sequence[str]:
    """Labels in the order of what a model of each takes; of equals, and of those that mean the same, the first."""
    weights = model.blueprint.source.weights
    chosen: dict[str, Mapping[str, str]] = {}
    for label in fitting(labels, recipe, method):
        encodings = recipe(label, method).encodings
        if encodings not in chosen.values():
            chosen[label] = encodings
    return sorted(chosen, key=lambda label: planned_bits(chosen[label], weights))


def fitting(labels: Sequence[str], recipe: Callable[[str, Method], Recipe], method: Method) -> Sequence[str]:
    """Those of the labels that something of the model is rounded by.  Raises InvalidRequest where none is."""
    found = [label for label in labels if not set(FLOATS) >= set(recipe(label, method).encodings.values())]
    if not found:
        raise InvalidRequest(f"{', '.join(labels)}: no matrix of the model can be stored so")
    return found


def planned_bits(encodings: Mapping[str, str], weights: Mapping[str, Weight]) -> float:
    """Of all matrices together, encoded so."""
    width = {"F32": 32.0, "F16": 16.0, "BF16": 16.0}

    def one(encoding: str) -> float:
        return width[encoding] if encoding in FLOATS else find(encoding).bits_per_weight

    return sum(weights[name].shape[0] * weights[name].shape[1] * one(each) for name, each in encodings.items())
