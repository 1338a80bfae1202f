"""Writes safetensors: a header of all tensors first, then their bytes, in whatever order they are made.

Format: 8 bytes, the little-endian length of a JSON header {name: {dtype, shape, data_offsets}}; the header, padded
with spaces to a multiple of 8; the data, without gaps (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import OutputError
from cpuinfer.safetensors_folder import DTYPES, INDEX, SINGLE

SHARD_BYTES = 4 << 30
"""A folder of more is cut between layers into files of at most so much, but of one layer at least."""
Put = Callable[[str, npt.NDArray[Any]], None]
"""The next bytes of a tensor, by its name."""
Progress = Callable[[int, int], None]
"""Called with bytes written, and bytes in all."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written."""

    name: str
    dtype: str
    """As safetensors calls it."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of its data."""
        return DTYPES[self.dtype].itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors that are made together."""

    entries: tuple[Entry, ...]
    make: Callable[[Put], None]
    """Puts all bytes of all of them, each tensor's in order."""
    layer: int = -1

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(entry.bytes for entry in self.entries)


def write(folder: Path, parts: Sequence[Part], progress: Progress | None = None) -> None:
    """Write a model's tensors: one file, or shards and their index.  Raises OSError."""
    shards = _shards(parts)
    total, done = sum(part.bytes for part in parts), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards):
        name = SINGLE if len(shards) == 1 else f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        weight_map |= {entry.name: name for part in shard for entry in part.entries}
        done = _write_file(folder / name, shard, done, total, progress)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(parts: Sequence[Part]) -> list[list[Part]]:
    layers: dict[int, list[Part]] = {}
    for part in parts:
        layers.setdefault(part.layer, []).append(part)
    shards: list[list[Part]] = [[]]
    size = 0
    for layer in sorted(layers):
        more = sum(part.bytes for part in layers[layer])
        if shards[-1] and size + more > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1] += layers[layer]
        size += more
    return shards


def _write_file(path: Path, parts: Sequence[Part], done: int, total: int, progress: Progress | None) -> int:
    """Returns the bytes written so far."""
    # The largest numbers first, so that each tensor is aligned to its own: readers map files and take views.
    entries = sorted(
        (entry for part in parts for entry in part.entries), key=lambda e: (-DTYPES[e.dtype].itemsize, e.name)
    )
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, at = {}, 0
    for entry in entries:
        places[entry.name] = at
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [at, at + entry.bytes],
        }
        at += entry.bytes
    if len(places) < len(entries):
        raise OutputError(f"{path.name}: two tensors of one name")
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        for part in parts:
            left = {entry.name: (start + places[entry.name], entry.bytes) for entry in part.entries}

            def put(name: str, values: npt.NDArray[Any], left: dict[str, tuple[int, int]] = left) -> None:
                data = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
                offset, room = left[name]
                if len(data) > room:
                    raise OutputError(f"{name}: more bytes than its shape has")
                left[name] = offset + len(data), room - len(data)
                _pwrite(file.fileno(), data, offset)

            part.make(put)
            if missing := [name for name, (_, room) in left.items() if room]:
                raise OutputError(f"{missing[0]}: fewer bytes than its shape has")
            done += part.bytes
            if progress is not None:
                progress(done, total)
        os.fsync(file.fileno())
    return done


def _pwrite(file: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count
