"""`cpuinfer doctor`: what this machine offers, what of it is used and why, and how fast a model can run at best."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, TypedDict, cast

from cpuinfer.cli.model import add_quantize
from cpuinfer.cli.terminal import megabytes, printable, progress
from cpuinfer.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from cpuinfer.machine import Machine, ThreadChoice

HELP = "print what this machine offers and how fast a model can run on it at best"

PIPE_WIDTH = 120
"""Columns of a table that no terminal limits."""
LARGE = 92_000_000
"""Bytes; about what decoding a token of a model of 135 million weights in 4 bits reads."""
LARGEST = 1 << 30
LEAST_SHARE = 4096
"""Bytes a thread that a measurement takes."""
ACHIEVED_TOKENS, ACHIEVED_ROUNDS = 64, 7
"""Decoded in each round, beside a reading of the memory: what a shared machine gives changes from second to second."""


class KernelSet(TypedDict):
    """A row of the native table of kernels."""

    name: str
    usable: bool
    missing: str
    selected: bool


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A measurement of memory being read."""

    label: str
    bytes: int
    """Of the working set."""
    threads: int
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Roof:
    """The most tokens per second that reading a model's weights once per token allows."""

    model: str
    bytes_per_token: int
    weights: int
    """Bytes in memory when loaded."""
    bandwidth: Bandwidth
    tokens_per_second: float
    achieved: float | None
    """Tokens per second of short decodes, the median; None if not asked for."""
    shares: list[float]
    """Of each, in ascending order: of the roof by the bandwidth measured just before it."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that the command prints."""

    brand: str
    features: list[str]
    kernels: list[KernelSet]
    kernels_reason: str
    machine: Machine
    threads: ThreadChoice
    bandwidths: list[Bandwidth]
    roof: Roof | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "examples:\n  cpuinfer doctor\n  cpuinfer doctor smollm2-135m --achieved"
    parser.add_argument("model", metavar="MODEL", nargs="?", help="predict how fast this model decodes at best")
    parser.add_argument(
        "--achieved",
        action="store_true",
        help=f"decode {ACHIEVED_TOKENS} tokens with MODEL, {ACHIEVED_ROUNDS} times, and compare",
    )
    add_quantize(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, sizes in bytes")


def run(args: argparse.Namespace) -> int:
    """Examine and print."""
    if args.achieved and args.model is None:
        raise InvalidRequest(
            "--achieved: needs a MODEL to decode with, such as `cpuinfer doctor smollm2-135m --achieved`"
        )
    report = examine(args.model, achieved=args.achieved, quantize=args.quantize)
    progress("")
    if args.json:
        print(json.dumps(asdict(report), default=sorted, ensure_ascii=False))  # CPU sets become lists
    else:
        _print(report)
    return 0


def examine(model: str | None = None, *, achieved: bool = False, quantize: str | None = None) -> Report:
    """Look, measure and, with a model, predict.  Takes some seconds."""
    from cpuinfer import _core, machine

    path = None if model is None else _locate(model)
    kernels = cast("list[KernelSet]", _core.kernel_sets())
    forced = os.environ.get("CPUINFER_ISA")
    features = _core.cpu_features()
    seen = machine.inspect()
    threads = machine.default_threads()
    return Report(
        brand=cast("str", features["brand"]),
        features=cast("list[str]", features["usable"]),
        kernels=kernels,
        kernels_reason=f"set by CPUINFER_ISA={forced}" if forced else "the best this processor and system run",
        machine=seen,
        threads=threads,
        bandwidths=list(measure_bandwidths(seen, threads.threads)),
        roof=None if path is None else predict(path, seen, threads.threads, achieved=achieved, quantize=quantize),
    )


def _locate(model: str) -> Path:
    from cpuinfer import store

    return store.resolve(model, progress=True)


def working_sets(machine: Machine) -> list[tuple[str, int]]:
    """What to measure, smallest first: within the caches, beyond them, far beyond as memory allows."""
    sizes = [("half of L2", (machine.cache_bytes(2) or 0) // 2), ("half of L3", (machine.cache_bytes(3) or 0) // 2)]
    sizes += [("a small model", LARGE), ("a larger model", LARGEST)]
    return [(label, size) for label, size in sizes if 0 < size <= machine.memory.available // 2]


def measure_bandwidths(machine: Machine, threads: int) -> Iterable[Bandwidth]:
    """Every working set with one thread and with the default number."""
    for label, size in working_sets(machine):
        for count in sorted({1, threads}):
            yield _measure(label, max(size, LEAST_SHARE * count), count)


def _measure(label: str, size: int, threads: int) -> Bandwidth:
    from cpuinfer import _core

    progress(f"reading {_size(size)} with {_threads(threads)} ...")
    return Bandwidth(label, size, threads, _core.read_bandwidth(size, threads))


def predict(path: Path, machine: Machine, threads: int, *, achieved: bool, quantize: str | None = None) -> Roof:
    """The roof of a model, measured at the working set it decodes with or as much of it as half the free memory."""
    from cpuinfer.describe import describe

    model = describe(path, quantize=quantize)
    size = max(min(model.bytes_per_token, machine.memory.available // 2), LEAST_SHARE * threads)
    rounds = list(_decode_beside_reading(path, size, threads, quantize)) if achieved else []
    readings = [reading for reading, _ in rounds] or [_measure("this model", size, threads)]
    bandwidth = sorted(readings, key=lambda reading: reading.bytes_per_second)[len(readings) // 2]
    return Roof(
        model=model.name,
        bytes_per_token=model.bytes_per_token,
        weights=model.memory.weights,
        bandwidth=bandwidth,
        tokens_per_second=bandwidth.bytes_per_second / model.bytes_per_token,
        achieved=median(rate for _, rate in rounds) if achieved else None,
        shares=sorted(rate * model.bytes_per_token / reading.bytes_per_second for reading, rate in rounds),
    )


def _decode_beside_reading(
    path: Path, size: int, threads: int, quantize: str | None
) -> Iterable[tuple[Bandwidth, float]]:
    """(memory read, tokens per second) of each round."""
    from cpuinfer import LLM, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=ACHIEVED_TOKENS, ignore_eos=True)
    with LLM(path, threads=threads, quantize=quantize) as llm:
        for _ in range(ACHIEVED_ROUNDS):
            reading = _measure("this model", size, threads)
            progress(f"decoding {ACHIEVED_TOKENS} tokens ...")
            yield reading, llm.generate("Once", params).timings.generate_rate


def _print(report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    with console.capture() as text:  # rich by itself would exit with 1 when the reader went away
        _print_rows(console, "machine", _machine_rows(report))
        _print_rows(console, "kernels", _kernel_rows(report))
        _print_bandwidths(console, report)
        if report.roof:
            _print_rows(console, "model", _roof_rows(report.roof))
    print(text.get(), end="")


def _table(title: str, *, headed: bool) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=headed)


def _print_rows(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = _table(title, headed=False)
    for name, value in rows:
        table.add_row(name, printable(value))  # the name of a model comes from its file
    console.print(table)


def _machine_rows(report: Report) -> Iterable[tuple[str, str]]:
    machine = report.machine
    yield "processor", report.brand
    yield "features", ", ".join(report.features) or "none that the kernels use"
    cores = f"{machine.physical_cores} physical"
    slower = machine.physical_cores - machine.performance_cores
    yield "cores", cores + (f", {slower} of them of a slower kind" if slower else "")
    yield "CPUs", f"{len(machine.cpus)} online, affinity {_ranges(machine.affinity)}"
    yield "cgroup quota", "none" if machine.quota is None else f"{machine.quota:g} CPUs"
    for node in machine.numa_nodes:
        yield f"NUMA node {node.node}", f"CPUs {_ranges(node.cpus) or 'none'}, {_size(node.memory)}"
    for cache in machine.caches:
        yield f"L{cache.level} {cache.kind}", f"{cache.instances} x {_size(cache.bytes)}"
    yield "memory", f"{_size(machine.memory.total)}, available {_size(machine.memory.available)}"
    yield "default threads", report.threads.reason


def _kernel_rows(report: Report) -> Iterable[tuple[str, str]]:
    for kernels in report.kernels:
        if kernels["selected"]:
            yield kernels["name"], f"used: {report.kernels_reason}"
        else:
            yield kernels["name"], "usable" if kernels["usable"] else f"not usable: {kernels['missing']}"


def _print_bandwidths(console: Console, report: Report) -> None:
    """A row a working set, a column a number of threads."""
    counts = sorted({found.threads for found in report.bandwidths})
    table = _table("memory read, GB/s", headed=True)
    for column in ("working set", "size", *(_threads(count) for count in counts)):
        table.add_column(column, justify="left" if column == "working set" else "right")
    for label in dict.fromkeys(found.label for found in report.bandwidths):
        row = {found.threads: found for found in report.bandwidths if found.label == label}
        speeds = (f"{row[count].bytes_per_second / 1e9:.1f}" for count in counts)
        table.add_row(label, _size(row[counts[0]].bytes), *speeds)
    console.print(table)


def _roof_rows(roof: Roof) -> Iterable[tuple[str, str]]:
    speed = f"{roof.bandwidth.bytes_per_second / 1e9:.1f} GB/s"
    yield "name", roof.model
    yield "weights", megabytes(roof.weights)
    yield "read per token", megabytes(roof.bytes_per_token)
    yield "read with", f"{_threads(roof.bandwidth.threads)} at {speed}, measured on {megabytes(roof.bandwidth.bytes)}"
    yield "roof", f"{roof.tokens_per_second:.1f} tokens/s"
    if roof.achieved is not None:
        span = f"{roof.shares[0]:.0%} to {roof.shares[-1]:.0%}"
        yield "achieved", f"{roof.achieved:.1f} tokens/s, {median(roof.shares):.0%} of the roof"
        yield "", f"medians of {len(roof.shares)} rounds of {ACHIEVED_TOKENS} tokens, {span} of the roof"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _size(count: int) -> str:
    """A size with a binary unit, as caches and memory come."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:,.1f} GiB"


def _ranges(cpus: Iterable[int]) -> str:
    """CPU numbers as the kernel lists them: `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
