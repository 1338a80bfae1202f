"""What the command line says of a wrong value, a closed or full stream, and a narrow terminal."""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import warnings
from pathlib import Path

import pytest

from cpuinfer import store
from cpuinfer.cli import main, show, tables
from cpuinfer.cli import run as run_command
from cpuinfer.cli.terminal import progress
from test_cli import DESCRIPTION, Terminal, environment

CLOSED_PIPE = """\
import os, sys
from cpuinfer import _core
from cpuinfer.cli import main
_core.read_bandwidth = lambda *_, **__: 1.0
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
sys.exit(main())
"""

WRONG = {
    "max_tokens": (("0", "-1", "1.5", "x"), "expected an integer of at least 1"),
    "seed": (("-1", str(2**64), "1.5", "x"), "expected an integer from 0 to 2**64 - 1"),
    "temperature": (("-1", "101", "nan", "x"), "expected 0 to 100"),
    "top_k": (("-2", "0.5", "x"), "expected an integer of at least 0"),
    "top_p": (("0", "1.5", "x"), "expected more than 0, at most 1"),
    "min_p": (("-0.5", "2", "x"), "expected 0 to 1"),
    "repetition_penalty": (("0", "1001", "x"), "expected 0.001 to 1000"),
    "presence_penalty": (("-101", "x"), "expected -100 to 100"),
    "frequency_penalty": (("101", "x"), "expected -100 to 100"),
    "stop": (("",), "expected strings of at least one character"),
    "order": (("top_q", "top_k,top_k", ""), "expected one of default, hf, vllm, or distinct stages of penalties"),
}


def sampling_flags() -> list[argparse.Action]:
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    groups = [group for group in parser._action_groups if group.title == "sampling"]
    return list(groups[0]._group_actions)


def test_the_table_of_wrong_values_has_every_sampling_flag() -> None:
    assert {action.dest for action in sampling_flags()} == WRONG.keys()


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [
        (flag, action.dest, value)
        for action in sampling_flags()
        for flag in action.option_strings
        for value in WRONG[action.dest][0]
    ],
)
def test_a_wrong_sampling_value_is_refused_by_the_name_of_its_flag_with_what_is_right(
    capsys: pytest.CaptureFixture[str], flag: str, field: str, value: str
) -> None:
    given = [f"{flag}={value}"] if flag.startswith("--") else [flag, value]
    assert main(["run", *given, "hi"]) == 2
    message = capsys.readouterr().err
    named = message.removeprefix("cpuinfer: error: argument ").partition(": ")[0]
    assert flag in named.split("/")
    assert f"{value!r}, {WRONG[field][1]}" in message
    assert f"{field} is" not in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-t", "1025", "hi"], "-t/--threads: '1025', expected an integer of 1 to 1024"),
        (["run", "-c", "9" * 5000, "hi"], "-c/--context/--ctx-size: '999"),
        (["run", "--isa", "sse", "hi"], "argument --isa: sse: no such kernel set; there are amx"),
        (["bench", "-n", "-1"], "-n/--generate-tokens: '-1', expected an integer of at least 0"),
        (["bench", "-d", "0,x"], "-d/--depth: 'x', expected an integer of at least 0"),
        (["bench", "-t", "2000"], "-t/--threads: '2000', expected an integer of 1 to 1024"),
        (["bench", "--isa", "scalar,sse"], "argument --isa: sse: no such kernel set"),
        (["show", "-c", "0"], "-c/--context: '0', expected an integer of at least 1"),
    ],
)
def test_a_wrong_value_of_another_flag_names_the_flag_too(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def run_in_shell(tmp_path: Path, arguments: str, *, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    """`cpuinfer`, with an empty cache."""
    paths = {**environment(), "CPUINFER_CACHE": str(tmp_path), "PYTHONUNBUFFERED": unbuffered}
    command = f'"$0" -m cpuinfer {arguments}'
    return subprocess.run(["sh", "-c", command, sys.executable], env=paths, capture_output=True, text=True, check=False)


def test_a_closed_standard_output_is_an_error_and_no_crash(tmp_path: Path) -> None:
    done = run_in_shell(tmp_path, "--help >&-")
    assert (done.returncode, done.stderr) == (2, "cpuinfer: error: standard output is closed\n")


def test_with_standard_error_closed_nothing_else_reaches_standard_output(tmp_path: Path) -> None:
    done = run_in_shell(tmp_path, "list 2>&-")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_error_that_standard_error_does_not_take_still_has_its_exit_code(tmp_path: Path) -> None:
    done = run_in_shell(tmp_path, "rm nosuch 2>/dev/full")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("command", ["show tiny.gguf", "doctor"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_tables_whose_reader_went_away_end_as_answers_do(
    tiny_model: Path, tmp_path: Path, command: str, unbuffered: str
) -> None:
    (tmp_path / "closed.py").write_text(CLOSED_PIPE)
    (tmp_path / "tiny.gguf").symlink_to(tiny_model)
    paths = {**environment(), "PYTHONUNBUFFERED": unbuffered}
    command_line = [sys.executable, "closed.py", *command.split()]
    done = subprocess.run(command_line, env=paths, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_cache_folder_of_an_unknown_user_is_a_fault_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", "~no-such-user/models")
    assert main(["list"]) == 2
    assert capsys.readouterr().err == "cpuinfer: error: CPUINFER_CACHE=~no-such-user/models: no such user\n"


@pytest.mark.parametrize("flag", ["--isa", "-m", "--system", "--temp", "--stop"])
def test_two_dashes_are_no_value_of_a_flag(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main(["run", f"{flag}=--", "hi"]) == 2
    assert capsys.readouterr().err == f"cpuinfer: error: argument {flag}: '--', expected a value\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_standard_output_is_named(tmp_path: Path, unbuffered: str) -> None:
    folder = tmp_path / store.DEFAULT
    folder.mkdir()
    (folder / store.BUILTIN[store.DEFAULT].member.rpartition("/")[2]).write_bytes(b"")
    done = run_in_shell(tmp_path, "list >/dev/full", unbuffered=unbuffered)
    assert (done.returncode, done.stderr) == (2, "cpuinfer: error: standard output: No space left on device\n")


def test_a_warning_is_one_line_without_the_place_in_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def describe(*_: object, **__: object) -> object:
        warnings.warn("x.weights: not kept\nat all", RuntimeWarning, stacklevel=1)
        return DESCRIPTION

    monkeypatch.setattr(show, "describe_model", describe)
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["show", "x.gguf", "--json"]) == 0
    assert capsys.readouterr().err == "cpuinfer: warning: x.weights: not kept at all\n"
    assert warnings.showwarning is before


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_narrow_terminal_folds_the_names_of_tensors_alone(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(show, "describe_model", lambda *_, **__: DESCRIPTION)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["show", "x.gguf"]) == 0
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= max(columns, tables.LEAST_WIDTH)
    rows = [" ".join(line.split()) for line in lines]
    assert any(row.endswith("Q4_1 int4 30 576 x 576 5.000 5.000 6.2") for row in rows)
    assert "kind encoding layout count shape bits packed MB" in rows


@pytest.mark.parametrize(("columns", "shown"), [(40, 39), (0, 60)], ids=["narrow", "unknown"])
def test_progress_stays_on_one_row_of_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, shown: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    monkeypatch.setenv("NO_COLOR", "1")
    with os.fdopen(ours, "rb", buffering=0) as read, os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress("x" * 60)
        written = read.read(200).decode()
    assert len(written.removeprefix("\r\x1b[K")) == shown
