"""How long whole processes take: importing the package, the command's version, a model's first token."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import tables
from model_files import Model

COLUMNS = ("process", "median, s", "spread", "times")


def commands(models: Sequence[Model]) -> dict[str, list[str]]:
    """What is run, by what it is called."""
    python = [sys.executable, "-c"]
    program = [sys.executable, "-m", "cpuinfer"]
    found = {
        "`python -c pass`, for comparison": [*python, "pass"],
        "`python -c 'import numpy'`, for comparison": [*python, "import numpy"],
        "`python -c 'import cpuinfer'`": [*python, "import cpuinfer"],
        "`cpuinfer --version`": [*program, "--version"],
    }
    for model in models:
        run = ["run", str(model.path), "-n", "1", "--raw", "-p", "x"]
        found[f"`cpuinfer run {model.name} -n 1 --raw -p x`"] = [*program, *run]
    return found


def measure(commands: Mapping[str, Sequence[str]], times: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each, in turn; a first time that is not counted puts the files into memory."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for turn in range(times + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment, cwd=folder)
            if turn:
                found[name].append(time.perf_counter() - began)
    return found


def rows(found: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Of the table."""
    return [
        [name, f"{statistics.median(seconds):.3f}", tables.spread(seconds), str(len(seconds))]
        for name, seconds in found.items()
    ]
