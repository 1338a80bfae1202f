"""`cpuinfer quantize`: what is printed and refused, with what exit code, and what is left behind."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tiny_folder
from cpuinfer.quantize.judge import Verdict
from quantised_models import AWKWARD, _awkward
from quantize_runs import FEW, TEXT, contents, llama, mixtral, run
from test_cli import environment
from tiny_gguf import vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder to write to."""
    path = tmp_path / "place"
    path.mkdir()
    return path


def refused(capsys: pytest.CaptureFixture[str], place: Path, *words: object, code: int = 2) -> str:
    """The one line of an error, after which nothing is left."""
    before = contents(place)
    capsys.readouterr()
    assert run(*words, *FEW) == code
    found = capsys.readouterr()
    assert contents(place) == before
    assert [each.name for each in place.iterdir() if each.name.startswith(".")] == []
    *remarks, line = found.err.splitlines()
    assert found.out == ""
    assert all(" bits, KL " in remark or "already" in remark for remark in remarks)
    return line


Refusals = dict[str, tuple[tuple[object, ...], str]]
REFUSALS: Refusals = {
    "an unknown type": (("-o", "out.gguf", "--format", "gguf:Q9"), "gguf type 'Q9': expected"),
    "an unknown format": (("-o", "out.gguf", "--format", "zip"), "format 'zip': expected gguf, safetensors:gptq"),
    "a type GGUF has not": (("-o", "out.gguf", "--type", "nf4"), "type nf4: GGUF has no such type"),
    "a keep GGUF has not": (("-o", "out.gguf", "--keep", "*.v_proj=int4:g32"), "v_proj: int4:g32: GGUF has no such"),
    "bits GPTQ has not": (("-o", "out", "--bits", 3), "3 bits: gptq folders hold 4, 8"),
    "a keep GPTQ has not": (("-o", "out", "--keep", "*.v_proj=6"), "v_proj: int6:g64:sym: gptq folders hold int4 and"),
    "two types in GPTQ": (("-o", "out", "--keep", "*.v_proj=8"), "GPTQ folders have one type for all"),
    "a table in a folder": (("-o", "out", "--keep", "model.embed_tokens=4"), "embed_tokens: stays floats in a folder"),
    "a pattern that fits none": (("-o", "out.gguf", "--keep", "nope=6"), "keep: 'nope' fits no matrix"),
    "a number of bits": (("-o", "out.gguf", "--keep", "*.v_proj=7"), "keep: 7 bits, expected 2, 3, 4"),
    "a goal of one method": (("-o", "out.gguf", "--goal", "1%"), "--goal: of --method auto"),
    "no folder": (("-o", "none/out.gguf"), "none: no such folder"),
    "no folder of the report": (("-o", "out.gguf", "--report", "none/r.html"), "none: no such folder"),
    "one place for both": (("-o", "out.gguf", "--report", "out.gguf"), "expected a file of its own"),
    "no text": (("-o", "out.gguf", "--calibration", "none.txt"), "none.txt: No such file"),
    "an empty text": (("-o", "out.gguf", "--calibration", "empty.txt"), "empty.txt: is empty"),
    "a short text": (("-o", "out.gguf", "--calibration", "short.txt"), "tokens to calibrate on, expected at least one"),
    "bytes for a text": (("-o", "out.gguf", "--calibration", "bytes.txt"), "bytes.txt: byte 0 is not UTF-8"),
}


@pytest.mark.parametrize(("words", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_is_one_line(
    *,
    words: tuple[object, ...],
    message: str,
    folder: Path,
    text: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    Path("empty.txt").write_text(" \n")
    Path("short.txt").write_text("The hall")
    Path("bytes.txt").write_bytes(b"\xff\xfe\x00" * 1000)
    own = () if "--calibration" in words else ("--calibration", text)
    assert message in refused(capsys, place, folder, "--method", "gptq", *own, *words)


def test_the_source_is_never_written_to(
    folder: Path, text: Path, place: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--method", "rtn", "--calibration", text)
    assert "exists: remove it" in refused(capsys, folder, folder, "-o", folder, *own)
    for out in (folder, folder / "out.gguf"):
        assert "is the source, or inside it" in refused(capsys, folder, folder, "-o", out, "--overwrite", *own)
    linked = place / "linked.gguf"
    linked.symlink_to(tiny_model)
    assert "is the source" in refused(capsys, place, tiny_model, "-o", linked, "--overwrite", *own)
    assert "is the source" in refused(capsys, place, folder, "-o", place / "o.gguf", "--report", folder / "r", *own)
    assert "a GGUF file becomes another GGUF file" in refused(capsys, place, tiny_model, "-o", place / "out", *own)


@pytest.mark.parametrize("damage", ["cut", "NaN", "gone"])
@pytest.mark.parametrize("measured", [(), ("--no-measure",)], ids=["measured", "unmeasured"])
def test_a_damaged_source_is_one_line(
    *, damage: str, measured: tuple[str, ...], folder: Path, text: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = place / "source"
    source.mkdir()
    for name, data in contents(folder).items():
        (source / name).write_bytes(data)
    file = source / "model.safetensors"
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-1000])
        case "NaN":
            tensors = load_file(file)
            tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
            save_file(tensors, file)
        case "gone":
            file.unlink()
    for method in ("rtn", "gptq"):
        words = (source, "-o", place / "out.gguf", "--method", method, "--format", "gguf:Q4_0", *measured)
        line = refused_with_work(capsys, place, *words, "--calibration", text)
        assert str(source) in line or "model.layers.1.mlp.up_proj" in line, line
        assert damage != "NaN" or "model.layers.1.mlp.up_proj" in line, line


def refused_with_work(capsys: pytest.CaptureFixture[str], place: Path, *words: object) -> str:
    """As ``refused``, but stages that were finished before may stay."""
    capsys.readouterr()
    assert run(*words, *FEW) == 2
    found = capsys.readouterr()
    assert {each.name for each in place.iterdir()} <= {"source", ".out.gguf.partial"}
    (line,) = found.err.splitlines()
    return line


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("form", ["gguf:Q4_0", "safetensors:gptq"])
@pytest.mark.parametrize("size", [500, 45_000])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    *, size: int, form: str, folder: Path, text: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "out"
    words = (folder, "-o", out, "--format", form, "--calibration", text, "--no-measure", *FEW)
    for method in ("rtn", "gptq"):
        with file_limit(size):
            assert run(*words, "--method", method) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "File too large" in line
        assert str(out.parent) in line
        assert {each.name for each in place.iterdir()} <= {".out.partial"}
        assert not list(place.rglob("*.part"))
    assert run(*words, "--method", "gptq") == 0
    assert {each.name for each in place.iterdir()} == {"out"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(
    folder: Path, text: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place.chmod(0o500)
    try:
        words = (folder, "-o", place / "out.gguf", "--method", "rtn", "--calibration", text)
        assert "cannot be written" in refused(capsys, place, *words)
    finally:
        place.chmod(0o700)


def test_a_goal_that_nothing_meets_is_exit_code_3_with_the_table(
    folder: Path, text: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Verdict, "loss", property(lambda _self: 0.02))
    page = place.parent / "page.html"
    words = (folder, "-o", place / "out.gguf", "--goal", "1%", "--bits", 8, "--calibration", text, "--report", page)
    assert run(*words, *FEW) == 3
    found = capsys.readouterr()
    assert list(place.iterdir()) == []
    assert "misses" in found.out
    assert "nothing written" in found.out
    assert found.out.count("Q8_0") >= 3
    assert found.err.splitlines()[-1] == "cpuinfer: nothing meets the goal of 1%: nothing is written"
    assert "nothing: no candidate meets the goal" in page.read_text()


def test_auto_with_a_goal_writes_the_first_that_meets_it(
    folder: Path, text: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Verdict, "loss", property(lambda self: self.divergence.divergence.value))
    report = place / "report.json"
    words = (folder, "-o", place / "out.gguf", "--goal", "1%", "--calibration", text, "--report", report)
    assert run(*words, *FEW) == 0
    capsys.readouterr()
    assert {each.name for each in place.iterdir()} == {"out.gguf", "report.json"}
    record = json.loads(report.read_text())
    assert record["kind"] == "quantize"
    *misses, kept = record["rows"]
    assert (kept["kept"], kept["meets"]) == (True, True)
    assert not any(row["kept"] or row["meets"] for row in misses)
    sizes = [row["bits"] for row in record["rows"]]
    assert sizes == sorted(sizes)


def test_keep_takes_numbers_and_names(folder: Path, text: Path, place: Path) -> None:
    report = place / "r.json"
    keep = "*.v_proj=Q5_1,*.o_proj=8,model.layers.0.mlp.*=16"
    words = (folder, "-o", place / "out.gguf", "--method", "awq", "--format", "gguf:Q4_0", "--keep", keep)
    assert run(*words, "--calibration", text, "--report", report, *FEW) == 0
    found = json.loads(report.read_text())["encodings"]
    assert found["model.layers.1.self_attn.v_proj"] == "Q5_1"
    assert found["model.layers.1.self_attn.o_proj"] == "Q8_0"
    assert found["model.layers.0.mlp.up_proj"] == "F16"
    assert found["model.layers.1.mlp.up_proj"] == "Q4_0"


def test_a_head_of_odd_size_is_kept_in_as_many_bits_as_asked(
    text: Path, tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture, report = mixtral(tmp_path / "mixture"), place / "r.json"
    words = (mixture, "-o", place / "out", "--format", "safetensors:cpuinfer", "--group", 32, "--keep", "lm_head=6")
    assert run(*words, "--method", "importance", "--calibration", text, "--report", report, *FEW) == 0
    found = json.loads(report.read_text())["encodings"]
    assert found["lm_head"] == "int6:g32:sym"
    assert found["model.layers.0.mlp.gate"] == "F32"
    line = refused(capsys, place, mixture, "-o", place / "o", "--method", "autoround", "--calibration", text)
    assert "autoround has no gradients for experts" in line


@pytest.mark.parametrize("method", ["rtn", "importance", "gptq"])
def test_rows_that_nothing_divides_stay_floats(method: str, text: Path, tmp_path: Path, place: Path) -> None:
    """Heads of 32 and a feed-forward layer of 104."""
    tensors = {name: values.astype(np.float32) for name, values in _awkward().items()}
    table = np.random.default_rng(3).normal(0, 0.1, (len(vocabulary()), 96)).astype(np.float32)
    settings = {**AWKWARD, "vocab_size": len(table)}
    source = tiny_folder.write_folder(tmp_path / "odd", {**tensors, "model.embed_tokens.weight": table}, **settings)
    for out, form in (("o.gguf", "gguf:Q4_K_M"), ("o", "safetensors:gptq"), ("p", "safetensors:compressed-tensors")):
        report = tmp_path / f"{out}.json"
        words = (source, "-o", place / out, "--format", form, "--method", method, "--calibration", text)
        assert run(*words, "--report", report, *FEW) == 0
        found = json.loads(report.read_text())["encodings"]
        assert found["model.layers.0.mlp.down_proj"] == "F16"
        assert found["model.layers.0.mlp.up_proj"] not in ("F16", "F32")


def test_ctrl_c_is_130_and_keeps_finished_stages(folder: Path, text: Path, place: Path) -> None:
    code = """
import os, signal, sys
from cpuinfer.cli import main
from cpuinfer.quantize.work import Work
save = Work.save
def interrupted(self, index, *others):
    save(self, index, *others)
    if index == 1:
        os.kill(os.getpid(), signal.SIGINT)
Work.save = interrupted
sys.exit(main(["quantize", *sys.argv[1:]]))
"""
    words = (folder, "-o", place / "out.gguf", "--method", "gptq", "--calibration", text, "--no-measure", *FEW)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], check=False, env=environment(), timeout=120, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
    (work,) = (place / ".out.gguf.partial").iterdir()
    assert {each.name for each in work.iterdir()} == {"stage-0000.npz", "stage-0001.npz", "0001-state.npz"}
    assert [each.name for each in place.iterdir()] == [".out.gguf.partial"]


def test_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "--goal SHARE" in capsys.readouterr().out
