"""A checkpoint as the loader sees it: files, metadata, a directory of tensors, and their rows as stored."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cpuinfer.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MetadataValue = int | float | bool | str | list[str] | memoryview
"""A metadata value; arrays of strings are lists, arrays of numbers or bools memoryviews."""

Kind = TypeVar("Kind", int, float, bool, str, list[Any])

_KIND_NAMES = {int: "an integer", float: "a float", bool: "a bool", str: "a string", list: "an array"}


class Reader(Protocol):
    """What a container format offers; natively ``_core.Gguf``.  Every method may raise CheckpointError."""

    def files(self) -> list[tuple[bytes, int]]:
        """(path, size in bytes) of each file."""

    def keys(self) -> list[str]:
        """The metadata keys, in the order of the file."""

    def type(self, key: str) -> tuple[str, int | None]:
        """(type name of the value or of its elements, number of elements or None for a scalar)."""

    def value(self, key: str) -> MetadataValue:
        """The value of a key."""

    def tensors(self) -> list[tuple[str, tuple[int, ...], str, int, int]]:
        """(name, row-major shape, encoding, bytes, bytes of a row) of each tensor."""

    def floats(self, name: str) -> memoryview:
        """All numbers of a tensor of type F32."""

    def read_rows(self, name: str, begin: int, end: int, out: npt.NDArray[np.uint8]) -> None:
        """Fill ``out`` with rows [begin, end) as stored."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    """Row-major: a linear layer's weight is (outputs, inputs)."""
    encoding: str
    """The name of the way of storing: "Q4_1"; see cpuinfer.formats."""
    bytes: int
    row_bytes: int
    """Bytes of one row, the last dimension."""

    @property
    def rows(self) -> int:
        """The product of all dimensions but the last."""
        return self.bytes // self.row_bytes


class Metadata(Mapping[str, MetadataValue]):
    """Keys known, values read from the file each time they are asked for."""

    __slots__ = ("_keys", "_reader")

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._keys = dict.fromkeys(reader.keys())

    def __getitem__(self, key: str) -> MetadataValue:
        if key not in self._keys:
            raise KeyError(key)
        return self._reader.value(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def type(self, key: str) -> tuple[str, int | None]:
        """(type name of the value or of its elements, number of elements or None for a scalar), reading no value."""
        if key not in self._keys:
            raise KeyError(key)
        return self._reader.type(key)

    def describe(self, key: str) -> str:
        """For messages: "of type uint32", "an array of 3 string"."""
        name, length = self.type(key)
        return f"of type {name}" if length is None else f"an array of {length} {name}"


class Checkpoint:
    """An open checkpoint of one or more files, checked when it was opened.  Its files close with its last reference."""

    def __init__(self, path: Path, reader: Reader) -> None:
        self.reader = reader
        self.path = path
        files = reader.files()
        self.files = tuple(Path(os.fsdecode(name)) for name, _ in files)
        self.size_bytes = sum(size for _, size in files)
        self.metadata = Metadata(reader)
        tensors = [TensorInfo(*row) for row in reader.tensors()]
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({info.name: info for info in tensors})

    def tensor(self, name: str) -> TensorInfo:
        """The directory entry of a tensor; CheckpointError if there is none."""
        if name not in self.tensors:
            raise self.error(f"tensor {name}", "missing")
        return self.tensors[name]

    def read_rows(self, name: str, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Rows [begin, end) of a tensor as stored: uint8 [end - begin, row_bytes]."""
        import numpy as np

        info = self.tensor(name)
        count = end - begin if 0 <= begin <= end <= info.rows else 0  # the reader refuses any other range
        out = np.empty((count, info.row_bytes), np.uint8)
        self.reader.read_rows(name, begin, end, out)
        return out

    def require(
        self, key: str, kind: type[Kind], *, minimum: float | None = None, maximum: float | None = None
    ) -> Kind:
        """The value of a metadata key, of the given kind and within the bounds; CheckpointError otherwise.

        int takes every integer type of the file, float every floating-point type, list every array.
        """
        where = f"key {key}"
        if key not in self.metadata:
            raise self.error(where, f"missing, expected {_KIND_NAMES[kind]}")
        is_array = self.metadata.type(key)[1] is not None
        value: Any = self.metadata[key] if is_array == (kind is list) else None
        if value is None or not (is_array or type(value) is kind):
            raise self.error(where, f"is {self.metadata.describe(key)}, expected {_KIND_NAMES[kind]}")
        # Written so that NaN is outside every bound.
        if minimum is not None and not value >= minimum:
            raise self.error(where, f"is {value}, expected at least {minimum}")
        if maximum is not None and not value <= maximum:
            raise self.error(where, f"is {value}, expected at most {maximum}")
        return value.tolist() if isinstance(value, memoryview) else value  # type: ignore[return-value]

    def optional(
        self, key: str, kind: type[Kind], default: Kind, *, minimum: float | None = None, maximum: float | None = None
    ) -> Kind:
        """As ``require``, but ``default`` where the key is missing."""
        if key not in self.metadata:
            return default
        return self.require(key, kind, minimum=minimum, maximum=maximum)

    def error(self, where: str, text: str) -> CheckpointError:
        """``PATH: where: text``, for the caller to raise."""
        path = os.fsencode(self.path).decode(errors="backslashreplace")
        return CheckpointError(f"{path}: {where}: {text}")


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a GGUF file, or all parts of a split one given any of them.

    Raises CheckpointError, naming the file, the key or tensor, what was found and what was expected.
    """
    from cpuinfer import _core

    return Checkpoint(Path(path), _core.Gguf(os.fsencode(path)))
