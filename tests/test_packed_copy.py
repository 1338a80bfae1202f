"""Copies of packed weights: made once, read instead of packing, of these very files only, and never half of one."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from cpuinfer import LLM, _core, loader, store
from cpuinfer.cli import main
from cpuinfer.errors import ModelNotFound
from cpuinfer.store import packed
from published_models import write_published_llama
from tiny_folder import _write_tokenizer, tensors_of, write_folder
from tiny_gguf import write_tiny_llama

PROMPT = [5, 9, 30, 41]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf", encoding="Q4_1")


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models whose weights were packed."""
    packed: list[Path] = []
    original = loader._pack

    def pack(source: loader.Source, *rest: object) -> object:
        packed.append(source.path)
        return original(source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loader, "_pack", pack)
    return packed


def logits(path: Path, **options: str) -> np.ndarray:
    with LLM(path, threads=2, cache_packed=True, **options) as llm:  # type: ignore[arg-type]
        return llm.logits(PROMPT)


def copies(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache" / "packed").iterdir())


def test_a_second_start_packs_nothing_and_has_the_same_logits(model: Path, packings: list[Path]) -> None:
    first = logits(model)
    assert packings == [model]
    np.testing.assert_array_equal(logits(model), first)
    assert packings == [model]
    with LLM(model) as llm:
        np.testing.assert_array_equal(llm.logits(PROMPT), first)
    assert len(packings) == 2


def test_without_being_asked_nothing_is_kept(model: Path, tmp_path: Path) -> None:
    with LLM(model):
        pass
    assert not (tmp_path / "cache" / "packed").exists()


def test_a_file_that_changed_is_packed_again_in_the_copy_s_place(
    model: Path, packings: list[Path], tmp_path: Path
) -> None:
    before = logits(model)
    write_tiny_llama(model, encoding="Q4_1", seed=1)  # of the same size
    assert not np.array_equal(logits(model), before)
    assert packings == [model, model]
    assert len(copies(tmp_path)) == 1


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_packed_again(model: Path, tmp_path: Path) -> None:
    logits(model)
    times = model.stat().st_atime_ns, model.stat().st_mtime_ns
    other = write_tiny_llama(tmp_path / "other.gguf", encoding="Q4_1", seed=1)
    os.utime(other, ns=times)
    other.replace(model)
    assert model.stat().st_mtime_ns == times[1]
    with LLM(model) as llm:
        np.testing.assert_array_equal(logits(model), llm.logits(PROMPT))


def test_a_configuration_that_changed_packs_again(tmp_path: Path) -> None:
    write_published_llama(tmp_path, "gptq")
    _write_tokenizer(tmp_path)
    before = logits(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"  # zero points one less
    (tmp_path / "config.json").write_text(json.dumps(config))
    after = logits(tmp_path)
    assert not np.array_equal(after, before)
    with LLM(tmp_path) as llm:
        np.testing.assert_array_equal(llm.logits(PROMPT), after)


@pytest.mark.parametrize("how", ["renamed over", "linked over", "gone"])
def test_a_file_replaced_after_it_was_opened_leaves_no_copy(model: Path, tmp_path: Path, how: str) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    other = write_tiny_llama(tmp_path / "other.gguf", encoding="Q4_1", seed=1)
    blueprint = loader.open_model(link)
    time.sleep(0.02)  # longer than the clock of file systems takes to advance
    if how == "renamed over":
        other.replace(model)
    elif how == "linked over":
        (tmp_path / "new").symlink_to(other)
        (tmp_path / "new").replace(link)
    else:
        model.unlink()
    loader.load_program(blueprint, threads=1, cache_packed=True)
    assert not (tmp_path / "cache" / "packed").exists()


@pytest.mark.parametrize("name", [b"caf\xe9", b"a" * 250, b"two\nlines \x1b[2J"])
def test_a_model_of_any_name_has_a_copy_whose_name_can_be_printed_and_typed(
    model: Path, packings: list[Path], tmp_path: Path, name: bytes
) -> None:
    named = model.rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".gguf"))
    np.testing.assert_array_equal(logits(named), logits(named))
    assert len(packings) == 1
    (copy,) = copies(tmp_path)
    assert copy.name.isascii()
    assert copy.name.isprintable()


def test_each_choice_of_encodings_has_a_copy_of_its_own(packings: list[Path], tmp_path: Path) -> None:
    floats = write_tiny_llama(tmp_path / "floats.gguf", encoding="F32", embedding="F32")
    folder = write_folder(tmp_path / "folder", tensors_of(floats))
    results = [logits(folder, quantize=how) for how in ("int4", "int8", "none")]
    assert len(packings) == len(copies(tmp_path)) == 3
    for how, result in zip(("int4", "int8", "none"), results, strict=True):
        np.testing.assert_array_equal(logits(folder, quantize=how), result)
    assert len(packings) == 3


@pytest.mark.parametrize("damage", ["shorter", "longer", "another header", "empty"])
def test_a_copy_that_is_not_whole_is_made_again(model: Path, packings: list[Path], tmp_path: Path, damage: str) -> None:
    expected = logits(model)
    (copy,) = copies(tmp_path)
    good = copy.read_bytes()
    copy.write_bytes(
        {"shorter": good[:-1], "longer": good + b"x", "another header": b"?" + good[1:], "empty": b""}[damage]
    )
    np.testing.assert_array_equal(logits(model), expected)
    assert len(packings) == 2
    assert copy.read_bytes() == good


def test_a_pipe_in_the_place_of_a_copy_is_not_waited_for(model: Path, tmp_path: Path) -> None:
    expected = logits(model)
    (copy,) = copies(tmp_path)
    copy.unlink()
    os.mkfifo(copy)
    np.testing.assert_array_equal(logits(model), expected)
    assert copy.is_file()


def test_a_cache_that_cannot_be_written_is_a_warning_and_the_model_runs(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", full)
    with pytest.warns(RuntimeWarning, match="the packed weights are not kept: No space left on device"):
        logits(model)
    assert copies(tmp_path) == []


def test_copies_are_listed_and_removed(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logits(model)
    (copy,) = copies(tmp_path)
    name = f"packed:{copy.stem}"
    assert [(each.name, each.path, each.source) for each in store.list_models()] == [(name, copy, "packed")]
    assert main(["rm", name]) == 0
    assert capsys.readouterr().out == f"deleted {copy}\n"
    assert copies(tmp_path) == []
    with pytest.raises(ModelNotFound, match="no such packed copy"):
        store.remove(name)


def test_run_keeps_a_copy_when_asked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    command = ["run", str(model), "the", "--raw", "-n", "4", "--temp", "0", "-t", "1"]
    assert main(command) == 0
    plain = capsys.readouterr().out
    for _ in range(2):
        assert main([*command, "--cache-packed"]) == 0
        assert capsys.readouterr().out == plain
    assert len(copies(tmp_path)) == 1


def test_another_version_of_the_code_packs_again(
    model: Path, packings: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    logits(model)
    monkeypatch.setattr(packed, "_code", lambda: "other")
    logits(model)
    assert len(packings) == 2
    assert len(copies(tmp_path)) == 1


def test_a_model_moved_elsewhere_is_another_model(model: Path, packings: list[Path], tmp_path: Path) -> None:
    logits(model)
    elsewhere = shutil.copy2(model, tmp_path / "moved.gguf")
    logits(Path(elsewhere))
    assert len(packings) == len(copies(tmp_path)) == 2


def test_a_pool_gives_no_more_than_it_has() -> None:
    pool = _core.BufferPool(64 * 32)
    _core.PackedMatrix("f32", 16, 16, pool=pool)
    with pytest.raises(ValueError, match="a pool of 2048 bytes, of which 1024 are taken, asked for 2048 more"):
        _core.PackedMatrix("f32", 16, 32, pool=pool)
    assert len(memoryview(pool)) == 2048
