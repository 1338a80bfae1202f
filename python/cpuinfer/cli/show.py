"""`cpuinfer show`: what a model file holds and what running it takes."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from cpuinfer.cli.model import MODEL_HELP, add_kv_cache, add_quantize, describe_model
from cpuinfer.cli.parameters import positive
from cpuinfer.cli.terminal import megabytes, printable

if TYPE_CHECKING:
    from rich.table import Table

    from cpuinfer.description import Description

HELP = "print a model's architecture, encodings and memory needs, without loading it"

PIPE_WIDTH, LEAST_WIDTH = 120, 76
"""Columns of a table that no terminal limits, and of one that would fold to shreds in fewer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "examples:\n  cpuinfer show model.gguf\n  cpuinfer show smollm2-135m --context 2048 --json"
    parser.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    parser.add_argument(
        "-c", "--context", type=positive, metavar="N", help="for the memory estimate (default: the model's own)"
    )
    add_quantize(parser)
    add_kv_cache(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, sizes in bytes")


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    description = describe_model(args.model, args.context, quantize=args.quantize, kv_cache=args.kv_cache)
    if args.json:
        memory = {**asdict(description.memory), "total": description.memory.total}
        print(json.dumps({**asdict(description), "memory": memory}, ensure_ascii=False))
    else:
        _print_tables(description)
    return 0


def _print_tables(description: Description) -> None:
    from rich.console import Console

    width = max(Console().width, LEAST_WIDTH) if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(highlight=False, markup=False, width=width)
    with console.capture() as text:  # rich by itself would exit with 1 when the reader went away
        for table in (_facts(description), _tensors(description), _memory(description)):
            console.print(table)
    print(text.get(), end="")


def _table(title: str, *columns: str) -> Table:
    """A table whose columns but the first three are numbers; the first folds where room is short."""
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
        table.add_column(column, justify="left" if i < 3 else "right", overflow="fold", no_wrap=i > 0)
    return table


def _add(table: Table, *cells: str) -> None:
    """A row of plain text: a file's names are no markup and move no cursor."""
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells))


def _facts(model: Description) -> Table:
    table = _table(model.name)
    head = "the embedding table" if model.tied else "its own matrix"
    for name, value in (
        ("format", model.format),
        ("architecture", model.architecture),
        ("parameters", f"{model.parameters / 1e6:,.1f} million"),
        ("layers", f"{model.layers}"),
        ("hidden", f"{model.hidden}"),
        ("heads", f"{model.heads} of {model.head_dim}, {model.kv_heads} for keys and values"),
        ("feed-forward", f"{model.feed_forward}"),
        ("vocabulary", f"{model.vocabulary}"),
        ("output head", head),
        ("rotary positions", model.rope),
        ("tokenizer", model.tokenizer),
        ("chat template", "yes" if model.has_chat_template else "no"),
        ("files", megabytes(model.file_bytes)),
        *([("left out", ", ".join(model.left_out))] if model.left_out else []),
        ("read per token", megabytes(model.bytes_per_token)),
    ):
        _add(table, name, value)
    return table


def _tensors(model: Description) -> Table:
    table = _table("tensors", "kind", "encoding", "layout", "count", "shape", "bits", "packed", "MB")
    for tensor in model.tensors:
        shape = " x ".join(map(str, tensor.shape))
        bits, packed = f"{tensor.bits_per_weight:.3f}", f"{tensor.packed_bits:.3f}"
        size = f"{tensor.bytes / 1e6:,.1f}"
        _add(table, tensor.kind, tensor.encoding, tensor.layout, str(tensor.count), shape, bits, packed, size)
    return table


def _memory(model: Description) -> Table:
    table = _table(f"memory with a context of {model.context}")
    table.add_column()
    table.add_column(justify="right")
    for name, size in (
        ("weights", model.memory.weights),
        (f"keys and values ({model.kv_cache})", model.memory.cache),
        ("scratch", model.memory.scratch),
        ("program and tokenizer", model.memory.overhead),
        ("total", model.memory.total),
    ):
        _add(table, name, megabytes(size))
    return table
