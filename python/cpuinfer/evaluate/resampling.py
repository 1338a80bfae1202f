"""Whether two means differ: permutation tests, bootstrap intervals and McNemar's test, exact where that is feasible.

A sample is sums and counts of blocks, its mean sum(sums) / sum(counts): windows of tokens, or questions of count 1.
p-values are two-sided: the share of rearrangements, the one found among them, whose difference is at least as large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from cpuinfer.evaluate.estimates import CONFIDENCE

Numbers = npt.NDArray[np.float64]

BLOCK = 1 << 20
"""Numbers drawn at a time."""
SLACK = 1e-12
"""Relative difference by which equal sums, added up in other orders, may be off."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Blocks and their sizes, [blocks] each."""

    sums: Numbers
    counts: Numbers

    @property
    def mean(self) -> float:
        """Of all that is in the blocks."""
        return math.fsum(self.sums) / math.fsum(self.counts)


def sign_flip_p(differences: Numbers, *, resamples: int, seed: int) -> float:
    """That differences of pairs are as likely to be of either sign: exact where 2^n is no more than `resamples`."""
    moved = differences[differences != 0]  # a flip of 0 changes nothing
    n = moved.size
    if n == 0:
        return 1.0
    least = abs(math.fsum(moved)) - SLACK * math.fsum(np.abs(moved))
    if 2**n <= resamples:
        codes = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return float(np.mean(np.abs((1.0 - 2.0 * codes) @ moved) >= least))
    generator = np.random.default_rng(seed)
    hits = 0
    for rows in _pieces(resamples, n):
        signs = 2.0 * generator.integers(0, 2, (rows, n)) - 1.0
        hits += int(np.count_nonzero(np.abs((signs * moved).sum(axis=1)) >= least))
    return (hits + 1) / (resamples + 1)


def permutation_p(a: Sample, b: Sample, *, resamples: int, seed: int) -> float:
    """That blocks of both are of one kind: exact where there are no more ways to share them out than `resamples`."""
    sums, counts = np.concatenate([a.sums, b.sums]), np.concatenate([a.counts, b.counts])
    n, first = sums.size, a.sums.size
    totals = sums.sum(), counts.sum()
    least = abs(b.mean - a.mean) - SLACK * (abs(a.mean) + abs(b.mean))

    def far(s: Numbers, c: Numbers) -> npt.NDArray[np.bool_]:
        """Whether groups of these sums and counts differ from the rest by as much as was found."""
        return np.asarray(np.abs((totals[0] - s) / (totals[1] - c) - s / c) >= least)

    if math.comb(n, first) <= resamples:
        groups = np.array(list(combinations(range(n), first)))
        return float(np.mean(far(sums[groups].sum(axis=1), counts[groups].sum(axis=1))))
    generator = np.random.default_rng(seed)
    hits = 0
    for rows in _pieces(resamples, n):
        order = generator.permuted(np.tile(np.arange(n), (rows, 1)), axis=1)[:, :first]
        hits += int(np.count_nonzero(far(sums[order].sum(axis=1), counts[order].sum(axis=1))))
    return (hits + 1) / (resamples + 1)


def paired_bootstrap(a: Sample, b: Sample, *, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval of b's mean less a's, blocks being drawn in pairs."""
    generator = np.random.default_rng(seed)
    means = [
        _means(b, drawn) - _means(a, drawn)
        for rows in _pieces(resamples, a.sums.size)
        for drawn in [generator.integers(0, a.sums.size, (rows, a.sums.size))]
    ]
    return _bounds(np.concatenate(means))


def two_sample_bootstrap(a: Sample, b: Sample, *, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval of b's mean less a's, blocks being drawn from each by itself."""
    generator = np.random.default_rng(seed)

    def draw(sample: Sample) -> Numbers:
        size = sample.sums.size
        pieces = [_means(sample, generator.integers(0, size, (rows, size))) for rows in _pieces(resamples, size)]
        return np.concatenate(pieces)

    means = draw(a)
    return _bounds(draw(b) - means)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """That of the questions which one of two gets right, either is as likely to: exact, two-sided (McNemar,
    Psychometrika 12, 1947, by the binomial distribution)."""
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, tail / (1 << max(n - 1, 0)))


def _means(sample: Sample, drawn: npt.NDArray[np.int64]) -> Numbers:
    return np.asarray(sample.sums[drawn].sum(axis=1) / sample.counts[drawn].sum(axis=1))


def _bounds(means: Numbers) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return low, high


def _pieces(resamples: int, size: int) -> Iterator[int]:
    """Rows of this size to draw at a time."""
    rows = max(1, BLOCK // size)
    for begin in range(0, resamples, rows):
        yield min(rows, resamples - begin)
