"""What a chat template may use: processor time, room for the values it makes, and the functions it may call.

Nothing can interrupt jinja2 or Python within one call, so that each must be short by itself.  A value has at most so
many characters or items; then whatever passes over its arguments once is short, and what is longer, or makes more than
its arguments together, is refused beforehand by the check that stands beside its name below.  What has no place below
cannot be called.
"""

from __future__ import annotations

import functools
import re
import string
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from jinja2.utils import Namespace

MAX_SECONDS = 0.7
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
MAX_SEARCH = 1 << 28
"""Characters compared where each of a text may be with each of another."""
MAX_PATTERN = 256
"""Characters of a format of dates."""
_MAX_DIGITS = 100
"""Of the filter round, which computes ten to this power."""
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""Of str.splitlines."""
_VIEWS = (KeysView, ValuesView, ItemsView)


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
    return value if isinstance(value, (list, tuple, Mapping, *_VIEWS)) else None


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


Check = Callable[[tuple[Any, ...], Mapping[str, Any]], None]
"""Of a call by its arguments, the value or receiver first: raises Exhausted if it would take or make too much."""


def _free(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """It neither walks through its arguments nor makes a value."""


def _walk(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """It passes over its arguments once, in native code."""
    for value in (*args, *kwargs.values()):
        length(value)


def _each(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """To it a text is a list of characters or words, each of them an item."""
    _walk(args, kwargs)
    if isinstance(args[0], str):
        budget().check_items(len(args[0]))


def _search(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """It may compare each character with each of another text."""
    size, *others = [length(value) for value in (*args, *kwargs.values())]
    if size * max(others, default=0) > MAX_SEARCH:
        raise Exhausted(f"searches {size} characters for as many")


def _number(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """It computes by operators with what should be a number."""
    _walk(args, kwargs)
    if isinstance(args[0], (str, bytes, list, tuple)):
        raise Exhausted(f"computes with {type(args[0]).__name__!r}")


def _round(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    _number(args, kwargs)
    if any(abs(value) > _MAX_DIGITS for value in (*args[1:], *kwargs.values()) if isinstance(value, int)):
        raise Exhausted(f"rounds to more than {_MAX_DIGITS} digits")


def _read_number(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    _walk(args, kwargs)
    if length(args[0]) > MAX_BITS:
        raise Exhausted(f"reads a number of more than {MAX_BITS} digits")


def _sum(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    _each(args, kwargs)
    if any(isinstance(value, (list, tuple)) for value in (*args[1:], *kwargs.values())):
        raise Exhausted("sums lists")


def _join(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    items, *options = (*args, *kwargs.values())
    budget().check_items(len(items))
    budget().check_text(length(items) + len(items) * max(map(length, options), default=0))


def _join_method(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    _join(args[::-1], kwargs)


def _replace(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    _walk(args, kwargs)
    text, *options = map(str, (*args, *kwargs.values()))  # the filter takes anything as text
    if len(options) > 1:
        budget().check_text(len(text) + text.count(options[0]) * len(options[1]))


def _indent(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    lines = sum(map(str(args[0]).count, _LINE_ENDS)) + 1
    budget().check_text(length(args[0]) + lines * max(4, *_widths(args, kwargs)))


def _to_json(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    length(args[0], max(_widths(args, kwargs)))


def _widths(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[int]:
    """By how much each option may lengthen a line or an item."""
    options = (*args[1:], *kwargs.values())
    return [0, *(abs(value) if isinstance(value, int) else length(value) for value in options)]


def _format(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """A field of `str.format` is as wide as a number in what follows its colon, or as its value is long."""
    text = str(args[0])
    specs = [spec for _, _, spec, _ in string.Formatter().parse(text) if spec is not None]
    if any("{" in spec for spec in specs):
        raise Exhausted("formats a field by another field")
    widths = [int(digits[-18:]) for spec in specs for digits in re.findall(r"\d+", spec)]  # in any script
    values = length([*args[1:], *kwargs.values()])
    budget().check_text(len(text) + len(specs) * max([values, *widths]))


def _checks(**names: str) -> dict[str, Check]:
    """By name: each check's names, in one text."""
    return {name: globals()[check] for check, listed in names.items() for name in listed.split()}


FILTERS = _checks(
    _free="attr count d default first last length random",
    _walk="abs capitalize e escape forceescape items lower safe string truncate upper",
    _each=("dictsort groupby list map max min reject rejectattr reverse select selectattr sort title unique wordcount"),
    _search="trim",
    _number="filesizeformat",
    _round="round",
    _read_number="float int",
    _sum="sum",
    _join="join",
    _replace="replace",
    _indent="indent",
    _to_json="tojson",
)
TESTS = _checks(
    _free=(
        "boolean callable defined escaped false filter float integer iterable mapping none number sameas sequence"
        " string test true undefined"
    ),
    _walk="!= < <= == > >= eq equalto ge greaterthan gt in le lessthan lower lt ne upper",
    _number="divisibleby even odd",
)
_TEXT = _checks(
    _free="endswith startswith",
    _walk=(
        "capitalize casefold count find index isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric"
        " isprintable isspace istitle isupper lower partition removeprefix removesuffix split splitlines swapcase title"
        " upper"
    ),
    _search="lstrip rfind rindex rpartition rsplit rstrip strip",
    _join_method="join",
    _replace="replace",
    _format="format",
)
_LIST = _checks(_walk="copy count index")
_DICT = _checks(_free="get items keys values", _walk="copy")
METHODS: Mapping[type, Mapping[str, Check]] = {str: _TEXT, list: _LIST, tuple: _LIST, dict: _DICT}
_PYTHONS = (
    *METHODS,
    bytes,
    bytearray,
    int,
    float,
    complex,
    range,
    set,
    frozenset,
    KeysView,
    ValuesView,
    ItemsView,
    type,
)


def has_attribute(value: object, name: str) -> bool:
    """Whether a template may reach for this of one of Python's own values; of others, jinja2's sandbox decides."""
    if not isinstance(value, _PYTHONS):
        return True
    return any(isinstance(value, kind) and name in methods for kind, methods in METHODS.items())


def called(run: Callable[[], Any], check: Check, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a call returns, checked before it runs and counted after."""
    budget().tick()
    check(args, kwargs)
    result = run()
    if isinstance(result, Iterator):  # at once: one within another within ... is beyond what Python can walk
        result = list(_clocked(result))
    return result if check is _free else made(result, NEW_ITEM)


def _clocked(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        budget().tick()
        yield item


def bounded(function: Callable[..., Any], check: Check) -> Callable[..., Any]:
    """A filter or test whose calls are checked."""
    lead = 1 if hasattr(function, "jinja_pass_arg") else 0  # it wants the context or environment first

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        return called(lambda: function(*args, **kwargs), check, args[lead:], kwargs)

    return checked


def call(function: Callable[..., Any], run: Callable[[], Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a function that a template calls returns: a method of one of Python's own values, or one of jinja2's."""
    receiver = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # the sandbox wraps str.format
    for kind, methods in METHODS.items():
        if isinstance(receiver, kind):
            return called(run, methods[function.__name__], (receiver, *args), kwargs)
    return called(run, _walk, args, kwargs)
