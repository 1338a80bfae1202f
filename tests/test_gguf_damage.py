"""The GGUF reader on damaged, hostile and changing files: a typed error that names the place, never a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cpuinfer
from cpuinfer.checkpoint import open_checkpoint
from cpuinfer.errors import CheckpointError
from fixtures import bad_gguf
from fixtures.bad_gguf import BAD, build, string, u64

ROOT = Path(cpuinfer.__file__).parents[1]


def survey_in_a_child(folder: Path, contents: dict[str, bytes]) -> dict[str, tuple[str | None, str]]:
    """Open each content in one child process with little memory; file name -> (exception class or None, message)."""
    files = folder / "files"
    files.mkdir()
    (folder / "sound.gguf").write_bytes(build())
    for name, content in contents.items():
        (files / name).write_bytes(content)
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    command = [sys.executable, "-m", "fixtures.bad_gguf", str(files)]
    child = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert child.returncode == 0, f"{child.returncode} after: {child.stdout[-500:]}\n{child.stderr[-2000:]}"
    decode = json.JSONDecoder().raw_decode
    results = {}
    for line in child.stdout.splitlines():
        name, end = decode(line)
        results[name] = tuple(json.loads(line[end:]))
    assert results.keys() == contents.keys()
    return results


def test_every_hostile_file_is_refused_by_name(tmp_path: Path) -> None:
    results = survey_in_a_child(tmp_path, {name: content for name, (content, _) in BAD.items()})
    for name, (kind, message) in results.items():
        assert kind == "CheckpointError", (name, kind, message)
        assert message.startswith(f"{tmp_path / 'files' / name}: "), (name, message)
        assert BAD[name][1] in message, (name, message)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    whole = build()[:-28]  # the last tensor ends where the file does
    cuts = survey_in_a_child(tmp_path, {str(cut): whole[:cut] for cut in range(len(whole))})
    assert {kind for kind, _ in cuts.values()} == {"CheckpointError"}


def test_a_model_cut_at_40_random_places_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    whole = tiny_model.read_bytes()
    checkpoint = open_checkpoint(tiny_model)
    padding = -checkpoint.tensors["output_norm.weight"].bytes % 32
    places = np.random.default_rng(0).integers(0, len(whole) - padding, 40)
    cuts = survey_in_a_child(tmp_path, {str(cut): whole[:cut] for cut in places.tolist()})
    assert {kind for kind, _ in cuts.values()} == {"CheckpointError"}


def test_any_flipped_bit_gives_a_sound_file_or_a_checkpoint_error(tmp_path: Path) -> None:
    whole = build()
    flipped = {}
    for bit in range(8 * (len(whole) - len(bad_gguf.DATA))):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        flipped[str(bit)] = bytes(content)
    results = survey_in_a_child(tmp_path, flipped)
    assert {kind for kind, _ in results.values()} == {None, "CheckpointError"}


@settings(deadline=None, max_examples=200)
@given(
    edits=st.lists(st.tuples(st.integers(0, 700), st.sampled_from([0, 1, 2, 3, 8, 9, 12, 127, 128, 255])), max_size=6),
    cut=st.integers(0, 800),
    graft=st.tuples(st.integers(0, 700), st.binary(max_size=24)),
)
def test_any_mutation_gives_a_sound_file_or_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: int, graft: tuple[int, bytes]
) -> None:
    content = bytearray(build())
    for place, value in edits:
        content[place % len(content)] = value
    content[graft[0] : graft[0]] = graft[1]
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(bytes(content[:cut]))
    try:
        bad_gguf.survey(str(path))
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "cannot be opened: No such file or directory"),
        (lambda path: path.mkdir(), "is a directory, expected a regular file"),
        (os.mkfifo, "is a FIFO, expected a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a regular file"),
        (lambda path: path.symlink_to(path), "cannot be opened: Too many levels of symbolic links"),
    ],
    ids=["missing", "directory", "fifo", "device", "loop"],
)
def test_what_is_not_a_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    path = tmp_path / "odd.gguf"
    make(path)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_path_with_a_nul_or_odd_bytes_is_refused_readably(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\\x00b: the path holds a NUL byte"):
        open_checkpoint("a\0b")
    with pytest.raises(CheckpointError, match=r"\\xff: cannot be opened"):
        open_checkpoint(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))


def test_rows_of_a_file_that_shrank_are_an_error(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "shrinks.gguf"
    path.write_bytes(tiny_model.read_bytes())
    checkpoint = open_checkpoint(path)
    size, last = path.stat().st_size, checkpoint.tensors["output_norm.weight"]
    os.truncate(path, size - 56)
    with pytest.raises(CheckpointError, match=rf"expected 256 bytes, found 200: the file shrank from {size} bytes"):
        checkpoint.read_rows(last.name, 0, 1)
    os.truncate(path, 0)
    for read in (
        lambda: checkpoint.read_rows("token_embd.weight", 3, 4),
        lambda: checkpoint.metadata["llama.block_count"],
        lambda: checkpoint.metadata["tokenizer.ggml.tokens"],
        lambda: checkpoint.metadata["tokenizer.ggml.token_type"],
    ):
        with pytest.raises(CheckpointError, match=f"shrank from {size} bytes"):
            read()


def test_metadata_rewritten_under_us_is_checked_again(sound: Path) -> None:
    checkpoint = open_checkpoint(sound)
    content = sound.read_bytes()
    sound.write_bytes(content.replace(string("one"), u64(2**63) + b"one").replace(b"\1\0\1", b"\1\7\1")[: len(content)])
    with pytest.raises(CheckpointError, match=r"key a.words: string 0 changed while in use"):
        checkpoint.metadata["a.words"]
    with pytest.raises(CheckpointError, match=r"key a.flags: .*other than 0 or 1"):
        checkpoint.metadata["a.flags"]


def test_no_file_stays_open_after_its_checkpoint(sound: Path) -> None:
    def open_files() -> int:
        return [fd.resolve() for fd in Path("/proc/self/fd").iterdir()].count(sound)

    checkpoint = open_checkpoint(sound)
    assert open_files() == 1
    del checkpoint
    assert open_files() == 0
    for content, _ in BAD.values():
        sound.write_bytes(content)
        with pytest.raises(CheckpointError):
            bad_gguf.survey(str(sound))
    assert open_files() == 0
