"""Writes what was measured as Markdown, plots and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import comparison
import plots
import startup
import tables
from comparison import Results
from machine_limits import Limits
from measurement import Sample, Task
from model_files import Model
from runtimes import Measured, Runtime

Value = Callable[[Sample, Task], float]
EXPLANATION = """\
`first token` is the time of a prompt, `next token` that of each token after it, both medians; `spread` of it is the
distance of the quartiles, of prompts that of the extremes, by the median. `cpuinfer is x`: by what the first runtime
of the model is as fast. `of bandwidth` is what decoding reads of the file's bytes a second, `of peak` what prompts
multiply with the layers' weights, by what the machine was measured to do. `J/token` is the energy of the processor's
packages (RAPL) for an answer, by its tokens. Memory is the process's most, mapped file pages included."""


def write(
    folder: Path,
    heading: str,
    results: Results,
    models: Mapping[str, Model],
    *,
    runtimes: Sequence[Runtime],
    limits: Limits,
) -> Path:
    """`report.md` with its pictures beside it, and `measurements.json`; returns the report's path."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = [each for found in results.table.values() for each in found]
    measured += [*results.lengths, *results.quiet]
    parts = [heading, limits_text(limits)]
    if results.table:
        parts += _table(folder, results, models, runtimes, limits)
    parts += _sweeps(folder, results)
    if results.busy:
        parts += ["## A busy process beside it on every core", busy_table(results)]
    if results.startup:
        parts += ["## Start-up", tables.table(startup.COLUMNS, startup.rows(results.startup), words=1)]
    parts += ["## How the runtimes were built", tables.builds(runtimes, measured)]
    raw = {"limits": asdict(limits), **asdict(results)}
    (folder / "measurements.json").write_text(json.dumps(raw, separators=(",", ":")) + "\n")
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def limits_text(limits: Limits) -> str:
    """The machine's, as a sentence."""
    peaks = [f"{name} {peak / 1e9:,.0f} GOP/s" for name, peak in limits.peaks.items()]
    return (
        f"Measured with {limits.threads} threads: reading memory {limits.bandwidth / 1e9:.1f} GB/s; multiplications "
        f"and additions {', '.join(peaks) or 'not measured'}."
    )


def points(results: Results, models: Mapping[str, Model]) -> list[plots.Point]:
    """Of the roofline: answers and prompts of all models."""
    found = []
    for name, rows in results.table.items():
        model = models[name]
        for measured in rows:
            for task, what in ((comparison.ANSWER, "decoding"), (comparison.PROMPT, "prompt")):
                sample = measured.sample(task)
                if sample is None:
                    continue
                tokens = 1 if what == "decoding" else task.prompt
                rate = (tables.decoding_rate if tokens == 1 else tables.prompt_rate)(sample, task)
                intensity = model.prompt_operations * tokens / model.read_bytes
                point = plots.Point(measured.runtime, f"{name} {what}", intensity, model.prompt_operations * rate)
                found.append(point)
    return found


def busy_table(results: Results) -> str:
    """What is left of the quiet rate."""
    rows = []
    for quiet, busy in zip(results.quiet, results.busy, strict=True):
        samples = quiet.sample(comparison.STEPS), busy.sample(comparison.STEPS)
        if samples[0] is None or samples[1] is None:
            rows.append([quiet.model, quiet.runtime, quiet.failure or busy.failure, "", ""])
            continue
        # The mean, not the median: what waits for a processor waits seldom and long.
        rates = [len(sample.steps) / sum(sample.steps) for sample in samples if sample]
        share = f"{rates[1] / rates[0]:.0%}"
        rows.append([quiet.model, quiet.runtime, *(f"{rate:,.1f}" for rate in rates), share])
    return tables.table(("model", "runtime", "quiet, tokens/s", "busy, tokens/s", "kept"), rows)


def _table(
    folder: Path, results: Results, models: Mapping[str, Model], runtimes: Sequence[Runtime], limits: Limits
) -> list[str]:
    answers, prompts = [], []
    peaks = {runtime.name: runtime.peak for runtime in runtimes}
    for name, found in results.table.items():
        answers += tables.answers(models[name], found, comparison.ANSWER, limits)
        prompts += tables.prompts(models[name], found, comparison.PROMPT, limits, peaks)
    parts = [
        "## 32 tokens in, 32 out",
        tables.table(tables.ANSWERS, answers),
        f"## Prompts of {comparison.PROMPT.prompt}",
        tables.table(tables.PROMPTS, prompts),
        EXPLANATION,
    ]
    if found_points := points(results, models):
        plots.roofline(folder / "roofline.png", limits, found_points)
        parts.append("![what was reached under the machine's limits](roofline.png)")
    return parts


def _sweeps(folder: Path, results: Results) -> list[str]:
    parts = []
    if results.threads:
        prompt, steps = comparison.THREADS
        prompts = tables.sweep(results.threads, [prompt], tables.prompt_rate)
        decoding = tables.sweep(results.threads, [steps], tables.decoding_rate)
        rows = [[*row, other[-1]] for row, other in zip(prompts, decoding, strict=True)]
        columns = ("model", "runtime", "threads", f"prompt of {prompt.prompt}, tokens/s", "decoding, tokens/s")
        parts += ["## Threads", tables.table(columns, rows)]
        parts.append(_plot(folder, "threads", results.threads, [steps], tables.decoding_rate))
    for title, x, found, tasks, value in (
        ("Length of the prompt", "prompt", results.lengths, comparison.LENGTHS, tables.prompt_rate),
        ("Decoding at depth", "depth", results.lengths, comparison.LENGTHS, tables.decoding_rate),
        ("Sequences decoded at once", "sequences", results.batches, comparison.BATCHES, tables.decoding_rate),
    ):
        if found:
            columns = ("model", "runtime", "threads", *(f"{_place(task, x)}" for task in tasks))
            parts += [f"## {title}, tokens/s", tables.table(columns, tables.sweep(found, tasks, value))]
            parts.append(_plot(folder, x, found, tasks, value))
    return parts


def _place(task: Task, x: str) -> int:
    return task.sequences if x == "sequences" else task.prompt


def _plot(folder: Path, x: str, found: Sequence[Measured], tasks: Sequence[Task], value: Value) -> str:
    """A picture of a sweep, and the line that shows it."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for measured in found:
        for task in tasks:
            if (sample := measured.sample(task)) is not None:
                series = panels.setdefault(measured.model, {}).setdefault(measured.runtime, [])
                place = measured.threads if x == "threads" else _place(task, x)
                series.append((place, value(sample, task)))
    if not panels:
        return ""
    plots.lines(folder / f"{x}.png", panels, x=x, y="tokens/s")
    return f"![tokens/s by {x}]({x}.png)"
