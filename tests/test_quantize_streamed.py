"""A source taken through texts stage by stage: the oracle's logits, and those of the loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpuinfer import LLM, loader
from cpuinfer.evaluate import Question
from cpuinfer.quantize import judge, streamed
from cpuinfer.quantize.judge import Judge
from cpuinfer.quantize.streamed import Streamed
from cpuinfer.reference import Reference
from quantize_runs import TEXT, llama, mixtral

TOKENS = [1, 5, 9, 3, 17, 2, 8, 30, 4, 11, 6]
HALF_STEP = 2.0**-24
"""Of float32, relative."""


@pytest.fixture(scope="module", params=[llama, mixtral])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = request.param(tmp_path_factory.mktemp("source") / "tiny")
    return made


def opened(folder: Path) -> loader.Blueprint:
    return loader.open_model(folder, quantize="none")


def rounding(blueprint: loader.Blueprint) -> float:
    """What float32 may add up to, relative: each op sums at most k products, whose errors are half a step each; and a
    norm, which divides by the size of what it reads, hands on a relative error as it is."""
    k = max(max(blueprint.tensor(name).shape) for name in blueprint.graph.used)
    return len(blueprint.graph.ops) * k * HALF_STEP


@pytest.mark.parametrize("first", [0, 3])
def test_logits_are_the_oracles_within_the_rounding_of_float32(
    first: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blueprint = opened(folder)
    weights = {name: blueprint.tensor(name).floats() for name in blueprint.graph.used}
    expected = Reference(blueprint.graph, weights.__getitem__).logits(TOKENS[:-1])[first:]
    monkeypatch.setattr(streamed, "HEAD_BYTES", 4 * 64 * 7)
    monkeypatch.setattr(streamed, "LOGIT_BYTES", 4 * blueprint.config.vocabulary * 3)
    model = Streamed(blueprint, context=64, threads=2)
    pairs = [(TOKENS[: first + 1], TOKENS[first + 1 :]), (TOKENS[:1], TOKENS[1:5])]
    found = [np.array(list(rows)) for rows in model.logits_before(pairs)]
    assert [len(rows) for rows in found] == [10 - first, 4]
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=rounding(blueprint) * float(np.abs(expected).max()))


def test_scores_are_those_of_the_loaded_model(folder: Path) -> None:
    """The loaded model keeps keys and values in half precision, 2^-11 of each: a score q k and a mixture of values
    change by as much of themselves, in every layer."""
    blueprint = opened(folder)
    pairs = [(TOKENS[:4], TOKENS[4:]), (TOKENS[:4], TOKENS[:3])]
    from cpuinfer.evaluate.scoring import score_after

    with LLM(blueprint, threads=1, context=64, deterministic=True) as llm:
        expected, widest = score_after(llm, pairs), float(np.abs(llm.logits(TOKENS)).max())
    found = Streamed(blueprint, context=64, threads=1).score_after(pairs)
    half = 2 * blueprint.config.layers * 2.0**-11
    for a, b in zip(found, expected, strict=True):
        # A log-probability moves by at most twice what any logit does.
        np.testing.assert_allclose(a, b, rtol=0, atol=2 * (half + rounding(blueprint)) * widest)


def test_large_sources_are_judged_by_streaming_to_the_same_verdict(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blueprint = opened(folder)
    choices = (" hall", " tower")
    questions = [
        Question("The other word in the", choices, answer=i % 2, stem="", id=str(i), where="here") for i in range(3)
    ]
    verdicts: list[Any] = []
    loaded = []
    monkeypatch.setattr(judge, "LLM", lambda *args, **more: loaded.append(1) or LLM(*args, **more))
    for limit in (1 << 60, 0):
        monkeypatch.setattr(judge, "STREAMED_FROM", limit)
        with Judge(blueprint, TEXT, tmp_path, threads=1, questions=questions) as judging:
            loaded.append(0)
            verdicts.append(judging.verdict(blueprint.source.weights))
    assert loaded == [1, 0, 1, 0, 1], "with a limit of nothing only the candidate is loaded"
    assert verdicts[0].divergence.divergence.value < 1e-8  # of codes of 16 bits
    assert verdicts[0].accuracy == verdicts[0].source_accuracy == verdicts[1].source_accuracy
    with LLM(blueprint, threads=1, context=64, deterministic=True) as llm:
        widest = float(np.abs(llm.logits(llm.tokenizer.encode(TEXT)[:64])).max())
    # Hoeffding's lemma: KL is at most an eighth of the square of the range of what logits change by.
    half = 2 * blueprint.config.layers * 2.0**-11
    assert verdicts[1].divergence.divergence.value < (2 * (half + rounding(blueprint)) * widest) ** 2 / 8
