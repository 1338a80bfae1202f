"""Packed weights kept in the cache folder, so that a later start reads them instead of packing them again."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from cpuinfer.errors import ModelNotFound
from cpuinfer.store.cache import cache_folder, locked, publish, temporary_folder
from cpuinfer.store.listing import StoredModel

FOLDER, SUFFIX = "packed", ".weights"
PREFIX = "packed:"
"""Of the name a copy is listed and removed by."""
PAGE = 4096
PIECE = 1 << 24
"""Bytes read or written at a time."""
MOST_LABEL = 100
"""Characters that a copy's name has of its model's."""


class PackedCopy:
    """The copy of one model under one choice of encodings: a header that says what it was made of, then the bytes."""

    def __init__(self, source: Path, files: Sequence[Path], choice: object) -> None:
        """`files`: all that the weights come from.  `choice`: of JSON values, whatever else decides the bytes.

        Raises OSError for a file that is gone.
        """
        import hashlib

        place = os.fsencode(f"{source.resolve()}\0{json.dumps(choice)}")
        self.path = packed_folder() / f"{_label(source)}-{hashlib.sha256(place).hexdigest()[:16]}{SUFFIX}"
        found = [(path.resolve(), path.stat()) for path in files]
        self.changed = max(status.st_ctime_ns for path in files for status in (path.stat(), path.lstat()))
        """When the last of the files, or of the links to them, was written, replaced or renamed."""
        # Beside the time of writing, which tools set as they like, that of the change, which only the system sets.
        stamps = [(str(path), each.st_size, each.st_mtime_ns, each.st_ctime_ns) for path, each in found]
        self._header = _header({"source": str(source.resolve()), "files": stamps, "choice": choice, "code": _code()})

    def read(self, memory: memoryview, threads: int) -> bool:
        """Fill `memory` from the copy; False, and any content, if there is none of these very files."""
        with suppress(OSError):
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe has no size
            try:
                return self._read(file, memory, threads)
            finally:
                os.close(file)
        return False

    def _read(self, file: int, memory: memoryview, threads: int) -> bool:
        if os.fstat(file).st_size != len(self._header) + len(memory):
            return False
        if os.pread(file, len(self._header), 0) != self._header:
            return False

        def read(begin: int) -> bool:
            piece = memory[begin : begin + PIECE]
            return os.preadv(file, [piece], len(self._header) + begin) == len(piece)

        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as executor:
            return all(executor.map(read, range(0, len(memory), PIECE)))

    def write(self, memory: memoryview) -> None:
        """Keep `memory` in the place of an older copy.  Raises OSError, and leaves nothing, when it can't."""
        with locked(self.path.parent), temporary_folder(self.path.parent) as folder:
            temporary = folder / self.path.name
            with temporary.open("wb", buffering=0) as file:
                for part in (memoryview(self._header), memory):
                    for begin in range(0, len(part), PIECE):
                        _write(file.fileno(), part[begin : begin + PIECE])
            publish(temporary, self.path)


def packed_folder() -> Path:
    """Where the copies are.  May not exist."""
    return cache_folder() / FOLDER


def stored() -> list[StoredModel]:
    """The copies in the cache."""
    files = sorted(path for path in packed_folder().glob(f"*{SUFFIX}") if path.is_file())
    return [StoredModel(PREFIX + file.stem, file, file.stat().st_size, "packed") for file in files]


def remove(spec: str) -> list[Path]:
    """Delete the copy that `stored` calls so.  Raises ModelNotFound."""
    for copy in stored():
        if copy.name == spec:
            with locked(packed_folder()):
                copy.path.unlink(missing_ok=True)
            return [copy.path]
    raise ModelNotFound(f"{spec}: no such packed copy, `cpuinfer list` prints those there are")


def _write(file: int, data: memoryview) -> None:
    while data:  # the system may take a part at a time
        data = data[os.write(file, data) :]


def _label(source: Path) -> str:
    """Of the model's name, what any file system and terminal takes."""
    return re.sub("[^A-Za-z0-9._-]", "_", source.stem)[:MOST_LABEL]


def _header(facts: Mapping[str, object]) -> bytes:
    """Whole pages of JSON."""
    text = json.dumps(facts).encode()
    return text + b" " * (-(len(text) + 1) % PAGE) + b"\n"


@cache
def _code() -> str:
    """A hash of this package: the layout may be another with each version or build, and installers set times."""
    import hashlib

    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in {".py", ".so"}):
        digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()
