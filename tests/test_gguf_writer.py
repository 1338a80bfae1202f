"""The writer of GGUF files: what it writes, the gguf package and our reader read; what it cannot finish, it removes."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from cpuinfer.checkpoint import open_checkpoint
from cpuinfer.errors import CpuInferError, InvalidRequest
from cpuinfer.quantize.blocks import BlockScheme
from cpuinfer.quantize.gguf_writer import Entry, GgufWriter, PlannedTensor, metadata_of
from cpuinfer.quantize.mixes import MIXES, QUANTIZATION_VERSION
from tiny_gguf import write_tiny_llama

ENTRIES = {
    "general.architecture": Entry("string", "llama"),
    "a.uint8": Entry("uint8", 255),
    "a.int8": Entry("int8", -128),
    "a.uint16": Entry("uint16", 65535),
    "a.int16": Entry("int16", -32768),
    "a.uint32": Entry("uint32", 2**32 - 1),
    "a.int32": Entry("int32", -(2**31)),
    "a.float32": Entry("float32", 0.5),
    "a.bool": Entry("bool", True),
    "a.uint64": Entry("uint64", 2**64 - 1),
    "a.int64": Entry("int64", -(2**63)),
    "a.float64": Entry("float64", 0.1),
    "words": Entry("string", ["", "Ġthe", "\N{SNOWMAN}"], is_array=True),
    "numbers": Entry("int16", [-1, 2, 3], is_array=True),
    "flags": Entry("bool", [True, False], is_array=True),
    "reals": Entry("float64", [0.1, -2.5], is_array=True),
}


def values(raw: Any) -> Any:
    return raw.tolist() if isinstance(raw, memoryview) else raw


def write(path: Path, tensors: dict[str, tuple[str, np.ndarray]], metadata: dict[str, Entry]) -> None:
    """name -> (type, bytes [rows, row bytes]); all are of 64 or 512 numbers a row."""
    planned = [PlannedTensor(name, _shape(kind, raw), kind) for name, (kind, raw) in tensors.items()]
    with GgufWriter(path, metadata, planned) as writer:
        for _, raw in tensors.values():
            writer.write(raw)
    assert path.stat().st_size == writer.total_bytes


def _shape(kind: str, raw: np.ndarray) -> tuple[int, ...]:
    return (len(raw), raw.shape[1] // 4 if kind == "F32" else 512)


def encoded(kind: str, rows: int) -> np.ndarray:
    w = np.random.default_rng(rows).standard_normal((rows, 512)).astype(np.float32)
    return w.view(np.uint8) if kind == "F32" else BlockScheme.of(kind).encode(w, search=False)


def test_all_kinds_of_metadata_and_tensors_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    kinds = ("F32", "Q4_0", "Q6_K", "Q3_K", "IQ4_XS")
    tensors = {f"t.{kind}": (kind, encoded(kind, rows)) for rows, kind in enumerate(kinds, 1)}
    write(path, tensors, ENTRIES)
    assert list(tmp_path.iterdir()) == [path]

    checkpoint = open_checkpoint(path)
    assert list(checkpoint.metadata) == list(ENTRIES)
    for key, entry in ENTRIES.items():
        assert checkpoint.metadata.type(key) == (entry.type, len(entry.value) if entry.is_array else None)
        assert values(checkpoint.metadata[key]) == entry.value
    for name, (kind, raw) in tensors.items():
        assert checkpoint.tensor(name).encoding == kind
        assert np.array_equal(checkpoint.read_rows(name, 0, len(raw)), raw)

    reader = GGUFReader(path)
    assert {tensor.name: tensor.tensor_type.name for tensor in reader.tensors} == {
        name: kind for name, (kind, _) in tensors.items()
    }
    for tensor in reader.tensors:
        assert np.array_equal(np.asarray(tensor.data).view(np.uint8), tensors[tensor.name][1])
        assert tensor.data_offset % 32 == 0
    assert {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")} == {
        key: entry.value for key, entry in ENTRIES.items()
    }


def test_metadata_of_a_file_is_copied_but_for_what_is_replaced(tmp_path: Path) -> None:
    source, path = tmp_path / "in.gguf", tmp_path / "out.gguf"
    write_tiny_llama(source)
    checkpoint = open_checkpoint(source)
    replaced = {
        "general.file_type": Entry("uint32", MIXES["Q4_K_M"].file_type),
        "general.quantization_version": Entry("uint32", QUANTIZATION_VERSION),
    }
    tensors = [PlannedTensor(info.name, info.shape, info.encoding) for info in checkpoint.tensors.values()]
    with GgufWriter(path, metadata_of(checkpoint, replaced), tensors) as writer:
        for info in checkpoint.tensors.values():
            for row in range(info.rows):
                writer.write(checkpoint.read_rows(info.name, row, row + 1))
    copy = open_checkpoint(path)
    for key in {*checkpoint.metadata, *replaced}:
        wanted = replaced[key].value if key in replaced else values(checkpoint.metadata[key])
        assert values(copy.metadata[key]) == wanted
        assert key in replaced or copy.metadata.type(key) == checkpoint.metadata.type(key)
    assert [tuple(vars_of(info)) for info in copy.tensors.values()] == [
        tuple(vars_of(info)) for info in checkpoint.tensors.values()
    ]
    for info in checkpoint.tensors.values():
        assert np.array_equal(copy.read_rows(info.name, 0, info.rows), checkpoint.read_rows(info.name, 0, info.rows))


def vars_of(info: Any) -> list[Any]:
    return [info.name, info.shape, info.encoding, info.bytes]


@given(st.lists(st.integers(1, 700), max_size=30), st.sampled_from([8, 32, 64, 4096]))
@settings(max_examples=40, deadline=None)
def test_pieces_of_any_sizes_make_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], alignment: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    metadata = {"general.alignment": Entry("uint32", alignment)}
    tensors = {f"t{i}": ("F32", np.full((1, 4 * length), i, np.uint8)) for i, length in enumerate((1, 100, 33))}
    write(folder / "whole.gguf", tensors, metadata)
    data = b"".join(raw.tobytes() for _, raw in tensors.values())
    with GgufWriter(
        folder / "cut.gguf",
        metadata,
        [PlannedTensor(name, _shape(kind, raw), kind) for name, (kind, raw) in tensors.items()],
    ) as writer:
        for cut in [*cuts, len(data)]:
            writer.write(data[:cut])
            data = data[cut:]
    assert (folder / "cut.gguf").read_bytes() == (folder / "whole.gguf").read_bytes()
    assert all(tensor.data_offset % alignment == 0 for tensor in GGUFReader(folder / "whole.gguf").tensors)


TENSOR = PlannedTensor("t", (4, 64), "F32")


def test_nothing_appears_before_the_end_or_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt), GgufWriter(path, ENTRIES, [TENSOR]) as writer:
        writer.write(bytes(1024))
        assert path.read_bytes() == b"older"
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert path.read_bytes() == b"older"


def test_too_few_and_too_many_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(InvalidRequest, match="tensor t lacks 24 bytes"), GgufWriter(path, {}, [TENSOR]) as writer:
        writer.write(bytes(1000))
    with pytest.raises(InvalidRequest, match="8 bytes after the last"), GgufWriter(path, {}, [TENSOR]) as writer:
        writer.write(bytes(1032))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_clear_error_that_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: both end in an error of a write half done."""
    path = tmp_path / "m.gguf"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with (
            pytest.raises(CpuInferError, match=r"m\.gguf: cannot be written: File too large"),
            GgufWriter(path, {}, [PlannedTensor("t", (64, 64), "F32")]) as writer,
        ):
            writer.write(bytes(1 << 14))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "m.gguf", tmp_path / ("n" * 300)):
        with pytest.raises(CpuInferError, match="cannot be written"), GgufWriter(path, {}, []):
            pass
    (tmp_path / "folder.gguf").mkdir()
    with (
        pytest.raises(CpuInferError, match=r"folder\.gguf: cannot be written: Is a directory"),
        GgufWriter(tmp_path / "folder.gguf", {}, []),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["folder.gguf"]


def test_two_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with GgufWriter(path, {}, [TENSOR]) as writer:
        with pytest.raises(CpuInferError, match="another process"), GgufWriter(path, {}, [TENSOR]):
            pass
        writer.write(bytes(1024))
    assert open_checkpoint(path).tensor("t").bytes == 1024


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "m.gguf.partial").write_bytes(bytes(1 << 16))
    with GgufWriter(tmp_path / "m.gguf", {}, [TENSOR]) as writer:
        writer.write(bytes(1024))
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").stat().st_size == writer.total_bytes


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"k": Entry("uint8", 256)}, [], "key k"),
        ({"k": Entry("string", 3)}, [], "key k"),
        ({"k": Entry("float16", 3.0)}, [], "key k"),
        ({"k": Entry("string", "\ud800")}, [], "key k"),
        ({"k": Entry("uint32", None)}, [], "key k"),
        ({"general.alignment": Entry("uint32", 12)}, [], "multiple of 8"),
        ({}, [PlannedTensor("t", (2, 48), "Q4_0")], "tensor t"),
        ({}, [PlannedTensor("t", (2, 64), "Q4_9")], "tensor t"),
        ({}, [PlannedTensor("t", (), "F32")], "tensor t"),
        ({}, [PlannedTensor("t", (1, 1, 1, 1, 1), "F32")], "4 dimensions"),
        ({}, [PlannedTensor("t" * 64, (1,), "F32")], "63 bytes"),
        ({}, [TENSOR, TENSOR], "of its own"),
    ],
)
def test_what_readers_would_not_take_is_not_written(
    tmp_path: Path, metadata: dict[str, Entry], tensors: list[PlannedTensor], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        GgufWriter(tmp_path / "m.gguf", metadata, tensors)
    assert not list(tmp_path.iterdir())
