"""The tensors of a folder of safetensors files, one or sharded, checked when opened and read by rows."""

from __future__ import annotations

import json
import math
import os
import stat
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import CheckpointError

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "BOOL": np.dtype("u1"),
        "U8": np.dtype("u1"),
        "I8": np.dtype("i1"),
        "I16": np.dtype("<i2"),
        "I32": np.dtype("<i4"),
        "I64": np.dtype("<i8"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype("<u2"),
        "F32": np.dtype("<f4"),
        "F64": np.dtype("<f8"),
        "F8_E8M0": np.dtype("u1"),
        "F8_E4M3": np.dtype("u1"),
    }
)
"""How numpy holds what safetensors calls by these names; BF16 as its bits."""
MOST_HEADER = 100 << 20
"""Bytes of a header, as the safetensors library allows."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsFolder:
    """All tensors of a model's safetensors files.  Implements cpuinfer.published.Tensors."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError naming the file, the tensor, what was found and what was expected."""
        self._tensors: dict[str, tuple[_File, str, tuple[int, ...], int]] = {}
        index = _read_index(folder)
        names = sorted(set(index.values())) if index is not None else [SINGLE]
        self._files = [_File(folder / name) for name in names]
        for file in self._files:
            for name, (dtype, shape, offset) in file.tensors.items():
                if name in self._tensors:
                    raise CheckpointError(f"{file.path}: {name}: also in {self._tensors[name][0].path.name}")
                self._tensors[name] = (file, dtype, shape, offset)
        for name, file_name in (index or {}).items():
            if name not in self._tensors or self._tensors[name][0].path.name != file_name:
                raise CheckpointError(f"{folder / INDEX}: {name}: not in {file_name}, as the index says")
        self.files = tuple(file.path for file in self._files)
        self.size_bytes = sum(file.size for file in self._files)

    def names(self) -> Mapping[str, object]:
        """All names, in the order of the files."""
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Row-major."""
        return self._tensors[name][2]

    def dtype(self, name: str) -> str:
        """As safetensors calls it: "I32", "BF16", ..."""
        return self._tensors[name][1]

    def bytes(self, name: str) -> int:
        """Bytes of the tensor."""
        return DTYPES[self.dtype(name)].itemsize * math.prod(self.shape(name))

    def read(self, name: str) -> npt.NDArray[Any]:
        """The whole tensor; BF16 as its bits in uint16."""
        shape = self.shape(name)
        if not shape:
            return self._read(name, 0, 1).reshape(())
        return self._read(name, 0, math.prod(shape)).reshape(shape)

    def read_rows(self, name: str, begin: int, end: int) -> npt.NDArray[Any]:
        """[begin, end) of the first dimension."""
        shape = self.shape(name)
        row = math.prod(shape[1:])
        return self._read(name, begin * row, end * row).reshape(end - begin, *shape[1:])

    def _read(self, name: str, begin: int, end: int) -> npt.NDArray[Any]:
        file, dtype, _, offset = self._tensors[name]
        kind = DTYPES[dtype]
        out = np.empty(end - begin, kind)
        file.read(name, offset + begin * kind.itemsize, out)
        return out


class _File:
    """One file: its header, checked whole, and reads within it.

    Format: 8 bytes, the little-endian length of a JSON header {name: {dtype, shape, data_offsets}}; the header; the
    data, without gaps (https://huggingface.co/docs/safetensors, "Format").
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is refused at once
        except FileNotFoundError:
            why = "" if path.name == SINGLE else f", expected as {INDEX} names it"
            raise CheckpointError(f"{path}: missing{why}") from None
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        self.size = status.st_size
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        if self.size < 8 or length > min(MOST_HEADER, self.size - 8):
            raise CheckpointError(f"{path}: a header of {length} bytes in a file of {self.size}")
        self._data = 8 + length
        try:
            header = json.loads(os.pread(self._descriptor, length, 8), object_pairs_hook=self._without_duplicates)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: its header is not JSON: {error}") from None
        if not isinstance(header, dict):
            raise CheckpointError(f"{path}: its header is not a JSON object")
        header.pop("__metadata__", None)
        self.tensors = {name: self._checked(name, entry) for name, entry in header.items()}
        self._check_ranges(header)

    def _without_duplicates(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise CheckpointError(f"{self.path}: its header names something twice")
        return found

    def _checked(self, name: str, entry: Any) -> tuple[str, tuple[int, ...], int]:
        where = f"{self.path}: {name}"
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
            raise CheckpointError(f"{where}: expected dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise CheckpointError(f"{where}: dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
        for values, what in ((shape, "shape"), (offsets, "data_offsets")):
            if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 1 << 48 for value in values):
                raise CheckpointError(f"{where}: {what} is {values!r}, expected sizes")
        wanted = DTYPES[dtype].itemsize * math.prod(shape)
        if len(offsets) != 2 or offsets[1] - offsets[0] != wanted or offsets[1] > self.size - self._data:
            room = self.size - self._data
            raise CheckpointError(f"{where}: bytes {offsets} for {dtype} {shape}, expected {wanted} within {room}")
        return dtype, tuple(shape), self._data + offsets[0]

    def _check_ranges(self, header: Mapping[str, Any]) -> None:
        end, last = 0, "the header"
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin = entry["data_offsets"][0]
            if begin != end:
                fault = "overlaps" if begin < end else "leaves a gap after"
                raise CheckpointError(f"{self.path}: {name}: its data {fault} that of {last}")
            end, last = entry["data_offsets"][1], name
        if extra := self.size - self._data - end:
            raise CheckpointError(f"{self.path}: {extra} bytes after the last tensor")

    def read(self, name: str, offset: int, out: npt.NDArray[Any]) -> None:
        view = memoryview(out.reshape(-1).view(np.uint8).data)
        while view:
            count = os.preadv(self._descriptor, [view], offset)
            if count == 0:
                raise CheckpointError(f"{self.path}: {name}: ends early, the file has shrunk since it was opened")
            view = view[count:]
            offset += count


def _read_index(folder: Path) -> dict[str, str] | None:
    path = folder / INDEX
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not an index of shards: {error!r}") from None
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{path}: weight_map is not an object of file names")
    if SINGLE not in found.values() and (folder / SINGLE).exists():
        raise CheckpointError(f"{path}: names other files than {SINGLE}, which is there too: expected one or the other")
    for name in found.values():
        if Path(name).name != name or name in {"", ".", ".."} or not name.isprintable():
            raise CheckpointError(f"{path}: {name!r} is not the name of a file in this folder")
    return found
