"""Checkpoints split into several GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpuinfer.checkpoint import open_checkpoint
from cpuinfer.errors import CheckpointError
from fixtures import bad_gguf
from fixtures.bad_gguf import build, key, u32
from tiny_gguf import write_tiny_llama


def write_parts(folder: Path, parts: Sequence[dict[str, Any]]) -> list[Path]:
    """Parts of one tensor each; an entry overrides number, count, total, tensors or file."""
    paths = []
    for i, options in enumerate(parts):
        numbers = {"number": i, "count": len(parts), "total": len(parts), **options}
        keys = [
            key("split.no", bad_gguf.U16, numbers["number"].to_bytes(2, "little")),
            key("split.count", bad_gguf.U16, numbers["count"].to_bytes(2, "little")),
            key("split.tensors.count", bad_gguf.I32, u32(numbers["total"])),
        ]
        tensors = numbers.get("tensors", [bad_gguf.tensor(f"t{i}", (4,))])
        path = folder / numbers.get("file", f"m-{i + 1:05}-of-{len(parts):05}.gguf")
        path.write_bytes(build(keys=[*(bad_gguf.KEYS if i == 0 else ()), *keys], tensors=tensors, data=bytes([i]) * 16))
        paths.append(path)
    return paths


@pytest.mark.parametrize("given_part", [0, 1, 2])
def test_any_part_opens_the_whole_checkpoint(tmp_path: Path, given_part: int) -> None:
    paths = write_parts(tmp_path, [{}, {}, {}])
    checkpoint = open_checkpoint(paths[given_part])
    assert checkpoint.files == tuple(paths)
    assert checkpoint.metadata["general.architecture"] == "llama"
    assert [checkpoint.read_rows(f"t{i}", 0, 1)[0, 0] for i in range(3)] == [0, 1, 2]


def test_a_split_model_of_the_gguf_package_equals_the_whole(tmp_path: Path, tiny_model: Path) -> None:
    write_tiny_llama(tmp_path / "m.gguf", split_max_tensors=8)
    whole, parts = open_checkpoint(tiny_model), open_checkpoint(tmp_path / "m-00001-of-00003.gguf")
    assert dict(parts.tensors) == dict(whole.tensors)
    for info in whole.tensors.values():
        np.testing.assert_array_equal(
            parts.read_rows(info.name, 0, info.rows), whole.read_rows(info.name, 0, info.rows)
        )


def test_missing_parts_are_named(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, [{}, {}, {}])
    paths[1].unlink()
    paths[2].unlink()
    with pytest.raises(CheckpointError, match=rf"missing: {paths[1]}, {paths[2]}$"):
        open_checkpoint(paths[0])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{}, {"number": 0}], "00002-of-00002.gguf: key split.no: is 0, expected 1"),
        ([{}, {"count": 3}], "00002-of-00002.gguf: key split.count: is 3, expected 2"),
        ([{}, {"total": 3}], "00002-of-00002.gguf: key split.tensors.count: is 3, expected 2"),
        ([{"total": 5}, {"total": 5}], "key split.tensors.count: is 5, but the parts hold 2 tensors"),
        ([{}, {"tensors": [bad_gguf.tensor("t0", (4,))]}], "00002.gguf: tensor t0: is already in "),
        ([{"number": 1}, {}], "key split.no: is 1 of 2, expected a file whose name ends in -00002-of-00002.gguf"),
        ([{"number": 9}, {}], "key split.no: is 9 of 2, expected a file whose name ends in -00001-of-00002.gguf"),
    ],
)
def test_parts_that_disagree_are_refused(tmp_path: Path, parts: list[dict[str, Any]], message: str) -> None:
    paths = write_parts(tmp_path, parts)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(paths[0])
    assert message in str(caught.value)
