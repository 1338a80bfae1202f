"""`cpuinfer list`: the models in the cache."""

from __future__ import annotations

import argparse
import sys

from cpuinfer.cli.terminal import megabytes, printable

HELP = "list the downloaded models and packed copies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: there are none."""
    parser.epilog = "`cpuinfer pull MODEL` downloads one, `cpuinfer rm MODEL` deletes it."


def run(args: argparse.Namespace) -> int:  # noqa: ARG001
    """Print a line for each model."""
    from cpuinfer import store

    models = store.list_models()
    if not models:
        print("no models yet; `cpuinfer pull smollm2-135m` downloads one", file=sys.stderr)
        return 0
    rows = [("NAME", "SIZE", "SOURCE", "PATH")]
    rows += [(model.name, megabytes(model.size_bytes), model.source, str(model.path)) for model in models]
    name, size, source, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    for row in rows:
        print(printable(f"{row[0]:<{name}}  {row[1]:>{size}}  {row[2]:<{source}}  {row[3]}"))
    return 0
