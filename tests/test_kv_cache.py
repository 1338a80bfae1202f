"""Keys and values kept as fp16, int8 or int4: bounds, equal bits whoever computes what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cpuinfer import LLM, SamplingParams, _core, describe, loader
from cpuinfer.errors import InvalidRequest
from cpuinfer.loader import Blueprint
from cpuinfer.ops import Attention, Value
from cpuinfer.reference import Array, Reference
from kept_attention import attention_bound
from test_parity import USABLE, unrotated_inputs
from test_perplexity import ENGLISH
from tiny_gguf import write_tiny_llama

CACHES = describe.KV_CACHES
SHAPES = {"two heads of 16": {}, "one head of 40": {"hidden": 160, "kv_heads": 1}}
LONG = 1300


@pytest.fixture(scope="module", params=sorted(SHAPES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    path = tmp_path_factory.mktemp("cache") / "model.gguf"
    write_tiny_llama(path, seed=4, context=2048, **SHAPES[request.param])
    return loader.open_model(path)


@pytest.fixture(scope="module")
def text() -> list[int]:
    return np.random.default_rng(8).integers(0, 250, LONG).tolist()


def make_session(
    model: Blueprint, cache: str, *, isa: str = "", threads: int = 2, keep_values: bool = False
) -> _core.Session:
    program = loader.load_program(model, threads=2)
    sizes = {"batch": 512, "context": 2048, "cache_pages": 256}
    return _core.Session(program, isa=isa, threads=threads, cache=cache, keep_values=keep_values, **sizes)


def last_logits(session: _core.Session, tokens: list[int], *, chunk: int = 512) -> npt.NDArray[np.float32]:
    """Of the last 100 tokens fed in chunks."""
    sequence = session.open()
    rows: list[npt.NDArray[np.float32]] = []
    for begin in range(0, len(tokens), chunk):
        fed = tokens[begin : begin + chunk]
        wanted = begin + len(fed) > len(tokens) - 100
        found = session.step([(sequence, fed, "logits" if wanted else "nothing", None)])[0]
        rows += [found] if wanted else []
    session.close(sequence)
    return np.concatenate(rows)[-100:]


@pytest.mark.parametrize("cache", CACHES)
def test_attention_is_within_the_bound_of_how_keys_and_values_are_kept(model: Blueprint, cache: str) -> None:
    tokens = np.random.default_rng(5).integers(0, 250, 70).tolist()
    for isa in USABLE:
        session = make_session(model, cache, isa=isa, keep_values=True)
        sequence = session.open()
        session.step([(sequence, tokens, "nothing", None)])
        native: dict[Value, Array] = {
            value: session.value(value.index, len(tokens)).astype(np.float64)
            for value in model.graph.values
            if value != model.logits
        }
        inputs = {**native, **unrotated_inputs(model, native, tokens)}
        reference = Reference(model.graph, model.weight)
        for op in model.graph.ops:
            if not isinstance(op, Attention):
                continue
            off = np.abs(native[op.out] - reference.apply(op, inputs, tokens)[op.out])
            excess = off - attention_bound(op, inputs, cache)
            assert np.all(excess <= 0), f"{isa}: off by {off.max()}, {excess.max()} over the bound"


@pytest.mark.parametrize("cache", CACHES)
def test_logits_are_the_same_bits_on_every_set_and_any_threads_and_chunks(
    model: Blueprint, text: list[int], cache: str
) -> None:
    """Past 512 positions workers share out segments where there are fewer heads than would keep all of them busy."""
    expected = last_logits(make_session(model, cache, threads=1), text)
    assert np.isfinite(expected).all()
    for threads, chunk in ((1, 1), (2, 1), (5, 1), (2, 33), (5, 7), (5, 512)):
        found = last_logits(make_session(model, cache, threads=threads), text, chunk=chunk)
        np.testing.assert_array_equal(found, expected, err_msg=f"{threads} threads, chunks of {chunk}")
    for isa in USABLE:
        found = last_logits(make_session(model, cache, isa=isa, threads=5), text)
        np.testing.assert_array_equal(found, expected, err_msg=isa)


@pytest.mark.parametrize("cache", CACHES)
def test_a_sequence_has_the_same_bits_beside_others(model: Blueprint, text: list[int], cache: str) -> None:
    session = make_session(model, cache, threads=3)
    texts = [text[:600], text[100:117], text[200:241]]
    alone = [last_logits(session, tokens) for tokens in texts]
    sequences = [session.open() for _ in texts]
    for sequence, tokens in zip(sequences, texts, strict=True):
        for begin in range(0, len(tokens) - 1, 512):
            session.step([(sequence, tokens[begin : min(begin + 512, len(tokens) - 1)], "nothing", None)])
    together = session.step(
        [(sequence, tokens[-1:], "logits", None) for sequence, tokens in zip(sequences, texts, strict=True)]
    )
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found[-1], expected[-1])


@pytest.mark.parametrize("cache", CACHES)
def test_a_known_beginning_is_taken_from_the_cache_with_the_same_answer(tiny_model: Path, cache: str) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1)
    prompt = list(range(5, 105))
    with LLM(tiny_model, threads=2, kv_cache=cache) as llm:
        first, again = llm.generate(prompt, greedy), llm.generate(prompt, greedy)
        assert llm.kv_cache == cache
    assert (first.timings.reused_tokens, again.timings.reused_tokens) == (0, 96)
    assert (again.token_ids, again.logprobs) == (first.token_ids, first.logprobs)


@pytest.mark.parametrize("cache", CACHES)
def test_the_size_of_a_page_is_stated_and_counted(model: Blueprint, tiny_model: Path, cache: str) -> None:
    assert make_session(model, cache).page_bytes == describe.page_bytes(model.config, cache)
    shown = describe.describe(tiny_model, 320, kv_cache=cache)
    assert shown.kv_cache == cache
    with LLM(tiny_model, kv_cache=cache) as llm:
        assert shown.memory.cache == 10 * llm._session.page_bytes


@pytest.mark.parametrize("open_model", [LLM, describe.describe])
def test_another_kind_of_cache_is_refused(tiny_model: Path, open_model: type[LLM]) -> None:
    with pytest.raises(InvalidRequest, match="kv_cache: 'q8', expected f16, int8 or int4"):
        open_model(tiny_model, kv_cache="q8")


@pytest.mark.parametrize(("cache", "most"), [("int8", 0.01), ("int4", 0.05)])
def test_a_text_is_about_as_likely_with_codes_as_with_fp16(real_model: Path, cache: str, most: float) -> None:
    """Perplexity of SmolLM2 relative to that with fp16."""
    with LLM(real_model, kv_cache="f16") as llm:
        expected = llm.score(ENGLISH).perplexity
    with LLM(real_model, kv_cache=cache) as llm:
        found = llm.score(ENGLISH).perplexity
    assert found == pytest.approx(expected, rel=most)
