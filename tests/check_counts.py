"""Checks that a step executes as many instructions and fetches as much memory as it did: a guard without a clock.

    python tests/check_counts.py BUILD_FOLDER [--record] [--require]

Callgrind runs `counted_steps` twice, with few and with more steps; the difference is what the steps between cost, the
same on any machine, for files compiled by the same compiler: with another one nothing is checked.  Memory is what
misses a simulated cache of 1 MiB, smaller than the weights: each step should fetch them once.  `--record` writes what
is found to `counts.json`, after a change that means it; one for the better is to be recorded too, or it could be lost
again unnoticed.  Where valgrind is missing or the compiler is another, `--require` makes of the notice a failure.
Valgrind 3.19 knows no AVX-512, so AVX2 and portable code stand for all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

RECORDS = Path(__file__).with_name("counts.json")
LEAST, MOST = 0.97, 1.02
"""Times what is recorded: the C library's part differs a little between systems."""
CACHES = ("--I1=32768,8,64", "--D1=32768,8,64", "--LL=1048576,16,64")
LINE = 64
Counts = dict[str, dict[str, int]]
"""Of each case, by what is counted."""


@dataclass(frozen=True)
class Case:
    """What is counted: the steps of `after` that `before` lacks, (prompt tokens, decoding steps) each."""

    isa: str
    encoding: str
    before: tuple[int, int]
    after: tuple[int, int]
    units: int
    """Steps, or rows of a prompt, between the two."""


DECODED, DEEP, READ = ((1, 2), (1, 6), 4), ((544, 2), (544, 6), 4), ((64, 0), (192, 0), 128)
CASES = {
    f"{what}, {encoding}, {isa}": Case(isa, encoding, *steps)
    for isa, encoding, what, steps in [
        *(("avx2", encoding, "decoding a token", DECODED) for encoding in ("int4", "int8", "q4_k", "q6_k")),
        *(("avx2", encoding, "a row of a prompt", READ) for encoding in ("int4", "q4_k")),
        ("avx2", "int4", "decoding a token after 544", DEEP),
        ("scalar", "int4", "decoding a token", DECODED),
    ]
}


def run(program: Path, case: Case, steps: tuple[int, int]) -> dict[str, int]:
    """Callgrind's totals of one run."""
    command = [program, case.isa, case.encoding, *map(str, steps)]
    tool = ["valgrind", "--tool=callgrind", "--cache-sim=yes", *CACHES, "--callgrind-out-file=/dev/null"]
    done = subprocess.run([*tool, *command], capture_output=True, text=True, check=False)
    names = re.search(r"Events +: (.+)", done.stderr)
    totals = re.search(r"Collected : (.+)", done.stderr)
    if done.returncode or not names or not totals:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr}")
    return dict(zip(names[1].split(), map(int, totals[1].split()), strict=True))


def count(program: Path, case: Case) -> dict[str, int]:
    """Instructions and bytes fetched, of one step or row."""
    before, after = run(program, case, case.before), run(program, case, case.after)
    return {
        "instructions": (after["Ir"] - before["Ir"]) // case.units,
        "bytes": (after["DLmr"] - before["DLmr"]) * LINE // case.units,
    }


def compiler(folder: Path) -> str:
    """What compiled the build: GNU 12."""
    found = list(folder.glob("CMakeFiles/*/CMakeCXXCompiler.cmake"))
    text = found[0].read_text() if found else ""
    fields = [re.search(rf'CMAKE_CXX_COMPILER_{name} "(\w+)', text) for name in ("ID", "VERSION")]
    return " ".join(field[1] if field else "?" for field in fields)


def obstacle(used: str, recorded: str, *, record: bool) -> str:
    """Why nothing can be counted or compared; empty if it can."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if not record and used != recorded:
        return f"compiled by {used}, the record is of {recorded}"
    return ""


def differences(found: Counts, recorded: Counts) -> list[str]:
    """What is not as recorded, a line each."""
    lines = [f"{name}: recorded, but not counted" for name in recorded.keys() - found.keys()]
    for name, counts in found.items():
        for what, value in counts.items():
            before = recorded.get(name, {}).get(what)
            if before is None:
                lines.append(f"{name}: {value:,} {what}, none recorded: record it")
                continue
            print(f"{name:42} {what:12} {value:>12,}  {value / before:6.3f} of what is recorded")
            if value > before * MOST:
                lines.append(f"{name}: {value:,} {what}, recorded are {before:,}")
            elif value < before * LEAST:
                lines.append(f"{name}: {value:,} {what}, recorded are {before:,}: better, record it")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--require", action="store_true", help="fail where nothing can be counted")
    args = parser.parse_args()
    if not args.record and not RECORDS.exists():
        raise SystemExit(f"{RECORDS}: missing, --record writes it")
    records = {} if args.record else json.loads(RECORDS.read_text())
    used = compiler(args.folder)
    if why := obstacle(used, records.get("compiler", ""), record=args.record):
        print(f"!!! NOTHING IS COUNTED: {why}", file=sys.stderr)
        return 1 if args.record or args.require else 0
    program = args.folder / "tests" / "native" / "counted_steps"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(CASES, pool.map(lambda case: count(program, case), CASES.values()), strict=True))
    if args.record:
        RECORDS.write_text(json.dumps({"compiler": used, "counts": found}, indent=2) + "\n")
        return 0
    wrong = differences(found, records["counts"])
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
