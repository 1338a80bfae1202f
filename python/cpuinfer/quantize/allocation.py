"""Which scheme each tensor gets under a budget of bits, from what each scheme does to each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest, NumericalError

Costs = npt.NDArray[np.float64]


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
    On the lower convex hull of each tensor's points (bits, error), steps are taken in the order of the error they save
    a bit, as long as they fit: up to the first that does not, that is the solution of the continuous relaxation
    (Sinha and Zoltners, Operations Research 27, 1979), which gives `bound`; the error is above it by less than that
    one step saves.  What room is left goes to the best single changes and pairs of changes, until none helps.
    Raises InvalidRequest where not even the smallest candidates fit.
    """
    costs, sizes = _checked(errors, bits)
    hulls = [_hull(e, b) for e, b in zip(costs, sizes, strict=True)]
    choices = np.array([hull[0] for hull in hulls])
    tensors = np.arange(len(choices))
    least = float(sizes[tensors, choices].sum())
    if least > budget:
        raise InvalidRequest(f"allocation: a budget of {budget:.0f} bits, but the smallest candidates take {least:.0f}")
    bound = _climb(choices, hulls, costs, sizes, budget)
    while _improve(choices, costs, sizes, budget):
        pass
    return Allocation(
        tuple(int(c) for c in choices),
        float(costs[tensors, choices].sum()),
        float(sizes[tensors, choices].sum()),
        bound,
    )


def _checked(errors: npt.NDArray[np.floating], bits: npt.NDArray[np.floating]) -> tuple[Costs, Costs]:
    """Both as float64, infinite for candidates that cannot be."""
    if errors.ndim != 2 or errors.shape != bits.shape or not errors.size:
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


def _climb(
    choices: npt.NDArray[np.int64], hulls: Sequence[list[int]], errors: Costs, bits: Costs, left: float
) -> float:
    """Take hull steps while they fit, in place; the error of the continuous relaxation."""
    tensors = np.arange(len(choices))
    left -= float(bits[tensors, choices].sum())
    bound, broken = float(errors[tensors, choices].sum()), False
    steps = [(-_saved(errors[t], bits[t], a, b), t, a, b) for t, hull in enumerate(hulls) for a, b in pairwise(hull)]
    for slope, t, a, b in sorted(steps):
        more = float(bits[t, b] - bits[t, a])
        if not broken:
            broken = more > left
            bound += slope * left if broken else float(errors[t, b] - errors[t, a])
        if choices[t] == a and more <= left:
            choices[t] = b
            left -= more
    return bound


def _improve(choices: npt.NDArray[np.int64], errors: Costs, bits: Costs, budget: float) -> bool:
    """The best change of one tensor or of two at once that fits, in place; whether there was one."""
    tensors = np.arange(len(choices))
    room = budget - float(bits[tensors, choices].sum())
    gain = errors[tensors, choices][:, None] - errors
    more = np.where(np.isfinite(bits), bits - bits[tensors, choices][:, None], np.inf)
    flat_gain, flat_more, owner = gain.reshape(-1), more.reshape(-1), np.repeat(tensors, errors.shape[1])
    fits = flat_more <= room
    first = int(np.where(fits, flat_gain, -np.inf).argmax())
    best, changes = flat_gain[first] if fits[first] else -np.inf, [first]
    # Pairs: one that gives room and one that uses it.  For each first, the best second that fits with it.
    order = np.argsort(flat_more, kind="stable")
    for t in tensors:
        others = order[owner[order] != t]
        if not len(others):
            continue
        top = np.maximum.accumulate(flat_gain[others])
        where = np.searchsorted(flat_more[others], room - more[t], side="right") - 1
        total = np.where(where >= 0, gain[t] + top[np.maximum(where, 0)], -np.inf)
        c = int(total.argmax())
        if total[c] > best:
            second = others[: where[c] + 1][int(flat_gain[others[: where[c] + 1]].argmax())]
            best, changes = total[c], [int(t) * errors.shape[1] + c, int(second)]
    if not best > 1e-12 * float(errors[tensors, choices].sum()):
        return False
    for change in changes:
        choices[change // errors.shape[1]] = change % errors.shape[1]
    return True
