"""What the comparison measures: each part's models, tasks and runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from measurement import Plan, Task
from model_files import Model
from runtimes import Measured, Runtime, busy, measure_in_turn
from startup import Start

ANSWER = Task(32, 31)
"""32 tokens in, 32 out."""
PROMPT = Task(512, 0)
LENGTHS = tuple(Task(tokens, 16) for tokens in (32, 128, 512, 2048))
"""How fast a prompt of so many is read, and how fast decoding is after it."""
BATCHES = tuple(Task(8, 16, sequences) for sequences in (1, 2, 4, 8, 16))
STEPS = Task(8, 24)
"""Decoding alone."""
THREADS = (Task(128, 0), STEPS)
SMALL = ("smollm2-135m", "llama-1b:Q4_0")
"""The models on which instruction sets are compared, and that sweeps, busy cores and starts are measured with."""
LARGE = 2_000_000_000
"""Bytes of a model from which on one repeat a process is enough, whatever is asked for: it takes long."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How often and with how many threads."""

    threads: int
    rounds: int
    repeats: int


@dataclass(slots=True)
class Results:
    """Of all parts; empty where one was not asked for."""

    table: dict[str, list[Measured]] = field(default_factory=dict)
    """By model."""
    threads: list[Measured] = field(default_factory=list)
    lengths: list[Measured] = field(default_factory=list)
    batches: list[Measured] = field(default_factory=list)
    quiet: list[Measured] = field(default_factory=list)
    busy: list[Measured] = field(default_factory=list)
    """In the order of `quiet`."""
    startup: dict[str, list[Start]] = field(default_factory=dict)


def measure_table(model: Model, runtimes: Sequence[Runtime], effort: Effort) -> list[Measured]:
    """The main one."""
    repeats = 1 if model.file_bytes > LARGE else effort.repeats
    plan = Plan(effort.threads, (ANSWER, PROMPT), repeats)
    return measure_in_turn(runtimes, model.name, model.path, plan, rounds=effort.rounds)


def measure_sweeps(results: Results, model: Model, runtimes: Sequence[Runtime], effort: Effort) -> None:
    """One round of each."""

    def measure(threads: int, tasks: tuple[Task, ...]) -> list[Measured]:
        return measure_in_turn(runtimes, model.name, model.path, Plan(threads, tasks), rounds=1)

    for threads in thread_counts(effort.threads):
        results.threads += measure(threads, THREADS)
    results.lengths += measure(effort.threads, LENGTHS)
    results.batches += measure(effort.threads, BATCHES)


def thread_counts(most: int) -> list[int]:
    """1, 2, 4, ... and the most."""
    return [*(1 << i for i in range(most.bit_length()) if 1 << i < most), most]


def measure_busy(results: Results, model: Model, runtimes: Sequence[Runtime], effort: Effort, cores: int) -> None:
    """Decoding on a quiet machine, then beside a busy process on every core, runtime by runtime."""
    plan = Plan(effort.threads, (STEPS,))
    for runtime in runtimes:
        results.quiet += measure_in_turn([runtime], model.name, model.path, plan, rounds=1)
        with busy(cores):
            results.busy += measure_in_turn([runtime], model.name, model.path, plan, rounds=1)
