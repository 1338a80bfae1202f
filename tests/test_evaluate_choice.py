"""Multiple choice: what files may say, where a choice begins, and scores against sums over the model's own logits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpuinfer import LLM
from cpuinfer.errors import InvalidRequest
from cpuinfer.evaluate import Question, choices, read_questions
from cpuinfer.evaluate.multiple_choice import prepare, with_letters

OWN = {"context": "The tower in the", "choices": ["hall", "water"], "answer": 1}
SHAPES: dict[str, tuple[dict[str, Any], tuple[str, tuple[str, ...], int]]] = {
    "ours": (OWN, ("The tower in the", ("hall", "water"), 1)),
    "mmlu": (
        {"question": "Q?", "choices": ["a", "b", "c"], "answer": 2},
        ("Question: Q?\nAnswer:", ("a", "b", "c"), 2),
    ),
    "mmlu, by letter": (
        {"question": "Q?", "choices": ["w", "x"], "answer": "B"},
        ("Question: Q?\nAnswer:", ("w", "x"), 1),
    ),
    "arc": (
        {"id": "x", "question": "Q?", "choices": {"text": ["w", "x"], "label": ["A", "B"]}, "answerKey": "B"},
        ("Question: Q?\nAnswer:", ("w", "x"), 1),
    ),
    "arc, labels from 1": (
        {"question": "Q?", "choices": {"text": ["w", "x"], "label": ["1", "2"]}, "answerKey": "1"},
        ("Question: Q?\nAnswer:", ("w", "x"), 0),
    ),
    "arc, as first published": (
        {
            "question": {"stem": "Q?", "choices": [{"text": "w", "label": "A"}, {"text": "x", "label": "B"}]},
            "answerKey": "A",
        },
        ("Question: Q?\nAnswer:", ("w", "x"), 0),
    ),
    "openbookqa": (
        {"question_stem": "Q", "choices": {"text": ["w", "x"], "label": ["A", "B"]}, "answerKey": "B"},
        ("Question: Q\nAnswer:", ("w", "x"), 1),
    ),
    "hellaswag": (
        {"ctx": "He", "endings": ["ran.", "sat.", "ate."], "label": "2", "activity_label": "Z"},
        ("He", ("ran.", "sat.", "ate."), 2),
    ),
    "piqa": ({"goal": "G", "sol1": "s", "sol2": "t", "label": 1}, ("Question: G\nAnswer:", ("s", "t"), 1)),
    "truthfulqa": (
        {"question": "Q?", "mc1_targets": {"choices": ["w", "x"], "labels": [0, 1]}},
        ("Question: Q?\nAnswer:", ("w", "x"), 1),
    ),
    "the answer's own text": ({**OWN, "answer": "water"}, ("The tower in the", ("hall", "water"), 1)),
}
FAULTS: dict[str, tuple[str, str]] = {
    "no json": ("{", "is not JSON"),
    "a list": ("[1]", "is list, expected a JSON object"),
    "no fields known": ('{"a": 1}', "has a; expected context, choices and answer"),
    "two kinds": (json.dumps({**OWN, "question": "Q"}), "has both choices/context and choices/question"),
    "no answer": ('{"context": "a", "choices": ["b", "c"]}', "has none of answer, answerKey, label, gold"),
    "two answers": (json.dumps({**OWN, "gold": 0}), "has answer and gold: which is meant"),
    "an index too many": (json.dumps({**OWN, "answer": 2}), "answer is 2, expected one of 2 choices"),
    "an index below": (json.dumps({**OWN, "answer": -1}), "answer is -1, expected one of 2 choices"),
    "true": (json.dumps({**OWN, "answer": True}), "answer is True, expected one of 2 choices"),
    "a letter too many": (json.dumps({**OWN, "answer": "C"}), "answer is 'C', expected one of 2 choices"),
    "an answer withheld": (json.dumps({"ctx": "a", "endings": ["b", "c"], "label": ""}), "label is '', expected one"),
    "an empty choice": (json.dumps({**OWN, "choices": ["a", " "]}), "choice 1 is empty"),
    "one choice": (json.dumps({**OWN, "choices": ["a"], "answer": 0}), "has 1 choices, expected at least 2"),
    "no texts": (json.dumps({**OWN, "choices": ["a", 3]}), "expected a list of texts"),
    "a context that is none": (json.dumps({**OWN, "context": None}), "context is None, expected a text"),
    "labels missing": (
        json.dumps({"question": "Q", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}),
        "has 2 choices and 1 labels",
    ),
    "bytes": ('{"context": "\udcff"}', "is not JSON"),
}


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[LLM]:
    with LLM(tiny_model, threads=2, deterministic=True) as model:
        yield model


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    return path


def question(context: str, *texts: str) -> Question:
    return Question(context, texts, 0, context, "1", "questions.jsonl:1")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fields_of_common_sets_are_understood(tmp_path: Path, shape: str) -> None:
    record, expected = SHAPES[shape]
    (found,) = read_questions(write(tmp_path / "q.jsonl", record))
    assert (found.context, found.choices, found.answer) == expected
    assert found.id == record.get("id", "1")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_line_that_is_no_question_is_refused_by_its_number(tmp_path: Path, fault: str) -> None:
    line, message = FAULTS[fault]
    path = tmp_path / "q.jsonl"
    path.write_bytes(f"{json.dumps(OWN)}\n\n".encode() + line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(InvalidRequest) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n \n")
    with pytest.raises(InvalidRequest, match=r"q\.jsonl: has no questions"):
        read_questions(path)


def test_a_space_stands_between_context_and_choice_where_neither_has_one() -> None:
    assert question("a", "b").text("b") == "a b"
    assert question("a ", "b").text("b") == "a b"
    assert question("a", "\nb").text("\nb") == "a\nb"
    assert question("", "b").text("b") == "b"


def test_a_choice_begins_at_the_last_boundary_that_all_share(llm: LLM) -> None:
    """ "the" is one token, and so is " the": the context's last token becomes a part of one choice's first."""
    whole = question("on t", "\nx", "\ny")
    assert llm.tokenizer.decode(prepare(llm, whole).context) == "on t"
    merged = Question("on ", ("there", "!"), 0, "", "1", "here")
    found = prepare(llm, merged)
    assert llm.tokenizer.decode(found.context) == "on"
    assert [llm.tokenizer.decode(tokens) for tokens in found.continuations] == [" there", " !"]


def expected_sums(llm: LLM, question: Question) -> list[float]:
    """By the logits of each whole text."""
    sums = []
    start = len(prepare(llm, question).context)
    for choice in question.choices:
        ids = llm.tokenizer.encode(question.text(choice))
        logits = llm.logits(ids).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        sums.append(math.fsum(logprobs[i - 1, ids[i]] for i in range(start, len(ids))))
    return sums


def test_scores_are_sums_over_the_models_own_logits(llm: LLM, tmp_path: Path) -> None:
    long = "The other word in the hall was there, or on a wall, " * 3
    records = [{**OWN, "context": context, "choices": ["hall", "other water", "wörter"]} for context in ("In", long)]
    path = write(tmp_path / "q.jsonl", *records)
    found = choices(llm, path)
    assert [found.normalisation for found in found.accuracies] == ["sum", "token", "byte", "letter"]
    for item, asked in zip(found.items, read_questions(path), strict=True):
        assert item.logprobs == pytest.approx(expected_sums(llm, asked), rel=1e-6)
        assert item.letter_logprobs == pytest.approx(expected_sums(llm, with_letters(asked)), rel=1e-6)
        assert item.bytes == (4, 11, 7)
        weighed = [
            np.array(item.logprobs),
            np.array(item.logprobs) / item.tokens,
            np.array(item.logprobs) / item.bytes,
            np.array(item.letter_logprobs),
        ]
        assert item.picked == tuple(int(values.argmax()) for values in weighed)
    for i, accuracy in enumerate(found.accuracies):
        assert accuracy.correct == sum(item.picked[i] == item.answer for item in found.items)
    assert found.chance == pytest.approx(1 / 3)
    assert choices(llm, path, letters=False).accuracies == found.accuracies[:3]


def test_the_letters_prompt_shows_all_choices() -> None:
    shown = with_letters(question("Which?", "the hall", " a wall"))
    assert shown.context == "Which?\nA) the hall\nB) a wall\nAnswer:"
    assert (shown.choices, shown.text("B")) == (("A", "B"), "Which?\nA) the hall\nB) a wall\nAnswer: B")
    with pytest.raises(InvalidRequest, match=r"questions\.jsonl:1: has 27 choices, letters are 26"):
        with_letters(question("Which?", *map(str, range(27))))


def test_results_are_the_same_bits_for_any_batch_and_threads(tiny_model: Path, tmp_path: Path) -> None:
    contexts = ["The " * n + "tower in the" for n in (0, 3, 40, 41, 7, 90)]
    path = write(tmp_path / "q.jsonl", *({**OWN, "context": context} for context in contexts))
    results = set()
    for threads in (1, 2):
        with LLM(tiny_model, threads=threads, deterministic=True) as model:
            results |= {choices(model, path, batch=batch) for batch in (1, 3, 8)}
    assert len(results) == 1


def test_a_question_too_long_for_the_model_is_refused_by_its_line(llm: LLM, tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", OWN, {**OWN, "context": "x" * 600})
    with pytest.raises(InvalidRequest, match=r"q\.jsonl:2: takes \d+ positions, the context is 512"):
        choices(llm, path)


def test_without_context_or_bos_a_question_is_refused(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "q.jsonl", {**OWN, "context": ""})
    with pytest.raises(InvalidRequest, match=r"q\.jsonl:1: the context has no token before the choices"):
        choices(llm, path, letters=False)
    monkeypatch.setattr(llm.tokenizer, "_add_bos", True)
    assert len(choices(llm, path, letters=False).items) == 1


def test_wrong_options_are_refused(llm: LLM, tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", OWN)
    with pytest.raises(InvalidRequest, match="normalise: 'mean', expected one of sum, token, byte, letter"):
        choices(llm, path, normalise="mean")
    with pytest.raises(InvalidRequest, match="batch: 0"):
        choices(llm, path, batch=0)
    with pytest.raises(InvalidRequest, match="no questions"):
        choices(llm, [])
    assert choices(llm, path, normalise="letter", letters=False).accuracy.normalisation == "letter"
