"""What a chat template may use: processor time, and room for the values it makes."""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from jinja2.utils import Namespace

MAX_SECONDS = 0.5
"""Processor time that one rendering may take, longer by as much as a value may be; most take milliseconds."""
MAX_TEXT = 1 << 20
"""Characters of a value, and of all that is printed, beside GROWTH times those given."""
GROWTH = 16
ROOM = 32
"""Values of that length that may be made in all."""
ITEM = 8
"""Characters that an item of a list or dictionary counts for in that room."""
NEW_ITEM = 24
"""The same where the items are made as well: one character takes the room of that many."""
MAX_DEPTH = 100
"""Of values within values: Python hashes tuples by a recursion that nothing stops."""
MAX_BITS = 4096
"""Of a number: operations on them take the square of this."""
MAX_PATTERN = 256
"""Characters of a format of dates."""
VIEWS = (KeysView, ValuesView, ItemsView)
"""Of dictionaries."""


class Exhausted(Exception):
    """A template went past one of its bounds."""


@dataclass(slots=True)
class Budget:
    """What one rendering may still use: values of `largest` characters, `room` characters in all, `seconds`."""

    largest: int
    room: int
    seconds: float
    began: float = field(default_factory=time.thread_time)

    def tick(self) -> None:
        """Look at the clock."""
        if time.thread_time() - self.began > self.seconds:
            raise Exhausted(f"takes more than {self.seconds:.1f} seconds")

    def spend(self, characters: int) -> None:
        """Count what is made, and look at the clock."""
        self.room -= characters
        if self.room < 0:
            raise Exhausted("makes too many values")
        self.tick()

    def check_text(self, size: int) -> None:
        """Refuse a text of so many characters."""
        if size > self.largest:
            raise Exhausted(f"makes a text of more than {self.largest} characters")

    def check_items(self, count: int) -> None:
        """Refuse so many items: each takes about the time and memory of four characters."""
        if count > self.largest // 4:
            raise Exhausted(f"makes or walks through more than {self.largest // 4} items")


_budget: ContextVar[Budget] = ContextVar("budget")


def budget() -> Budget:
    """Of the rendering that runs in this thread."""
    return _budget.get()


@contextmanager
def rendering(variables: Mapping[str, object]) -> Iterator[None]:
    """A rendering with its budget, by the size of what it is given."""
    token = _budget.set(Budget(1 << 40, 0, MAX_SECONDS))
    try:
        given, messages = length(dict(variables)), variables.get("messages")
        largest = MAX_TEXT + GROWTH * given
        # A template may add one message after another to a text, a new one each time.
        room = ROOM * largest + GROWTH * given * (len(messages) if isinstance(messages, list) else 0)
        _budget.set(Budget(largest, room, MAX_SECONDS * largest / MAX_TEXT))
        yield
    finally:
        _budget.reset(token)


def length(value: object, indent: int = 0) -> int:
    """About the characters that a value takes as text, each part counted as often as it occurs in it.

    Raises Exhausted for a value that is too large, holds too much or too deeply, or has too large a number in it:
    lists that hold one another can stand for more than any machine has.
    """
    limits = budget()
    if isinstance(value, str):
        limits.check_text(len(value))
        return len(value)
    limits.tick()
    total, count, pending = 0, 0, [(value, indent, 0)]
    while pending:
        part, margin, depth = pending.pop()
        total += len(part) if isinstance(part, (str, bytes)) else 2
        if isinstance(part, int):
            check_number(part)
            total += part.bit_length() // 3
        items = _items(part)
        if items is not None:
            count += len(items)
            total += len(items) * (2 + margin)
            limits.check_items(count)
            if depth == MAX_DEPTH:
                raise Exhausted(f"makes a value of more than {MAX_DEPTH} levels")
            limits.tick()
            held: Iterable[object] = chain(items.keys(), items.values()) if isinstance(items, Mapping) else items
            pending.extend((item, margin + indent, depth + 1) for item in held)
        limits.check_text(total)
    return total


def _items(value: object) -> Any:
    """What a value's text holds the texts of, or None."""
    if value is None or isinstance(value, (str, int, float)):
        return None
    if isinstance(value, Namespace):
        return value._Namespace__attrs  # no public name leads there
    return value if isinstance(value, (list, tuple, Mapping, *VIEWS)) else None


def made(value: Any, item: int = ITEM) -> Any:
    """The value, refused if too large, and counted by the characters that an item is worth."""
    limits = budget()
    if isinstance(value, (str, bytes)):
        limits.check_text(len(value))
        limits.spend(len(value))
    elif isinstance(value, (list, tuple, dict)):
        limits.check_items(len(value))
        limits.spend(item * len(value))
    return value


def check_number(value: int) -> None:
    """Refuse to compute with a number so large."""
    if value.bit_length() > MAX_BITS:
        raise Exhausted(f"computes with a number of more than {MAX_BITS} bits")


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation that would take long, or make more than its operands together."""
    for value in (left, right):
        if isinstance(value, int):
            check_number(value)
    match operator, left, right:
        case "%", str() | bytes(), _:
            raise Exhausted("formats a text with %")
        case "**", int(), int() if left.bit_length() * right > MAX_BITS:
            raise Exhausted(f"makes a number of more than {MAX_BITS} bits")
        case "*", str() | bytes(), int():
            budget().check_text(len(left) * right)
        case "*", int(), str() | bytes():
            budget().check_text(left * len(right))
        case "*", list() | tuple(), int():
            budget().check_items(len(left) * right)
        case "*", int(), list() | tuple():
            budget().check_items(left * len(right))
