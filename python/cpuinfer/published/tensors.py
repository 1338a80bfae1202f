"""The tensors of a published checkpoint: what readers ask of them, and the checks of what they are."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import CheckpointError, UnsupportedFormat

FLOATS = ("F16", "BF16", "F32")
ITEM_BYTES = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4, "I32": 4, "I64": 8}
"""Of the dtypes read here, as safetensors calls them."""


class Tensors(Protocol):
    """Named tensors of one or more files."""

    def names(self) -> Collection[str]:
        """All of them; `in` should be fast."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Row-major."""

    def dtype(self, name: str) -> str:
        """As safetensors calls it: "I32", "BF16", ..."""

    def read(self, name: str) -> npt.NDArray[Any]:
        """The whole tensor; BF16 as its bits in uint16."""

    def read_rows(self, name: str, begin: int, end: int) -> npt.NDArray[Any]:
        """[begin, end) of the first dimension."""


def expect(
    tensors: Tensors, name: str, dtypes: Sequence[str], shape: Sequence[int | None] | None = None
) -> tuple[int, ...]:
    """The shape of a tensor; CheckpointError unless it is there, of one of the dtypes and of the shape (None: any)."""
    wanted = f"{' or '.join(dtypes)}{'' if shape is None else ' ' + _spelled(shape)}"
    if name not in tensors.names():
        raise CheckpointError(f"{name}: missing, expected {wanted}")
    dtype, found = tensors.dtype(name), tuple(tensors.shape(name))
    fits = shape is None or (
        len(found) == len(shape) and all(b is None or a == b for a, b in zip(found, shape, strict=True))
    )
    if dtype not in dtypes or not fits:
        raise CheckpointError(f"{name}: {dtype} {_spelled(found)}, expected {wanted}")
    return found


def _spelled(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("*" if size is None else str(size) for size in shape) + ")"


def weight_shape(name: str, found: tuple[int, int], expected: tuple[int, int] | None) -> tuple[int, int]:
    """(n, k) of a weight whose tensors say `found`; refused unless it is as expected, not empty, and k fits kernels."""
    if expected is not None and found != tuple(expected):
        raise CheckpointError(f"{name}: a weight of shape {found}, expected {tuple(expected)}")
    n, k = found
    if n < 1 or k < 1:
        raise CheckpointError(f"{name}: a weight of shape {found}, expected at least one row and one column")
    if k % 32:
        raise UnsupportedFormat(f"{name}: {k} columns, expected a multiple of 32")
    return n, k


def stored_bytes(tensors: Tensors, names: Sequence[str]) -> int:
    """Bytes that the tensors take in the file."""
    return sum(math.prod(tensors.shape(name)) * ITEM_BYTES[tensors.dtype(name)] for name in names)


def widened(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """F16, BF16 (as uint16) or F32 values as float32, exactly."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def halved(values: npt.NDArray[np.floating[Any]], name: str) -> npt.NDArray[np.float16]:
    """Scales as fp16, the nearest, ties to even.

    F16 stays as it is.  BF16, F32 and products lose at most 2**-11 of their size from 2**-14 on, and 2**-25 below.
    """
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(values, np.float16)
    sound = np.isfinite(halves)
    if not sound.all():
        worst = values[~sound].flat[0]
        if np.isfinite(worst):
            raise UnsupportedFormat(f"{name}: {worst:g}, expected at most 65504 (fp16)")
        raise CheckpointError(f"{name}: {worst}, expected finite numbers")
    return halves


def number(tensors: Tensors, name: str) -> int:
    """A tensor that holds one integer."""
    expect(tensors, name, ("U8", "I32", "I64"))
    if math.prod(tensors.shape(name)) != 1:
        raise CheckpointError(f"{name}: shape {tensors.shape(name)}, expected one number")
    return int(tensors.read(name).reshape(-1)[0])


class Kept:
    """Tensors of which every row of a weight needs all: read once, and kept until as many rows are taken as there are.

    Files that are packed along the inputs need this; threads may take rows at once.
    """

    def __init__(self, tensors: Tensors, names: Sequence[str], rows: int) -> None:
        self._tensors = tensors
        self._names = tuple(names)
        self._rows = self._left = rows
        self._held: dict[str, npt.NDArray[Any]] = {}
        self._lock = threading.Lock()

    def take(self, rows: int) -> dict[str, npt.NDArray[Any]]:
        """The tensors by name, for `rows` more of the rows."""
        with self._lock:
            held = self._held or {name: self._tensors.read(name) for name in self._names}
            self._left -= rows
            self._held = held if self._left > 0 else {}
            self._left = self._left if self._left > 0 else self._rows
            return held
