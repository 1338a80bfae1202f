"""`cpuinfer rm`: delete a downloaded model."""

from __future__ import annotations

import argparse

HELP = "delete a downloaded model from the cache"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "example:\n  cpuinfer rm smollm2-135m"
    parser.add_argument("model", metavar="MODEL", help="a name as `cpuinfer list` prints it")


def run(args: argparse.Namespace) -> int:
    """Delete and say what is gone."""
    from cpuinfer import store

    for path in store.remove(args.model):
        print(f"deleted {path}")
    return 0
