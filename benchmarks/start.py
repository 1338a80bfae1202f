"""How long a start takes: whole processes of one or more installations in turn, wall time and processor time.

    python benchmarks/start.py --repeat 9 .venv-a/bin/python .venv-b/bin/python -- -m cpuinfer --version

Files are in the page cache after the first run, which is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time


def run(command: list[str]) -> tuple[float, float, int]:
    """Seconds of wall and of processor time, and peak memory in bytes.  Raises SystemExit if the command fails."""
    start = time.perf_counter()
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, flag, 0) for fd, flag in enumerate((os.O_RDONLY, os.O_WRONLY))]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=null)
    _, status, usage = os.wait4(process, 0)
    wall = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    """Measure, and print a row for each installation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9, metavar="N")
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    end = sys.argv.index("--")
    args, rest = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    runs: dict[str, list[tuple[float, float, int]]] = {python: [] for python in args.pythons}
    for i in range(args.repeat + 1):
        for python in args.pythons:
            found = run([python, *rest])
            if i:
                runs[python].append(found)
    for python, found in runs.items():
        wall, processor, memory = zip(*found, strict=True)
        times = [f"{statistics.median(x):.3f} s ({min(x):.3f} to {max(x):.3f})" for x in (wall, processor)]
        print(f"{python}: wall {times[0]}, processor {times[1]}, peak {max(memory) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
