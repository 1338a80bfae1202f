"""A file or folder that appears whole or not at all: written beside its place, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cpuinfer.errors import OutputError


@contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which takes its name when the block ends without an error; else nothing is left of it.

    Raises OutputError where another is there and `overwrite` is not asked for, and for what the system refuses.
    """
    refuse_existing(path, overwrite=overwrite)
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        refuse_existing(path, overwrite=overwrite)
        temporary.replace(path)
    except OSError as error:
        raise _of(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """The same of a folder.  What it takes the place of must be a model's folder, or empty."""
    refuse_existing(path, overwrite=overwrite)
    if path.exists() and not _is_model_or_empty(path):
        raise OutputError(f"{path}: not a folder of a model: it is not replaced")
    temporary, older = _beside(path), _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        refuse_existing(path, overwrite=overwrite)
        if path.exists():
            path.rename(older)
        temporary.rename(path)
    except OSError as error:
        if older.exists() and not path.exists():
            older.rename(path)
        raise _of(path, error) from None
    finally:
        for left in (temporary, older):
            shutil.rmtree(left, ignore_errors=True)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """OutputError if something is at the path and may not be replaced."""
    if not overwrite and (path.exists() or path.is_symlink()):
        raise OutputError(f"{path}: exists: remove it, or ask for it to be overwritten")


def _is_model_or_empty(path: Path) -> bool:
    return path.is_dir() and ((path / "config.json").is_file() or not any(path.iterdir()))


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(6)}.part"


def _of(path: Path, error: OSError) -> OutputError:
    """What the system said.  Of a file that was read, its own error is another class already."""
    return OutputError(f"{path}: not written: {error.strerror or error}")
