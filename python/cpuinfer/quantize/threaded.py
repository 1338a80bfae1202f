"""A scheme whose rows are worked on by several threads; they do not depend on each other, so the bits stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cpuinfer.formats.canonical import Rows
from cpuinfer.quantize.scheme import Fit, Scheme

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
LEAST_ROWS = 64
"""Worth a task."""
Result = TypeVar("Result")


class Threaded:
    """The scheme given, its slow parts by rows in an executor's threads."""

    def __init__(self, scheme: Scheme, executor: ThreadPoolExecutor, threads: int) -> None:
        self._scheme = scheme
        self._executor = executor
        self._threads = threads
        self.name = scheme.name
        self.levels = scheme.levels
        self.group = scheme.group
        self.block = scheme.block
        self.has_offset = scheme.has_offset
        self.bits_per_weight = scheme.bits_per_weight

    def fit(self, w: Floats, importance: npt.NDArray[np.floating] | None = None, *, search: bool = True) -> Fit:
        """As the scheme's."""

        def part(rows: slice) -> Fit:
            own = importance if importance is None or importance.ndim == 1 else importance[rows]
            return self._scheme.fit(w[rows], own, search=search)

        return stacked(self._by_rows(len(w), part))

    def represent(self, scale: npt.NDArray[np.floating], offset: npt.NDArray[np.floating] | None = None) -> Fit:
        """As the scheme's."""

        def part(rows: slice) -> Fit:
            return self._scheme.represent(scale[rows], None if offset is None else offset[rows])

        return stacked(self._by_rows(len(scale), part))

    def codes(self, w: Floats, fit: Fit) -> Codes:
        """As the scheme's."""
        return np.concatenate(self._by_rows(len(w), lambda rows: self._scheme.codes(w[rows], sliced(fit, rows))))

    def values(self, codes: Codes, fit: Fit) -> Floats:
        """As the scheme's."""
        return np.concatenate(
            self._by_rows(len(codes), lambda rows: self._scheme.values(codes[rows], sliced(fit, rows)))
        )

    def rows(self, codes: Codes, fit: Fit) -> Rows:
        """As the scheme's."""
        return self._scheme.rows(codes, fit)

    def _by_rows(self, count: int, part: Callable[[slice], Result]) -> list[Result]:
        step = max(LEAST_ROWS, -(-count // (4 * self._threads)))
        return list(self._executor.map(part, [slice(at, min(at + step, count)) for at in range(0, count, step)]))


def sliced(fit: Fit, rows: slice) -> Fit:
    """Some rows of a fit."""
    return Fit(fit.scale[rows], None if fit.offset is None else fit.offset[rows], _some(fit.stored, rows))


def stacked(fits: Sequence[Fit]) -> Fit:
    """The fit of rows under one another."""
    offsets = [fit.offset for fit in fits if fit.offset is not None]
    return Fit(
        np.concatenate([fit.scale for fit in fits]),
        np.concatenate(offsets) if offsets else None,
        _together([fit.stored for fit in fits]),
    )


def _some(stored: Any, rows: slice) -> Any:
    """What schemes store is arrays [n, ...], tuples of such, or nothing."""
    if stored is None:
        return None
    return tuple(_some(part, rows) for part in stored) if isinstance(stored, tuple) else stored[rows]


def _together(stored: Sequence[Any]) -> Any:
    first = stored[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(_together(parts) for parts in zip(*stored, strict=True))
    return np.concatenate(list(stored))
