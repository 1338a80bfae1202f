"""What a chat template may use: processor time, printed characters, and the size of each value that it makes.

Sizes are checked before a value is made, as nothing can interrupt jinja2 or Python while they make it.
"""

from __future__ import annotations

import functools
import re
import string
import time
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

MAX_OUTPUT = 1 << 24
"""Characters that one rendering may print, and that one operator or call may make."""
MAX_SECONDS = 1.0
"""Processor time that one rendering may take; those of long conversations take milliseconds."""
_MAX_POWER_BITS = 4096
_MAX_DIGITS = 100
"""Of the filter round, which computes ten to this power."""
REMOVED = ("batch", "center", "format", "pprint", "slice", "urlize", "wordwrap", "xmlattr")
"""Filters that make more than they are given and that no prompt needs."""
HIDDEN = frozenset(
    ("center", "encode", "expandtabs", "format_map", "ljust", "maketrans", "rjust", "to_bytes", "translate", "zfill")
)
"""Methods of texts and numbers, likewise."""


class Exhausted(Exception):
    """A template went past one of its bounds."""


@dataclass(slots=True)
class Budget:
    """What one rendering may still use."""

    deadline: float = field(default_factory=lambda: time.thread_time() + MAX_SECONDS)
    characters: int = MAX_OUTPUT

    def spend(self, characters: int = 0) -> None:
        """Count printed characters, and look at the clock."""
        self.characters -= characters
        if self.characters < 0:
            raise Exhausted(f"prints more than {MAX_OUTPUT} characters")
        if time.thread_time() > self.deadline:
            raise Exhausted(f"takes more than {MAX_SECONDS:g} seconds")


budget: ContextVar[Budget] = ContextVar("budget")


def length(value: object, indent: int = 0) -> int:
    """About the characters that a value takes as text, each part counted as often as it occurs in it.

    Raises Exhausted above MAX_OUTPUT: lists that hold one another can stand for more than any machine has.
    """
    from jinja2.utils import Namespace

    total, pending = 0, [(value, indent)]
    while pending:
        part, margin = pending.pop()
        if isinstance(part, Namespace):  # its text has that of all it holds
            part = part._Namespace__attrs  # no public name leads there
        total += len(part) if isinstance(part, (str, bytes)) else 2
        if isinstance(part, int):
            total += part.bit_length() // 3
        if isinstance(part, (list, tuple, Mapping, KeysView, ValuesView, ItemsView)):
            total += len(part) * (2 + margin)
            check_text(total)
            budget.get().spend()
            items: Iterable[object] = chain(part.keys(), part.values()) if isinstance(part, Mapping) else list(part)
            pending.extend((item, margin + indent) for item in items)
        check_text(total)
    return total


def check_text(size: int) -> None:
    """Refuse to make a text of so many characters."""
    if size > MAX_OUTPUT:
        raise Exhausted(f"makes a text of more than {MAX_OUTPUT} characters")


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be larger than any prompt."""
    if operator == "%":
        if isinstance(left, (str, bytes)):
            raise Exhausted("formats a text with %")
        return
    if operator == "**":
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MAX_POWER_BITS:
            raise Exhausted(f"makes a number of more than {_MAX_POWER_BITS} bits")
        return
    sizes = [len(value) if isinstance(value, (str, bytes, list, tuple)) else None for value in (left, right)]
    if operator == "+":
        size = sum(each or 0 for each in sizes)
    elif sizes != [None, None]:
        size = max(each * int(other) for each, other in ((sizes[0], right), (sizes[1], left)) if each is not None)
    else:
        size = sum(value.bit_length() for value in (left, right) if isinstance(value, int))
    if size > MAX_OUTPUT:
        raise Exhausted(f"makes a value of more than {MAX_OUTPUT} items")


def check_method(method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Refuse a call of a value's method whose result would be larger than any prompt; returns its arguments."""
    receiver = getattr(getattr(method, "__wrapped__", method), "__self__", None)  # the sandbox wraps str.format
    if not isinstance(receiver, (str, bytes, list, tuple, dict)):
        return args
    if method.__name__ == "join" and len(args) == 1:
        args = (list(args[0]),)
        _check_join(args[0], receiver)
    _check_call(method.__name__, (receiver, *args), kwargs)
    return args


def bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that looks at the clock, and at the size of what it would make, before it runs."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)  # which keeps jinja2's mark: that it wants the context or environment first
    def checked(*args: Any, **kwargs: Any) -> Any:
        budget.get().spend()
        lead, own = args[:first], args[first:]
        if name == "join":
            own = (list(own[0]), *own[1:])
            _check_join(own[0], *own[1:], *kwargs.values())
        _check_call(name, own, kwargs)
        return function(*lead, *own, **kwargs)

    return checked


def _check_call(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    options = (*args[1:], *kwargs.values())
    size = length(args[0]) if args else 0
    texts = [value for value in options if isinstance(value, str)]
    width = max((abs(value) for value in options if isinstance(value, int)), default=0)
    for option in options:
        length(option)
    match name:
        case "indent":
            check_text(size + (str(args[0]).count("\n") + 1) * max(4, width, *map(len, texts)))
        case "replace" if len(options) > 1:  # the filter takes anything as text
            check_text(size + str(args[0]).count(str(options[0])) * length(options[1]))
        case "format":
            _check_format(str(args[0]), options)
        case "tojson":
            length(args[0], max(width, *map(len, texts), 0))
        case "round" if width > _MAX_DIGITS:
            raise Exhausted(f"rounds to more than {_MAX_DIGITS} digits")
        case "int" if size > _MAX_POWER_BITS:
            raise Exhausted(f"reads a number of more than {_MAX_POWER_BITS} digits")
        case "sum" if any(isinstance(value, (list, tuple)) for value in options):
            raise Exhausted("sums lists")


def _check_join(items: list[Any], *options: Any) -> None:
    check_text(length(items) + len(items) * max(map(length, options), default=0))  # the filter takes anything as text


def _check_format(text: str, values: tuple[Any, ...]) -> None:
    """A field of `str.format` is as wide as a number in what follows its colon, or as its value is long."""
    specs = [spec for _, _, spec, _ in string.Formatter().parse(text) if spec is not None]
    if any("{" in spec for spec in specs):
        raise Exhausted("formats a field by another field")
    widths = [int(digits[-18:]) for spec in specs for digits in re.findall("[0-9]+", spec)]
    check_text(len(text) + len(specs) * max([length(values), *widths]))
