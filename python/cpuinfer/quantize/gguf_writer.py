"""Writes GGUF files, version 3, in one pass: metadata, the directory of tensors, then their data in that order.

The layout is that of the GGUF specification: little-endian; the data of each tensor begins at a multiple of
`general.alignment`.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cpuinfer.checkpoint import Checkpoint
from cpuinfer.errors import CpuInferError, InvalidRequest

VERSION = 3
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"
SPLIT_PREFIX = "split."
"""Of keys that say how a model is cut into several files: one that is written is whole."""
MOST_DIMENSIONS = 4
MOST_NAME = 63
"""Bytes of a tensor's name that all readers take."""
PARTIAL = ".partial"
PIECE = 1 << 24
STRING, ARRAY = 8, 9
NUMBERS = {
    "uint8": (0, "B"),
    "int8": (1, "b"),
    "uint16": (2, "H"),
    "int16": (3, "h"),
    "uint32": (4, "I"),
    "int32": (5, "i"),
    "float32": (6, "f"),
    "bool": (7, "?"),
    "uint64": (10, "Q"),
    "int64": (11, "q"),
    "float64": (12, "d"),
}
"""The specification's numbers of types, and what Python's struct calls them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The type and value of a metadata key."""

    type: str
    """"string", "uint32", ...; of an array, that of its elements."""
    value: Any
    """A number, a str, a bool, or a sequence of such."""
    is_array: bool = False


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    """Row-major."""
    encoding: str
    """"Q4_K", "F32", ..."""

    @property
    def bytes(self) -> int:
        """Of its data; InvalidRequest for a type that is not known or does not divide the rows."""
        from cpuinfer import _core

        sizes = {name: (elements, size) for _, name, elements, size in _core.gguf_tensor_types()}
        elements, size = sizes.get(self.encoding, (0, 0))
        if not elements or not self.shape or self.shape[-1] % elements or min(self.shape) < 1:
            raise InvalidRequest(f"tensor {self.name}: {self.encoding} {self.shape}, expected whole blocks of a type")
        count = 1
        for length in self.shape:
            count *= length
        return count // elements * size


def metadata_of(
    checkpoint: Checkpoint, replaced: Mapping[str, Entry] | None = None, *, left_out: Iterable[str] = ()
) -> dict[str, Entry]:
    """The metadata of an open GGUF file in its order, some keys replaced or added; without those of split files."""
    entries = {}
    for key in checkpoint.metadata:
        if not key.startswith(SPLIT_PREFIX) and key not in left_out:
            kind, length = checkpoint.metadata.type(key)
            entries[key] = Entry(kind, checkpoint.metadata[key], length is not None)
    return entries | dict(replaced or {})


class GgufWriter:
    """A context: what is written appears under its name when it ends without an exception, and only then.

    Raises CpuInferError, and leaves nothing, where the system cannot write.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Entry], tensors: Sequence[PlannedTensor]) -> None:
        """`tensors`: in the order in which their data will come."""
        alignment = metadata.get(ALIGNMENT_KEY, Entry("uint32", DEFAULT_ALIGNMENT)).value
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
            raise InvalidRequest(f"{ALIGNMENT_KEY}: {alignment!r}, expected a multiple of 8")
        self.path = path
        self._alignment: int = alignment
        self._tensors = tuple(tensors)
        self._sizes = [tensor.bytes for tensor in self._tensors]
        self._header = _header(metadata, self._tensors, self._sizes, alignment)
        self._partial = path.with_name(path.name + PARTIAL)
        self._file = -1
        self._at = 0
        self._left = self._sizes[0] if self._sizes else 0

    @property
    def total_bytes(self) -> int:
        """Of the whole file."""
        return len(self._header) + sum(_padded(size, self._alignment) for size in self._sizes)

    def __enter__(self) -> GgufWriter:
        try:
            self._file = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._cannot(error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._file).st_ino != self._partial.stat().st_ino:  # the other has just finished
                raise BlockingIOError
        except OSError as error:
            os.close(self._file)
            raise CpuInferError(f"{self.path}: is being written by another process") from error
        try:
            os.ftruncate(self._file, 0)
            self._put(self._header)
        except BaseException:
            self._abandon()
            raise
        return self

    def write(self, data: Any) -> None:
        """The next bytes of data, of any buffer: the end of a tensor may be followed by the beginning of the next."""
        rest = memoryview(data).cast("B")
        while rest:
            if self._at == len(self._tensors):
                raise InvalidRequest(f"{self.path}: {len(rest)} bytes after the last tensor")
            taken = rest[: self._left]
            self._put(taken)
            self._left -= len(taken)
            rest = rest[len(taken) :]
            if not self._left:
                self._next_tensor()

    def _next_tensor(self) -> None:
        size = self._sizes[self._at]
        self._put(bytes(_padded(size, self._alignment) - size))
        self._at += 1
        self._left = self._sizes[self._at] if self._at < len(self._sizes) else 0

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            self._abandon()

    def _publish(self) -> None:
        if self._at < len(self._tensors):
            name = self._tensors[self._at].name
            raise InvalidRequest(f"{self.path}: tensor {name} lacks {self._left} bytes")
        try:
            os.fsync(self._file)
            self._partial.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._cannot(error) from error
        os.close(self._file)
        self._file = -1

    def _abandon(self) -> None:
        if self._file >= 0:
            with suppress(OSError):
                self._partial.unlink()
            os.close(self._file)
            self._file = -1

    def _put(self, data: memoryview | bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest[:PIECE]) :]
        except OSError as error:
            raise self._cannot(error) from error

    def _cannot(self, error: OSError) -> CpuInferError:
        return CpuInferError(f"{self.path}: cannot be written: {error.strerror or error}")


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _header(
    metadata: Mapping[str, Entry], tensors: Sequence[PlannedTensor], sizes: Sequence[int], alignment: int
) -> bytes:
    from cpuinfer import _core

    numbers = {name: number for number, name, _, _ in _core.gguf_tensor_types()}
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += [_string(key) + _entry(key, entry) for key, entry in metadata.items()]
    offset = 0
    seen = set()
    for tensor, size in zip(tensors, sizes, strict=True):
        if tensor.name in seen or len(tensor.name.encode()) > MOST_NAME or len(tensor.shape) > MOST_DIMENSIONS:
            raise InvalidRequest(
                f"tensor {tensor.name} {tensor.shape}: expected a name of its own of up to {MOST_NAME} bytes and "
                f"up to {MOST_DIMENSIONS} dimensions"
            )
        seen.add(tensor.name)
        shape = tensor.shape[::-1]  # GGUF has the length of rows first
        parts.append(_string(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        parts.append(struct.pack("<IQ", numbers[tensor.encoding], offset))
        offset += _padded(size, alignment)
    header = b"".join(parts)
    return header + bytes(_padded(len(header), alignment) - len(header))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _entry(key: str, entry: Entry) -> bytes:
    """The type and value of a key."""
    try:
        if entry.type == "string":
            if not entry.is_array:
                return struct.pack("<I", STRING) + _string(entry.value)
            return struct.pack("<IIQ", ARRAY, STRING, len(entry.value)) + b"".join(map(_string, entry.value))
        number, code = NUMBERS[entry.type]
        if not entry.is_array:
            return struct.pack(f"<I{code}", number, entry.value)
        if isinstance(entry.value, memoryview):  # as a checkpoint gives them: little-endian
            data = entry.value.tobytes()
        else:
            data = struct.pack(f"<{len(entry.value)}{code}", *entry.value)
        return struct.pack("<IIQ", ARRAY, number, len(entry.value)) + data
    except (KeyError, struct.error, TypeError, AttributeError, OverflowError, UnicodeError) as error:
        raise InvalidRequest(f"key {key}: {entry.value!r:.60} cannot be written as {entry.type}") from error
