"""Bad input, end to end: one clear line and exit code 2 from the command line, a typed exception from Python."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpuinfer import LLM, SamplingParams
from cpuinfer.cli import main
from cpuinfer.errors import (
    CheckpointError,
    ContextFull,
    CpuInferError,
    InvalidRequest,
    ModelNotFound,
    UnsupportedFormat,
    UnsupportedModel,
)

CUTS = 40


@pytest.fixture(autouse=True)
def nothing_piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with Path("/dev/null").open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield


def text_file(_: Path, path: Path) -> None:
    path.write_text("Once upon a time there was a file that was not a model.\n" * 50)


def empty_file(_: Path, path: Path) -> None:
    path.write_bytes(b"")


def unknown_architecture(tiny: Path, path: Path) -> None:
    path.write_bytes(tiny.read_bytes().replace(b"llama", b"lemur"))


def unsupported_type(tiny: Path, path: Path) -> None:
    """Turn blk.0.attn_q's type 2 (Q4_0) into 42 (Q2_0), which takes less."""
    data = bytearray(tiny.read_bytes())
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 2 * 8
    assert data[at] == 2
    data[at] = 42
    path.write_bytes(data)


def missing_file(_: Path, __: Path) -> None:
    pass


BadFile = tuple[Callable[[Path, Path], None], type[CpuInferError], str]
FILES: list[BadFile] = [
    (text_file, CheckpointError, "GGUF"),
    (empty_file, CheckpointError, "the file is empty"),
    (unknown_architecture, UnsupportedModel, "'lemur'.*llama"),
    (unsupported_type, UnsupportedFormat, r"blk\.0\.attn_q\.weight.*Q2_0.*Q4_0"),
    (missing_file, ModelNotFound, "bad.gguf"),
]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"cpuinfer: error: [^\n]+\n", captured.err), captured.err
    return captured.err


@pytest.mark.parametrize("case", FILES, ids=lambda case: case[0].__name__)
def test_a_bad_file_is_named_with_its_fault(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: BadFile
) -> None:
    damage, error, pattern = case
    path = tmp_path / "bad.gguf"
    damage(tiny_model, path)
    with pytest.raises(error, match=pattern) as raised:
        LLM(str(path))
    assert "bad.gguf" in str(raised.value)
    for command in (["run", str(path), "hello"], ["show", str(path)]):
        assert main(command) == 2
        line = one_line(capsys)
        assert re.search(pattern, line)
        assert "bad.gguf" in line


def test_a_file_cut_anywhere_is_refused(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_model.read_bytes()
    path = tmp_path / "cut.gguf"
    for cut in random.Random(0).sample(range(len(data)), CUTS):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            LLM(path)
        assert main(["run", str(path), "hello"]) == 2
        assert "cut.gguf" in one_line(capsys)


REQUESTS = [
    (["-n", "0"], {"max_tokens": 0}, "0"),
    (["--temp", "-1"], {"temperature": -1.0}, "-1"),
    (["--min-p", "1.5"], {"min_p": 1.5}, "1.5"),
    (["--top-p", "0"], {"top_p": 0.0}, "0"),
]


@pytest.mark.parametrize(("flags", "fields", "value"), REQUESTS)
def test_a_parameter_out_of_range_is_named(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], flags: list[str], fields: dict[str, float], value: str
) -> None:
    with pytest.raises(InvalidRequest, match=value):
        SamplingParams(**fields)  # type: ignore[arg-type]
    assert main(["run", str(tiny_model), "hello", *flags]) == 2
    assert value in one_line(capsys)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LLM(tiny_model, context=32) as llm, pytest.raises(ContextFull, match=r"\b100\b.*\b32\b"):
        llm.generate("x" * 100)
    assert main(["run", str(tiny_model), "x" * 100, "--raw", "-c", "32"]) == 2
    line = one_line(capsys)
    assert re.search(r"\b100\b", line)
    assert re.search(r"\b32\b", line)


@pytest.mark.parametrize("arguments", [["run", "--frobnicate"], ["frobnicate"], ["pull"], ["bench", "-o", "xml"]])
def test_a_flag_or_command_that_does_not_exist_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    one_line(capsys)
