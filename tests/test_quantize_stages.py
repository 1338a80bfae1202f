"""Stages of a graph: together they are its ops, what each keeps is what later ones read, and they compute the same."""

from __future__ import annotations

import pkgutil
from itertools import chain

import numpy as np
import pytest

import cpuinfer.models
from cpuinfer.ops import inputs, outputs
from cpuinfer.quantize.forward import run_stage
from cpuinfer.quantize.stages import Stage, cut
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
    texts = [[1, 5, 9, 3, 17, 2, 8], [4]]
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
