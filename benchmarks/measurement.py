"""What the scripts that measure one runtime in one process share: the plan they are given, the JSON they print.

    measure_<runtime>.py MODEL PLAN

It runs where that runtime is installed, so it needs nothing but Python.  Every runtime is given the same random tokens,
fresh ones for each prompt: a repeated prompt may be found in a cache of prefixes.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

WARM_UP = 64
"""Tokens of a prompt before all that is measured: the first one after the start is slow everywhere."""
POWER = Path("/sys/class/powercap")
"""Counters of energy: Linux power/powercap.rst; only root may read them, and few virtual machines have them."""


@dataclass(frozen=True, slots=True)
class Task:
    """Sequences of a prompt each, then one more token of all of them at every step."""

    prompt: int
    steps: int
    sequences: int = 1

    @property
    def positions(self) -> int:
        """Of a sequence: the token after the last step is chosen, too."""
        return self.prompt + self.steps + 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What one process measures."""

    threads: int
    tasks: tuple[Task, ...]
    repeats: int = 1
    seed: int = 0

    @property
    def context(self) -> int:
        """Most positions of a sequence."""
        return max(task.positions for task in (*self.tasks, Task(WARM_UP, 1)))

    @property
    def sequences(self) -> int:
        """Most at once."""
        return max(task.sequences for task in self.tasks)

    def dumps(self) -> str:
        """As the argument of a script."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Plan:
        """The inverse."""
        values = json.loads(text)
        return cls(**{**values, "tasks": tuple(Task(**task) for task in values["tasks"])})


@dataclass(slots=True)
class Sample:
    """Of one task, all repeats.  Seconds."""

    first: list[float] = field(default_factory=list)
    """From the prompts to their first tokens."""
    steps: list[float] = field(default_factory=list)
    """One of each step; or, where only their sum is known, the mean of each repeat."""
    joules: list[float] = field(default_factory=list)
    """Of the whole answers, for each token generated, by repeat; empty where it cannot be read."""


@dataclass(slots=True)
class Outcome:
    """Of one process."""

    samples: list[Sample | None]
    """One for each task, None for what the runtime cannot do."""
    peak: int
    """Bytes of memory at most, mapped file pages included."""
    first: float | None = None
    """When the first token after the start was there, of `time.time()`; None where that is not known."""
    system: str = ""
    """What the runtime says of itself and the processor's features."""
    single_steps: bool = True
    """Whether `steps` has single ones."""

    def dumps(self) -> str:
        """As a line."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Outcome:
        """The inverse, of the last line: some runtimes print before."""
        values = json.loads(text.strip().splitlines()[-1])
        return cls(**{**values, "samples": [sample and Sample(**sample) for sample in values["samples"]]})


class Engine(Protocol):
    """A runtime with its model."""

    vocabulary: int
    system: str

    def generate(self, prompts: list[list[int]], steps: int) -> tuple[float, list[float]]:
        """Seconds from the prompts to their first tokens, and of each step after; or NotImplementedError."""


def energy(root: Path = POWER) -> float | None:
    """Joules that the processors' packages have used; None where they cannot be read.  The counters start again."""
    try:
        zones = [path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1]
        return sum(int((zone / "energy_uj").read_text()) for zone in zones) / 1e6 if zones else None
    except OSError:
        return None


def measure(engine: Engine, plan: Plan, task: Task, prompts: Iterable[list[int]]) -> Sample | None:
    """One task."""
    sample = Sample()
    source = iter(prompts)
    for _ in range(plan.repeats):
        before = energy()
        try:
            first, steps = engine.generate([next(source) for _ in range(task.sequences)], task.steps)
        except NotImplementedError:
            return None
        after = energy()
        sample.first.append(first)
        sample.steps += steps
        if before is not None and after is not None and after > before:
            sample.joules.append((after - before) / ((task.steps + 1) * task.sequences))
    return sample


def main(start: Callable[[str, Plan], Engine]) -> None:
    """A script, whose last arguments are a model and a plan: `start` loads the model for the plan."""
    model, plan = sys.argv[-2], Plan.loads(sys.argv[-1])
    generator = random.Random(plan.seed)
    engine = start(model, plan)

    def prompts(count: int) -> Iterable[list[int]]:
        while True:
            yield [generator.randrange(engine.vocabulary) for _ in range(count)]

    engine.generate([next(iter(prompts(8)))], 1)
    first = time.time()
    engine.generate([next(iter(prompts(WARM_UP)))], 1)
    samples = [measure(engine, plan, task, prompts(task.prompt)) for task in plan.tasks]
    print(Outcome(samples, peak_memory(), first, engine.system).dumps())


def peak_memory() -> int:
    """Bytes of this process; not by getrusage, which counts what the process that began it had then."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024  # its kB are KiB
    return 0
