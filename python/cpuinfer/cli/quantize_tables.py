"""What `cpuinfer quantize` found, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.cli.tables import add_row, new_table
from cpuinfer.cli.terminal import megabytes
from cpuinfer.quantize.report import Report, by_kind

if TYPE_CHECKING:
    from rich.table import Table

    from cpuinfer.evaluate import Estimate

WORST = 5
"""Matrices shown: those rounding cost most."""


def tables_of(report: Report) -> list[Table]:
    """Candidates, with KL in nats a token and how perplexity rose; what was written; the matrices that lost most."""
    return [_candidates(report), _written(report), *([_worst(report)] if report.errors else [])]


def _candidates(report: Report) -> Table:
    goal = "" if report.goal is None else f", goal {100 * report.goal:g}%"
    columns = ("type", "method", "bits", "size", "KL", "+-", "rise", "")
    table = new_table(f"{report.source} on held-out text{goal}: KL in nats, rise of perplexity", *columns, left=2)
    for row in report.rows:
        verdict = "kept" if row.kept else "" if row.meets is None else "meets" if row.meets else "misses"
        add_row(
            table,
            row.label,
            row.method,
            f"{row.bits:.2f}",
            megabytes(row.bytes),
            f"{row.divergence.value:.5f}",
            _half(row.divergence),
            f"{row.perplexity_ratio.value - 1:+.2%}",
            verdict,
        )
    return table


def _half(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{(estimate.high - estimate.low) / 2:.4f}"


def _written(report: Report) -> Table:
    table = new_table(report.out if any(row.kept for row in report.rows) else "nothing written", left=1)
    table.add_column()
    table.add_column(justify="right")
    add_row(table, "matrices", ", ".join(f"{count} {encoding}" for encoding, count in by_kind(report.encodings)))
    add_row(table, "decoding at most, here", f"{report.tokens_per_second:.1f} tokens/s")
    if report.source_perplexity is not None:
        add_row(table, "the source's perplexity", f"{report.source_perplexity.value:.3f}")
    if report.source_accuracy is not None:
        kept = next((row for row in report.rows if row.kept), report.rows[-1])
        add_row(table, "accuracy, and the source's", f"{kept.accuracy:.1%}, {report.source_accuracy:.1%}")
    add_row(table, "recipe", report.recipe)
    return table


def _worst(report: Report) -> Table:
    table = new_table("matrices that lost most", "matrix", "type", "weighted error", left=2)
    for name in sorted(report.errors, key=lambda name: -report.errors[name])[:WORST]:
        add_row(table, name, report.encodings.get(name, ""), f"{report.errors[name]:.3%}")
    return table
