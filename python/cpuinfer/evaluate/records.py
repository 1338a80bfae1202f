"""Results as JSON, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from cpuinfer import __version__
from cpuinfer.errors import InvalidRequest
from cpuinfer.store.cache import publish

KINDS = {
    "Perplexity": "perplexity",
    "Divergence": "kld",
    "Choices": "choice",
    "Comparison": "compare",
    "Report": "quantize",
}


def to_record(result: object) -> dict[str, Any]:
    """A result of this package as JSON values: its fields, its `kind` and the version of cpuinfer."""
    kind = KINDS.get(type(result).__name__)
    if kind is None or not is_dataclass(result) or isinstance(result, type):
        raise InvalidRequest(f"{result!r}, expected a result of cpuinfer.evaluate, or the path of a file of one")
    return {"kind": kind, "cpuinfer": __version__, **asdict(result)}


def to_json(result: object) -> str:
    """One object, as text."""
    return json.dumps(to_record(result), ensure_ascii=False, allow_nan=False, indent=1)


def write_record(result: object, path: Path) -> None:
    """Write a result as JSON, whole or not at all."""
    write_whole(path, to_json(result).encode() + b"\n")


def write_whole(path: Path, content: bytes) -> None:
    """A file, whole or not at all."""
    file = AtomicFile(path)
    try:
        file.write(content)
        file.publish()
    except BaseException:
        file.discard()
        raise


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote, or `-o json` printed.  Raises InvalidRequest for anything else, or OSError."""
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path}: is not JSON: {error}") from None
    if not isinstance(record, dict) or record.get("kind") not in KINDS.values():
        raise InvalidRequest(f"{path}: is not a result of `cpuinfer eval`: expected a JSON object with its kind")
    return record


class AtomicFile:
    """A file under a passing name in its folder, until it is published.  A device or a pipe is written to as it is."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, naming the path, where no file can be."""
        self.path = path
        self._temporary: Path | None = None
        if path.exists() and not path.is_file():
            self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            return
        try:
            self._file, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
        self._temporary = Path(name)

    def write(self, data: Any) -> None:
        """Append bytes.  Raises OSError, naming the path, where there is no room."""
        view = memoryview(data).cast("B")
        try:
            while view:  # the system may take a part at a time
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise self._named(error) from None

    def write_at(self, offset: int, data: bytes) -> None:
        """Replace bytes already written."""
        try:
            os.pwrite(self._file, data, offset)
        except OSError as error:
            raise self._named(error) from None

    def publish(self) -> None:
        """Give the file its name, durably."""
        if self._temporary is not None:
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(self._file, 0o666 & ~mask)  # a temporary file is its owner's alone
        os.close(self._file)
        self._file = -1
        if self._temporary is not None:
            publish(self._temporary, self.path)

    def discard(self) -> None:
        """Leave nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._temporary is not None:
            with suppress(FileNotFoundError):
                self._temporary.unlink()

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, os.strerror(error.errno or 0), str(self.path))
