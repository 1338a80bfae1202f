"""Multiple-choice questions from JSON lines: our own fields, or those that the common sets are published with.

One object a line; blank lines are skipped.  Our own fields:

    {"context": "The sky is", "choices": ["blue", "green"], "answer": 0, "id": "sky"}

`answer` counts from 0; `id`, by default the number of the line, is a label.  Of the common sets are understood

    question, choices, answer                    MMLU; choices may be {"text": [...], "label": [...]}, as ARC's are,
    question, choices, answerKey                 or [{"text": ..., "label": ...}, ...]; OpenBookQA's question_stem
    question: {stem, choices}, answerKey         ARC and OpenBookQA as first published
    ctx, endings, label                          HellaSwag
    goal, sol1, sol2, label                      PIQA
    question, mc1_targets: {choices, labels}     TruthfulQA, of which one label is 1

The answer is an index from 0, also as a text of digits; or, where it is a text, one of the labels, a letter from A, or
one of the choices.  A question becomes the context "Question: ...\\nAnswer:", as evaluations of these sets have it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NoReturn

from cpuinfer.errors import InvalidRequest

ANSWERS = ("answer", "answerKey", "label", "gold")
"""Fields that say which choice is right."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        context: what comes before a choice.
        choices: texts, with nothing between them and the context but a space where neither brings white space.
        answer: index of the right one, from 0.
        stem: the question itself, to stand above lettered choices.
        id: a label.
        where: file and line, for messages.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    stem: str
    id: str
    where: str

    @property
    def key(self) -> str:
        """Of equal questions equal, whatever file they are in."""
        content = json.dumps([self.context, self.choices, self.answer])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def text(self, choice: str) -> str:
        """The context and a choice."""
        spaced = not self.context or self.context[-1].isspace() or choice[0].isspace()
        return self.context + ("" if spaced else " ") + choice


def read_questions(path: Path) -> list[Question]:
    """All questions of a file.  Raises InvalidRequest naming file, line and what would be right, or OSError."""
    questions = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            questions.append(_Line(path, number).question(line))
    if not questions:
        raise InvalidRequest(f"{path}: has no questions, expected a JSON object a line")
    return questions


class _Line:
    """One line of a file."""

    def __init__(self, path: Path, number: int) -> None:
        self.where = f"{path}:{number}"
        self._number = number

    def refuse(self, why: str) -> NoReturn:
        raise InvalidRequest(f"{self.where}: {why}")

    def question(self, line: bytes) -> Question:
        try:
            found = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            self.refuse(f"is not JSON: {error}")
        if not isinstance(found, dict):
            self.refuse(f"is {type(found).__name__}, expected a JSON object")
        shapes = [shape for shape in _SHAPES if shape.fields <= found.keys()]
        if isinstance(found.get("question"), dict):
            shapes = [_NESTED]
        if len(shapes) != 1:
            fault = " and ".join("/".join(sorted(shape.fields)) for shape in shapes)
            known = "context, choices and answer, or the fields of a common set"
            self.refuse(f"has both {fault}: which is meant?" if shapes else f"has {', '.join(found)}; expected {known}")
        context, stem, choices, answer = shapes[0].read(self, found)
        if len(choices) < 2:
            self.refuse(f"has {len(choices)} choices, expected at least 2")
        for i, choice in enumerate(choices):
            if not choice.strip():
                self.refuse(f"choice {i} is empty")
        return Question(context, tuple(choices), answer, stem, str(found.get("id", self._number)), self.where)

    def text(self, found: Mapping[str, Any], field: str) -> str:
        value = found[field]
        return value if isinstance(value, str) else self.refuse(f"{field} is {value!r}, expected a text")

    def texts(self, value: Any, field: str) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self.refuse(f"{field} is {value!r}, expected a list of texts")
        return list(value)

    def labelled(self, value: Any) -> tuple[list[str], list[str]]:
        """(choices, their labels, if they have any)."""
        if isinstance(value, dict) and {"text", "label"} <= value.keys():
            pairs = self.texts(value["text"], "choices.text"), self.texts(value["label"], "choices.label")
        elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            pairs = (
                self.texts([each.get("text") for each in value], "choices[].text"),
                self.texts([each.get("label") for each in value], "choices[].label"),
            )
        else:
            return self.texts(value, "choices"), []
        if len(pairs[0]) != len(pairs[1]):
            self.refuse(f"has {len(pairs[0])} choices and {len(pairs[1])} labels")
        return pairs

    def answer(self, found: Mapping[str, Any], choices: Sequence[str], labels: Sequence[str] = ()) -> int:
        """The index that the only field of an answer says."""
        fields = [field for field in ANSWERS if field in found]
        if len(fields) != 1:
            names = ", ".join(ANSWERS)
            self.refuse(f"has {' and '.join(fields)}: which is meant?" if fields else f"has none of {names}")
        value = found[fields[0]]
        index = -1
        if isinstance(value, str):
            index = self._named(value, choices, labels)
        elif isinstance(value, int) and not isinstance(value, bool):
            index = value
        if not 0 <= index < len(choices):
            self.refuse(f"{fields[0]} is {value!r}, expected one of {len(choices)} choices, the first being 0 or A")
        return index

    @staticmethod
    def _named(value: str, choices: Sequence[str], labels: Sequence[str]) -> int:
        letters = ascii_uppercase[: len(choices)]
        for names in (labels, choices, letters if len(value) == 1 else ""):
            if value and value in names:
                return names.index(value)
        return int(value) if not labels and value.isascii() and value.isdigit() and len(value) < 4 else -1


Parts = tuple[str, str, list[str], int]
"""Context, stem, choices and answer."""


@dataclass(frozen=True, slots=True)
class _Shape:
    fields: frozenset[str]
    read: Callable[[_Line, Mapping[str, Any]], Parts]


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _own(line: _Line, found: Mapping[str, Any]) -> Parts:
    choices, labels = line.labelled(found["choices"])
    context = line.text(found, "context")
    return context, context, choices, line.answer(found, choices, labels)


def _hellaswag(line: _Line, found: Mapping[str, Any]) -> Parts:
    choices = line.texts(found["endings"], "endings")
    context = line.text(found, "ctx")
    return context, context, choices, line.answer(found, choices)


def _piqa(line: _Line, found: Mapping[str, Any]) -> Parts:
    choices = [line.text(found, "sol1"), line.text(found, "sol2")]
    goal = line.text(found, "goal")
    return _asked(goal), goal, choices, line.answer(found, choices)


def _question(line: _Line, found: Mapping[str, Any], field: str = "question") -> Parts:
    choices, labels = line.labelled(found["choices"])
    stem = line.text(found, field)
    return _asked(stem), stem, choices, line.answer(found, choices, labels)


def _nested(line: _Line, found: Mapping[str, Any]) -> Parts:
    question = found["question"]
    if not {"stem", "choices"} <= question.keys():
        line.refuse(f"question has {', '.join(question)}, expected stem and choices")
    choices, labels = line.labelled(question["choices"])
    stem = line.text(question, "stem")
    return _asked(stem), stem, choices, line.answer(found, choices, labels)


def _truthfulqa(line: _Line, found: Mapping[str, Any]) -> Parts:
    targets = found["mc1_targets"]
    if not isinstance(targets, dict) or not {"choices", "labels"} <= targets.keys():
        line.refuse("mc1_targets: expected choices and labels")
    choices, labels = line.texts(targets["choices"], "mc1_targets.choices"), targets["labels"]
    if not isinstance(labels, list) or len(labels) != len(choices) or labels.count(1) != 1:
        line.refuse("mc1_targets.labels: expected a number for each choice, of which one is 1")
    stem = line.text(found, "question")
    return _asked(stem), stem, choices, labels.index(1)


_SHAPES = (
    _Shape(frozenset({"context", "choices"}), _own),
    _Shape(frozenset({"ctx", "endings"}), _hellaswag),
    _Shape(frozenset({"goal", "sol1", "sol2"}), _piqa),
    _Shape(frozenset({"question", "mc1_targets"}), _truthfulqa),
    _Shape(frozenset({"question", "choices"}), _question),
    _Shape(frozenset({"question_stem", "choices"}), lambda line, found: _question(line, found, "question_stem")),
)
_NESTED = _Shape(frozenset({"question"}), _nested)
