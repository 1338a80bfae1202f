"""`cpuinfer show`: what a model file holds and what running it takes."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from cpuinfer.cli.model import MODEL_HELP, add_kv_cache, add_quantize, describe_model
from cpuinfer.cli.parameters import positive
from cpuinfer.cli.tables import add_row, new_table, print_tables
from cpuinfer.cli.terminal import megabytes

if TYPE_CHECKING:
    from rich.table import Table

    from cpuinfer.description import Description

HELP = "print a model's architecture, encodings and memory needs, without loading it"


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
        print_tables(_facts(description), _tensors(description), _memory(description))
    return 0


def _facts(model: Description) -> Table:
    table = new_table(model.name)
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
        add_row(table, name, value)
    return table


def _tensors(model: Description) -> Table:
    table = new_table("tensors", "kind", "encoding", "layout", "count", "shape", "bits", "packed", "MB")
    for tensor in model.tensors:
        shape = " x ".join(map(str, tensor.shape))
        bits, packed = f"{tensor.bits_per_weight:.3f}", f"{tensor.packed_bits:.3f}"
        size = f"{tensor.bytes / 1e6:,.1f}"
        add_row(table, tensor.kind, tensor.encoding, tensor.layout, str(tensor.count), shape, bits, packed, size)
    return table


def _memory(model: Description) -> Table:
    table = new_table(f"memory with a context of {model.context}")
    table.add_column()
    table.add_column(justify="right")
    for name, size in (
        ("weights", model.memory.weights),
        (f"keys and values ({model.kv_cache})", model.memory.cache),
        ("scratch", model.memory.scratch),
        ("program and tokenizer", model.memory.overhead),
        ("total", model.memory.total),
    ):
        add_row(table, name, megabytes(size))
    return table
