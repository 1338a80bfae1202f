"""`cpuinfer pull`: fetch a model."""

from __future__ import annotations

import argparse

from cpuinfer.errors import InvalidRequest

HELP = "download a model into the cache and print its path"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "examples:\n  cpuinfer pull smollm2-135m\n  cpuinfer pull hf:owner/repo:Q4_1"
    parser.add_argument("model", metavar="MODEL", help="a built-in name, or hf:owner/repo[:file-or-quant]")


def run(args: argparse.Namespace) -> int:
    """Download, if need be."""
    from cpuinfer import store

    if store.is_local(args.model):
        raise InvalidRequest(f"{args.model}: on this machine already, nothing to fetch")
    print(store.pull(args.model, progress=True))
    return 0
