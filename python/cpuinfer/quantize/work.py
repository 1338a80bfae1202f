"""Finished stages of a run, kept in a folder beside its target until that is whole, so that a killed run goes on."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from threading import Lock
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import CheckpointError, InvalidRequest
from cpuinfer.formats import find as find_format
from cpuinfer.formats.canonical import BlockRows, FloatRows, IntegerRows, Rows, TableRows

Arrays = Mapping[str, npt.NDArray[Any]]
KINDS: Mapping[str, type[Rows]] = {kind.__name__: kind for kind in (IntegerRows, TableRows, BlockRows, FloatRows)}
BY_ROW = {"codes", "scale", "bias", "zeros", "raw", "values"}
"""What of such rows has a part for each of them."""
DAMAGE = (
    *(OSError, EOFError, BadZipFile, zlib.error, struct.error),
    *(ValueError, TypeError, KeyError, AttributeError, RuntimeError, SyntaxError),
)
"""What reading such a file raises where it is not one."""
KEPT = 4
"""Matrices in memory: one, or queries, keys and values that a file has together."""
STAGE, STATE = "stage-{:04}.npz", "state.npz"


def folder_of(target: Path) -> Path:
    """Where the work towards a file or folder is kept."""
    return target.parent / f".{target.name}.partial"


def delete_all(target: Path) -> None:
    """The work of all recipes towards a target, which is there, or nothing comes of it."""
    shutil.rmtree(folder_of(target), ignore_errors=True)


class Work:
    """The stages of one recipe, source and calibration text, which `key` stands for.

    Raises InvalidRequest, naming it, for a folder that cannot be written.
    """

    def __init__(self, target: Path, key: str) -> None:
        self.folder = folder_of(target) / key
        self._read_last: OrderedDict[tuple[int, str], Rows] = OrderedDict()
        self._lock = Lock()
        with told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def finished(self) -> int:
        """How many stages are done."""
        return next(i for i in range(1 << 16) if not (self.folder / STAGE.format(i)).exists())

    def save(self, index: int, arrays: Arrays, state: Arrays) -> None:
        """One more stage, and what the next ones go on from: the stage counts once both are there."""
        self._write(f"{index:04}-{STATE}", state)
        self._write(STAGE.format(index), arrays)
        (self.folder / f"{index - 1:04}-{STATE}").unlink(missing_ok=True)

    def stage(self, index: int, prefix: str = "") -> dict[str, npt.NDArray[Any]]:
        """What was saved of a stage, by names that begin with the prefix."""
        return self._read(STAGE.format(index), prefix)

    def names(self, index: int) -> dict[str, set[str]]:
        """What was saved of a stage: "name/part" as the parts of each name."""
        found: dict[str, set[str]] = {}
        with self._sound(STAGE.format(index)) as members:
            for member in members.files:
                name, _, part = member.rpartition("/")
                found.setdefault(name, set()).add(part)
        return found

    def state(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """What the stages after one go on from."""
        return self._read(f"{index:04}-{STATE}")

    def rows(self, index: int, prefix: str, encoding: str) -> Rows:
        """Rows that ``row_arrays`` took apart, of a stage; its other arrays stay on disk.

        The last few stay in memory, for those who take a matrix by some rows at a time.
        """
        with self._lock:
            rows = self._read_last.pop((index, prefix), None)
            if rows is None:
                rows = rows_of(self._read(STAGE.format(index), prefix), prefix, encoding)
            self._read_last[index, prefix] = rows
            if len(self._read_last) > KEPT:
                self._read_last.popitem(last=False)
            return rows

    def delete(self) -> None:
        """Where nothing comes of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # others have begun on the same target
            self.folder.parent.rmdir()

    def _write(self, name: str, arrays: Arrays) -> None:
        target = self.folder / name
        partial = target.with_suffix(".part")
        with told(target):
            try:
                with partial.open("wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(target)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def _read(self, name: str, prefix: str = "") -> dict[str, npt.NDArray[Any]]:
        with self._sound(name) as members:
            return {key: members[key] for key in members.files if key.startswith(prefix)}

    @contextmanager
    def _sound(self, name: str) -> Iterator[Any]:
        path = self.folder / name
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
                yield members
        except DAMAGE as error:
            raise CheckpointError(f"{path}: not what a run left there ({error}): delete {self.folder}") from None


@contextmanager
def told(path: Path) -> Iterator[None]:
    """A fault of the file system as InvalidRequest, naming the path."""
    try:
        yield
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror or error}") from None


def row_arrays(prefix: str, rows: Rows) -> dict[str, npt.NDArray[Any]]:
    """Rows taken apart, to be saved beside others."""
    parts = {field.name: getattr(rows, field.name) for field in fields(rows) if field.name != "form"}
    arrays = {f"{prefix}{name}": np.asarray(value) for name, value in parts.items() if value is not None}
    return {f"{prefix}kind": np.array(type(rows).__name__), **arrays}


def rows_of(arrays: Arrays, prefix: str, encoding: str) -> Rows:
    """What ``row_arrays`` took apart, of a weight in this encoding."""
    kind = KINDS[str(arrays[f"{prefix}kind"])]
    found: dict[str, Any] = {"form": find_format(encoding)} if kind is BlockRows else {}
    for field in fields(kind):
        value = arrays.get(f"{prefix}{field.name}")
        if value is not None:
            found[field.name] = value if value.ndim else value.item()
    return kind(**found)


def sliced(rows: Rows, begin: int, end: int) -> Rows:
    """Rows [begin, end) of rows."""
    own = BY_ROW & {field.name for field in fields(rows)}
    parts = {name: getattr(rows, name) for name in own}
    return replace(rows, **{name: part[begin:end] for name, part in parts.items() if part is not None})
