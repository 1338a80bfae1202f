"""Markdown tables of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from machine_limits import Limits
from measurement import Sample, Task
from model_files import Model
from runtimes import Measured, Runtime

UNKNOWN = "-"
ANSWERS = (
    "model",
    "runtime",
    "first token, ms",
    "next token, ms",
    "P90",
    "P99",
    "tokens/s",
    "spread",
    "cpuinfer is x",
    "of bandwidth",
    "J/token",
    "memory, MB",
)
PROMPTS = ("model", "runtime", "tokens/s", "spread", "cpuinfer is x", "GOP/s", "of peak", "start to first token, s")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 2) -> str:
    """Markdown; the first `words` columns are words, the others numbers."""
    ruler = "|".join("---" if i < words else "--:" for i in range(len(columns)))
    return "\n".join([f"| {' | '.join(columns)} |", f"|{ruler}|", *(f"| {' | '.join(row)} |" for row in rows)])


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least this share of them, 0 to 1, does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered), -int(-share * len(ordered) // 1)) - 1)]


def spread(values: Sequence[float]) -> str:
    """From least to most, as a share of the median."""
    return f"{(max(values) - min(values)) / statistics.median(values):.0%}" if len(values) > 1 else UNKNOWN


def quartiles(values: Sequence[float]) -> str:
    """The middle half's width, as a share of the median."""
    wide = percentile(values, 0.75) - percentile(values, 0.25)
    return f"{wide / statistics.median(values):.0%}" if len(values) > 3 else UNKNOWN


def answers(model: Model, found: Sequence[Measured], task: Task, limits: Limits) -> list[list[str]]:
    """Rows of answers to short prompts; the first runtime is what others are held against."""

    def cells(measured: Measured, sample: Sample, best: Sample | None) -> list[str]:
        step = statistics.median(sample.steps)
        single = measured.single_steps
        return [
            f"{1000 * statistics.median(sample.first):,.1f}",
            f"{1000 * step:.2f}",
            *(f"{1000 * percentile(sample.steps, share):.2f}" if single else UNKNOWN for share in (0.9, 0.99)),
            f"{1 / step:,.1f}",
            quartiles(sample.steps),
            f"{step / statistics.median(best.steps):.2f}" if best else UNKNOWN,
            f"{model.read_bytes / step / limits.bandwidth:.0%}",
            f"{statistics.median(sample.joules):.2f}" if sample.joules else "not readable",
            f"{max(measured.peaks) / 1e6:,.0f}",
        ]

    return _rows(model, found, task, len(ANSWERS), cells)


def prompts(
    model: Model, found: Sequence[Measured], task: Task, limits: Limits, peaks: Mapping[str, str | None]
) -> list[list[str]]:
    """Rows of long prompts; `peaks` says what instruction set each runtime uses, None the machine's best."""

    def cells(measured: Measured, sample: Sample, best: Sample | None) -> list[str]:
        seconds = statistics.median(sample.first)
        operations = model.prompt_operations * task.prompt / seconds
        name = peaks.get(measured.runtime) or limits.fastest
        peak = limits.peaks.get(name)
        return [
            f"{task.prompt / seconds:,.0f}",
            spread(sample.first),
            f"{seconds / statistics.median(best.first):.2f}" if best else UNKNOWN,
            f"{operations / 1e9:,.0f}",
            f"{operations / peak:.1%} of {name}" if peak else UNKNOWN,
            f"{statistics.median(measured.starts):.2f}" if measured.starts else UNKNOWN,
        ]

    return _rows(model, found, task, len(PROMPTS), cells)


def _rows(
    model: Model,
    found: Sequence[Measured],
    task: Task,
    columns: int,
    cells: Callable[[Measured, Sample, Sample | None], list[str]],
) -> list[list[str]]:
    lines = []
    for measured in found:
        sample = measured.sample(task)
        name = [model.name, measured.runtime]
        if sample is None:
            lines.append([*name, measured.failure or "cannot", *[""] * (columns - 3)])
        else:
            lines.append([*name, *cells(measured, sample, found[0].sample(task))])
    return lines


def sweep(found: Sequence[Measured], tasks: Sequence[Task], value: Callable[[Sample, Task], float]) -> list[list[str]]:
    """A row for each runtime and model, a column for each task."""
    lines = []
    for measured in found:
        if measured.failure:
            failed = [measured.failure, *[""] * (len(tasks) - 1)]
            lines.append([measured.model, measured.runtime, str(measured.threads), *failed])
            continue
        samples = [(measured.sample(task), task) for task in tasks]
        cells = [UNKNOWN if sample is None else f"{value(sample, task):,.1f}" for sample, task in samples]
        lines.append([measured.model, measured.runtime, str(measured.threads), *cells])
    return lines


def prompt_rate(sample: Sample, task: Task) -> float:
    """Tokens of the prompts a second."""
    return task.prompt * task.sequences / statistics.median(sample.first)


def decoding_rate(sample: Sample, task: Task) -> float:
    """Tokens a second of all sequences."""
    return task.sequences / statistics.median(sample.steps)


def builds(runtimes: Iterable[Runtime], found: Iterable[Measured]) -> str:
    """A list of how each runtime was built and what it says of itself."""
    says = {measured.runtime: measured.system for measured in found if measured.system}
    lines = []
    for runtime in runtimes:
        said = f" It says: `{says[runtime.name]}`." if runtime.name in says else ""
        lines.append(f"- {runtime.name}: {runtime.built or 'built as installed'}.{said}")
    return "\n".join(lines)
