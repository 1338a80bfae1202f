"""`cpuinfer eval`: what is printed and written, what is refused, and how it is stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cpuinfer.cli import main
from test_cli import environment
from test_start import NATIVE, SLOW, imported
from tiny_gguf import write_tiny_llama

TEXT = "The other word in the hall was there, or on a wall: the water, the winter, the tower.\n" * 6
QUESTIONS = [
    {"context": "The tower in the", "choices": ["hall", "water"], "answer": 1},
    {"context": "The hall in the", "choices": ["tower", "wall"], "answer": 0},
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)))
    return path


def run(*words: object) -> int:
    return main(["eval", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of an error."""
    assert run(*words) == 2
    found = capsys.readouterr()
    assert found.out == ""
    (line,) = found.err.splitlines()
    return line


def test_perplexity_is_printed_and_written(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "result.json"
    assert run("perplexity", tiny_model, text, "--window", 64, "--stride", 32, "--output", output, "-t", 1) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for part in ("perplexity", "bits per byte", "95 % interval", "64 long, stride 32, no BOS", "tiny.gguf on"):
        assert part in printed.out
    record = json.loads(output.read_text())
    assert f"{record['perplexity']['value']:.3f}" in printed.out
    assert run("perplexity", tiny_model, text, "--window", 64, "--stride", 32, "-o", "json", "-t", 2, "--batch", 1) == 0
    assert json.loads(capsys.readouterr().out) == record


def test_logits_are_saved_and_measured_against(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    other = write_tiny_llama(tmp_path / "other.gguf", encoding="Q8_0")
    logits, flags = tmp_path / "l.safetensors", ("-o", "json", "-t", 1)
    assert run("kld", tiny_model, text, "--save-logits", logits, *flags) == 0
    saved = json.loads(capsys.readouterr().out)
    assert run("kld", other, text, "--logits", logits, *flags) == 0
    stored = json.loads(capsys.readouterr().out)
    assert run("kld", other, text, "--reference", tiny_model, *flags) == 0
    live = json.loads(capsys.readouterr().out)
    assert stored["divergence"]["value"] == pytest.approx(live["divergence"]["value"], abs=1e-6)
    assert saved["kind"] == "perplexity"
    assert live["reference"]["name"] == "tiny.gguf"
    assert run("kld", other, text, "--logits", logits, "-t", 1) == 0
    assert "KL divergence, nats a token" in capsys.readouterr().out


def test_choices_are_compared(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, asked: Path, tmp_path: Path
) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert run("choice", tiny_model, asked, "--normalise", "byte", "--output", a, "-t", 1) == 0
    printed = capsys.readouterr().out
    assert "byte *" in printed
    assert "chance" in printed
    assert run("choice", tiny_model, asked, "--output", b, "--kv-cache", "int4", "-t", 1, "-c", 64) == 0
    capsys.readouterr()
    assert run("compare", a, b, "--seed", 5) == 0
    printed = capsys.readouterr().out
    assert "2 pairs, 10000 resamples, seed 5" in printed
    assert "McNemar" in printed


def test_tables_fit_eighty_columns(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path, asked: Path, tmp_path: Path
) -> None:
    from cpuinfer.cli import tables

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "PIPE_WIDTH", 80)
        output = tmp_path / "choice.json"
        assert run("kld", tiny_model, text, "--reference", tiny_model, "-t", 1) == 0
        assert run("choice", tiny_model, asked, "--output", output, "-t", 1) == 0
        assert run("compare", output, output) == 0
    for line in capsys.readouterr().out.splitlines():
        assert len(line) <= 80
        assert not line.rstrip().endswith("…")


def test_without_a_measure_the_help_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--help",)):
        assert run(*words) == 0
        printed = capsys.readouterr().out
        for name in ("perplexity", "kld", "choice", "compare"):
            assert f"\n  {name} " in printed


def test_faults_are_one_line_each(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    empty, binary, questions = tmp_path / "empty.txt", tmp_path / "binary.txt", tmp_path / "q.jsonl"
    empty.write_text("")
    binary.write_bytes(b"\xff\xfe")
    questions.write_text('{"context": "a"}\n')
    for words, message in (
        (("perplexities",), "no command eval 'perplexities', expected one of perplexity, kld, choice, compare"),
        (("perplexity", tiny_model, tmp_path / "none.txt"), "none.txt: No such file or directory"),
        (("perplexity", tiny_model, empty), "empty.txt: is empty, expected text"),
        (("perplexity", tiny_model, binary), "binary.txt: byte 0 is not UTF-8 text"),
        (("perplexity", tiny_model, text, "--window", 9999), "window: 9999, expected 1 to 512"),
        (("perplexity", tiny_model, text, "--output", tmp_path / "no" / "a.json"), "a.json: No such file or directory"),
        (("kld", tiny_model, text), "one of the arguments --reference --logits --save-logits is required"),
        (("kld", tiny_model, text, "--logits", text), "text.txt: is no file of logits"),
        (("choice", tiny_model, questions), "q.jsonl:1: has context; expected context, choices and answer"),
        (("compare", text, text), "text.txt: is not JSON"),
    ):
        assert message in refused(capsys, *words)


def test_a_full_disk_leaves_nothing_half_written(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    logits = tmp_path / "l.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("cpuinfer.evaluate.records.os.write", full)
        assert run("kld", tiny_model, text, "--save-logits", logits, "-t", 1) == 2
    assert f"{logits}: No space left on device" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["text.txt"]


def test_ctrl_c_stops_at_once_and_leaves_no_file(tiny_model: Path, tmp_path: Path) -> None:
    long, output = tmp_path / "long.txt", tmp_path / "l.safetensors"
    long.write_text(TEXT * 60)
    words = ["kld", str(tiny_model), str(long), "--save-logits", str(output), "-t", "1", "--stride", "1"]
    command = [sys.executable, "-m", "cpuinfer", "eval", *words]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and len(list(tmp_path.iterdir())) < 2:
            pass
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out, errors) == (130, b"", b"")
    assert [entry.name for entry in tmp_path.iterdir()] == ["long.txt"]


def test_help_imports_nothing_slow() -> None:
    found = imported("from cpuinfer.cli import main; main(['eval', 'kld', '--help'])")
    assert not found & {*SLOW, *NATIVE}
