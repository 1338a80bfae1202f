"""Stages of a graph: together they are its ops, what each keeps is what later ones read, and they compute the same."""

from __future__ import annotations

import pkgutil
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import pytest

import cpuinfer.models
from cpuinfer.ops import inputs, outputs
from cpuinfer.quantize.forward import State, run_stage
from cpuinfer.quantize.layers import Layer
from cpuinfer.quantize.recipe import Recipe
from cpuinfer.quantize.scheme import find
from cpuinfer.quantize.stages import Stage, cut
from cpuinfer.quantize.statistics import Statistics
from cpuinfer.reference import Reference
from random_models import RandomModel

EVERY = sorted(each.name for each in pkgutil.iter_modules(cpuinfer.models.__path__))
BY_HEAD: dict[str, object] = {"biases": True, "kv_heads": 4}
MIXTURE: dict[str, object] = {"experts": 4, "experts_used": 2}
OPTIONS: dict[str, dict[str, object]] = {
    "bloom": {**BY_HEAD, "rope": None},
    "gpt2": {**BY_HEAD, "rope": None},
    "gpt_neo": {**BY_HEAD, "rope": None, "layer_kinds": ("global", "local")},
    "opt": {**BY_HEAD, "rope": None},
    "gptj": BY_HEAD,
    "gpt_neox": BY_HEAD,
    "phi": BY_HEAD,
    "starcoder2": {"biases": True},
    "mixtral": MIXTURE,
    "qwen2_moe": MIXTURE,
    "qwen3_moe": MIXTURE,
}


@pytest.fixture(params=EVERY)
def model(request: pytest.FixtureRequest) -> RandomModel:
    return RandomModel.of(request.param, **OPTIONS.get(request.param, {}))


def test_stages_have_every_op_once_in_order(model: RandomModel) -> None:
    stages = cut(model.graph)
    assert list(chain.from_iterable(stage.ops for stage in stages)) == list(model.graph.ops)
    assert len({stage.name for stage in stages}) == len(stages)
    assert [stage.name for stage in stages if stage.is_layer] == ["model.layers.0", "model.layers.1"]


def test_kept_is_exactly_what_later_stages_read(model: RandomModel) -> None:
    stages = cut(model.graph)
    for i, stage in enumerate(stages):
        made = {value for each in stages[: i + 1] for op in each.ops for value in outputs(op)}
        read = {value for each in stages[i + 1 :] for op in each.ops for value in inputs(op)}
        assert stage.kept == made & read


def test_every_weight_is_read_by_some_stage(model: RandomModel) -> None:
    assert {name for stage in cut(model.graph) for name in stage.weights()} == set(model.graph.used)


def test_stage_by_stage_is_the_whole_graph_to_the_bit(model: RandomModel) -> None:
    texts = [[*range(40), *range(20)], [4]]
    values = {name: x.astype(np.float32) for name, x in model.tensors.items()}
    states: list[dict[object, object]] = [{}, {}]
    *first, last = cut(model.graph)
    for stage in first:
        states = run_stage(model.graph, stage, values, states, texts)  # type: ignore[arg-type, assignment]
    for tokens, state in zip(texts, states, strict=True):
        everything = Stage(last.name, last.ops, frozenset(outputs(last.ops[-1])))
        (after,) = run_stage(model.graph, everything, values, [state], [tokens])  # type: ignore[list-item]
        whole = Reference(model.graph, values.__getitem__, dtype=np.float32).logits(tokens)
        np.testing.assert_array_equal(next(iter(after.values())), whole)


def test_threads_change_no_bit_of_a_stage(model: RandomModel) -> None:
    texts = [[*range(40), *range(20)]]
    values = {name: x.astype(np.float32) for name, x in model.tensors.items()}
    with ThreadPoolExecutor(3) as executor:
        runs: list[list[dict[object, object]]] = [[{}], [{}]]
        for stage in cut(model.graph)[:-1]:
            for i, threads in enumerate((None, executor)):
                runs[i] = run_stage(model.graph, stage, values, runs[i], texts, executor=threads)  # type: ignore[arg-type, assignment]
    (one,), (other,) = runs
    assert one.keys() == other.keys()
    for value, x in one.items():
        np.testing.assert_array_equal(x, other[value])  # type: ignore[arg-type]


class Seen:
    """What matrices were seen to read."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.read: list[np.ndarray] = []

    def see(self, name: str, x: np.ndarray) -> None:
        self.names.append(name)
        self.read.append(x.copy())


def test_what_is_only_observed_is_what_a_whole_pass_reads(model: RandomModel) -> None:
    texts = [[1, 5, 9, 3, 17, 2, 8], [4]]
    values = {name: x.astype(np.float32) for name, x in model.tensors.items()}
    states: list[State] = [{}, {}]
    for stage in cut(model.graph):
        whole, only = Seen(), Seen()
        after = run_stage(model.graph, stage, values, states, texts, observe=whole.see)
        nothing = run_stage(model.graph, stage, values, states, texts, observe=only.see, only_observe=True)
        assert nothing == []
        assert only.names == whole.names
        for x, y in zip(only.read, whole.read, strict=True):
            np.testing.assert_array_equal(x, y)
        states = after


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "olmo2"])
def test_each_matrix_is_fitted_to_what_it_reads_when_all_before_it_are_rounded(name: str) -> None:
    model = RandomModel.of(name, **OPTIONS.get(name, {}))
    texts = [[1, 5, 9, 3, 17, 2, 8], [4, 6, 2]]
    values = {each: x.astype(np.float32) for each, x in model.tensors.items()}
    first, stage = cut(model.graph)[:2]
    states = run_stage(model.graph, first, values, [{}, {}], texts)
    layer = Fitted(
        model.graph,
        stage,
        Recipe(method="gptq", encodings={}, label=""),
        {each: find("int3:g-1:sym") for names in stage.shared_inputs() for each in names},
        dict(values),
    )
    after = layer.advance(states, texts)
    sums = {each: Statistics.empty(values[each].shape[1], hessian=False) for each in layer.rounded}

    def see(each: str, x: np.ndarray) -> None:
        if each in sums:
            sums[each].add(x)

    again = run_stage(model.graph, stage, layer.values, states, texts, observe=see)
    for one, other in zip(after, again, strict=True):
        assert one.keys() == other.keys()
        for value, x in one.items():
            np.testing.assert_array_equal(x, other[value])
    assert layer.counted.keys() == sums.keys()
    for each, counted in layer.counted.items():
        np.testing.assert_allclose(counted, sums[each].mean_square, rtol=1e-6, err_msg=each)
        assert not np.array_equal(layer.values[each], values[each])


class Fitted(Layer):
    """Remembers the mean squares that matrices were fitted to."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.counted: dict[str, np.ndarray] = {}

    def take(self, name: str, result: Any, before: Any, counted: Any) -> None:
        self.counted[name] = counted
        super().take(name, result, before, counted)
