"""What a fetch tells the user: notices and progress bars on standard error, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
"""Takes the bytes done so far."""


class Reporter:
    """Notices when enabled; bars only when standard error is a terminal, too."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled

    def notice(self, text: str) -> None:
        """One line."""
        if self.enabled:
            from rich.console import Console

            Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, label: str, total: int) -> Iterator[Advance]:
        """A bar of `total` bytes that goes away when the phase ends."""
        if not (self.enabled and sys.stderr.isatty()):
            yield lambda _: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(label, total=total)
            yield lambda done: bars.update(task, completed=done)
