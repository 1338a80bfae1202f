"""Means with their intervals: of windows, whose neighbouring tokens correlate, and of right answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

CONFIDENCE = 0.95
_TAIL = (1 + CONFIDENCE) / 2
_MOST_SUMMED = 30
"""Degrees of freedom up to which Student's distribution is summed."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number measured, and the interval that contains the true one in 95 % of such measurements.

    Attributes:
        value: what was found.
        standard_error: its standard deviation over texts of the kind; None, as the bounds, where one window is all
            there is.
        low, high: the interval.
    """

    value: float
    standard_error: float | None
    low: float | None
    high: float | None

    def scaled(self, factor: float) -> Estimate:
        """In another unit."""
        error = None if self.standard_error is None else self.standard_error * factor
        return replace(self.mapped(lambda x: x * factor), standard_error=error)

    def exponential(self) -> Estimate:
        """Of exp(value): the interval is that of the value, carried over; the error is its first order."""
        value = math.exp(self.value)
        error = None if self.standard_error is None else self.standard_error * value
        return replace(self.mapped(math.exp), standard_error=error)

    def mapped(self, function: Callable[[float], float]) -> Estimate:
        """Value and bounds through an increasing function; the standard error is left out."""
        low, high = (None if bound is None else function(bound) for bound in (self.low, self.high))
        return Estimate(function(self.value), None, low, high)


def mean_of_blocks(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """sum(sums) / sum(counts), each pair being the total of a block and how many numbers it is the total of.

    The error is that of a ratio (Cochran, Sampling Techniques, 3rd ed., section 6.4): with blocks taken as independent,
    whatever goes on within one, var = n / (n - 1) sum((s - mean c)^2) / (sum c)^2; the interval is Student's, of n - 1
    degrees of freedom.  Sums are exact to the last rounding, so the order of blocks does not matter.
    """
    total, blocks = sum(counts), len(sums)
    mean = math.fsum(sums) / total
    if blocks < 2:
        return Estimate(mean, None, None, None)
    squares = math.fsum((s - mean * c) ** 2 for s, c in zip(sums, counts, strict=True))
    error = math.sqrt(squares * blocks / (blocks - 1)) / total
    reach = student_quantile(_TAIL, blocks - 1) * error
    return Estimate(mean, error, mean - reach, mean + reach)


def wilson(successes: int, count: int) -> Estimate:
    """A proportion with Wilson's score interval (Journal of the American Statistical Association 22, 1927)."""
    p, z = successes / count, NormalDist().inv_cdf(_TAIL)
    scale = 1 + z * z / count
    centre = (p + z * z / (2 * count)) / scale
    reach = z / scale * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    error = math.sqrt(p * (1 - p) / count)
    return Estimate(p, error, max(0.0, min(p, centre - reach)), min(1.0, max(p, centre + reach)))


def student_quantile(probability: float, freedom: int) -> float:
    """Of Student's distribution, for a probability above 1/2; to better than 1e-6.

    Few degrees of freedom: the finite sums for its integral, solved by bisection; many: Fisher's expansion around the
    normal quantile (Abramowitz and Stegun, 26.7.3, 26.7.4 and 26.7.5).
    """
    if freedom > _MOST_SUMMED:
        return _fisher(NormalDist().inv_cdf(probability), freedom)
    low, high = 0.0, math.pi / 2  # of the angle atan(t / sqrt(freedom))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < t) with angle = atan(t / sqrt(freedom))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for i in range(2 if odd else 1, freedom, 2):
        total += term
        term *= cosine * cosine * i / (i + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _fisher(z: float, freedom: int) -> float:
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum([z, *(term / float(freedom) ** (i + 1) for i, term in enumerate(terms))])
