"""The report of a run: as JSON, as a page that needs nothing else, and as tables of 80 columns."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cpuinfer.cli.quantize_tables import tables_of
from cpuinfer.evaluate import Estimate
from cpuinfer.evaluate.records import read_record, write_record
from cpuinfer.quantize.page import page_of, write_page
from cpuinfer.quantize.report import Report, Row

ROW = Row(
    label="int4:g128:asym",
    method="importance",
    bits=4.512,
    bytes=123_456_789,
    divergence=Estimate(0.01234, 0.001, 0.0103, 0.0143),
    perplexity=Estimate(1234.567, 1.0, 1200.0, 1300.0),
    perplexity_ratio=Estimate(1.0123, 0.001, 1.01, 1.02),
    same_top=Estimate(0.9, 0.01, 0.88, 0.92),
    accuracy=None,
    loss=0.0123,
    meets=False,
    kept=False,
)
EVIL = "<script src=http://x>&'\""
REPORT = Report(
    source=EVIL,
    out="out.gguf",
    goal=0.01,
    facts={"text": EVIL, "release": "0.1.0"},
    source_perplexity=Estimate(1219.0, None, None, None),
    source_accuracy=None,
    rows=(ROW, replace(ROW, label=EVIL, bits=5.5, loss=0.005, meets=True, kept=True)),
    encodings={f"model.layers.{i}.{EVIL}": "Q4_K" for i in range(3)},
    errors={f"model.layers.{i}.{EVIL}": 0.001 * (i + 1) for i in range(3)},
    tokens_per_second=123.4,
    recipe="0123456789abcdef",
)
VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Its tags, and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_record_is_read_back(tmp_path: Path) -> None:
    write_record(REPORT, tmp_path / "r.json")
    record = read_record(tmp_path / "r.json")
    assert record.pop("kind") == "quantize"
    record.pop("cpuinfer")
    assert record == json.loads(json.dumps(asdict(REPORT)))


def test_the_page_needs_nothing_else_and_escapes_names(tmp_path: Path) -> None:
    write_page(REPORT, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if {"src", "href", "onload"} & set(attrs)]
    assert "url(" not in text
    assert "@import" not in text
    assert page.texts.count(EVIL) == 2  # as a type and as a fact
    (numbers,) = [each for each in page.texts if each.startswith("{")]
    assert json.loads(numbers) == json.loads(json.dumps(asdict(REPORT)))


def test_marks_lie_within_the_plots() -> None:
    text = page_of(REPORT)
    plots = [f"<svg{part.partition('</svg>')[0]}</svg>" for part in text.split("<svg")[1:]]
    assert len(plots) == 2
    for plot in plots:
        found = ElementTree.fromstring(plot)
        for mark in [*found.iter("circle"), *found.iter("rect")]:
            x, y = float(mark.get("cx") or mark.get("x") or -1), float(mark.get("cy") or mark.get("y") or -1)
            assert 70 <= x <= 630
            assert 10 <= y <= 260


@pytest.mark.parametrize("changed", [{"rows": (ROW,)}, {"errors": {}}, {"errors": {"a": 0.0}}, {"goal": None}])
def test_any_run_has_a_page_and_tables(changed: dict[str, object]) -> None:
    report = replace(REPORT, **changed)  # type: ignore[arg-type]
    Page(page_of(report))
    assert len(tables_of(report)) == (3 if report.errors else 2)


def test_tables_fit_80_columns() -> None:
    from rich.console import Console

    console = Console(width=80, highlight=False, markup=False)
    report = replace(REPORT, rows=(ROW, replace(ROW, kept=True, meets=True, method="autoround")))
    with console.capture() as printed:
        for table in tables_of(report):
            console.print(table)
    lines = printed.get().splitlines()
    assert max(map(len, lines)) <= 80
    for part in ("int4:g128:asym", "importance", "123.5 MB", "0.01234", "+1.23%", "kept", "misses"):
        assert any(part in line for line in lines), part
