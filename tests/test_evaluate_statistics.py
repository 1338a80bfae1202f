"""Intervals and p-values of evaluations: exact where cases can be counted, and as often right as they say elsewhere."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest

from cpuinfer.evaluate import resampling
from cpuinfer.evaluate.estimates import mean_of_blocks, student_quantile, wilson
from cpuinfer.evaluate.resampling import Sample

Array = npt.NDArray[np.float64]


def ones(values: Array) -> Sample:
    return Sample(np.asarray(values, np.float64), np.ones(len(values)))


# Of two-sided 95 %: published tables (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2).
@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042), (31, 2.040), (100, 1.984)],
)
def test_students_quantiles_are_those_of_tables(freedom: int, value: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(value, abs=6e-4)


def test_both_ways_to_students_quantile_agree_where_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    from cpuinfer.evaluate import estimates

    expanded = student_quantile(0.975, 60)
    monkeypatch.setattr(estimates, "_MOST_SUMMED", 60)
    assert student_quantile(0.975, 60) == pytest.approx(expanded, abs=1e-6)


def test_of_one_degree_of_freedom_the_quantile_is_cauchys() -> None:
    assert student_quantile(0.975, 1) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-9)


def test_the_mean_of_equal_blocks_has_the_plain_standard_error() -> None:
    values = np.random.default_rng(1).standard_normal(12)
    found = mean_of_blocks((values * 7).tolist(), [7] * 12)
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(12), rel=1e-12)
    assert found.high is not None
    assert found.high - found.value == pytest.approx(2.200985 * found.standard_error, rel=1e-6)


def test_one_block_has_no_interval() -> None:
    found = mean_of_blocks([3.0], [2])
    assert (found.value, found.standard_error, found.low, found.high) == (1.5, None, None, None)


def test_intervals_of_correlated_numbers_hold_by_blocks_and_not_by_tokens() -> None:
    """An autoregression of 0.8, in blocks of 128 but for a shorter last one."""
    random = np.random.default_rng(2)
    texts, length, decay = 400, 128 * 15 + 50, 0.8
    noise = random.standard_normal((texts, length + 100))
    series = np.zeros_like(noise)
    for t in range(1, noise.shape[1]):
        series[:, t] = decay * series[:, t - 1] + noise[:, t]
    covered = {128: 0, 1: 0}
    for text in series[:, 100:]:
        for size in covered:
            cuts = range(0, length, size)
            sums = np.add.reduceat(text, list(cuts)).tolist()
            found = mean_of_blocks(sums, [min(size, length - cut) for cut in cuts])
            covered[size] += found.low <= 0 <= found.high  # type: ignore[operator]
    # 400 draws of a share of 0.95 deviate by 0.011; what is correlated across the ends of blocks takes another 0.01.
    assert 0.90 <= covered[128] / texts <= 0.98
    assert covered[1] / texts < 0.6


@pytest.mark.parametrize(
    ("successes", "count"),
    [(0, 10), (1, 10), (5, 10), (10, 10), (81, 263)],
)
def test_wilsons_bounds_are_where_the_score_test_just_rejects(successes: int, count: int) -> None:
    found = wilson(successes, count)
    assert found.value == successes / count
    for bound in (found.low, found.high):
        assert bound is not None
        if 0 < bound < 1:
            deviation = abs(found.value - bound) / math.sqrt(bound * (1 - bound) / count)
            assert deviation == pytest.approx(1.959964, abs=1e-6)


def test_wilsons_interval_of_81_in_263_is_newcombes() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    found = wilson(81, 263)
    assert (found.low, found.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, -2.0, 0.5, 0.0, 3.0], [0.1, 0.2, -0.3], [0.0, 0.0]])
def test_few_pairs_are_flipped_in_all_ways(values: list[float]) -> None:
    flips = [abs(sum(sign * value for sign, value in zip(signs, values, strict=True))) for signs in signs_of(values)]
    expected = np.mean([flip >= abs(sum(values)) - 1e-12 for flip in flips])
    assert resampling.sign_flip_p(np.array(values), resamples=1000, seed=0) == pytest.approx(expected)


def signs_of(values: list[float]) -> itertools.product[tuple[int, ...]]:
    return itertools.product((1, -1), repeat=len(values))


def test_many_pairs_are_flipped_at_random_to_the_same_end() -> None:
    values = np.random.default_rng(3).standard_normal(12) + 0.4
    exact = resampling.sign_flip_p(values, resamples=4096, seed=0)
    drawn = resampling.sign_flip_p(values, resamples=4095, seed=0)
    assert exact != drawn
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / 4095))


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], [3.0, 4.0, 5.0]), ([0.0, 1.0, 1.0], [0.0, 0.0]), ([1.0], [1.0])])
def test_few_items_are_shared_out_in_all_ways(a: list[float], b: list[float]) -> None:
    pooled = [*a, *b]
    found = abs(np.mean(b) - np.mean(a))
    differences = []
    for group in itertools.combinations(range(len(pooled)), len(a)):
        rest = [pooled[i] for i in range(len(pooled)) if i not in group]
        differences.append(abs(np.mean(rest) - np.mean([pooled[i] for i in group])))
    expected = np.mean([difference >= found - 1e-12 for difference in differences])
    p = resampling.permutation_p(ones(np.array(a)), ones(np.array(b)), resamples=100, seed=0)
    assert p == pytest.approx(expected)


def test_many_items_are_shared_out_at_random_to_the_same_end() -> None:
    random = np.random.default_rng(4)
    a, b = ones(random.standard_normal(7)), ones(random.standard_normal(6) + 0.7)
    ways = math.comb(13, 7)
    exact = resampling.permutation_p(a, b, resamples=ways, seed=0)
    drawn = resampling.permutation_p(a, b, resamples=ways - 1, seed=0)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / ways))


def test_p_values_are_uniform_where_nothing_differs() -> None:
    """By Kolmogorov's distance, of which 1.63 / sqrt(n) is exceeded once in a hundred; p is a multiple of 1 / 100."""
    random = np.random.default_rng(5)
    counts = np.full(24, 64.0)
    tests: dict[str, list[float]] = {"signs": [], "groups": []}
    for seed in range(1500):
        x, y = random.gamma(2.0, 1.0, (2, 24)) * 64
        tests["signs"].append(resampling.sign_flip_p(x - y, resamples=99, seed=seed))
        tests["groups"].append(resampling.permutation_p(Sample(x, counts), Sample(y, counts), resamples=99, seed=seed))
    grid = np.arange(1, 101) / 100
    for name, values in tests.items():
        shares = np.mean(np.array(values)[:, None] <= grid + 1e-9, axis=0)
        assert np.abs(shares - grid).max() < 1.63 / math.sqrt(1500), name


def test_bootstrap_intervals_cover_the_difference() -> None:
    random = np.random.default_rng(6)
    paired = apart = 0
    for seed in range(300):
        a, b = random.standard_normal((2, 60))
        low, high = resampling.paired_bootstrap(ones(a), ones(a + b + 0.3), resamples=400, seed=seed)
        paired += low <= 0.3 <= high
        low, high = resampling.two_sample_bootstrap(ones(a), ones(b[:50] + 0.3), resamples=400, seed=seed)
        apart += low <= 0.3 <= high
    # 300 draws of 0.95 deviate by 0.013; of 60 items percentiles are short by some 0.01.
    assert 0.90 <= paired / 300 <= 0.98
    assert 0.90 <= apart / 300 <= 0.98


def test_pairing_sees_what_two_samples_do_not() -> None:
    random = np.random.default_rng(7)
    a = 10 * random.standard_normal(40)
    b = a + 0.1 + 0.01 * random.standard_normal(40)
    assert resampling.sign_flip_p(b - a, resamples=1000, seed=0) < 0.01
    assert resampling.permutation_p(ones(a), ones(b), resamples=1000, seed=0) > 0.5


@pytest.mark.parametrize(("only_a", "only_b", "p"), [(0, 0, 1.0), (1, 0, 1.0), (0, 5, 2 / 32), (1, 5, 2 * 7 / 64)])
def test_mcnemar_counts_the_binomial_tail(only_a: int, only_b: int, p: float) -> None:
    assert resampling.mcnemar_p(only_a, only_b) == pytest.approx(p)
    assert resampling.mcnemar_p(only_b, only_a) == pytest.approx(p)


def test_mcnemar_is_the_sign_flip_test_of_accuracies() -> None:
    a = np.array([1, 1, 1, 0, 0, 1, 1, 1, 0, 1.0])
    b = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0, 0.0])
    flipped = resampling.sign_flip_p(b - a, resamples=1000, seed=0)
    assert resampling.mcnemar_p(int((a > b).sum()), int((b > a).sum())) == pytest.approx(flipped)


def test_a_seed_decides_what_is_drawn() -> None:
    a, b = np.random.default_rng(8).standard_normal((2, 30))
    first, again, other = (
        resampling.paired_bootstrap(ones(a), ones(b), resamples=200, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
