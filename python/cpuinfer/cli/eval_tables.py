"""Results of `cpuinfer eval` as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cpuinfer.cli.tables import add_row, new_table
from cpuinfer.evaluate import Choices, Comparison, Divergence, Perplexity

if TYPE_CHECKING:
    from rich.table import Table

    from cpuinfer.evaluate import Estimate
    from cpuinfer.evaluate.windows import Windows


def tables_of(result: object) -> list[Table]:
    """The tables of a result."""
    if isinstance(result, Perplexity):
        return [_perplexity(result)]
    if isinstance(result, Divergence):
        return [_divergence(result)]
    if isinstance(result, Choices):
        return [_choices(result)]
    if isinstance(result, Comparison):
        return [_comparison(result)]
    raise TypeError(result)


def _perplexity(result: Perplexity) -> Table:
    table = new_table(_title(result.model.name, result.text.name), "", "", "95 % interval", left=1)
    add_row(table, "perplexity", *_cells(result.perplexity, ".3f"))
    add_row(table, "nats a token", *_cells(result.loss, ".4f"))
    add_row(table, "bits per byte", *_cells(result.bits_per_byte, ".4f"))
    add_row(table, "tokens scored", f"{result.tokens:,}", f"of {result.text.tokens:,}")
    _add_windows(table, len(result.items), result.windows)
    return table


def _divergence(result: Divergence) -> Table:
    title = _title(result.model.name, f"{Path(result.text.name).name}, from {result.reference.name}")
    table = new_table(title, "", "", "95 % interval", left=1)
    add_row(table, "KL divergence, nats a token", *_cells(result.divergence, ".6f"))
    add_row(table, "  median", f"{result.median:.6f}", "")
    add_row(table, "  90 % below", f"{result.percentile_90:.6f}", "")
    add_row(table, "  99 % below", f"{result.percentile_99:.6f}", "")
    add_row(table, "  largest", f"{result.largest:.6f}", "")
    add_row(table, "same likeliest token", *_cells(result.same_top.scaled(100), ".2f", " %"))
    add_row(table, "change in probability, RMS", f"{100 * result.probability_rms:.3f} %", "")
    add_row(table, "perplexity", *_cells(result.perplexity, ".3f"))
    add_row(table, "  of the reference", *_cells(result.reference_perplexity, ".3f"))
    add_row(table, "  ratio", *_cells(result.perplexity_ratio, ".5f"))
    add_row(table, "tokens compared", f"{result.tokens:,}", f"of {result.text.tokens:,}")
    _add_windows(table, len(result.items), result.windows)
    return table


def _choices(result: Choices) -> Table:
    table = new_table(_title(result.model.name, result.source), "normalisation", "right", "accuracy", "95 %", left=1)
    for found in result.accuracies:
        name = f"{found.normalisation} *" if found.normalisation == result.normalisation else found.normalisation
        add_row(
            table, name, f"{found.correct} of {len(result.items)}", *_cells(found.accuracy.scaled(100), ".1f", " %")
        )
    add_row(table, "chance", "", f"{100 * result.chance:.1f} %", "")
    return table


def _comparison(result: Comparison) -> Table:
    how = f"{result.items_a} pairs" if result.paired else f"{result.items_a} and {result.items_b} items"
    title = f"A  {result.a}\nB  {result.b}\n{how}, {result.resamples} resamples, seed {result.seed}"
    mcnemar = ["McNemar"] if any(found.mcnemar_p is not None for found in result.differences) else []
    measure = "accuracy by" if result.of == "choice" else ""
    table = new_table(title, measure, "A", "B", "B - A", "95 % interval", "p", *mcnemar, left=1)
    for found in result.differences:
        numbers = [f"{value:.4f}" for value in (found.a, found.b)]
        interval = f"{found.low:+.4f} to {found.high:+.4f}"
        cells = [*numbers, f"{found.difference:+.4f}", interval, _p(found.p_value)]
        add_row(table, found.measure, *cells, *([_p(found.mcnemar_p)] if found.mcnemar_p is not None else []))
    return table


def _title(model: str, source: str) -> str:
    return f"{model} on {source}"


def _add_windows(table: Table, count: int, windows: Windows) -> None:
    begin = "no BOS" if windows.bos is None else "BOS first"
    add_row(table, "windows", f"{count:,}", f"{windows.window} long, stride {windows.stride}, {begin}")


def _cells(estimate: Estimate, form: str, unit: str = "") -> tuple[str, str]:
    """Value and interval."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}}{unit}", "one window: none"
    return f"{estimate.value:{form}}{unit}", f"{estimate.low:{form}} to {estimate.high:{form}}{unit}"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"
