"""The text that methods measure inputs on, and the text, apart from it, that results are judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpuinfer.errors import InvalidRequest

OWN_TEXT = "the documentation that comes with Python"
HELD_OUT = 0.25
"""Of a text: its end, which calibration does not see."""
MOST_TEXT = 64 << 20
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text in two parts."""

    name: str
    calibration: str
    held_out: str


def read_text(path: Path | None) -> Text:
    """A UTF-8 file; without one, the topics of Python's `help()`, half a million letters of English prose.

    Raises InvalidRequest, naming the file, for one that cannot be read or is no text.
    """
    if path is None:
        from pydoc_data.topics import topics

        return split(OWN_TEXT, "\n\n".join(topics[name] for name in sorted(topics)))
    try:
        with path.open("rb") as file:
            read = file.read(MOST_TEXT + 1)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from None
    if len(read) > MOST_TEXT:
        raise InvalidRequest(f"{path}: more than {MOST_TEXT >> 20} MiB, expected a text of some megabytes at most")
    try:
        return split(str(path), read.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: byte {error.start} is not UTF-8, expected a text") from None


def split(name: str, text: str) -> Text:
    """The beginning to calibrate on, the end to judge by, cut at the end of a line where there is one near.

    Raises InvalidRequest, naming it, for a text of nothing but spaces.
    """
    if not text.strip():
        raise InvalidRequest(f"{name}: is empty, expected a text to calibrate on and to judge by")
    cut = int(len(text) * (1 - HELD_OUT))
    line = text.rfind("\n", cut // 2, cut) + 1
    return Text(name, text[: line or cut], text[line or cut :])


def windows(
    encode: Callable[[str], Sequence[int]], text: str, *, length: int, count: int, bos: int | None, name: str
) -> list[list[int]]:
    """At most `count` stretches of `length` tokens, spread evenly over a text; each begins with BOS, if there is one.

    Raises InvalidRequest for a text that is shorter than one of them.
    """
    fresh = length - (bos is not None)
    if fresh < 1:
        raise InvalidRequest(f"windows of {length} tokens, BOS among them: expected at least 2")
    tokens = list(encode(text))
    there = len(tokens) // fresh
    if not there:
        raise InvalidRequest(f"{name}: {len(tokens)} tokens to calibrate on, expected at least one window of {fresh}")
    taken = sorted({i * there // count for i in range(min(count, there))} if there > count else range(there))
    begin = [] if bos is None else [bos]
    return [begin + tokens[i * fresh : (i + 1) * fresh] for i in taken]
