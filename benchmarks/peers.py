"""Runs cpuinfer and other runtimes on the same files, in turn, and prints a Markdown table.

    python benchmarks/peers.py smollm2-135m llama-1b:Q4_0 llama-1b:Q4_K_M model.gguf \\
        --peer "llama.cpp=native/bin/python benchmarks/measure_llama_cpp.py" --isa avx2 --isa avx512_vnni

A model is a path, the built-in name, or a shape and encoding of `benchmarks/shapes.py`, written once to --folder.  A
peer is a name and the command of an interpreter that has its package, with the script that measures it.  llama.cpp's
best build for the machine, and one for AVX2 alone, each in an environment of its own (GCC 12 builds an AMX path that
crashes: with AMX, take clang):

    CMAKE_ARGS="-DGGML_NATIVE=ON" native/bin/pip install --no-binary llama-cpp-python llama-cpp-python
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON" avx2/bin/pip install ... the same

Each process loads the model, reads a first short prompt, then prompts and generates --repeats times; the runtimes take
turns --rounds times.  `first` is from the start of the process to the first token.  Rates are medians; `p90` and `p99`
are of the seconds a generated token took.  Memory is the process's most, mapped file pages included.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import shapes
from cpuinfer import machine, store

HERE = Path(__file__).resolve().parent


@dataclass(slots=True)
class Runtime:
    """One column of the comparison: a command, and its measurements of one model, of all rounds."""

    name: str
    command: list[str]
    environment: dict[str, str]
    first: list[float] = field(default_factory=list)
    prompts: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)

    def measure(self, model: Path, numbers: list[int]) -> None:
        """One process.  Raises SystemExit with what it printed if it fails."""
        began = time.time()
        command = [*self.command, str(model), *map(str, numbers)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{self.name}: exit code {done.returncode}: {done.stderr[-2000:]}")
        result = json.loads(done.stdout)
        self.first.append(result["first"] - began)
        self.prompts += result["prompts"]
        self.steps += result["steps"]
        self.peak.append(result["peak"])


def find(model: str, folder: Path) -> Path:
    """The file, written if it is a shape's."""
    name, _, encoding = model.partition(":")
    if name not in shapes.SHAPES:
        return store.resolve(model, progress=True)
    path = folder / f"{name}-{encoding}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shapes.write(path, name, encoding, store.resolve(None, progress=True))
    return path


def runtimes(isas: list[str | None], peers: list[str]) -> list[Runtime]:
    """Ours at each level, then the peers."""
    ours = [sys.executable, str(HERE / "measure_cpuinfer.py")]
    found = []
    for isa in isas:
        environment = dict(os.environ) if isa is None else {**os.environ, "CPUINFER_ISA": isa}
        found.append(Runtime(f"cpuinfer {isa}" if isa else "cpuinfer", ours, environment))
    for peer in peers:
        name, _, command = peer.partition("=")
        found.append(Runtime(name, shlex.split(command), dict(os.environ)))
    return found


def rows(model: str, size: int, prompt: int, found: list[Runtime]) -> list[str]:
    """Of the table, with what the first runtime does for one of each other's."""
    lines = []
    best = found[0]
    for each in found:
        rate, of = prompt / statistics.median(each.prompts), prompt / statistics.median(best.prompts)
        step, of_step = statistics.median(each.steps), statistics.median(best.steps)
        ordered = sorted(each.steps)
        p90, p99 = (ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (90, 99))
        spread = (max(each.prompts) - min(each.prompts)) / statistics.median(each.prompts)
        lines.append(
            f"| {model} | {each.name} | {rate:,.0f} | {spread:.0%} | {of / rate:.2f} | {1 / step:,.1f} | "
            f"{step / of_step:.2f} | {1000 * p90:.2f} | {1000 * p99:.2f} | {size / step / 1e9:.1f} | "
            f"{statistics.median(each.first):.2f} | {max(each.peak) / 1e6:,.0f} |"
        )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--isa", action="append", metavar="NAME", help="default: the best; several: all of them")
    parser.add_argument("--threads", type=int, default=machine.default_threads().threads)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("shapes"))
    args = parser.parse_args()
    print(
        f"{args.threads} threads, prompt of {args.prompt}, {args.generate} tokens generated\n\n"
        "| model | runtime | prompt, tokens/s | spread | cpuinfer is x | decoding, tokens/s | cpuinfer is x | p90, ms |"
        " p99, ms | file GB/s | first, s | memory, MB |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        flush=True,
    )
    for model in args.models:
        path = find(model, args.folder)
        found = runtimes(args.isa or [None], args.peer)
        for _ in range(args.rounds):
            for each in found:
                each.measure(path, [args.threads, args.prompt, args.generate, args.repeats])
        print("\n".join(rows(model, path.stat().st_size, args.prompt, found)), flush=True)


if __name__ == "__main__":
    main()
