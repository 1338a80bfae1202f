"""Comparing results: what is paired, what is not, and what can't be compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cpuinfer import LLM
from cpuinfer.errors import InvalidRequest
from cpuinfer.evaluate import choices, compare, divergence, perplexity, read_record, write_record
from cpuinfer.evaluate.resampling import mcnemar_p, sign_flip_p
from tiny_gguf import write_tiny_llama

TEXT = "The other word in the hall was there, or on a wall: the water, the winter, the tower.\n" * 6
LETTERS = "abcdefghijkl"


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, LLM]]:
    path = write_tiny_llama(tmp_path_factory.mktemp("other") / "other.gguf", seed=1)
    with LLM(tiny_model, threads=1, deterministic=True) as a, LLM(path, threads=1, deterministic=True) as b:
        yield a, b


def questions(path: Path, letters: str) -> Path:
    lines = [
        json.dumps({"context": f"The {letter} in the", "choices": ["hall", "water", "tower"], "answer": i % 3})
        for i, letter in enumerate(letters)
    ]
    path.write_text("\n".join(lines))
    return path


def test_perplexities_of_one_text_are_compared_by_windows(pair: tuple[LLM, LLM], tmp_path: Path) -> None:
    a, b = (perplexity(llm, TEXT, window=40, stride=20) for llm in pair)
    write_record(a, tmp_path / "a.json")
    found = compare(tmp_path / "a.json", b, seed=3)
    (difference,) = found.differences
    assert (found.paired, found.items_a, found.seed) == (True, len(a.items), 3)
    assert difference.difference == pytest.approx(b.loss.value - a.loss.value, rel=1e-9)
    assert difference.low <= difference.difference <= difference.high
    losses = np.array([y.loss - x.loss for x, y in zip(a.items, b.items, strict=True)])
    assert difference.p_value == sign_flip_p(losses, resamples=found.resamples, seed=3)
    assert compare(a, b, seed=3) == found
    assert compare(a, b, seed=4) != found


def test_two_texts_are_two_samples(pair: tuple[LLM, LLM]) -> None:
    llm = pair[0]
    a, b = perplexity(llm, TEXT, window=40, stride=20), perplexity(llm, TEXT[::-1], window=40, stride=20)
    found = compare(a, b)
    (difference,) = found.differences
    assert (found.paired, found.items_b) == (False, len(b.items))
    assert difference.difference == pytest.approx(b.loss.value - a.loss.value, rel=1e-9)
    assert 0 < difference.p_value <= 1


def test_accuracies_of_the_same_questions_have_mcnemars_test_whatever_their_order(
    pair: tuple[LLM, LLM], tmp_path: Path
) -> None:
    path = questions(tmp_path / "q.jsonl", LETTERS)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(reversed(path.read_text().splitlines())))
    a, b = choices(pair[0], path), choices(pair[1], turned)
    found = compare(a, b)
    assert found.paired
    assert [difference.measure for difference in found.differences] == ["sum", "token", "byte", "letter"]
    right = {item.key: item.picked[0] == item.answer for item in a.items}
    only_a = sum(right[item.key] and item.picked[0] != item.answer for item in b.items)
    only_b = sum(not right[item.key] and item.picked[0] == item.answer for item in b.items)
    difference = found.differences[0]
    assert (difference.only_a, difference.only_b) == (only_a, only_b)
    assert difference.mcnemar_p == mcnemar_p(only_a, only_b)
    assert difference.difference == pytest.approx((only_b - only_a) / len(LETTERS))


def test_a_public_set_and_its_twin_are_two_samples(pair: tuple[LLM, LLM], tmp_path: Path) -> None:
    public = choices(pair[0], questions(tmp_path / "public.jsonl", LETTERS), letters=False)
    private = choices(pair[0], questions(tmp_path / "private.jsonl", LETTERS.upper()), letters=False)
    found = compare(public, private)
    assert not found.paired
    assert (found.a, found.b) == (f"tiny.gguf on {tmp_path}/public.jsonl", f"tiny.gguf on {tmp_path}/private.jsonl")
    assert {difference.mcnemar_p for difference in found.differences} == {None}


def test_divergences_are_compared_by_windows(pair: tuple[LLM, LLM]) -> None:
    a, b = (divergence(llm, TEXT, pair[0], window=40, stride=20) for llm in pair)
    found = compare(a, b)
    first, second, _ = found.differences
    assert (first.a, first.b) == (0, pytest.approx(b.divergence.value))
    assert (second.a, second.b) == (1, pytest.approx(b.same_top.value))


def test_what_can_not_be_compared_is_refused(pair: tuple[LLM, LLM], tmp_path: Path) -> None:
    llm = pair[0]
    some = choices(llm, questions(tmp_path / "some.jsonl", LETTERS[:8]), letters=False)
    others = choices(llm, questions(tmp_path / "others.jsonl", LETTERS[:9]), letters=False)
    with pytest.raises(InvalidRequest, match=r"share 8 of 8 and 9 items: expected all, .* or none"):
        compare(some, others)
    with pytest.raises(InvalidRequest, match="is a result of choice, Perplexity of perplexity"):
        compare(some, perplexity(llm, TEXT))
    with pytest.raises(InvalidRequest, match="cut the same text otherwise"):
        compare(perplexity(llm, TEXT, window=40, stride=20), perplexity(llm, TEXT, window=60, stride=31))
    with pytest.raises(InvalidRequest, match="resamples: 9, expected an integer of at least 100"):
        compare(some, some, resamples=9)
    with pytest.raises(InvalidRequest, match="is a comparison"):
        compare(compare(some, some), some)
    with pytest.raises(InvalidRequest, match=r"expected a result of cpuinfer\.evaluate"):
        compare(3, some)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"kind": "other"}', '{"kind": "choice"}', '{"kind": "kld", "items": 3}']
)
def test_a_file_that_is_no_result_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(InvalidRequest, match=r"a\.json: is "):
        compare(path, path)


def test_a_result_is_read_as_it_was_written(pair: tuple[LLM, LLM], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    found = perplexity(pair[0], TEXT)
    write_record(found, path)
    record = read_record(path)
    assert record["kind"] == "perplexity"
    assert record["loss"]["value"] == found.loss.value
    assert [tuple(item.values()) for item in record["items"]] == [(w.start, w.tokens, w.loss) for w in found.items]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
