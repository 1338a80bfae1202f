"""Runs runtimes in turn, a process each, and puts together what they measured of a model."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from measurement import Outcome, Plan, Sample, Task

HERE = Path(__file__).resolve().parent
MOST_SECONDS = 240
"""A process may take; then that runtime has failed on that model."""
BUSY = "import os, sys\nparent = os.getppid()\nwhile os.getppid() == parent:\n  for _ in range(1000000): pass"
"""A program that keeps a processor busy for as long as who began it lives."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A command that measures, given a model and a plan; see `measurement.py`."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """On top of our own."""
    peak: str | None = None
    """The instruction set whose peak its prompts are held against, a name in `machine_limits.NEEDS`; None: the best."""
    built: str = ""
    """How, for the report."""


@dataclass(slots=True)
class Measured:
    """Of a runtime and a model, all rounds."""

    model: str
    runtime: str
    tasks: tuple[Task, ...]
    threads: int
    samples: list[Sample | None]
    """One for each task, as in `Outcome`."""
    peaks: list[int] = field(default_factory=list)
    """Bytes."""
    starts: list[float] = field(default_factory=list)
    """Seconds from the start of the process to the first token."""
    system: str = ""
    single_steps: bool = True
    failure: str = ""
    """Why it has no samples; empty where it has."""

    def sample(self, task: Task) -> Sample | None:
        """Of one task; None if it was not measured."""
        return self.samples[self.tasks.index(task)] if task in self.tasks and not self.failure else None

    def add(self, began: float, outcome: Outcome) -> None:
        """One more process."""
        for i, new in enumerate(outcome.samples):
            old = self.samples[i]
            if old is None or new is None:
                self.samples[i] = None
                continue
            old.first += new.first
            old.steps += new.steps
            old.joules += new.joules
        self.peaks.append(outcome.peak)
        if outcome.first is not None:
            self.starts.append(outcome.first - began)
        self.system, self.single_steps = outcome.system, outcome.single_steps


def cpuinfer(
    isa: str | None = None, *, deterministic: bool = False, peak: str | None = None, built: str = ""
) -> Runtime:
    """Ours, with a kernel set."""
    environment = {} if isa is None else {"CPUINFER_ISA": isa}
    command = (sys.executable, str(HERE / "measure_cpuinfer.py"), *(["--deterministic"] if deterministic else []))
    name = " ".join(filter(None, ("cpuinfer", isa, "deterministic" if deterministic else None)))
    return Runtime(name, command, environment, peak, built)


def measure_in_turn(
    runtimes: Sequence[Runtime], model: str, path: Path, plan: Plan, *, rounds: int, seconds: float = MOST_SECONDS
) -> list[Measured]:
    """Each once a round, with the same tokens for all; who fails is not tried again."""
    found = [Measured(model, each.name, plan.tasks, plan.threads, [Sample() for _ in plan.tasks]) for each in runtimes]
    for seed in range(rounds):
        for runtime, measured in zip(runtimes, found, strict=True):
            if not measured.failure:
                note(f"{model}: {runtime.name}, round {seed + 1} of {rounds}")
                run(runtime, path, replace(plan, seed=seed), measured, seconds)
    note("")
    return found


def run(runtime: Runtime, path: Path, plan: Plan, measured: Measured, seconds: float = MOST_SECONDS) -> None:
    """One process, added to what was measured."""
    began = time.time()
    command = [*runtime.command, str(path), plan.dumps()]
    environment = {**os.environ, **runtime.environment}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=seconds, errors="replace"
        )
    except subprocess.TimeoutExpired:
        measured.failure = f"took more than {seconds:.0f} s"
        return
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["nothing was printed"]
        said = re.sub(r"/[^ ]*/", "", lines[-1]).replace("|", "/")
        measured.failure = f"exit code {done.returncode}: {said[:120]}"
        return
    measured.add(began, Outcome.loads(done.stdout))


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """As many processes that never wait run beside what is inside."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
        for each in running:
            each.wait()


def note(text: str) -> None:
    """What is being done, on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
