"""The GGUF reader on sound files: it agrees with the gguf package, and answers what the loader asks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import cpuinfer
from cpuinfer import _core, formats
from cpuinfer.checkpoint import Checkpoint, open_checkpoint
from cpuinfer.errors import CheckpointError, CpuInferError, InvalidRequest, UnsupportedFormat
from fixtures import bad_gguf
from fixtures.bad_gguf import build, key, u32

ROOT = Path(cpuinfer.__file__).parents[1]


def assert_same_as_the_gguf_package(path: Path, *, compare_data: bool = True) -> None:
    ours, theirs = open_checkpoint(path), gguf.GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for name, field in fields.items():
        value = ours.metadata[name]
        assert (value.tolist() if isinstance(value, memoryview) else value) == field.contents(), name
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        names = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string"}
        kind, length = ours.metadata.type(name)
        assert kind in names | {"uint64", "int64", "float64"}
        assert length == (len(field.contents()) if is_array else None)
        if field.types[-1] != gguf.GGUFValueType.ARRAY:
            assert kind == field.types[-1].name.lower()
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.encoding, info.bytes) == (tensor.tensor_type.name, tensor.n_bytes)
        if compare_data:
            raw = np.ascontiguousarray(tensor.data).view(np.uint8)
            np.testing.assert_array_equal(ours.read_rows(info.name, 0, info.rows).ravel(), raw.ravel())


def test_the_tiny_model_reads_as_the_gguf_package_reads_it(tiny_model: Path) -> None:
    assert_same_as_the_gguf_package(tiny_model)


def test_the_real_model_reads_as_the_gguf_package_reads_it(real_model: Path) -> None:
    assert_same_as_the_gguf_package(real_model)


def test_every_value_type_reads_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "values.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind in gguf.GGUFValueType:
        if kind not in {gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING, gguf.GGUFValueType.BOOL}:
            writer.add_key_value(f"v.{kind.name}", 7, kind)
            writer.add_key_value(f"v.{kind.name}s", [3, 0, 5], gguf.GGUFValueType.ARRAY, sub_type=kind)
    writer.add_int64("v.least", -(2**63))
    writer.add_uint64("v.most", 2**64 - 1)
    writer.add_float64("v.tenth", 0.1)
    writer.add_bool("v.yes", True)
    writer.add_array("v.flags", [True, False])
    writer.add_array("v.words", ["", "é", "a\0b", "\U0001f600"])
    writer.add_string("v.empty", "")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_same_as_the_gguf_package(path)


@pytest.mark.parametrize("version", [2, 3])
def test_the_hand_made_file_is_sound(tmp_path: Path, version: int) -> None:
    path = tmp_path / "sound.gguf"
    path.write_bytes(build(version=version))
    assert_same_as_the_gguf_package(path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.metadata["a.words"] == ["one", "", "né"]
    assert checkpoint.metadata["a.u64"] == 2**64 - 1
    assert checkpoint.read_rows("two", 1, 2).tolist() == [[*range(50, 64), 0, 0, 0, 0]]
    assert (checkpoint.files, checkpoint.size_bytes) == ((path,), path.stat().st_size)


def test_an_alignment_of_its_own_is_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    path.write_bytes(bad_gguf.with_key(key("general.alignment", bad_gguf.U32, u32(8)), alignment=8))
    assert_same_as_the_gguf_package(path)


def test_tensors_may_stand_in_any_order_and_with_gaps(tmp_path: Path) -> None:
    path = tmp_path / "order.gguf"
    path.write_bytes(build(tensors=[bad_gguf.tensor("b", (4,), offset=64), bad_gguf.tensor("a", (4,))]))
    assert_same_as_the_gguf_package(path)


def test_a_file_without_tensors_is_a_directory_of_metadata(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(build(tensors=[], data=b"", alignment=1))
    assert open_checkpoint(path).tensors == {}


def test_the_table_of_tensor_types_is_that_of_the_gguf_package() -> None:
    ours = {number: (name, elements, size) for number, name, elements, size in _core.gguf_tensor_types()}
    assert len({name for name, _, _ in ours.values()}) == len(ours)
    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        assert ours[int(kind)] == (kind.name, *sizes)


def test_a_tensor_of_an_unsupported_type_is_listed_and_its_format_refused(tmp_path: Path) -> None:
    path = tmp_path / "nvfp4.gguf"
    path.write_bytes(build(tensors=[bad_gguf.tensor("t", (256, 2), bad_gguf.TYPE_NVFP4)], data=bytes(288)))
    info = open_checkpoint(path).tensors["t"]
    assert (info.encoding, info.shape, info.row_bytes) == ("NVFP4", (2, 256), 144)
    with pytest.raises(UnsupportedFormat, match=r"type NVFP4 is not supported; supported are BF16, .*Q4_1"):
        formats.find(info.encoding)


def test_opening_reads_no_more_than_the_header(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(build(tensors=[bad_gguf.tensor("t", (2**30,), bad_gguf.TYPE_I8)]))
    os.truncate(path, 2**31)
    checkpoint = open_checkpoint(path)
    assert checkpoint.size_bytes == 2**31
    assert checkpoint.tensors["t"].bytes == 2**30


def test_the_modules_of_the_loader_import_without_the_extension() -> None:
    script = "import sys, cpuinfer.checkpoint, cpuinfer.formats.q4_1; sys.exit('cpuinfer._core' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def test_a_missing_key_or_another_type_says_what_was_expected(sound: Path) -> None:
    checkpoint = open_checkpoint(sound)
    assert checkpoint.require("a.u8", int, minimum=1, maximum=255) == 255
    assert checkpoint.require("a.f32", float) == 0.5
    assert checkpoint.require("a.bool", bool) is True
    assert checkpoint.require("general.architecture", str) == "llama"
    assert checkpoint.require("a.words", list) == ["one", "", "né"]
    assert checkpoint.require("a.floats", list) == [1.5, -2.5]
    assert checkpoint.optional("a.i16", int, 5) == -2
    assert checkpoint.optional("absent", int, 5) == 5

    def refusal(ask: Callable[[Checkpoint], object]) -> str:
        with pytest.raises(CheckpointError) as caught:
            ask(checkpoint)
        return str(caught.value).removeprefix(f"{sound}: ")

    assert refusal(lambda c: c.require("absent", int)) == "key absent: missing, expected an integer"
    assert refusal(lambda c: c.require("a.bool", int)) == "key a.bool: is of type bool, expected an integer"
    assert refusal(lambda c: c.require("a.u8", float)) == "key a.u8: is of type uint8, expected a float"
    assert refusal(lambda c: c.optional("a.u8", str, "")) == "key a.u8: is of type uint8, expected a string"
    assert refusal(lambda c: c.require("a.u8", list)) == "key a.u8: is of type uint8, expected an array"
    assert refusal(lambda c: c.require("a.words", str)) == "key a.words: is an array of 3 string, expected a string"
    assert refusal(lambda c: c.require("a.i16", int, minimum=0)) == "key a.i16: is -2, expected at least 0"
    assert refusal(lambda c: c.require("a.u64", int, maximum=9)) == f"key a.u64: is {2**64 - 1}, expected at most 9"
    assert refusal(lambda c: c.tensor("t")) == "tensor t: missing"


def test_a_nan_is_outside_every_bound(tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    path.write_bytes(build(keys=[key("k", bad_gguf.F32, b"\0\0\xc0\x7f")]))
    for bound in ({"minimum": 0.0}, {"maximum": 1.0}):
        with pytest.raises(CheckpointError, match="key k: is nan, expected at"):
            open_checkpoint(path).require("k", float, **bound)


@pytest.mark.parametrize(("begin", "end"), [(-1, 1), (0, 3), (2, 1), (3, 3), (-(2**62), 2**62), (0, 2**63 - 1)])
def test_rows_outside_the_tensor_are_refused(sound: Path, begin: int, end: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"tensor two: rows {begin} to {end}, expected a range within 0 to 2"):
        open_checkpoint(sound).read_rows("two", begin, end)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, 17), np.uint8),
        np.zeros((2, 36), np.uint8)[:, ::2],
        np.zeros((2, 18), np.int8),
        np.zeros((2, 9), np.uint16),
        np.frombuffer(bytes(36), np.uint8),
    ],
    ids=["short", "strided", "signed", "wide", "read-only"],
)
def test_a_buffer_that_does_not_fit_is_refused(sound: Path, out: np.ndarray[Any, Any]) -> None:
    reader = _core.Gguf(os.fsencode(sound))
    with pytest.raises(CpuInferError, match=r"a buffer of 34 bytes, expected 36|writable C-contiguous array of uint8"):
        reader.read_rows("two", 0, 2, out)
