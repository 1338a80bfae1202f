"""What a chat template may call, each with a check that refuses beforehand what would take long or make much.

Nothing can interrupt jinja2 or Python within one call, so that each must be short by itself.  A value has at most so
many characters or items (cpuinfer.template_bounds); then whatever passes over its arguments once is short, and what is
longer, or makes more than its arguments together, is refused by the check that stands beside its name.  What has no
place here cannot be called.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cpuinfer.template_bounds import MAX_BITS, NEW_ITEM, VIEWS, Exhausted, budget, length, made

MAX_SEARCH = 1 << 28
"""Characters compared where each of a text may be with each of another."""
_MAX_DIGITS = 100
"""Of the filter round, which computes ten to this power."""
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""Of str.splitlines."""

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
    *VIEWS,
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
