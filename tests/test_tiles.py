"""Tile units in a whole model: every op within a bound derived from rounding to bf16, and results that depend on
nothing but a text's own pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import test_parity
from cpuinfer import LLM, SamplingParams, _core, loader
from cpuinfer.loader import Blueprint
from cpuinfer.ops import Attention, Op
from cpuinfer.reference import Reference
from kept_attention import attention_bound
from published_models import write_published_llama
from test_parity import UNIT, Array, Read, logits, make_session, op_bound, unrotated_inputs
from tiny_gguf import write_tiny_llama

ROUNDED = 2.0**-9
"""The most that rounding to bf16 moves a number, relatively."""
TILED = 64
"""Of TOKENS tokens, those of whole pages."""
TOKENS = 81
ANSWER = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True, logprobs=1)

pytestmark = pytest.mark.skipif(
    not any(entry["name"] == "amx" and entry["usable"] for entry in _core.kernel_sets()),
    reason="this machine has no tile units that are usable",
)


@pytest.fixture(scope="module", params=["Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "Q4_K", "Q6_K", "gptq", "nf4"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    folder = tmp_path_factory.mktemp("tiles")
    if request.param.islower():
        write_published_llama(folder, request.param, experts=0)
        return loader.open_model(folder)
    path = folder / "model.gguf"
    write_tiny_llama(path, encoding=request.param, tied=True, seed=3, hidden=256, feed_forward=256)
    return loader.open_model(path)


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return np.random.default_rng(5).integers(0, 250, TOKENS).tolist()


def tiled_bound(read: Read, blueprint: Blueprint, weight: str, rows: slice = slice(None)) -> Array:
    """Of W x: both rounded to bf16, products exact, sums in fp32 with an error of one unit a term at most; and what
    publishing did to the weights."""
    x = np.abs(read.x) + read.off
    exact = np.abs(blueprint.weight(weight)[rows])
    largest = exact.max(axis=1, keepdims=True)
    terms = exact + 2 * largest
    bound = read.off @ exact.T + x @ (2.01 * ROUNDED * exact + (2 * x.shape[-1] + 8) * UNIT * terms).T
    if blueprint.source.kind == "safetensors":
        bound += x @ (test_parity.HALF * terms + largest / 32512).T
    return bound


def test_every_op_is_within_the_bound_of_rounding_to_bf16(
    model: Blueprint, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session(model, isa="amx", keep_values=True, batch=128, tiles=True)
    native = {model.logits: logits(session, tokens, chunk=128).astype(np.float64)}
    native |= {
        value: session.value(value.index, TOKENS).astype(np.float64)
        for value in model.graph.values
        if value not in native
    }
    unrotated = unrotated_inputs(model, native, tokens)
    reference = Reference(model.graph, model.weight)

    def check(op: Op, rows: slice, tiled: bool) -> None:
        inputs = {**native, **unrotated} if isinstance(op, Attention) else native
        bounds = op_bound(op, inputs, reference, model)
        if isinstance(op, Attention) and tiled:
            bounds = {op.out: attention_bound(op, inputs, rounded=ROUNDED)}
        for out, value in reference.apply(op, inputs, tokens).items():
            excess = (np.abs(unrotated.get(out, native[out]) - value) - bounds[out])[rows]
            assert np.all(excess <= 0), f"{op.name}, rows {rows}: {excess.max()} over the bound"

    *body, head = model.graph.ops
    check(head, slice(None), tiled=False)
    for op in body:
        check(op, slice(TILED, None), tiled=False)
    monkeypatch.setattr(test_parity, "linear_bound", tiled_bound)
    for op in body:
        check(op, slice(TILED), tiled=True)


def test_tiles_are_used_for_whole_pages_and_nothing_else(model: Blueprint, tokens: list[int]) -> None:
    exact, tiled = make_session(model, isa="amx"), make_session(model, isa="amx", tiles=True)
    np.testing.assert_array_equal(logits(tiled, tokens[:31]), logits(exact, tokens[:31]))
    assert np.any(logits(tiled, tokens[:32]) != logits(exact, tokens[:32]))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_logits_are_the_same_bits_for_any_threads_and_chunks_of_pages(
    model: Blueprint, tokens: list[int], threads: int
) -> None:
    expected = logits(make_session(model, isa="amx", tiles=True, threads=1, batch=128), tokens, chunk=128)
    session = make_session(model, isa="amx", tiles=True, threads=threads, batch=128)
    for chunk in (32, 64, 96):
        np.testing.assert_array_equal(logits(session, tokens, chunk=chunk), expected, err_msg=f"chunks of {chunk}")


def test_a_sequence_has_the_same_bits_in_a_batch_as_alone(model: Blueprint) -> None:
    rng = np.random.default_rng(6)
    texts = [rng.integers(0, 250, length).tolist() for length in (1, 33, 17, 64, 31, 100)]
    session = make_session(model, isa="amx", tiles=True, batch=512)
    alone = [logits(session, text, chunk=512) for text in texts]
    sequences = [session.open() for _ in texts]
    together = session.step([(s, text, "logits", None) for s, text in zip(sequences, texts, strict=True)])
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("cache", ["int8", "int4"])
def test_attention_over_keys_and_values_of_codes_is_within_their_bound(
    model: Blueprint, tokens: list[int], cache: str
) -> None:
    session = make_session(model, isa="amx", keep_values=True, batch=128, tiles=True, cache=cache)
    logits(session, tokens, chunk=128)
    native = {
        value: session.value(value.index, TOKENS).astype(np.float64)
        for value in model.graph.values
        if value != model.logits
    }
    unrotated = unrotated_inputs(model, native, tokens)
    reference = Reference(model.graph, model.weight)
    for op in model.graph.ops:
        if isinstance(op, Attention):
            inputs = {**native, **unrotated}
            ((out, value),) = reference.apply(op, inputs, tokens).items()
            bound = attention_bound(op, inputs, cache, rounded=ROUNDED)
            assert np.all((np.abs(native[out] - value) - bound)[:TILED] <= 0), op.name


@pytest.mark.parametrize("kept", [None, 0])
def test_answers_do_not_depend_on_what_runs_beside_them(tmp_path: Path, kept: int | None) -> None:
    write_tiny_llama(tmp_path / "model.gguf", encoding="Q4_0", seed=3, context=2048)
    rng = np.random.default_rng(7)
    prompts = [rng.integers(3, 250, length).tolist() for length in (40, 300, 7, 129, 512, 64, 250)]
    params = SamplingParams(temperature=0.9, seed=1, max_tokens=12)
    with LLM(tmp_path / "model.gguf", threads=2, prefix_cache=kept) as llm:
        together = llm.generate(prompts, params)
        alone = [llm.generate(prompt, params) for prompt in prompts]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def test_logits_and_scores_do_not_depend_on_what_was_computed_before(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "model.gguf", encoding="Q4_0", seed=3, context=1024)
    params = SamplingParams(temperature=0, max_tokens=560, ignore_eos=True)
    with LLM(tmp_path / "model.gguf", threads=2, isa="amx") as llm:
        text = [5, 100, 200, *llm.generate([5, 100, 200], params).token_ids, *[7] * 80]
        found, score = llm.logits(text), llm.score([text])[0].total
    with LLM(tmp_path / "model.gguf", threads=2, isa="amx") as llm:
        np.testing.assert_array_equal(found, llm.logits(text))
        assert score == llm.score([text])[0].total


@pytest.fixture(scope="module")
def conversation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], list[int]]:
    """A model, a prompt, and a longer one that holds the first and what it is answered."""
    path = tmp_path_factory.mktemp("conversation") / "model.gguf"
    write_tiny_llama(path, encoding="Q4_0", seed=3, context=512)
    begun = np.random.default_rng(8).integers(3, 250, 40).tolist()
    with LLM(path, threads=2, prefix_cache=0) as llm:
        return path, begun, [*begun, *llm.generate(begun, ANSWER).token_ids, 5]


def test_a_prompt_takes_no_pages_that_an_answer_filled(conversation: tuple[Path, list[int], list[int]]) -> None:
    path, begun, longer = conversation
    with LLM(path, threads=2, prefix_cache=0) as llm:
        alone = llm.generate(longer, ANSWER)
    with LLM(path, threads=2) as llm:
        llm.generate(begun, ANSWER)
        after = [llm.generate(longer, ANSWER) for _ in range(2)]
    assert [answer.timings.reused_tokens for answer in after] == [32, 128]
    for answer in after:
        assert (answer.token_ids, answer.logprobs) == (alone.token_ids, alone.logprobs)


def test_an_answer_goes_on_in_its_own_pages_where_a_prompt_had_the_same_tokens(
    conversation: tuple[Path, list[int], list[int]],
) -> None:
    path, begun, longer = conversation
    with LLM(path, threads=2, prefix_cache=0) as llm:
        alone = llm.generate(begun, ANSWER)
    with LLM(path, threads=2) as llm:
        llm.generate(longer, ANSWER)
        after = llm.generate(begun, ANSWER)
    assert after.timings.reused_tokens == 32
    assert (after.token_ids, after.logprobs) == (alone.token_ids, alone.logprobs)


def test_deterministic_answers_depend_neither_on_reuse_nor_on_the_instruction_set(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "model.gguf", encoding="Q4_0", seed=3, context=512)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    begun = np.random.default_rng(8).integers(3, 250, 40).tolist()
    found = []
    for isa, kept in (("amx", None), ("amx", 0), ("avx2", None), ("scalar", 0)):
        with LLM(tmp_path / "model.gguf", threads=2, isa=isa, prefix_cache=kept, deterministic=True) as llm:
            first = llm.generate(begun, params).token_ids
            found.append((first, llm.generate([*begun, *first, 5], params).token_ids))
    assert all(answers == found[0] for answers in found)
