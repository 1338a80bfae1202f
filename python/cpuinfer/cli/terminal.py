"""What the commands share in writing to a terminal: sizes, progress, dim remarks, text that cannot move the cursor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

UNKNOWN_COLUMNS = 80
"""Of a terminal that does not tell its width."""
SPEED_SECONDS = 3600.0
"""From how much of the past the time left is told, of work whose steps may take minutes."""


def megabytes(size: int) -> str:
    """A size in MB of a million bytes."""
    return f"{size / 1e6:,.1f} MB"


def printable(text: str) -> str:
    """The text with control characters other than tab and newline shown as U+FFFD: models may emit escape codes."""
    return "".join(c if c in "\n\t" or not (c < " " or "\x7f" <= c < "\xa0") else "\ufffd" for c in text)


def dim(text: str, stream: TextIO) -> str:
    """The text, dim where the stream is a terminal that may be coloured."""
    styled = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[2m{text}\x1b[0m" if styled else text


def progress(text: str) -> None:
    """A dim line on standard error, if that is a terminal, which the next one replaces; "" takes it away."""
    if sys.stderr.isatty():
        # A longer line would wrap, and the next one replace its last row alone.
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or UNKNOWN_COLUMNS
        shown = text if len(text) < columns else f"{text[: columns - 2]}\u2026"
        print(f"\r\x1b[K{dim(shown, sys.stderr)}", end="", file=sys.stderr, flush=True)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error, if that is a terminal, else None; it takes what is done and the whole.

    It shows the time left, and goes away at the end.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, whole: bars.update(task, completed=done, total=whole)


@contextmanager
def share_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error, if that is a terminal; it takes what is being done, and the share of it that is done.

    It shows the time left, begins anew when the share falls, and goes away at the end.
    """
    if not sys.stderr.isatty():
        yield lambda _what, _share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, speed_estimate_period=SPEED_SECONDS) as bars:
        task = bars.add_task("", total=1.0)
        before = 0.0

        def show(what: str, share: float) -> None:
            nonlocal before
            if share < before:
                bars.reset(task)
            before = share
            bars.update(task, description=printable(what), completed=share)

        yield show


@contextmanager
def without_echo() -> Iterator[None]:
    """Within, what is typed does not show; the next prompt has it."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    try:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def remark(text: str) -> None:
    """A dim line on standard error."""
    print(dim(text, sys.stderr), file=sys.stderr, flush=True)
