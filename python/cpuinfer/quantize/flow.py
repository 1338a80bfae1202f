"""From a model and a recipe to quantised weights: with calibration text layer by layer, without it as they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cpuinfer.errors import InvalidRequest, UnsupportedModel
from cpuinfer.graph import Graph
from cpuinfer.loader import Blueprint
from cpuinfer.ops import Embed, Experts
from cpuinfer.quantize.block import blocks
from cpuinfer.quantize.calibrated import Calibrated
from cpuinfer.quantize.calibration import Text, windows
from cpuinfer.quantize.forward import Floats
from cpuinfer.quantize.measured import Inputs
from cpuinfer.quantize.one_by_one import OneByOne
from cpuinfer.quantize.outcome import Outcome, Progress
from cpuinfer.quantize.recipe import FLOATS, Method, Recipe
from cpuinfer.quantize.result import plain
from cpuinfer.quantize.work import Work
from cpuinfer.weight import Weight

WINDOWS, LENGTH = 128, 512
"""Most stretches of calibration text, and tokens of each."""
WORK = 11e12
"""Products of tokens and weights that a pass over the calibration text takes at most, where so few tokens will do:
two and a half minutes at 150 GFLOP/s."""
TOKENS_PER_INPUT = 1.5
"""At least, of the widest matrix.  With 1.3 and with 2, GPTQ's KL on two models of 4M weights is in 4 bits within a
tenth of what 85 give, in one run each; in 3 bits it is a tenth to six tenths larger, and with 8 at most a tenth."""
Made = tuple[Outcome, Work | None]
"""The weights of a recipe, and where those that took long are kept until the target is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is quantised, and what it is measured on."""

    blueprint: Blueprint
    text: Text
    count: int
    length: int = LENGTH
    threads: int = 1
    _texts: list[list[list[int]]] = field(default_factory=list)

    def texts(self) -> Sequence[Sequence[int]]:
        """The stretches to calibrate on.  Raises InvalidRequest for a text shorter than one of them."""
        if not self._texts:
            tokenizer = self.blueprint.source.tokenizer()
            length = min(self.length, self.blueprint.config.context)
            begins = tokenizer.encode("a")[:1] == [tokenizer.bos_id]

            def encode(text: str) -> list[int]:
                return tokenizer.encode(text, add_bos=False, parse_special=False)

            found = windows(
                encode,
                self.text.calibration,
                length=length,
                count=self.count,
                bos=tokenizer.bos_id if begins else None,
                name=self.text.name,
            )
            self._texts.append(found)
        return self._texts[0]


def window_count(blueprint: Blueprint, length: int) -> int:
    """As many stretches of calibration text as the model's size leaves time for, but not too few for its width."""
    graph, weights = blueprint.graph, blueprint.source.weights
    tables = {op.table for op in graph.ops if isinstance(op, Embed)}
    shapes = [weights[name].shape for name in graph.used if len(weights[name].shape) == 2 and name not in tables]
    if not shapes:
        return WINDOWS
    tokens = max(WORK / sum(n * k for n, k in shapes), TOKENS_PER_INPUT * max(k for _, k in shapes))
    return max(1, min(WINDOWS, math.ceil(tokens / length)))


def quantise(model: Model, recipe: Recipe, target: Path, progress: Progress, *, keep: bool = False) -> Made:
    """The weights of a recipe.

    keep: they will be taken more than once, so what takes long is done once, and kept beside the target until that is
    whole.
    """
    blueprint = model.blueprint
    if not recipe.calibrated and not (keep and recipe.method != "rtn"):
        source = blueprint.source.weights
        weights = {name: plain(source[name], recipe.encodings.get(name), recipe.method) for name in source}
        return Outcome(weights, {}), None
    if (reason := refusal(blueprint.graph, recipe.method)) is not None:
        raise UnsupportedModel(reason)
    if recipe.calibrated:
        model.texts()  # refused before anything is made
    work = Work(target, recipe.key())
    try:
        return _run(model, recipe, work, target, progress), work
    except BaseException:
        if not work.finished():
            work.delete()
        raise


def _run(model: Model, recipe: Recipe, work: Work, target: Path, progress: Progress) -> Outcome:
    blueprint, threads = model.blueprint, model.threads
    texts = model.texts() if recipe.calibrated else ()
    if recipe.calibrated and recipe.method != "importance":
        return Calibrated(
            blueprint=blueprint, recipe=recipe, texts=texts, work=work, threads=threads, progress=progress
        ).run()
    counted: Mapping[str, Floats] = {}
    if recipe.calibrated:
        inputs = Inputs(blueprint=blueprint, texts=texts, threads=threads, progress=progress)
        counted = inputs.mean_squares(target, recipe.facts)
    return OneByOne(
        blueprint=blueprint, recipe=recipe, work=work, threads=threads, counted=counted, progress=progress
    ).run()


def refusal(graph: Graph, method: Method) -> str | None:
    """Why a method is not for a model, before any work is done; None where it is."""
    if method != "autoround":
        return None
    mixture = next((op.name for op in graph.ops if isinstance(op, Experts)), None)
    if mixture is not None:
        return f"{mixture}: autoround has no gradients for experts: choose another method"
    try:
        blocks(graph)
    except UnsupportedModel as error:
        return f"autoround: {error}"
    return None


def bits(weights: Mapping[str, Weight]) -> float:
    """Bits a weight over all matrices, as files have them."""
    matrices = [weight for weight in weights.values() if len(weight.shape) == 2]
    count = sum(weight.shape[0] * weight.shape[1] for weight in matrices)
    if not count:
        raise InvalidRequest("the model has no matrices")
    return 8 * sum(weight.file_bytes for weight in matrices) / count


def size(weights: Mapping[str, Weight]) -> int:
    """Bytes of all weights, as files have them."""
    return sum(weight.file_bytes for weight in weights.values())


def is_quantised(blueprint: Blueprint) -> str | None:
    """The encoding of most of the source's weights, where that is not floating point."""
    kinds: dict[str, int] = {}
    for weight in blueprint.source.weights.values():
        if len(weight.shape) == 2:
            kinds[weight.encoding] = kinds.get(weight.encoding, 0) + weight.shape[0] * weight.shape[1]
    most = max(kinds, key=lambda kind: kinds[kind])
    return None if most in FLOATS else most
