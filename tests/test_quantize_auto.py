"""The search: which candidates are tried in what order, and which is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cpuinfer.errors import InvalidRequest
from cpuinfer.quantize import auto
from cpuinfer.quantize.recipe import Recipe
from cpuinfer.weight import Weight

SHAPE = (64, 256)
BITS = {"small": "Q2_K", "middle": "Q4_K", "same as middle": "Q4_K", "large": "Q8_0", "floats": "F16"}


def weight(name: str) -> Weight:
    return Weight(
        name=name,
        shape=SHAPE,
        encoding="F32",
        layout="f32",
        file_bytes=SHAPE[0] * SHAPE[1] * 4,
        rows=lambda _begin, _end: pytest.fail("nothing is read"),
        floats=lambda: pytest.fail("nothing is read"),
    )


MODEL: Any = SimpleNamespace(
    blueprint=SimpleNamespace(source=SimpleNamespace(weights={"w": weight("w")}), graph=SimpleNamespace(ops=()))
)


def recipe(label: str, method: str) -> Recipe:
    return Recipe(method=method, encodings={"w": BITS[label]}, label=label)


class Run:
    """A search whose candidates lose what is written here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, losses: dict[tuple[str, str], float]) -> None:
        self.tried: list[tuple[str, str]] = []
        self.losses = losses

        def quantise(_model: object, wanted: Recipe, *_others: object, keep: bool) -> Any:
            assert keep
            self.tried.append((wanted.label, wanted.method))
            return SimpleNamespace(weights=wanted), None

        monkeypatch.setattr(auto, "quantise", quantise)

    def verdict(self, wanted: Any) -> Any:
        loss = self.losses[wanted.label, wanted.method]
        return SimpleNamespace(loss=loss, divergence=SimpleNamespace(divergence=SimpleNamespace(value=abs(loss))))

    def search(self, *labels: str, goal: float | None, methods: tuple[str, ...] = ("opt-rtn", "gptq")) -> auto.Search:
        judge: Any = self
        return auto.search(MODEL, labels, recipe, judge, Path("out"), goal=goal, methods=methods)


def test_the_first_that_meets_the_goal_is_kept_and_nothing_larger_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {("small", "opt-rtn"): 0.03, ("small", "gptq"): 0.02, ("middle", "opt-rtn"): 0.015}
    run = Run(monkeypatch, {**losses, ("middle", "gptq"): 0.01})
    found = run.search("large", "middle", "small", goal=0.01)
    assert run.tried == [*losses, ("middle", "gptq")]
    assert found.kept is found.tried[-1]
    assert found.kept.recipe.label == "middle"


def test_a_hopeless_size_is_left_after_its_first_method(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, {("small", "opt-rtn"): 0.5, ("large", "opt-rtn"): 0.0})
    assert run.search("small", "large", goal=0.01).kept is not None
    assert run.tried == [("small", "opt-rtn"), ("large", "opt-rtn")]


def test_nothing_is_kept_where_nothing_meets_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = dict.fromkeys([("small", "opt-rtn"), ("small", "gptq"), ("large", "opt-rtn"), ("large", "gptq")], 0.02)
    run = Run(monkeypatch, losses)
    found = run.search("large", "small", goal=0.01)
    assert found.kept is None
    assert run.tried == list(losses)


def test_without_a_goal_the_least_divergence_of_all_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {("small", "opt-rtn"): 0.5, ("small", "gptq"): -0.1, ("large", "opt-rtn"): 0.3, ("large", "gptq"): 0.2}
    run = Run(monkeypatch, losses)
    found = run.search("small", "large", goal=None)
    assert run.tried == list(losses)
    assert found.kept is found.tried[1]


def test_labels_that_mean_the_same_are_tried_once_and_those_that_round_nothing_never() -> None:
    assert auto.by_size(MODEL, ["large", "middle", "same as middle", "floats", "small"], recipe, "rtn") == [
        *("small", "middle", "large")
    ]
    with pytest.raises(InvalidRequest, match="floats: no matrix of the model can be stored so"):
        auto.by_size(MODEL, ["floats"], recipe, "rtn")


def test_sizes_are_of_all_bits() -> None:
    weights = {"a": weight("a"), "b": weight("b")}
    assert auto.planned_bits({"a": "Q4_K", "b": "BF16"}, weights) == SHAPE[0] * SHAPE[1] * (4.5 + 16)
