"""Multiple choice by log-likelihood: which of the choices a model thinks likeliest, however one counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from cpuinfer.errors import InvalidRequest
from cpuinfer.evaluate.estimates import Estimate, wilson
from cpuinfer.evaluate.identity import Subject, subject
from cpuinfer.evaluate.likelihood import check_batch
from cpuinfer.evaluate.questions import Question, read_questions
from cpuinfer.evaluate.scoring import Model, Progress, score_after

if TYPE_CHECKING:
    from cpuinfer.llm import LLM
    from cpuinfer.tokenizer import Tokenizer

NORMALISATIONS = ("sum", "token", "byte", "letter")
"""sum: the log-probability of a choice; token, byte: that by its number of tokens, of UTF-8 bytes; letter: that of its
letter, once all choices were shown."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of questions answered right, with Wilson's interval, under one normalisation."""

    normalisation: str
    correct: int
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model made of one question.

    Attributes:
        key: equal for equal questions.
        answer: index of the right choice.
        logprobs: of the choices, in nats.
        tokens, bytes: of the choices.
        letter_logprobs: of the letters; None where they were not asked for.
        picked: the choice taken under each of `Choices.accuracies`, in their order; of equals, the first.
    """

    id: str
    key: str
    answer: int
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    letter_logprobs: tuple[float, ...] | None
    picked: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choices:
    """How well a model chooses.

    Attributes:
        source: the file's name.
        normalisation: that of the headline, one of NORMALISATIONS.
        chance: the accuracy of a guess.
        accuracies: one for each normalisation measured.
        items: the questions.
    """

    model: Subject
    source: str
    normalisation: str
    chance: float
    accuracies: tuple[Accuracy, ...]
    items: tuple[Answer, ...]

    @property
    def accuracy(self) -> Accuracy:
        """The headline."""
        return next(found for found in self.accuracies if found.normalisation == self.normalisation)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A question as tokens: the context that all choices share, and what follows it with each."""

    context: list[int]
    continuations: list[list[int]]


def choices(
    llm: LLM | Model,
    questions: str | Path | Sequence[Question],
    *,
    normalise: str = "sum",
    letters: bool = True,
    batch: int = 8,
    progress: Progress | None = None,
) -> Choices:
    """Answer questions by the likelihood of their choices.

    Context and choice are tokenised as one text, with BOS if the tokenizer adds one.  What counts as the choice begins
    at the last boundary of tokens that the context alone and all its choices have in common: so a token that spans the
    end of the context is scored, and for every choice from the same place on.

    Args:
        questions: a file of JSON lines (see cpuinfer.evaluate.questions), or questions.
        normalise: the normalisation of the headline; all are reported.
        letters: ask once more with the choices shown as "A) ...", comparing the letters.
        batch: questions that run together, which changes no result.
        progress: called with the questions answered and all of them.

    Raises InvalidRequest, naming file and line, for a question that is none or does not fit the context.
    """
    check_batch(batch)
    if normalise not in NORMALISATIONS:
        raise InvalidRequest(f"normalise: {normalise!r}, expected one of {', '.join(NORMALISATIONS)}")
    letters = letters or normalise == "letter"
    source = str(questions) if isinstance(questions, (str, Path)) else "questions"
    asked = read_questions(Path(questions)) if isinstance(questions, (str, Path)) else list(questions)
    if not asked:
        raise InvalidRequest("there are no questions")
    lettered = [with_letters(question) for question in asked] if letters else []
    prepared = [prepare(llm, question) for question in asked + lettered]  # first, to refuse before hours of work
    items: list[Answer] = []
    for begin in range(0, len(asked), batch):
        chunk = range(begin, min(begin + batch, len(asked)))
        places = [i + offset for offset in ((0, len(asked)) if letters else (0,)) for i in chunk]
        sums = _sums(llm, [prepared[i] for i in places])
        for n, i in enumerate(chunk):
            items.append(_answer(asked[i], prepared[i], sums[n], sums[len(chunk) + n] if letters else None))
        if progress is not None:
            progress(len(items), len(asked))
    return Choices(
        model=subject(llm),
        source=source,
        normalisation=normalise,
        chance=math.fsum(1 / len(question.choices) for question in asked) / len(asked),
        accuracies=_accuracies(items, letters=letters),
        items=tuple(items),
    )


def with_letters(question: Question) -> Question:
    """The question with its choices shown, to be answered by a letter.  Raises InvalidRequest for more than 26."""
    if len(question.choices) > len(ascii_uppercase):
        raise InvalidRequest(f"{question.where}: has {len(question.choices)} choices, letters are 26: leave them out")
    letters = tuple(ascii_uppercase[: len(question.choices)])
    shown = "\n".join(f"{letter}) {text.strip()}" for letter, text in zip(letters, question.choices, strict=True))
    return replace(question, context=f"{question.stem.rstrip()}\n{shown}\nAnswer:", choices=letters)


def prepare(llm: LLM | Model, question: Question) -> Prepared:
    """Tokenise a question's choices.  Raises InvalidRequest where one is too long, or nothing comes before it."""
    alone = _encode(llm.tokenizer, question.context)
    whole = [_encode(llm.tokenizer, question.text(choice)) for choice in question.choices]
    shared = min(_common(alone, tokens) for tokens in whole)
    if shared == 0:
        raise InvalidRequest(f"{question.where}: the context has no token before the choices: expected one")
    for choice, tokens in zip(question.choices, whole, strict=True):
        if len(tokens) == shared:
            raise InvalidRequest(f"{question.where}: choice {choice!r} has no token of its own")
        if len(tokens) - 1 > llm.context:
            raise InvalidRequest(
                f"{question.where}: takes {len(tokens) - 1} positions, the context is {llm.context}: "
                "open the model with a larger context (-c), or shorten the question"
            )
    return Prepared(whole[0][:shared], [tokens[shared:] for tokens in whole])


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, parse_special=False)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _sums(llm: LLM | Model, questions: Sequence[Prepared]) -> list[tuple[float, ...]]:
    """The log-probability of each choice of each question."""
    scores = iter(
        score_after(llm, [(question.context, each) for question in questions for each in question.continuations])
    )
    return [tuple(math.fsum(next(scores)) for _ in question.continuations) for question in questions]


def _answer(
    question: Question, prepared: Prepared, sums: tuple[float, ...], letter_sums: tuple[float, ...] | None
) -> Answer:
    tokens = tuple(map(len, prepared.continuations))
    sizes = tuple(len(choice.encode()) for choice in question.choices)
    weighed = [
        sums,
        [value / count for value, count in zip(sums, tokens, strict=True)],
        [value / count for value, count in zip(sums, sizes, strict=True)],
        *([letter_sums] if letter_sums is not None else []),
    ]
    picked = tuple(max(range(len(values)), key=values.__getitem__) for values in weighed)
    return Answer(question.id, question.key, question.answer, sums, tokens, sizes, letter_sums, picked)


def _accuracies(items: Sequence[Answer], *, letters: bool) -> tuple[Accuracy, ...]:
    found = []
    for i, name in enumerate(NORMALISATIONS[: None if letters else -1]):
        correct = sum(item.picked[i] == item.answer for item in items)
        found.append(Accuracy(name, correct, wilson(correct, len(items))))
    return tuple(found)
