"""The cache folder: one folder a model, a lock, temporary folders, and files trusted once their hash was checked."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cpuinfer.errors import InvalidRequest
from cpuinfer.store.progress import Advance

CHUNK = 1 << 20
"""Bytes hashed or copied at a time."""

PARTIAL = "partial-"
"""Prefix of temporary names. Whoever holds the lock may delete them: folders of the dead, side-cars that can wait."""


def cache_folder() -> Path:
    """`CPUINFER_CACHE`, or the user's cache folder of this platform. May not exist yet."""
    if chosen := os.environ.get("CPUINFER_CACHE"):
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError:
            raise InvalidRequest(f"CPUINFER_CACHE={chosen}: no such user") from None
    import platformdirs

    return platformdirs.user_cache_path("cpuinfer")


@contextmanager
def locked(folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Create `folder` and hold its lock; the lock file stays, as deleting it would let two processes in.

    `waiting` is called if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)  # the previous holder may have removed it
        yield
    finally:
        os.close(descriptor)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder`, gone afterwards. Those left by killed processes go first. Needs the lock."""
    import shutil
    import tempfile

    for stale in folder.glob(f"{PARTIAL}*"):
        if stale.is_dir():
            shutil.rmtree(stale)
        else:
            stale.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder, ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file its name, durably: after a crash there is the whole file or none."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(final)
    folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_verified(path: Path, sha256: str) -> bool:
    """Whether the side-car says that the file, unchanged since in size and time, had this hash."""
    try:
        status = path.stat()
        known = json.loads(side_car(path).read_bytes())
    except (OSError, ValueError):
        return False
    return bool(known == _record(sha256, status))


def verify(path: Path, sha256: str, advance: Advance) -> bool:
    """Hash a file and, if it is the right one, note that in its side-car."""
    status = path.stat()  # before hashing: a later change must not carry over the verdict
    if sha256_of(path, advance) != sha256:
        return False
    with suppress(OSError):  # a read-only cache is fine, its file is hashed at each start
        record_verified(path, sha256, status)
    return True


def record_verified(path: Path, sha256: str, status: os.stat_result) -> None:
    """Write the side-car of a file that had this hash when it had this status."""
    temporary = path.with_name(f"{PARTIAL}{os.getpid()}.json")
    temporary.write_text(json.dumps(_record(sha256, status)))
    temporary.replace(side_car(path))


def _record(sha256: str, status: os.stat_result) -> dict[str, str | int]:
    return {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def side_car(path: Path) -> Path:
    """The small JSON file beside a model that remembers its verification."""
    return path.with_name(f"{path.name}.verified.json")


def sha256_of(path: Path, advance: Advance) -> str:
    """Hexadecimal SHA-256 of a file."""
    import hashlib

    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            advance(done)
    return digest.hexdigest()
