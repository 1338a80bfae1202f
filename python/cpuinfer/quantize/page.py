"""A report as one HTML page that needs nothing else: tables, and two plots as SVG."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from cpuinfer.evaluate.records import write_whole
from cpuinfer.quantize.report import Report, by_kind

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 300, 70, 40
"""Of a plot, and of the room of its axes, in pixels."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .7rem; text-align: right }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left } tr.kept { background: #e4f2e4 }
svg { max-width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #444 } pre { overflow: auto }
"""


def write_page(report: Report, path: Path) -> None:
    """The page, whole or not at all."""
    write_whole(path, page_of(report).encode())


def page_of(report: Report) -> str:
    """The page's text."""
    title = f"{report.source} quantised"
    goal = "" if report.goal is None else f"<p>Goal: at most {100 * report.goal:g}% worse than the source.</p>"
    facts = _table(("", ""), [(name, value) for name, value in report.facts.items()])
    numbers = escape(json.dumps(asdict(report), indent=1))
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{goal}",
            "<h2>Candidates</h2>",
            _candidates(report),
            _scatter(report),
            "<h2>What was written</h2>",
            _table(("", ""), _written(report)),
            "<h2>Error of each matrix</h2>" if report.errors else "",
            _bars(report),
            "<h2>What it depends on</h2>",
            facts,
            f"<details><summary>All numbers</summary><pre>{numbers}</pre></details>",
            "</body></html>",
            "",
        ]
    )


def _written(report: Report) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{count} {encoding}" for encoding, count in by_kind(report.encodings))
    written = report.out if any(row.kept for row in report.rows) else "nothing: no candidate meets the goal"
    return [
        ("written", written),
        ("matrices", kinds),
        ("decoding at most, on this machine", f"{report.tokens_per_second:.1f} tokens/s"),
        ("recipe", report.recipe),
    ]


def _candidates(report: Report) -> str:
    head = ("type", "method", "bits a weight", "MB", "KL, nats a token", "95 %", "perplexity", "by the source's", "")
    rows = []
    for row in report.rows:
        low, high = row.divergence.low, row.divergence.high
        verdict = "kept" if row.kept else "" if row.meets is None else "meets" if row.meets else "misses"
        rows.append(
            (
                row.label,
                row.method,
                f"{row.bits:.3f}",
                f"{row.bytes / 1e6:,.1f}",
                f"{row.divergence.value:.5f}",
                "" if low is None or high is None else f"{low:.5f} to {high:.5f}",
                f"{row.perplexity.value:.3f}",
                f"{row.perplexity_ratio.value:.4f}",
                verdict,
            )
        )
    return _table(head, rows, kept=[row.kept for row in report.rows])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kept: Sequence[bool] = ()) -> str:
    top = f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>" if any(head) else ""
    body = []
    for i, row in enumerate(rows):
        mark = ' class="kept"' if i < len(kept) and kept[i] else ""
        body.append(f"<tr{mark}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    return f"<table>{top}{''.join(body)}</table>"


def _scatter(report: Report) -> str:
    """Divergence against bits, both axes from 0."""
    if not report.rows:
        return ""
    most_bits = max(row.bits for row in report.rows) * 1.1
    most = max(row.divergence.value for row in report.rows) * 1.1 or 1.0
    marks = []
    for row in report.rows:
        x = LEFT + (WIDTH - LEFT - 10) * row.bits / most_bits
        y = 10 + (HEIGHT - BOTTOM - 10) * (1 - row.divergence.value / most)
        colour = "#2a7a2a" if row.kept else "#3465a4"
        name = escape(f"{row.label} {row.method}: {row.bits:.2f} bits, {row.divergence.value:.5f} nats")
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"><title>{name}</title></circle>')
    return _plot("bits a weight", "KL, nats a token", most_bits, most, "".join(marks))


def _bars(report: Report) -> str:
    """The weighted error of each matrix, in the order they are read."""
    if not report.errors:
        return ""
    most = max(report.errors.values()) * 1.1 or 1.0
    step = (WIDTH - LEFT - 10) / len(report.errors)
    marks = []
    for i, (name, error) in enumerate(report.errors.items()):
        tall = (HEIGHT - BOTTOM - 10) * error / most
        shown = (
            f'x="{LEFT + i * step:.2f}" y="{HEIGHT - BOTTOM - tall:.2f}" width="{step * 0.8:.2f}" height="{tall:.2f}"'
        )
        marks.append(f'<rect {shown} fill="#3465a4"><title>{escape(name)}: {error:.4%}</title></rect>')
    return _plot("matrices, first to last", "weighted error", len(report.errors), most, "".join(marks))


def _plot(across: str, up: str, most_x: float, most_y: float, marks: str) -> str:
    floor, right = HEIGHT - BOTTOM, WIDTH - 10
    lines = f'<path d="M{LEFT} 10V{floor}H{right}" fill="none" stroke="#888"/>'
    ticks = []
    for i in range(5):
        x, y = LEFT + (right - LEFT) * i / 4, 10 + (floor - 10) * (1 - i / 4)
        ticks.append(f'<text x="{x:.0f}" y="{floor + 16}" text-anchor="middle">{most_x * i / 4:.3g}</text>')
        ticks.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{most_y * i / 4:.3g}</text>')
    names = (
        f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>'
        f'<text transform="translate(14 {floor / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(up)}</text>'
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">{lines}{"".join(ticks)}{names}{marks}</svg>'
