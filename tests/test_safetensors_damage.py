"""Damaged and hostile safetensors folders: refused when opened, naming the file and the tensor."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cpuinfer.errors import CheckpointError
from cpuinfer.safetensors_folder import SafetensorsFolder

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.weight": np.arange(6, dtype=np.int32).reshape(2, 3),
    "c.bias": np.arange(4, dtype=np.float16),
    "d.scalar": np.array(7, dtype=np.int64),
}
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Header = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(ARRAYS, tmp_path / FILE, metadata={"format": "np"})
    return tmp_path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    names = sorted(ARRAYS)
    save_file({name: ARRAYS[name] for name in names[:2]}, tmp_path / FIRST)
    save_file({name: ARRAYS[name] for name in names[2:]}, tmp_path / SECOND)
    write_index(tmp_path, {**dict.fromkeys(names[:2], FIRST), **dict.fromkeys(names[2:], SECOND)})
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_header(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(path: Path, header: Header | str, data: bytes) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_every_tensor_is_read_whole_and_by_rows(folder: Path) -> None:
    tensors = SafetensorsFolder(folder)
    assert set(tensors.names()) == set(ARRAYS)
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(tensors.read(name), values)
        assert tensors.bytes(name) == values.nbytes
    np.testing.assert_array_equal(tensors.read_rows("a.weight", 1, 3), ARRAYS["a.weight"][1:3])


def test_shards_are_one_model(shards: Path) -> None:
    tensors = SafetensorsFolder(shards)
    assert [path.name for path in tensors.files] == [FIRST, SECOND]
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(tensors.read(name), values)


def change_entry(name: str, **changes: object) -> Callable[[Header], None]:
    return lambda header: header[name].update(changes)


DEFECTS: dict[str, tuple[Callable[[Header], object], str]] = {
    "another dtype": (change_entry("a.weight", dtype="C64"), "a.weight: dtype 'C64', expected one of"),
    "no dtype's name": (change_entry("a.weight", dtype=["F32"]), r"a.weight: dtype \['F32'\]"),
    "a dtype of another size": (change_entry("a.weight", dtype="F16"), "a.weight: .*expected 24"),
    "a larger shape": (change_entry("a.weight", shape=[3, 5]), "a.weight: .*expected 60"),
    "a shape of negative sizes": (change_entry("a.weight", shape=[-3, -4]), "a.weight: shape"),
    "a shape of fractions": (change_entry("a.weight", shape=[3.0, 4.0]), "a.weight: shape"),
    "a shape of truths": (change_entry("d.scalar", shape=[True]), "d.scalar: shape"),
    "a shape whose product overflows": (change_entry("a.weight", shape=[1 << 47, 1 << 47]), "a.weight"),
    "no list of offsets": (change_entry("a.weight", data_offsets=48), "a.weight: data_offsets"),
    "one offset": (change_entry("a.weight", data_offsets=[0]), "a.weight"),
    "offsets beyond the file": (change_entry("a.weight", data_offsets=[1 << 40, (1 << 40) + 48]), "a.weight"),
    "an entry without a shape": (lambda header: header["a.weight"].pop("shape"), "a.weight: expected dtype, shape"),
    "an entry that is a list": (lambda header: header.update({"a.weight": []}), "a.weight: expected dtype, shape"),
    "a tensor over another": (
        lambda header: header.update({"e": {**header["a.weight"]}}),
        "its data overlaps that of",
    ),
    "a gap": (lambda header: header.pop("a.weight"), "its data leaves a gap after that of"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_header_that_contradicts_itself_or_the_file_is_refused(folder: Path, defect: str) -> None:
    change, said = DEFECTS[defect]
    header, data = read_header(folder / FILE)
    change(header)
    write_header(folder / FILE, header, data)
    with pytest.raises(CheckpointError, match=said) as caught:
        SafetensorsFolder(folder)
    assert str(folder / FILE) in str(caught.value)


def test_data_that_no_tensor_owns_is_refused(folder: Path) -> None:
    with (folder / FILE).open("ab") as file:
        file.write(b"\0" * 4)
    with pytest.raises(CheckpointError, match="4 bytes after the last tensor"):
        SafetensorsFolder(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "its header is not JSON"),
        ("[]", "its header is not a JSON object"),
        ("[" * 100000, "its header is not JSON"),
        ('{"a": {"dtype": "U8", "shape": [1], "shape": [0], "data_offsets": [0, 0]}}', "names something twice"),
    ],
)
def test_a_header_that_is_not_one_is_refused(folder: Path, text: str, said: str) -> None:
    write_header(folder / FILE, text, b"")
    with pytest.raises(CheckpointError, match=said):
        SafetensorsFolder(folder)


@pytest.mark.parametrize("length", [0, 1 << 63, (100 << 20) + 1, 10**6])
def test_a_header_longer_than_the_file_takes_no_memory(folder: Path, length: int) -> None:
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(length.to_bytes(8, "little") + content[8:])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="header"):
            SafetensorsFolder(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 19  # half of the smallest length that a file this small can't hold


@pytest.mark.parametrize("kept", [0, 4, 8, 20, -1])
def test_a_file_cut_short_is_refused(folder: Path, kept: int) -> None:
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match=FILE):
        SafetensorsFolder(folder)


def test_a_file_that_shrinks_while_open_is_an_error_not_a_crash(folder: Path) -> None:
    tensors = SafetensorsFolder(folder)
    os.truncate(folder / FILE, (folder / FILE).stat().st_size - 8)
    header, _ = read_header(folder / FILE)
    last = max(ARRAYS, key=lambda name: header[name]["data_offsets"])
    with pytest.raises(CheckpointError, match=f"{last}: ends early"):
        tensors.read(last)


def test_shards_beside_a_single_file_are_refused_as_either_may_be_meant(shards: Path) -> None:
    (shards / FILE).write_bytes((shards / FIRST).read_bytes())
    with pytest.raises(CheckpointError, match=rf"names other files than {FILE}, which is there too"):
        SafetensorsFolder(shards)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", ""])
def test_an_index_that_leaves_the_folder_is_refused(shards: Path, name: str) -> None:
    write_index(shards, {"a.weight": name})
    with pytest.raises(CheckpointError, match="is not the name of a file in this folder"):
        SafetensorsFolder(shards)


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards / SECOND).unlink()
    with pytest.raises(CheckpointError, match=f"{SECOND}: missing, expected as model.safetensors.index.json names it"):
        SafetensorsFolder(shards)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"zz.weight": FIRST}, f"zz.weight: not in {FIRST}, as the index says"),
        ({"a.weight": SECOND}, f"a.weight: not in {SECOND}, as the index says"),
    ],
)
def test_a_tensor_that_is_not_where_the_index_says_is_named(shards: Path, change: dict[str, str], said: str) -> None:
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    write_index(shards, {**weight_map, **change})
    with pytest.raises(CheckpointError, match=said):
        SafetensorsFolder(shards)


def test_a_tensor_in_two_shards_is_named(shards: Path) -> None:
    save_file(
        {"a.weight": ARRAYS["a.weight"], "c.bias": ARRAYS["c.bias"], "d.scalar": ARRAYS["d.scalar"]}, shards / SECOND
    )
    with pytest.raises(CheckpointError, match=f"{SECOND}: a.weight: also in {FIRST}"):
        SafetensorsFolder(shards)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100000])
def test_an_index_that_is_not_one_is_refused(shards: Path, text: str) -> None:
    (shards / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=INDEX):
        SafetensorsFolder(shards)


def test_an_index_without_tensors_is_refused(shards: Path) -> None:
    write_index(shards, {})
    with pytest.raises(CheckpointError, match=INDEX):
        SafetensorsFolder(shards)


def test_a_pipe_or_folder_in_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsFolder(tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    with pytest.raises(CheckpointError, match=FILE):
        SafetensorsFolder(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_byte_changes_a_folder_opens_or_is_refused(folder: Path, data: st.DataObject) -> None:
    content = bytearray((folder / FILE).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    copy = folder / "changed"
    copy.mkdir(exist_ok=True)
    (copy / FILE).write_bytes(content)
    try:
        tensors = SafetensorsFolder(copy)
    except CheckpointError:
        return
    for name in tensors.names():
        assert tensors.read(name).shape == tensors.shape(name)
