"""AWQ: input channels that matter get finer steps, by scales that the model's own operations absorb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest
from cpuinfer.quantize.quantised import checked, output_error, sampled_error, spans
from cpuinfer.quantize.scheme import Scheme
from cpuinfer.quantize.statistics import Statistics

Floats = npt.NDArray[np.float32]
LEAST_SCALE = 1e-4
ROWS = 256
"""Rows of a weight clipped at once."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Factors of the columns of weights that share an input, and what they gain."""

    scale: Floats
    """[k]: multiplies columns, divides the input."""
    exponent: float
    """The alpha it comes from; 0 where none is better than factors of 1."""
    errors: tuple[float, ...]
    """The mean squared error of the outputs for each exponent tried, that of factors of 1 first."""


def search_scales(
    weights: Sequence[npt.NDArray[np.floating]],
    statistics: Statistics,
    schemes: Sequence[Scheme],
    *,
    grid: int = 20,
    by_weight: bool = True,
    tied: npt.NDArray[np.intp] | None = None,
    search: bool = False,
) -> Scales:
    """Lin et al., arXiv 2306.00978, section 3.2: s = (mean |x|)^alpha, alpha on a grid over [0, 1).

    The loss is |Q(W diag s) diag(s)^-1 x - W x|^2 summed over the weights: on the sample where there is one, else by
    the Hessian.  (The authors' code takes the output of the whole attention for queries, keys and values.)
    by_weight: s = (mean |x|)^alpha / (mean over rows of |w| relative to its group's largest)^(1 - alpha), as AutoAWQ
    has it ("duo scaling"), tried besides.  s is divided by sqrt(max s * min s), as in the authors' code.
    tied: [k]: inputs of the same number share their factor, the largest of their magnitudes counting.
    search: how the weights are rounded in the trial.  Factors of 1 are among those tried, so no result is worse.
    """
    kept = [checked(w, scheme, statistics) for w, scheme in zip(weights, schemes, strict=True)]
    if not kept or grid < 1:
        raise InvalidRequest(f"awq: {len(kept)} weights, grid {grid}: expected at least one of each")
    magnitude = _shared(statistics.mean_magnitude, tied)
    share = _shared(_relative_magnitude(kept, schemes), tied) if by_weight else None
    ones = np.ones_like(magnitude)
    best, exponent, errors = ones, 0.0, [_loss(kept, schemes, ones, statistics, search=search)]
    for step in range(grid):
        alpha = step / grid
        candidates = [] if step == 0 else [magnitude**alpha]
        if share is not None:
            candidates.append(magnitude**alpha / (share ** (1 - alpha) + LEAST_SCALE))
        for candidate in candidates:
            scale = np.maximum(candidate, LEAST_SCALE).astype(np.float32)
            scale /= np.sqrt(scale.max() * scale.min())
            error = _loss(kept, schemes, scale, statistics, search=search)
            if error < min(errors):
                best, exponent = scale, alpha
            errors.append(error)
    return Scales(best, exponent, tuple(errors))


def search_clip(
    w: npt.NDArray[np.floating],
    statistics: Statistics,
    scheme: Scheme,
    *,
    grid: int = 20,
    most: float = 0.5,
    importance: npt.NDArray[np.floating] | None = None,
) -> Floats:
    """The weight with each group clipped where that makes the group's part of the output better.

    As the authors' code has it: magnitudes are cut to (1 - i / grid) of the
    group's largest, for i below most * grid; the loss of a row's group is |(W - Q) x|^2 over its own inputs alone, by
    the diagonal blocks of the Hessian.  The rounding is the format's, without search.  The code leaves queries and
    keys alone, whose products with each other are the output: that is for the caller.
    """
    w = checked(w, scheme, statistics)
    group = spans(scheme, w.shape[1])[0]
    shares = [np.float32(1 - i / grid) for i in range(max(1, int(most * grid)))]
    hessian = statistics.hessian
    squares = [
        np.ascontiguousarray(hessian[at : at + group, at : at + group], np.float32)
        for at in range(0, w.shape[1], group)
    ]
    clipped = np.empty_like(w)
    for begin in range(0, len(w), ROWS):
        part = w[begin : begin + ROWS]
        groups = part.reshape(len(part), -1, group)
        largest = np.abs(groups).max(axis=2, keepdims=True)
        best, least = groups, np.full(groups.shape[:2], np.inf, np.float32)
        for share in shares:
            cut = np.clip(groups, -share * largest, share * largest)
            trial = cut.reshape(part.shape)
            fit = scheme.fit(trial, importance, search=False)
            error = (part - scheme.values(scheme.codes(trial, fit), fit)).reshape(groups.shape)
            loss = np.stack([np.einsum("ij,ij->i", e @ h, e) for e, h in zip(_parts(error), squares, strict=True)], 1)
            better = loss < least
            best, least = np.where(better[:, :, None], cut, best), np.where(better, loss, least)
        clipped[begin : begin + ROWS] = best.reshape(part.shape)
    return clipped


def _parts(groups: Floats) -> list[Floats]:
    return [groups[:, i] for i in range(groups.shape[1])]


def _loss(
    weights: Sequence[Floats], schemes: Sequence[Scheme], scale: Floats, statistics: Statistics, *, search: bool
) -> float:
    total = 0.0
    for w, scheme in zip(weights, schemes, strict=True):
        scaled = w * scale
        fit = scheme.fit(scaled, search=search)
        error = w - scheme.values(scheme.codes(scaled, fit), fit) / scale
        sample = statistics.sample
        total += sampled_error(error, sample) if len(sample) else output_error(error, statistics)
    return total


def _relative_magnitude(weights: Sequence[Floats], schemes: Sequence[Scheme]) -> Floats:
    """[k]: the mean over all rows of |w| / max |w| of its group."""
    total, rows = np.zeros(weights[0].shape[1]), 0
    for w, scheme in zip(weights, schemes, strict=True):
        groups = np.abs(w).reshape(len(w), -1, spans(scheme, w.shape[1])[0])
        largest = groups.max(axis=2, keepdims=True)
        total += np.divide(groups, largest, out=np.zeros_like(groups), where=largest > 0).sum(axis=0).reshape(-1)
        rows += len(w)
    return (total / rows).astype(np.float32)


def _shared(x: Floats, tied: npt.NDArray[np.intp] | None) -> Floats:
    """Each number the largest of those it is tied to."""
    if tied is None:
        return x
    largest = np.zeros(int(tied.max()) + 1, x.dtype)
    np.maximum.at(largest, tied, x)
    return largest[tied]
