"""Which scheme each tensor gets under a budget of bits, from what each scheme does to each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest, NumericalError
from cpuinfer.quantize.quantised import output_error
from cpuinfer.quantize.rtn import importance
from cpuinfer.quantize.scheme import Scheme
from cpuinfer.quantize.statistics import Statistics

Costs = npt.NDArray[np.float64]
UNITS = 20_000
MOST_CANDIDATES = 256


def sensitivity(
    w: npt.NDArray[np.floating], statistics: Statistics, schemes: Sequence[Scheme]
) -> npt.NDArray[np.float64]:
    """[schemes]: what rounding a weight by each does to its output, relative to the output's own mean square.

    The rounding is that of `importance`.  Shares of one tensor's output are a first guess at what the model's output
    suffers: a divergence measured with one tensor rounded at a time is the better input to `allocate`.
    """
    own = output_error(w, statistics)
    errors = [output_error(w - importance(w, statistics, scheme).values(scheme), statistics) for scheme in schemes]
    return np.asarray(errors) / (own or 1.0)


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice for each tensor."""

    choices: tuple[int, ...]
    """For each tensor the candidate taken."""
    error: float
    bits: float
    bound: float
    """No choice within the budget has a smaller error than this."""


def allocate(errors: npt.NDArray[np.floating], bits: npt.NDArray[np.floating], budget: float) -> Allocation:
    """The candidates of least total error within a total of bits: a multiple-choice knapsack.

    errors, bits [tensors, candidates]: what each candidate costs each tensor; infinity for one that cannot be.
    budget: in total bits; for `x` bits a weight, x times the weights.
    Solved by dynamic programming over what is spent beyond the smallest candidates, in UNITS parts of what there is to
    spend, each candidate's part rounded; of its answers the best that fits unrounded.  `bound` is of the continuous
    relaxation: steps on the lower convex hulls of the tensors' points (bits, error), in the order of what they save a
    bit (Sinha and Zoltners, Operations Research 27, 1979).
    Raises InvalidRequest where not even the smallest candidates fit.
    """
    costs, sizes = _checked(errors, bits)
    rows, smallest = np.arange(len(costs)), sizes.argmin(axis=1)
    least = float(sizes[rows, smallest].sum())
    if least > budget:
        raise InvalidRequest(f"allocation: a budget of {budget:.0f} bits, but the smallest candidates take {least:.0f}")
    choices = _solve(costs, sizes - sizes.min(axis=1, keepdims=True), budget - least)
    return Allocation(
        tuple(int(choice) for choice in choices),
        float(costs[rows, choices].sum()),
        float(sizes[rows, choices].sum()),
        _relaxed(costs, sizes, budget),
    )


def _checked(errors: npt.NDArray[np.floating], bits: npt.NDArray[np.floating]) -> tuple[Costs, Costs]:
    """Both as float64, infinite for candidates that cannot be."""
    if errors.ndim != 2 or errors.shape != bits.shape or not errors.size or errors.shape[1] > MOST_CANDIDATES:
        raise InvalidRequest(f"allocation: errors {errors.shape} and bits {bits.shape}, expected [tensors, candidates]")
    if np.isnan(errors).any() or np.isnan(bits).any() or (errors < 0).any() or (bits < 0).any():
        raise NumericalError("allocation: errors or bits hold NaN or numbers below 0")
    allowed = np.isfinite(errors) & np.isfinite(bits)
    if not allowed.any(axis=1).all():
        raise InvalidRequest(f"allocation: tensor {int(np.argmin(allowed.any(axis=1)))} has no candidate")
    return np.where(allowed, errors, np.inf).astype(np.float64), np.where(allowed, bits, np.inf).astype(np.float64)


def _hull(errors: Costs, bits: Costs) -> list[int]:
    """Candidates on the lower convex hull, from the smallest to that of least error."""
    hull: list[int] = []
    for i in np.lexsort((errors, bits)):
        if not np.isfinite(bits[i]) or (hull and errors[i] >= errors[hull[-1]]):
            continue
        while len(hull) > 1 and _saved(errors, bits, hull[-2], hull[-1]) <= _saved(errors, bits, hull[-1], int(i)):
            hull.pop()
        hull.append(int(i))
    return hull


def _saved(errors: Costs, bits: Costs, a: int, b: int) -> float:
    """The error that going from a to b saves, a bit."""
    more = float(bits[b] - bits[a])
    return float(errors[a] - errors[b]) / more if more > 0 else np.inf


def _relaxed(errors: Costs, bits: Costs, budget: float) -> float:
    """The error of the continuous relaxation: hull steps in order until one does not fit, and a part of that one."""
    hulls = [_hull(e, b) for e, b in zip(errors, bits, strict=True)]
    left = budget - sum(float(bits[t, hull[0]]) for t, hull in enumerate(hulls))
    error = sum(float(errors[t, hull[0]]) for t, hull in enumerate(hulls))
    steps = [
        (_saved(errors[t], bits[t], a, b), float(bits[t, b] - bits[t, a]))
        for t, hull in enumerate(hulls)
        for a, b in pairwise(hull)
    ]
    for slope, more in sorted(steps, reverse=True):
        taken = min(more, left)
        error -= slope * taken
        left -= taken
    return error


def _solve(errors: Costs, extra: Costs, room: float) -> npt.NDArray[np.int64]:
    """[tensors]: the best candidates that take no more than `room` bits beyond the smallest, as UNITS can tell."""
    tensors = len(errors)
    with np.errstate(invalid="ignore"):
        spent = np.where(extra <= 0, 0, np.rint(extra / room * UNITS) if room > 0 else np.inf)
    most = UNITS + tensors // 2  # what rounding down may let in
    best = np.zeros(most + 1)
    """The least error of the tensors so far for each amount spent at most."""
    kept = np.empty((tensors, most + 1), np.uint8)
    for t, (costs, units) in enumerate(zip(errors, spent, strict=True)):
        after = np.full(most + 1, np.inf)
        for candidate, (cost, more) in enumerate(zip(costs, units, strict=True)):
            if not more <= most or not np.isfinite(cost):
                continue
            begin = int(more)
            total = best[: most + 1 - begin] + cost
            better = total < after[begin:]
            after[begin:][better] = total[better]
            kept[t, begin:][better] = candidate
        best = after
    # Half a unit a tensor may have been rounded away: go down to the first choice that fits in truth.
    for left in range(most, -1, -1):
        choices = _traced(kept, spent, left)
        if extra[np.arange(tensors), choices].sum() <= room:
            break
    return choices


def _traced(kept: npt.NDArray[np.uint8], spent: Costs, left: int) -> npt.NDArray[np.int64]:
    choices = np.empty(len(kept), np.int64)
    for t in reversed(range(len(kept))):
        choices[t] = kept[t, left]
        left -= int(spent[t, choices[t]])
    return choices
