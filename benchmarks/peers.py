"""Measures cpuinfer beside other runtimes on the same files, in turn, and writes a report with tables and plots.

    python benchmarks/peers.py --peers FOLDER --out results/NAME          (all; about 20 minutes on two cores)
    python benchmarks/peers.py smollm2-135m llama-1b:Q4_0 model.gguf --only table,busy --out results/NAME

A model is a path, the built-in name, or a shape and encoding of `benchmarks/shapes.py`; files are made once, in
--models.  FOLDER is where `benchmarks/peer_builds.py` has built the others; without it cpuinfer is measured alone.
Needs the extras `bench` and `test`, and a C++ compiler for the machine's peaks.  What each part measures:

    table     answers of 32 tokens to prompts of 32, as the paper has that cpuinfer grew from; prompts of 512
    sweeps    threads; length of the prompt and depth of the cache; sequences decoded at once
    busy      decoding with a busy process beside it on every core
    startup   whole processes, from start to end: time, processor time, memory
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import comparison
import machine_limits
import model_files
import peer_builds
import report
import shapes
import startup
from cpuinfer import _core, machine
from cpuinfer.cli.parameters import kernel_set, positive, thread_count
from peer_builds import Peer
from runtimes import HERE, Runtime, cpuinfer, note

PARTS = ("table", "sweeps", "busy", "startup")


@dataclass(frozen=True, slots=True)
class Cast:
    """The runtimes of each part, ours first and of ours the best."""

    ours: list[Runtime]
    peers: list[tuple[Peer, Runtime]]

    @property
    def everything(self) -> list[Runtime]:
        """All there are."""
        return [*self.ours, *(runtime for _, runtime in self.peers)]

    @property
    def swept(self) -> list[Runtime]:
        """Those of sweeps and busy cores."""
        return [self.ours[0], *(runtime for peer, runtime in self.peers if peer.scope == "all")]

    def on(self, model: str) -> list[Runtime]:
        """Those of the table's rows of a model."""
        levels = model in comparison.SMALL or model not in model_files.MODELS
        peers = [each for each in self.peers if not each[0].only or model in each[0].only]
        chosen = [runtime for peer, runtime in peers if levels or peer.scope != "levels"]
        return [*(self.ours if levels else self.ours[:1]), *chosen]


def cast(isas: Sequence[str] | None, folder: Path | None, names: Sequence[str] | None) -> Cast:
    """Our kernel sets, best first (all that the machine runs but the plain one), and the peers that are there."""
    usable = [each["name"] for each in _core.kernel_sets() if each["usable"] and each["name"] != "scalar"]
    tiled = [each["name"] for each in _core.kernel_sets() if each["tiles"]]
    chosen = list(isas or usable) or [None]
    built, peaks = f"commit {version()}, as installed", machine_limits.OF_KERNELS
    ours = [cpuinfer(isa, peak=peaks.get(isa or ""), built=built) for isa in chosen]
    for isa in chosen:
        if isa in tiled:  # what `deterministic` costs: for the other kernel sets nothing
            ours.append(cpuinfer(isa, deterministic=True, peak="avx512_vnni", built=built))
    peers = [] if folder is None else peer_builds.present(folder)
    if names is not None:
        peers = [(peer, runtime) for peer, runtime in peers if peer.folder in names or peer.name in names]
    return Cast(ours, peers)


def version() -> str:
    """The commit, and whether files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def heading(effort: comparison.Effort) -> str:
    """What was run, where and how often."""
    brand, _ = machine_limits.processor()
    here = machine.inspect()
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    command = shlex.join(["python", f"benchmarks/{Path(words[0]).name}", *words[1:]])
    caches = ", ".join(f"L{cache.level} {cache.kind} {cache.bytes >> 10:,} KiB" for cache in here.caches)
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return (
        f"# cpuinfer beside other runtimes, {day}\n\n"
        f"{brand}, {here.physical_cores} cores; {caches}; {here.memory.total / 2**30:.0f} GiB of memory; "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}. Commit {version()}. "
        f"{effort.threads} threads. Rounds, in turn: {effort.rounds}; repeats in each process: {effort.repeats}, but 1 "
        f"of models above {comparison.LARGE / 1e9:.0f} GB; sweeps and busy cores: 1 and 1.\n\n    {command}"
    )


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(model_files.MODELS), metavar="MODEL")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="what peer_builds.py has built")
    parser.add_argument("--peer", action="append", metavar="NAME", help="default: all in the folder")
    parser.add_argument(
        "--isa", action="append", type=kernel_set, metavar="NAME", help="kernel sets of cpuinfer; default: all usable"
    )
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--threads", type=thread_count, default=machine.default_threads().threads)
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--repeats", type=positive, default=1)
    parser.add_argument("--models", dest="folder", type=Path, default=Path("shapes"), help="where their files are")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the report")
    args = parser.parse_args()
    args.parts = PARTS if args.only is None else args.only.split(",")
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    if fault := refused_model(args.models) or refused_peers(args.peers, args.peer):
        parser.error(fault)
    return args


def refused_model(names: Sequence[str]) -> str | None:
    """What is wrong with a shape's encoding; other names are looked for when their turn comes."""
    for name in names:
        shape, _, encoding = name.partition(":")
        if shape in shapes.SHAPES and encoding not in shapes.ENCODINGS:
            return f"{name}: expected {shape}: and one of {', '.join(shapes.ENCODINGS)}"
    return None


def refused_peers(folder: Path | None, names: Sequence[str] | None) -> str | None:
    """What is wrong with where the peers are, or with those named."""
    if folder is None:
        return None if names is None else "--peer: needs --peers, the folder that peer_builds.py has built them in"
    if not folder.is_dir():
        return f"--peers: {folder}: no such folder"
    there = {name for peer, _ in peer_builds.present(folder) for name in (peer.folder, peer.name)}
    if not there:
        return f"--peers: {folder}: peer_builds.py has built none there"
    if unknown := set(names or ()) - there:
        return f"--peer: {', '.join(sorted(unknown))}, expected some of {', '.join(sorted(there))}"
    return None


def main() -> None:
    """Measure, writing the report anew after every model, so that an interrupted run leaves one."""
    args = arguments()
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("matplotlib is missing: install the extra `bench`")
    effort = comparison.Effort(args.threads, args.rounds, args.repeats)
    found = [model_files.find(name, args.folder) for name in args.models]
    models = {model.name: model for model in found}
    actors = cast(args.isa, args.peers, args.peer)
    limits = machine_limits.measure(args.threads)
    results = comparison.Results()
    title = heading(effort)

    def save() -> Path:
        return report.write(args.out, title, results, models, runtimes=actors.everything, limits=limits)

    for model in found:
        if "table" in args.parts:
            results.table[model.name] = comparison.measure_table(model, actors.on(model.name), effort)
            save()
        if len(found) > 1 and model.name not in comparison.SMALL:
            continue
        if "sweeps" in args.parts:
            comparison.measure_sweeps(results, model, actors.swept, effort)
        if "busy" in args.parts:
            comparison.measure_busy(results, model, actors.swept, effort, len(os.sched_getaffinity(0)))
        save()
    if "startup" in args.parts:
        swept = [model for model in found if model.name in comparison.SMALL] or found[:1]
        results.startup = startup.measure(startup.commands(swept), 5, args.folder)
    note("")
    limits = limits.or_more(machine_limits.measure(args.threads))
    print(save().read_text())


if __name__ == "__main__":
    main()
