"""GPTQ: rounds column by column, and lets the columns to come make up for the error of those done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest, NumericalError
from cpuinfer.quantize.levels import nearest
from cpuinfer.quantize.quantised import Quantised, checked, join, spans
from cpuinfer.quantize.scheme import Fit, Scheme
from cpuinfer.quantize.statistics import Statistics

Floats = npt.NDArray[np.float32]
Real = npt.NDArray[np.floating]
LAZY = 128
"""Columns between two products that bring the columns to come up to date."""
STRIP = 16
"""Columns between two products within those."""
PANEL = 256
"""Columns of the Cholesky factor that are done at once."""
MOST_DAMPING = 10.0
Order = Literal["none", "static", "dynamic"]


@dataclass(frozen=True, slots=True)
class _Factor:
    """H = R R^T, R upper triangular, of the damped Hessian with its columns in the order they are rounded in."""

    lower: Real
    """[k, k]: R turned by half a turn, which is what Cholesky gives of H turned so."""
    damping: float

    def columns(self, begin: int, end: int) -> Real:
        """R[:end, begin:end]."""
        k = len(self.lower)
        return np.ascontiguousarray(self.lower[k - end :, k - end : k - begin][::-1, ::-1])


def gptq(
    w: npt.NDArray[np.floating],
    statistics: Statistics,
    scheme: Scheme,
    *,
    damping: float = 0.01,
    order: Order = "static",
    weighted: bool = True,
    search: bool = True,
) -> Quantised:
    """Frantar et al., arXiv 2210.17323, algorithm 1.

    damping: share of the Hessian's mean diagonal added to its diagonal; ten times as much (1e-4 after 0) until Cholesky
    succeeds.
    order: the columns as they are; or by descending diagonal of the Hessian ("act order"), with groups of the weight's
    own neighbours, whose scales are then fitted before any column is rounded ("static"); or with groups of columns that
    are neighbours in that order, which only files with an index of groups can hold ("dynamic": `Quantised.order`).
    weighted: scales are fitted to least error weighted by the Hessian's diagonal.  search: else by the format's rule.
    A column whose input is always 0 is rounded to nearest and counts for nothing.

    The paper takes errors along the rows of U, the Cholesky factor of the inverse: H^-1 = U^T U.  With H = R R^T, R
    upper triangular, U = R^-1, and the same columns come from R alone, as in LDLQ (Chee et al., arXiv 2307.13304, who
    show the two to be the same): those of a block B, made up for all columns before it, are
    W_B + (W - Q)_before R_before,B R_BB^-1.  So only blocks are inverted, and nothing is as large as H beside H and R.
    """
    w = checked(w, scheme, statistics)
    if order not in ("none", "static", "dynamic") or not damping >= 0:
        raise InvalidRequest(
            f"gptq: order {order!r}, damping {damping}: expected none, static or dynamic, and 0 or more"
        )
    hessian = statistics.hessian
    diagonal = np.diagonal(hessian).astype(np.float64)
    if not np.isfinite(hessian).all():
        raise NumericalError("hessian: holds NaN or infinity")
    taken = np.arange(len(diagonal)) if order == "none" else np.argsort(-diagonal, kind="stable")
    factor = _factor(hessian, diagonal, taken, damping)
    importance = diagonal.astype(np.float32) if weighted and diagonal.any() else None
    if order == "static":
        fit = scheme.fit(w, importance, search=search)
        codes = _with_fit(w, factor, scheme, fit, taken)
        return Quantised(codes, fit, None, factor.damping)
    if order == "dynamic":
        w, importance = w[:, taken], None if importance is None else importance[taken]
    codes, fit = _block_by_block(w, factor, scheme, importance, search=search)
    return Quantised(codes, fit, taken if order == "dynamic" else None, factor.damping)


def _factor(hessian: Real, diagonal: npt.NDArray[np.float64], taken: npt.NDArray[np.int64], damping: float) -> _Factor:
    """The damping that Cholesky takes, from the least, and the factor."""
    mean = float(diagonal.mean())
    turned = taken[::-1]
    dead = diagonal[turned] == 0
    while damping <= MOST_DAMPING:
        matrix = hessian[np.ix_(turned, turned)]
        matrix[np.diag_indices(len(turned))] += np.where(dead, mean or 1, damping * mean).astype(matrix.dtype)
        if _to_cholesky(matrix):
            return _Factor(matrix, damping)
        del matrix
        damping = max(10 * damping, 1e-4)
    raise NumericalError(f"hessian: not positive with {MOST_DAMPING:g} times its mean diagonal added to its diagonal")


def _to_cholesky(matrix: Real) -> bool:
    """Put the lower Cholesky factor in a matrix's place, by products of panels; False where it is not positive."""
    k, eps = len(matrix), np.finfo(matrix.dtype).eps
    least = np.sqrt(eps * np.diagonal(matrix))
    for begin in range(0, k, PANEL):
        end = min(begin + PANEL, k)
        try:
            corner = np.linalg.cholesky(matrix[begin:end, begin:end])
        except np.linalg.LinAlgError:
            return False
        # What rounding leaves of 0 may pass as positive.
        if not (np.diagonal(corner) > least[begin:end]).all():
            return False
        matrix[begin:end, begin:end] = corner
        matrix[begin:end, end:] = 0
        matrix[end:, begin:end] = matrix[end:, begin:end] @ np.linalg.inv(corner).T
        for at in range(end, k, PANEL):
            matrix[at:, at : at + PANEL] -= matrix[at:, begin:end] @ matrix[at : at + PANEL, begin:end].T
    return True


def _block_by_block(
    w: Floats, factor: _Factor, scheme: Scheme, importance: Floats | None, *, search: bool
) -> tuple[npt.NDArray[np.uint8], Fit]:
    """Blocks of the scheme are fitted when all columns before them are done."""
    n, k = w.shape
    group, block = spans(scheme, k)
    codes, fits = np.empty((n, k), np.uint8), []
    walk = _Walk(w, factor, scheme.levels)
    for start in range(0, k, block):
        stop = start + block
        counted = None if importance is None or not importance[start:stop].any() else importance[start:stop]
        fit = scheme.fit(walk.compensated(start, stop), counted, search=search)
        fits.append(fit)

        def read(column: int, fit: Fit = fit, start: int = start) -> tuple[Floats, Floats | None]:
            at = (column - start) // group
            return fit.scale[:, at], None if fit.offset is None else fit.offset[:, at]

        for begin in range(start, stop, LAZY):
            end = min(begin + LAZY, stop)
            codes[:, begin:end] = walk.round(begin, end, read).T
    return codes, join(fits)


def _with_fit(
    w: Floats, factor: _Factor, scheme: Scheme, fit: Fit, taken: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """Columns in the order given, with scales known beforehand."""
    n, k = w.shape
    group = spans(scheme, k)[0]
    codes = np.empty((k, n), np.uint8)
    walk = _Walk(w[:, taken], factor, scheme.levels)
    scales = np.ascontiguousarray(fit.scale.T)
    offsets = None if fit.offset is None else np.ascontiguousarray(fit.offset.T)

    def read(column: int) -> tuple[Floats, Floats | None]:
        at = taken[column] // group
        return scales[at], None if offsets is None else offsets[at]

    for begin in range(0, k, LAZY):
        end = min(begin + LAZY, k)
        codes[taken[begin:end]] = walk.round(begin, end, read)
    return np.ascontiguousarray(codes.T)


class _Walk:
    """The state of a pass over the columns: the weight, and the error of the columns done."""

    def __init__(self, w: Floats, factor: _Factor, levels: Floats) -> None:
        self._w = w
        self._factor = factor
        self._levels = levels
        self._error: Floats = np.empty_like(w)
        """[n, k]: W - Q, of the columns done."""

    def compensated(self, begin: int, end: int) -> Floats:
        """[n, end - begin]: the best that the columns can be, given the rounding of those before."""
        return self._start(begin, self._factor.columns(begin, end)) if begin else self._w[:, :end].copy()

    def _start(self, begin: int, upper: Real) -> Floats:
        if not begin:
            first: Floats = self._w[:, : upper.shape[1]].copy()
            return first
        made_up: Floats = self._error[:, :begin] @ upper[:begin].astype(np.float32, copy=False)
        inverse: Floats = np.linalg.inv(upper[begin:]).astype(np.float32, copy=False)
        best: Floats = self._w[:, begin : begin + upper.shape[1]] + made_up @ inverse
        return best

    def round(self, begin: int, end: int, read: Callable[[int], tuple[Floats, Floats | None]]) -> npt.NDArray[np.uint8]:
        """The codes [columns, n] of columns begin to end; read(column) gives the scale and offset of each row."""
        upper = self._factor.columns(begin, end)
        inverse = np.linalg.inv(upper[begin:]).astype(np.float32, copy=False)  # U_BB of the paper
        columns = np.ascontiguousarray(self._start(begin, upper).T)
        codes = np.empty(columns.shape, np.uint8)
        pending = np.empty_like(columns)
        for strip in range(0, end - begin, STRIP):
            last = min(strip + STRIP, end - begin)
            for i in range(strip, last):
                scale, offset = read(begin + i)
                shifted = columns[i] if offset is None else columns[i] - offset
                codes[i] = nearest(shifted, self._levels, scale)
                value = scale * self._levels[codes[i]]
                value = value if offset is None else value + offset
                pending[i] = (columns[i] - value) / inverse[i, i]
                columns[i + 1 : last] -= inverse[i, i + 1 : last, None] * pending[i]
                columns[i] = value
            columns[last:] -= inverse[strip:last, last:].T @ pending[strip:last]
        self._error[:, begin:end] = self._w[:, begin:end] - columns.T
        return codes
