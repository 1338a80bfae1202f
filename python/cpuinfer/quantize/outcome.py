"""What comes of a recipe: the weights of a model, those that took work read from where finished stages are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cpuinfer.formats.canonical import Rows
from cpuinfer.loader import Blueprint
from cpuinfer.quantize import scheme as schemes
from cpuinfer.quantize.recipe import Recipe
from cpuinfer.quantize.result import as_floats, as_scheme, plain
from cpuinfer.quantize.work import Work, sliced
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


def outcome(blueprint: Blueprint, recipe: Recipe, work: Work, stages: Sequence[object]) -> Outcome:
    """From the finished stages; what none of them has is rounded as it is read."""
    source = blueprint.source.weights
    weights: dict[str, Weight] = {}
    errors: dict[str, float] = {}
    for index in range(len(stages)):
        for name, kind in work.names(index).items():
            weights[name] = _kept((work, index), source[name], name, recipe.encodings.get(name, "F32"), kind)
            if "error" in kind:
                errors[name] = float(work.stage(index, f"{name}/error")[f"{name}/error"])
    for name in blueprint.graph.used:
        if name not in weights:
            weights[name] = plain(source[name], recipe.encodings.get(name), "opt-rtn")
    return Outcome({name: weights[name] for name in blueprint.graph.used}, errors)


def _kept(place: tuple[Work, int], source: Weight, name: str, encoding: str, kind: set[str]) -> Weight:
    work, index = place
    if "codes" not in kind and "raw" not in kind:

        def floats(begin: int, end: int) -> Rows:
            return sliced(work.rows(index, f"{name}/", "F32"), begin, end)

        changed = as_floats(source, floats)
        return changed if encoding == "F32" else plain(changed, encoding, "opt-rtn")

    def rows(begin: int, end: int) -> Rows:
        return sliced(work.rows(index, f"{name}/", encoding), begin, end)

    order = work.stage(index, f"{name}/order").get(f"{name}/order") if "order" in kind else None
    return as_scheme(source, schemes.find(encoding), rows, order)
