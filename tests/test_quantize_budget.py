"""Bits shared out under a budget: never more than asked, more where more is lost, and one type a tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpuinfer.quantize.budget import bits_of, candidates
from quantize_runs import FEW, TEXT, llama, run
from test_quantize_auto import weight


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def encodings(out: Path, source: Path, text: Path, *words: object) -> tuple[float, dict[str, str]]:
    report = out.with_suffix(".json")
    flags = ("--method", "importance", "--calibration", text, "--overwrite", "--report", report, *FEW)
    assert run(source, "-o", out, *flags, *words) == 0
    record = json.loads(report.read_text())
    return record["rows"][0]["bits"], record["encodings"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("out.gguf", ()), ("out", ("--format", "safetensors:compressed-tensors"))],
    ids=["gguf", "compressed-tensors"],
)
def test_a_larger_budget_is_used_and_never_passed(
    name: str, words: tuple[object, ...], text: Path, tmp_path: Path
) -> None:
    source = llama(tmp_path / "tiny")
    taken = []
    for budget in (7.5, 8.5):
        bits, found = encodings(tmp_path / name, source, text, "--bpw", budget, *words)
        assert budget - 0.5 < bits <= budget
        taken.append(sum(map(bits_of, found.values())))
    assert taken[0] < taken[1]
    assert not list(tmp_path.glob(".*"))


def test_what_is_asked_for_by_name_is_not_shared_out(text: Path, tmp_path: Path) -> None:
    source = llama(tmp_path / "tiny")
    _, found = encodings(tmp_path / "o.gguf", source, text, "--bpw", 6, "--keep", "*.v_proj=Q8_0")
    assert {each for name, each in found.items() if name.endswith("v_proj")} == {"Q8_0"}
    assert len({each for name, each in found.items() if not name.endswith("v_proj")}) > 1


def test_a_budget_below_the_smallest_types_is_refused(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = llama(tmp_path / "tiny")
    words = (source, "-o", tmp_path / "o.gguf", "--calibration", text, *FEW)
    assert run(*words, "--bpw", 2) == 2
    assert "--bpw 2: the smallest types this file takes are 5.38 bits a weight" in capsys.readouterr().err
    assert run(*words[:2], tmp_path / "o", *words[3:], "--bpw", 5) == 2
    assert "--bpw: gptq files have one type for all" in capsys.readouterr().err
    assert run(*words, "--bpw", 5, "--bits", 4) == 2
    assert "without --bits and --goal" in capsys.readouterr().err


def test_candidates_fit_the_rows_and_are_named_once() -> None:
    assert candidates("gguf", weight("w")) == ["Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"]
