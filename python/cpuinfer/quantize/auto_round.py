"""AutoRound: learns, for all weights of a transformer block together, which way each is rounded and where it clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest, NumericalError
from cpuinfer.quantize.block import Block
from cpuinfer.quantize.gradients import backward, forward
from cpuinfer.quantize.quantised import Quantised, checked
from cpuinfer.quantize.rounding import LearnedRounding, Parameters
from cpuinfer.quantize.rtn import rtn
from cpuinfer.quantize.scheme import Scheme

Floats = npt.NDArray[np.float32]
Snapshot = dict[str, Parameters]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long and how fast."""

    iterations: int = 200
    batch: int = 8
    """Sequences a step."""
    rate: float | None = None
    """Of the first step, falling to 0 in a straight line; None: 1 / iterations."""
    scale_rate: float | None = None
    """The same of scales; None: a tenth of `rate`.  (The paper takes `rate`, which leaves more error here.)"""
    learn_scales: bool | None = None
    """None: where groups are stored by themselves.  Where several share what is stored (K types), each step of one
    moves the others, and learning how to round is better alone."""
    search: bool = True
    """Start from the scales of the scheme's search, not of its rule."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """Of the factors of what the first and last code stand for."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Learned:
    """The weights of a block, and the mean squared error of its output over all of the calibration."""

    weights: dict[str, Quantised]
    start: float
    """Of the weights rounded to nearest with the scales of the scheme's rule."""
    error: float


def auto_round(
    block: Block,
    tensors: Mapping[str, npt.NDArray[np.floating]],
    inputs: Floats,
    schemes: Mapping[str, Scheme],
    *,
    targets: Floats | None = None,
    importance: Mapping[str, npt.NDArray[np.floating]] | None = None,
    options: Options | None = None,
) -> Learned:
    """Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent", arXiv 2309.05516, algorithm 1.

    tensors: what the block reads, by name.  inputs [sequences, positions, width]: what it is given, which may be the
    output of blocks already quantised.  schemes: of the weights to quantise; the others stay as they are.
    targets: what it should make of them; None: what it makes with its own weights.  importance: by weight, for the
    search of scales.  Steps are of the gradient's sign alone; the parameters kept are the best of the start, those of
    least loss on their own batch, and the last, by the loss on all of the inputs: never worse than rounding to nearest.
    """
    options = options or Options()
    plain = {name: np.asarray(tensors[name], np.float32) for name in block.tensors()}
    _check(block, inputs, targets, schemes, options)
    if targets is None:
        targets = np.concatenate([_run(block, plain, inputs[i : i + 1]) for i in range(len(inputs))])
    learned = {}
    for name, scheme in schemes.items():
        w = checked(plain[name], scheme)
        fit = scheme.fit(w, (importance or {}).get(name), search=options.search)
        alone = scheme.block == scheme.group if options.learn_scales is None else options.learn_scales
        learned[name] = LearnedRounding(w, scheme, fit, bounds=options.bounds, learn_scales=alone)
    task = _Task(block, plain, inputs, targets, learned)
    candidates = [task.snapshot(), task.descend(options), task.snapshot()]
    errors = []
    for candidate in candidates:
        task.restore(candidate)
        errors.append(task.error(task.rounded()))
    nearest = {name: rtn(plain[name], scheme) for name, scheme in schemes.items()}
    plainest = task.error({**plain, **{name: each.values(schemes[name]) for name, each in nearest.items()}})
    if plainest <= min(errors):
        return Learned(nearest, plainest, plainest)
    task.restore(candidates[int(np.argmin(errors))])
    return Learned({name: each.quantised() for name, each in learned.items()}, plainest, min(errors))


def _check(
    block: Block, inputs: Floats, targets: Floats | None, schemes: Mapping[str, Scheme], options: Options
) -> None:
    if inputs.ndim != 3 or not inputs.size or inputs.shape[2] != block.input.width:
        raise InvalidRequest(f"{block.name}: inputs of shape {inputs.shape}, expected ('*', '*', {block.input.width})")
    expected = (*inputs.shape[:2], block.output.width)
    if targets is not None and targets.shape != expected:
        raise InvalidRequest(f"{block.name}: targets of shape {targets.shape}, expected {expected}")
    unknown = sorted(set(schemes) - set(block.weights()))
    if unknown or not schemes:
        raise InvalidRequest(f"{block.name}: schemes for {unknown or 'no weight'}, expected {block.weights()}")
    if options.iterations < 0 or options.batch < 1 or not 0 <= options.bounds[0] <= 1 <= options.bounds[1]:
        raise InvalidRequest(
            f"auto-round: {options.iterations} iterations, batch {options.batch}, bounds {options.bounds}: "
            "expected at least 0 and 1, and bounds around 1"
        )
    if not np.isfinite(inputs).all() or (targets is not None and not np.isfinite(targets).all()):
        raise NumericalError(f"{block.name}: its inputs or targets hold NaN or infinity")


@dataclass(frozen=True, slots=True)
class _Task:
    """A block, what it is to make of its inputs, and the weights that are learned."""

    block: Block
    plain: Mapping[str, Floats]
    inputs: Floats
    targets: Floats
    learned: Mapping[str, LearnedRounding]

    def snapshot(self) -> Snapshot:
        """The parameters as they are."""
        return {name: each.parameters for name, each in self.learned.items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Go to other parameters."""
        for name, each in self.learned.items():
            each.set(snapshot[name])

    def rounded(self) -> dict[str, Floats]:
        """The block's tensors, with the parameters as they are."""
        return {**self.plain, **{name: each.values() for name, each in self.learned.items()}}

    def descend(self, options: Options) -> Snapshot:
        """Move the parameters; the snapshot whose batch had the least loss."""
        rate = 1 / max(1, options.iterations) if options.rate is None else options.rate
        scale_rate = rate / 10 if options.scale_rate is None else options.scale_rate
        wanted = frozenset(self.learned)
        best, least = self.snapshot(), np.inf
        for i, batch in zip(range(options.iterations), _batches(len(self.inputs), options), strict=False):
            values, backs = forward(self.block.ops, {self.block.input: self.inputs[batch]}, self.rounded())
            difference = values[self.block.output] - self.targets[batch]
            loss = float(np.mean(np.square(difference, dtype=np.float64)))
            if loss < least:
                best, least = self.snapshot(), loss
            # The loss's gradient but for a factor, which no sign sees; of a size that float32 squares well.
            gradient = difference / np.float32(np.sqrt(loss) or 1)
            left = 1 - i / options.iterations
            gradients = backward(backs, {self.block.output: gradient}, wanted=wanted).weights
            for name, each in self.learned.items():
                each.move(gradients[name], rate * left, scale_rate * left)
        return best

    def error(self, rounded: Mapping[str, Floats]) -> float:
        """The mean squared error over all inputs, with these tensors."""
        total = 0.0
        for i in range(len(self.inputs)):
            difference = _run(self.block, rounded, self.inputs[i : i + 1]) - self.targets[i : i + 1]
            total += float(np.square(difference, dtype=np.float64).sum())
        return total / self.targets.size


def _batches(sequences: int, options: Options) -> Iterator[npt.NDArray[np.int64]]:
    """Without end: all sequences in a new order each time, cut into batches."""
    rng = np.random.default_rng(options.seed)
    size = min(options.batch, sequences)
    while True:
        order = rng.permutation(sequences)
        for begin in range(0, sequences - size + 1, size):
            yield order[begin : begin + size]


def _run(block: Block, tensors: Mapping[str, Floats], x: Floats) -> Floats:
    out: Floats = forward(block.ops, {block.input: x}, tensors)[0][block.output].astype(np.float32, copy=False)
    return out
