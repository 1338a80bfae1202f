"""What a method makes of a weight, and what the error of it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest, NumericalError
from cpuinfer.quantize.scheme import WHOLE_ROW, Fit, Scheme
from cpuinfer.quantize.statistics import Statistics

Floats = npt.NDArray[np.float32]
ROWS = 512
"""Rows of a weight whose error is computed at once."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """Codes of a weight [n, k] and the scales and offsets they are read with."""

    codes: npt.NDArray[np.uint8]
    """[n, k]."""
    fit: Fit
    order: npt.NDArray[np.int64] | None = None
    """[k]: column j of the codes stands for column order[j] of the weight; None where that is j."""
    damping: float = 0.0
    """The share of the Hessian's mean diagonal that was added to it, by methods that do."""

    def values(self, scheme: Scheme) -> Floats:
        """[n, k]: the numbers that stand for the weight, in its own order of columns."""
        values = scheme.values(self.codes, self.fit)
        if self.order is None:
            return values
        placed = np.empty_like(values)
        placed[:, self.order] = values
        return placed

    def group_index(self, scheme: Scheme) -> npt.NDArray[np.int32]:
        """[k]: the group of each column of the weight, as GPTQ's files have it in `g_idx`."""
        k = self.codes.shape[1]
        groups = np.arange(k) // spans(scheme, k)[0]
        index = np.empty(k, np.int32)
        index[groups if self.order is None else self.order] = groups
        return index if self.order is not None else groups.astype(np.int32)


def spans(scheme: Scheme, k: int) -> tuple[int, int]:
    """(group, block) of a scheme for rows of k; InvalidRequest where they do not divide k."""
    group = k if scheme.group == WHOLE_ROW else scheme.group
    block = k if scheme.block == WHOLE_ROW else scheme.block
    if k % block:
        raise InvalidRequest(f"{scheme.name}: rows of {k} weights, expected a multiple of {block}")
    return group, block


def checked(w: npt.NDArray[np.floating], scheme: Scheme, statistics: Statistics | None = None) -> Floats:
    """A weight as float32 [n, k]; refuses one that is not finite, or not of the scheme's and statistics' size."""
    if w.ndim != 2 or not w.size:
        raise InvalidRequest(f"weight: shape {w.shape}, expected two dimensions")
    spans(scheme, w.shape[1])
    if statistics is not None and statistics.k != w.shape[1]:
        raise InvalidRequest(f"weight: rows of {w.shape[1]}, but statistics of {statistics.k} inputs")
    finite = np.isfinite(w).all(axis=1)
    if not finite.all():
        raise NumericalError(f"weight: row {int(np.argmin(finite))} holds NaN or infinity")
    return w.astype(np.float32, copy=False)


def join(fits: Sequence[Fit]) -> Fit:
    """The fit of blocks side by side."""
    if len(fits) == 1:
        return fits[0]
    offsets = [fit.offset for fit in fits if fit.offset is not None]
    return Fit(
        np.concatenate([fit.scale for fit in fits], axis=1),
        np.concatenate(offsets, axis=1) if offsets else None,
        _joined([fit.stored for fit in fits]),
    )


def _joined(stored: Sequence[Any]) -> Any:
    """What schemes store is arrays [n, groups or blocks, ...], tuples of such, or nothing."""
    first = stored[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(_joined(parts) for parts in zip(*stored, strict=True))
    return np.concatenate(list(stored), axis=1)


def output_error(delta: npt.NDArray[np.floating], statistics: Statistics) -> float:
    """The mean over tokens of |delta x|^2, for delta = W - Q: trace(delta H delta^T) / tokens."""
    hessian, total = statistics.hessian, 0.0
    for begin in range(0, len(delta), ROWS):
        part = delta[begin : begin + ROWS].astype(hessian.dtype, copy=False)
        total += float(np.einsum("ij,ij->", part @ hessian, part, dtype=np.float64))
    return total / statistics.tokens


def sampled_error(delta: npt.NDArray[np.floating], sample: Floats) -> float:
    """The mean over a sample [t, k] of |delta x|^2."""
    total = 0.0
    for begin in range(0, len(delta), ROWS):
        out = sample @ delta[begin : begin + ROWS].astype(np.float32, copy=False).T
        total += float(np.einsum("ij,ij->", out, out, dtype=np.float64))
    return total / len(sample)


def squares(x: Floats, counted: Floats) -> float:
    """The sum of the squares of [n, k], each column counted [k] times."""
    total = np.zeros(x.shape[1])
    for begin in range(0, len(x), ROWS):
        total += np.einsum("ij,ij->j", x[begin : begin + ROWS], x[begin : begin + ROWS]).astype(np.float64)
    return float(total @ counted.astype(np.float64))
