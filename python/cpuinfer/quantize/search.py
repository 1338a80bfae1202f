"""Scales and zero points of least weighted squared error among a finite number of candidates, in NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

SHARES = tuple(np.float32(share) for share in np.linspace(0.55, 1.1, 23))
"""Of the scale that holds a group's extremes: clipping a few numbers may make the rest finer."""
ENDS = tuple(np.float32(share) for share in (1.0, 0.93, 0.86, 0.78, 0.7, 0.6))
"""Of a group's least and greatest number, in all pairs."""
CHUNK = 1 << 18
"""Numbers searched at once: what stays in the second cache."""


def signed_largest(groups: Floats) -> Floats:
    """[n, groups]: of each group the number of largest magnitude, with its sign."""
    at = np.abs(groups).argmax(axis=2)[:, :, None]
    largest: Floats = np.take_along_axis(groups, at, axis=2)[:, :, 0]
    return largest


def nearest(x: Floats, levels: Floats, scale: Floats) -> npt.NDArray[np.uint8]:
    """The codes of the levels that, times a scale, are nearest to x; those nearest to 0 where the scale is 0."""
    quotient = np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)
    if levels[-1] - levels[0] == len(levels) - 1 and levels[0] == np.rint(levels[0]):  # integers
        codes = np.clip(np.rint(quotient) - levels[0], 0, len(levels) - 1)
    else:
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, quotient)
    found: npt.NDArray[np.uint8] = codes.astype(np.uint8)
    return found


def storable(scale: Floats) -> Floats:
    """Rounded to fp16; what is too large for it is 0."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = scale.astype(np.float16).astype(np.float32)
    return np.where(np.isfinite(rounded), rounded, np.float32(0))


def least_scale(groups: Floats, weights: Floats, levels: Floats, plain: Floats, largest: Floats) -> Floats:
    """[n, groups]: the best fp16 scale among `plain`; SHARES of those at which the largest number is the first or the
    last level; and for the codes of each of these, the scale of least squares."""
    n, count, size = groups.shape
    flat, by = groups.reshape(-1, size), np.ascontiguousarray(weights).reshape(-1, size)
    start, extreme = plain.reshape(-1), largest.reshape(-1)
    best = np.empty_like(start)
    step = max(1, CHUNK // size)
    for begin in range(0, len(flat), step):
        part = slice(begin, begin + step)
        best[part] = _least_scale(flat[part], by[part], levels, start[part], extreme[part])
    return best.reshape(n, count)


def _least_scale(x: Floats, weights: Floats, levels: Floats, plain: Floats, largest: Floats) -> Floats:
    weighted = weights * x

    def sums(scale: Floats) -> tuple[Floats, Floats]:
        """Of the nearest levels: their products with x, and their squares, both weighted."""
        chosen = levels[nearest(x, levels, scale[:, None])]
        return np.einsum("ij,ij->i", weighted, chosen), np.einsum("ij,ij,ij->i", weights, chosen, chosen)

    best, most = plain, np.full_like(plain, -np.inf)
    ends = [level for level in (levels[0], levels[-1]) if level != 0]
    candidates = [plain, *(storable(largest / level * share) for level in ends for share in SHARES)]
    for candidate in candidates:
        tried = candidate
        for again in (True, False):
            products, squares = sums(tried)
            gain = tried * (2 * products - tried * squares)  # what the error is less than that of zeros
            better = gain > most
            best, most = np.where(better, tried, best), np.where(better, gain, most)
            if again:
                tried = storable(np.divide(products, squares, out=np.zeros_like(products), where=squares > 0))
    return best


def least_affine(
    groups: Floats, weights: Floats, last: int, plain: Floats, zeros: npt.NDArray[np.uint8]
) -> tuple[Floats, Floats]:
    """Scales (fp16) and zero points, [n, groups] each: the best among the plain ones; those at which ENDS of the
    extremes, in all pairs, are the first and the last code; and for the codes of each, the scale of least squares."""
    n, count, size = groups.shape
    flat, by = groups.reshape(-1, size), np.ascontiguousarray(weights).reshape(-1, size)
    scale, zero = plain.reshape(-1), zeros.reshape(-1).astype(np.float32)
    best_scale, best_zero = np.empty_like(scale), np.empty_like(zero)
    step = max(1, CHUNK // size)
    for begin in range(0, len(flat), step):
        part = slice(begin, begin + step)
        best_scale[part], best_zero[part] = _least_affine(flat[part], by[part], last, scale[part], zero[part])
    return best_scale.reshape(n, count), best_zero.reshape(n, count)


def _least_affine(x: Floats, weights: Floats, last: int, plain: Floats, zeros: Floats) -> tuple[Floats, Floats]:
    weighted = weights * x
    best_scale, best_zero, most = plain, zeros, np.full_like(plain, -np.inf)
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    candidates = [(plain, zeros)]
    for bottom in ENDS:
        for top in ENDS:
            scale = storable((high * top - low * bottom) / last)
            zero = np.rint(np.divide(-low * bottom, scale, out=np.zeros_like(scale), where=scale != 0))
            candidates.append((scale, np.clip(zero, 0, last)))
    for scale, zero in candidates:
        tried = scale
        for again in (True, False):
            inverse = np.divide(1, tried, out=np.zeros_like(tried), where=tried != 0)
            point = zero[:, None]
            chosen = np.clip(np.rint(x * inverse[:, None]) + point, 0, last) - point
            products = np.einsum("ij,ij->i", weighted, chosen)
            squares = np.einsum("ij,ij,ij->i", weights, chosen, chosen)
            gain = tried * (2 * products - tried * squares)
            better = gain > most
            best_scale, best_zero = np.where(better, tried, best_scale), np.where(better, zero, best_zero)
            most = np.where(better, gain, most)
            if again:
                tried = storable(np.divide(products, squares, out=np.zeros_like(products), where=squares > 0))
    return best_scale, best_zero
