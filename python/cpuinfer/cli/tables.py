"""Tables for the terminal, of names and numbers that are no markup and move no cursor."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cpuinfer.cli.terminal import printable

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH, LEAST_WIDTH = 120, 76
"""Columns of a table that no terminal limits, and of one that would fold to shreds in fewer."""


def print_tables(*tables: Table) -> None:
    """Print tables to standard output, one below the other."""
    from rich.console import Console

    width = max(Console().width, LEAST_WIDTH) if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(highlight=False, markup=False, width=width)
    with console.capture() as text:  # rich by itself would exit with 1 when the reader went away
        for table in tables:
            console.print(table)
    print(text.get(), end="")


def new_table(title: str, *columns: str, left: int = 3) -> Table:
    """A table whose columns but the `left` first are numbers; the first folds where room is short."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(title)),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=bool(columns),
        collapse_padding=True,
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold", no_wrap=i > 0)
    return table


def add_row(table: Table, *cells: str) -> None:
    """A row of plain text."""
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells))
