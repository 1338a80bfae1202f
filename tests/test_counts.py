"""The guard that counts instructions notices what is more, what is less, and what is not counted at all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import check_counts

RECORDED = {"a step": {"instructions": 1000, "bytes": 100}}


def test_what_is_within_the_allowance_is_as_recorded() -> None:
    assert check_counts.differences({"a step": {"instructions": 1019, "bytes": 98}}, RECORDED) == []


def test_more_is_noticed_and_so_is_less() -> None:
    assert check_counts.differences({"a step": {"instructions": 1021, "bytes": 96}}, RECORDED) == [
        "a step: 1,021 instructions, recorded are 1,000",
        "a step: 96 bytes, recorded are 100: better, record it",
    ]


def test_a_case_that_only_one_side_has_is_noticed() -> None:
    assert check_counts.differences({"another": {"bytes": 7}}, RECORDED) == [
        "a step: recorded, but not counted",
        "another: 7 bytes, none recorded: record it",
    ]


@pytest.mark.parametrize(("option", "code"), [([], 0), (["--require"], 1), (["--record"], 1)])
def test_without_valgrind_it_says_so_and_fails_where_it_must(
    option: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = check_counts.RECORDS.read_bytes()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["check_counts.py", str(tmp_path), *option])
    assert check_counts.main() == code
    assert "NOTHING IS COUNTED: valgrind is not installed" in capsys.readouterr().err
    assert check_counts.RECORDS.read_bytes() == before


def test_a_missing_record_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(check_counts, "RECORDS", tmp_path / "counts.json")
    monkeypatch.setattr(sys, "argv", ["check_counts.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"counts.json: missing, --record writes it"):
        check_counts.main()
