"""AutoRound: its steps against PyTorch's straight-through gradients, its result against the oracle's block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cpuinfer.config import Rope
from cpuinfer.errors import InvalidRequest, NumericalError, UnsupportedModel
from cpuinfer.graph import Graph
from cpuinfer.quantize.auto_round import Learned, Options, auto_round
from cpuinfer.quantize.block import Block, blocks
from cpuinfer.quantize.grids import IntegerScheme
from cpuinfer.quantize.rounding import LearnedRounding
from cpuinfer.quantize.rtn import opt_rtn, rtn
from cpuinfer.quantize.scheme import Fit, Scheme, find
from cpuinfer.reference import Reference
from random_models import RandomModel

Floats = npt.NDArray[np.float32]
SIZES = {"hidden": 64, "feed_forward": 96, "head_dim": 16, "rope": Rope(16, 10000.0, "halves")}
MODEL = RandomModel.of("llama", **SIZES)
BLOCK = blocks(MODEL.graph)[1]
TENSORS = {name: MODEL.tensors[name].astype(np.float32) for name in BLOCK.tensors()}


def inputs(sequences: int = 12, positions: int = 16) -> Floats:
    """Correlated, some channels large, as a residual stream is."""
    rng = np.random.default_rng(4)
    mix = rng.normal(size=(8, 64))
    x = rng.normal(size=(sequences, positions, 8)) @ mix + 0.3 * rng.normal(size=(sequences, positions, 64))
    x[..., 5] *= 8
    return x.astype(np.float32)


def schemes(name: str) -> dict[str, Scheme]:
    return dict.fromkeys(BLOCK.weights(), find(name))


def error(x: Floats, changed: dict[str, Floats]) -> float:
    """The block's mean squared error, by the oracle."""
    outs = []
    for tensors in (TENSORS, {**TENSORS, **changed}):
        reference = Reference(Graph({}), tensors.__getitem__)
        made = []
        for sequence in x:
            values = {BLOCK.input: sequence.astype(np.float64)}
            for op in BLOCK.ops:
                values.update(reference.apply(op, values, [0] * len(sequence)))
            made.append(values[BLOCK.output])
        outs.append(np.stack(made))
    return float(np.mean((outs[1] - outs[0]) ** 2))


def read(learned: Learned, given: dict[str, Scheme]) -> dict[str, Floats]:
    return {name: quantised.values(given[name]) for name, quantised in learned.weights.items()}


@pytest.mark.parametrize("name", ["int3:g32", "int4:g32:asym", "nf4:g32", "Q4_0", "Q4_1"])
def test_a_block_s_error_falls_by_half_and_is_what_the_oracle_finds(name: str) -> None:
    x, given = inputs(), schemes(name)
    found = auto_round(BLOCK, TENSORS, x, given, options=Options(iterations=60, batch=3))
    plain = error(x, {w: rtn(TENSORS[w], given[w]).values(given[w]) for w in given})
    assert found.start == pytest.approx(plain, rel=1e-3)
    assert found.error == pytest.approx(error(x, read(found, given)), rel=1e-3)
    assert found.error < 0.5 * found.start


@pytest.mark.parametrize(
    "options", [Options(iterations=1, batch=1, rate=1.0), Options(iterations=0, search=False), Options(rate=5)]
)
def test_it_is_never_worse_than_rounding_to_nearest(options: Options) -> None:
    x, given = inputs(3, 5), schemes("int4:g32")
    options = replace(options, iterations=min(options.iterations, 5))
    found = auto_round(BLOCK, TENSORS, x, given, options=options)
    assert found.error <= found.start
    if not options.iterations and not options.search:
        for name, quantised in found.weights.items():
            assert (quantised.codes == rtn(TENSORS[name], given[name]).codes).all()


def test_it_may_start_from_a_search_and_leave_scales_alone() -> None:
    x, given = inputs(4, 8), schemes("int4:g32")
    options = Options(iterations=20, search=True, learn_scales=False)
    found = auto_round(BLOCK, TENSORS, x, given, options=options)
    for name, quantised in found.weights.items():
        assert (quantised.fit.scale == opt_rtn(TENSORS[name], given[name]).fit.scale).all()
    assert found.error < 0.9 * found.start


def test_the_same_seed_gives_the_same_weights_and_weights_left_out_stay() -> None:
    x = inputs(6, 8)
    given = {name: find("int3:g32") for name in BLOCK.weights() if "mlp" in name}
    found, again = (auto_round(BLOCK, TENSORS, x, given, options=Options(iterations=10, batch=2)) for _ in range(2))
    assert set(found.weights) == set(given)
    assert all((found.weights[name].codes == again.weights[name].codes).all() for name in given)
    assert found.error == pytest.approx(error(x, read(found, given)), rel=1e-3)


def test_targets_of_other_inputs_are_met_better_than_by_the_weights_own() -> None:
    x, given = inputs(), schemes("int4:g32")
    noisy = x + 0.2 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    targets = np.stack([BlockOracle.run(sequence) for sequence in x])
    options = Options(iterations=25, batch=4)
    aware = auto_round(BLOCK, TENSORS, noisy, given, targets=targets, options=options)
    assert aware.error < aware.start


class BlockOracle:
    """The block with its own weights."""

    @staticmethod
    def run(x: Floats) -> Floats:
        """One sequence."""
        reference = Reference(Graph({}), TENSORS.__getitem__)
        values: dict[Any, Any] = {BLOCK.input: x}
        for op in BLOCK.ops:
            values.update(reference.apply(op, values, [0] * len(x)))
        return values[BLOCK.output].astype(np.float32)


@dataclass(frozen=True)
class Continuous(IntegerScheme):
    """Integers whose scales and offsets are stored as they are, so that PyTorch can follow."""

    def represent(self, scale: npt.NDArray[np.floating], offset: npt.NDArray[np.floating] | None = None) -> Fit:
        return Fit(scale.astype(np.float32), None if offset is None else offset.astype(np.float32))


@pytest.mark.parametrize("has_offset", [False, True])
def test_steps_follow_the_signs_of_straight_through_gradients(has_offset: bool) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 64)).astype(np.float32)
    scheme = Continuous(bits=3, group=32, has_offset=has_offset)
    start = scheme.represent(
        *(
            (0.3 * rng.uniform(1, 2, (6, 2)),)
            if not has_offset
            else (rng.uniform(0.3, 0.5, (6, 2)), rng.uniform(-2, -1, (6, 2)))
        )
    )
    learned = LearnedRounding(w, scheme, start, bounds=(0.5, 1.5), learn_scales=True)
    levels = torch.tensor(scheme.levels)
    scale0 = torch.tensor(start.scale)
    offset0 = torch.zeros_like(scale0) if start.offset is None else torch.tensor(start.offset)
    for step in range(3):
        p = learned.parameters
        v, high, low = (torch.tensor(a, requires_grad=True) for a in (p.shift, p.high, p.low))
        if has_offset:
            bottom, top = low * (offset0 + scale0 * levels[0]), high * (offset0 + scale0 * levels[-1])
            scale = (top - bottom) / (levels[-1] - levels[0])
            offset = bottom - scale * levels[0]
        else:
            scale, offset = high * scale0, offset0
        place = (torch.tensor(w).reshape(6, 2, 32) - offset[..., None]) / scale[..., None] + v
        rounded = place + (place.round() - place).detach()
        q = scale[..., None] * rounded.clamp(float(levels[0]), float(levels[-1])) + offset[..., None]
        np.testing.assert_allclose(learned.values(), q.detach().numpy().reshape(6, 64), atol=1e-5)
        gradient = rng.normal(size=(6, 64)).astype(np.float32)
        q.backward(torch.tensor(gradient).reshape(6, 2, 32))
        learned.move(gradient, 0.05 / (step + 1), 0.02 / (step + 1))
        after = learned.parameters
        pairs = [(v, p.shift, after.shift), (high, p.high, after.high)]
        for tensor, before, now in [*pairs, (low, p.low, after.low)][: 3 if has_offset else 2]:
            rate = 0.05 if tensor is v else 0.02
            slope = tensor.grad.numpy()
            clear = np.abs(slope) > 1e-4 * np.abs(slope).max()
            assert (np.sign(before - now)[clear] == np.sign(slope)[clear]).mean() == 1
            np.testing.assert_allclose(np.abs(before - now)[clear], rate / (step + 1), rtol=1e-4)


def test_blocks_are_the_layers_of_every_kind_of_model() -> None:
    for kind in ("llama", "gemma2", "gptj", "olmo2", "gpt2"):
        model = RandomModel.of(kind, biases=kind in {"gptj", "gpt2"})
        found = blocks(model.graph)
        assert [block.name for block in found] == ["model.layers.0", "model.layers.1"]
        assert found[0].output == found[1].input
        assert sum(len(block.ops) for block in found) == len(model.graph.ops) - 2
        within = {name for block in found for name in block.tensors()}
        # What is left is the embedding, the head and the last norm.
        assert {name.rpartition(".layers.")[0] for name in within} == {"model"}
        assert all("layers" not in name for name in set(model.graph.used) - within)


def test_what_cannot_be_is_one_line_each() -> None:
    x, given = inputs(2, 4), schemes("int4:g32")
    with pytest.raises(InvalidRequest, match=r"model.layers.1: inputs of shape \(4, 64\), expected \('\*', '\*', 64\)"):
        auto_round(BLOCK, TENSORS, x[0], given)
    with pytest.raises(InvalidRequest, match=r"model.layers.1: targets of shape .*, expected \(2, 4, 64\)"):
        auto_round(BLOCK, TENSORS, x, given, targets=x[:1])
    with pytest.raises(InvalidRequest, match=r"model.layers.1: schemes for \['lm_head'\]"):
        auto_round(BLOCK, TENSORS, x, {"lm_head": find("int4:g32")})
    with pytest.raises(InvalidRequest, match="auto-round: -1 iterations"):
        auto_round(BLOCK, TENSORS, x, given, options=Options(iterations=-1))
    wrong = x.copy()
    wrong[0, 0, 0] = np.nan
    with pytest.raises(NumericalError, match="inputs or targets hold NaN"):
        auto_round(BLOCK, TENSORS, wrong, given)
    mixture = RandomModel.of("mixtral", experts=4, experts_used=2)
    block: Block = blocks(mixture.graph)[0]
    with pytest.raises(UnsupportedModel, match=r"mlp.gate: no gradients for experts"):
        tensors = {name: tensor.astype(np.float32) for name, tensor in mixture.tensors.items()}
        auto_round(block, tensors, x[..., :32], {block.weights()[0]: find("int4:g32")})
