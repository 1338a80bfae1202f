"""What whole processes take: importing the package, the command's version, a model's first token.

    python benchmarks/startup.py --repeat 9 .venv-a/bin/python .venv-b/bin/python -- -m cpuinfer --version

compares installations, in turn; `peers.py` measures those of `commands`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tables
from model_files import Model

COLUMNS = ("process", "median, s", "spread", "processor, s", "most memory, MB", "times")


@dataclass(frozen=True, slots=True)
class Start:
    """Of one process, from start to end."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds of all its threads."""
    peak: int
    """Bytes."""


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


def run(command: Sequence[str], folder: Path) -> Start:
    """One process.  Raises SystemExit if it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    null = subprocess.DEVNULL
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, cwd=folder, stdin=null, stdout=null, stderr=null) as process:
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)}: exit code {process.returncode}")
    return Start(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def measure(commands: Mapping[str, Sequence[str]], times: int, folder: Path) -> dict[str, list[Start]]:
    """Each of them, in turn; a first time that is not counted puts the files into memory."""
    found: dict[str, list[Start]] = {name: [] for name in commands}
    for turn in range(times + 1):
        for name, command in commands.items():
            start = run(command, folder)
            if turn:
                found[name].append(start)
    return found


def rows(found: Mapping[str, Sequence[Start]]) -> list[list[str]]:
    """Of the table."""
    table = []
    for name, starts in found.items():
        walls, processors = [start.wall for start in starts], [start.processor for start in starts]
        peak = max(start.peak for start in starts)
        middle = [f"{statistics.median(walls):.3f}", tables.spread(walls), f"{statistics.median(processors):.3f}"]
        table.append([name, *middle, f"{peak / 1e6:.0f}", str(len(starts))])
    return table


def main() -> None:
    """Print a row for each installation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9, metavar="N")
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, rest = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    found = measure({python: [python, *rest] for python in args.pythons}, args.repeat, Path.cwd())
    print(tables.table(COLUMNS, rows(found), words=1))


if __name__ == "__main__":
    main()
