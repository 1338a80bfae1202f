"""Factors folded into a model leave it the same function; nothing is folded where they would not."""

from __future__ import annotations

from collections import ChainMap

import numpy as np
import pytest

from cpuinfer.errors import InvalidRequest
from cpuinfer.graph import Graph
from cpuinfer.ops import Value
from cpuinfer.quantize.folding import fold, foldings
from random_models import RandomModel

TOKENS = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7]
EACH = {"attention norm", "feed-forward norm", "values", "up"}
MODELS: dict[str, tuple[RandomModel, set[str]]] = {
    "llama": (RandomModel.of("llama"), EACH | {"head norm"}),
    "llama, tied, every head its own values": (RandomModel.of("llama", tied=True, kv_heads=4), EACH),
    "llama, one head of values": (RandomModel.of("llama", kv_heads=1, biases=True), EACH | {"head norm"}),
    "qwen3": (RandomModel.of("qwen3"), EACH | {"head norm"}),
    "gemma2, norms stored less by 1": (RandomModel.of("gemma2", norm_offset=1.0, tied=True), EACH),
    "olmo2, no norms before": (RandomModel.of("olmo2"), {"values", "up", "head norm"}),
    "gpt2": (
        RandomModel.of("gpt2", biases=True, kv_heads=4, rope=None),
        {"attention norm", "feed-forward norm", "values", "head norm"},
    ),
    "opt, relu": (RandomModel.of("opt", biases=True, kv_heads=4, rope=None), EACH | {"head norm"}),
    "gpt-j, one norm for both": (
        RandomModel.of("gptj", biases=True, kv_heads=4),
        {"attention norm", "values", "head norm"},
    ),
    "gpt-neox": (
        RandomModel.of("gpt_neox", biases=True, kv_heads=4),
        {"attention norm", "feed-forward norm", "values", "head norm"},
    ),
    "mixtral": (
        RandomModel.of("mixtral", experts=4, experts_used=2),
        {"attention norm", "feed-forward norm", "values", "head norm"},
    ),
    "qwen2-moe, a shared expert": (RandomModel.of("qwen2_moe", experts=4, experts_used=2), EACH | {"head norm"}),
}
CASES = pytest.mark.parametrize(("model", "places"), MODELS.values(), ids=MODELS)


def place(source: str) -> str:
    last = source.rpartition(".")[2]
    names = {"input_layernorm": "attention norm", "norm": "head norm", "v_proj": "values", "up_proj": "up"}
    return names.get(last, "feed-forward norm")


@CASES
def test_a_folded_model_is_the_same_function(model: RandomModel, places: set[str]) -> None:
    rng, before = np.random.default_rng(1), model.logits(TOKENS)
    found = foldings(model.graph)
    assert {place(folding.source) for folding in found} == places
    changed: dict[str, np.ndarray] = {}
    current = ChainMap(changed, model.tensors)
    for folding in found:
        s = np.exp(rng.normal(size=folding.width))
        tied = folding.tying()
        s = s if tied is None else s[: tied.max() + 1][tied]
        made = fold(folding, s, current.__getitem__)
        assert set(folding.weights) < set(made)
        alone = model.logits(TOKENS, made | {n: t for n, t in changed.items() if n not in made})
        np.testing.assert_allclose(alone, before, rtol=1e-8, atol=1e-9)
        changed.update(made)
    assert any(not np.allclose(changed[name], model.tensors[name]) for name in changed)
    after = model.logits(TOKENS, changed)
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()


@CASES
def test_float32_tensors_stay_float32_and_the_same_to_1e_5(model: RandomModel, places: set[str]) -> None:
    del places
    small = {name: tensor.astype(np.float32) for name, tensor in model.tensors.items()}
    before = model.logits(TOKENS, small)
    changed = dict(small)
    for folding in foldings(model.graph):
        s = np.full(folding.width, 1.7, np.float32)
        made = fold(folding, s, changed.__getitem__)
        assert {tensor.dtype for tensor in made.values()} == {np.dtype(np.float32)}
        changed.update(made)
    assert np.abs(model.logits(TOKENS, changed) - before).max() < 1e-5 * np.abs(before).max()


def test_every_matrix_of_llama_has_a_place_and_no_two_share_one() -> None:
    graph = MODELS["llama"][0].graph
    read = [name for folding in foldings(graph) for name in folding.weights]
    matrices = {name for name in graph.used if len(graph.shapes[name]) == 2} - {"model.embed_tokens"}
    assert len(read) == len(set(read))
    assert set(read) == matrices


def graph_of(shapes: dict[str, tuple[int, ...]]) -> Graph:
    return Graph({"embed": (5, 8), "head": (5, 8), **shapes})


def sources(graph: Graph, x: Value) -> set[str]:
    graph.linear(x, "head")
    return {folding.source for folding in foldings(graph)}


def test_a_norm_of_its_own_takes_factors_only_where_nothing_but_linears_reads_it() -> None:
    g = graph_of({"norm": (8,), "a": (8, 8)})
    x = g.normalize(g.norm(g.embed("embed"), "norm", 1e-5))
    assert sources(g, g.linear(x, "a")) == {"norm", "a"}
    g = graph_of({"norm": (8,), "a": (8, 8)})
    x = g.normalize(g.norm(g.embed("embed"), "norm", 1e-5))
    assert sources(g, g.linear(x, "a", residual=x)) == set()


def test_what_is_used_twice_takes_no_factors() -> None:
    g = graph_of({"norm": (8,), "a": (8, 8), "b": (8, 8)})
    x = g.embed("embed")
    x = g.linear(g.norm(x, "norm", 1e-5), "a", residual=x)
    x = g.linear(g.norm(x, "norm", 1e-5), "b", residual=x)  # one norm for two values
    assert sources(g, x) == set()
    g = graph_of({"a": (8, 8)})
    x = g.linear(g.linear(g.embed("embed"), "a", act="relu"), "a", act="relu")
    assert sources(g, x) == set()


def test_an_activation_or_soft_cap_between_takes_no_factors() -> None:
    for options, wanted in (({"act": "relu"}, {"a"}), ({"act": "silu"}, set()), ({"softcap": 2.0}, set()), ({}, {"a"})):
        g = graph_of({"a": (8, 8)})
        assert sources(g, g.linear(g.embed("embed"), "a", **options)) == wanted  # type: ignore[arg-type]


def test_factors_that_cannot_be_folded_are_refused() -> None:
    model = MODELS["llama"][0]
    values = next(f for f in foldings(model.graph) if f.source.endswith("v_proj"))
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidRequest, match="channels of one row have different factors"):
        fold(values, np.exp(rng.normal(size=values.width)), model.tensors.__getitem__)
    for wrong in (np.ones(3), np.zeros(values.width), np.full(values.width, np.inf)):
        with pytest.raises(InvalidRequest, match=r"v_proj: factors of shape .*, expected 32 above 0"):
            fold(values, wrong, model.tensors.__getitem__)
