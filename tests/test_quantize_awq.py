"""AWQ's scales and clips against its equations tried one by one in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cpuinfer.errors import InvalidRequest, NumericalError
from cpuinfer.quantize.awq import search_clip, search_scales
from cpuinfer.quantize.quantised import output_error
from cpuinfer.quantize.rtn import rtn
from cpuinfer.quantize.scheme import find
from cpuinfer.quantize.statistics import Statistics

Array = npt.NDArray[np.floating]
K = 128


def case(*, capacity: int = 0) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32], Statistics]:
    """Two weights, inputs of which a few channels are large, and their statistics."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(n, K)).astype(np.float32) for n in (16, 24)]
    size = np.exp(0.5 * rng.normal(size=K))
    size[[3, 77]] *= 30
    x = (rng.normal(size=(400, K)) * size).astype(np.float32)
    statistics = Statistics.empty(K, capacity=capacity, dtype=np.float64)
    statistics.add(x)
    return weights, x, statistics


def loss(weights: list[Array], x: Array, s: Array) -> float:
    """|Q(W diag s) diag(s)^-1 x - W x|^2."""
    scheme = find("int4:g32")
    total = 0.0
    for w in weights:
        q = rtn(w * s.astype(np.float32), scheme).values(scheme)
        total += float(np.mean(np.sum((x.astype(np.float64) @ (q / s - w).T.astype(np.float64)) ** 2, axis=1)))
    return total


@pytest.mark.parametrize("capacity", [0, 400])
def test_scales_are_the_best_of_the_grid(capacity: int) -> None:
    weights, x, statistics = case(capacity=capacity)
    scheme = find("int4:g32")
    found = search_scales(weights, statistics, [scheme] * 2, by_weight=False)
    magnitude = np.abs(x).mean(axis=0).astype(np.float64)
    grid = []
    for step in range(20):
        s = magnitude ** (step / 20)
        grid.append(loss(weights, x, (s / np.sqrt(s.max() * s.min())).astype(np.float32)))
    np.testing.assert_allclose(found.errors, grid, rtol=1e-3)
    assert found.exponent == np.argmin(grid) / 20 > 0
    assert min(grid) < 0.5 * grid[0]
    assert loss(weights, x, found.scale) == pytest.approx(min(grid), rel=1e-3)


def test_scales_by_weight_are_tried_besides() -> None:
    weights, x, statistics = case()
    scheme = find("int4:g32")
    found = search_scales(weights, statistics, [scheme] * 2)
    largest = [np.abs(w).reshape(len(w), -1, 32) for w in weights]
    share = np.concatenate([(g / g.max(axis=2, keepdims=True)).reshape(-1, K) for g in largest]).mean(axis=0)
    magnitude = np.abs(x).mean(axis=0)
    tried = []
    for step in range(20):
        s = magnitude ** (step / 20) / (share ** (1 - step / 20) + 1e-4)
        tried.append(loss(weights, x, s / np.sqrt(s.max() * s.min())))
    assert len(found.errors) == 40
    np.testing.assert_allclose([found.errors[1], *found.errors[3::2]], tried, rtol=1e-3)
    assert min(found.errors) == pytest.approx(loss(weights, x, found.scale), rel=1e-3)


def test_tied_channels_share_a_scale() -> None:
    weights, _, statistics = case()
    tied = np.arange(K) // 16 % 4 * 16 + np.arange(K) % 16  # pairs of heads of 16
    found = search_scales(weights, statistics, [find("int4:g32")] * 2, tied=tied)
    first = np.array([found.scale[tied == t][0] for t in range(64)])
    assert (found.scale == first[tied]).all()
    assert min(found.errors) < 0.8 * found.errors[0]


def test_weights_that_no_scale_helps_keep_factors_of_1() -> None:
    scheme = find("int4:g32")
    w = scheme.levels[np.random.default_rng(0).integers(0, 16, (8, K))]
    w[:, ::32] = -8
    statistics = Statistics.empty(K)
    statistics.add(np.ones((4, K)))
    found = search_scales([w], statistics, [scheme])
    assert (found.scale == 1).all()
    assert found.exponent == found.errors[0] == 0


def test_clips_are_the_best_of_the_grid_for_each_group() -> None:
    weights, x, statistics = case()
    w, scheme = weights[0], find("int4:g32")
    w[:, 5] *= 6
    found = search_clip(w, statistics, scheme)
    cut = 0
    for c in range(0, K, 32):
        part, inputs = slice(c, c + 32), x[:, c : c + 32].astype(np.float64)
        tried = []
        for i in range(10):
            most = np.abs(w[:, part]).max(axis=1, keepdims=True) * (1 - i / 20)
            clipped = np.clip(w[:, part], -most, most).astype(np.float32)
            error = w[:, part] - rtn(clipped, scheme).values(scheme)
            tried.append((np.sum((inputs @ error.T) ** 2, axis=0), clipped))
        best = np.argmin([t[0] for t in tried], axis=0)
        for r in range(len(w)):
            np.testing.assert_allclose(found[r, part], tried[best[r]][1][r], rtol=1e-5)
        cut += (best > 0).sum()
    assert cut > 10
    errors = [output_error(w - rtn(v, scheme).values(scheme), statistics) for v in (found, w)]
    assert errors[0] < 0.95 * errors[1]


def test_bad_arguments_are_one_line_each() -> None:
    weights, _, statistics = case()
    scheme = find("int4:g32")
    with pytest.raises(InvalidRequest, match="awq: 0 weights, grid 20"):
        search_scales([], statistics, [])
    with pytest.raises(InvalidRequest, match="of no tokens"):
        search_scales(weights, Statistics.empty(K), [scheme] * 2)
    weights[1][0, 0] = np.inf
    with pytest.raises(NumericalError, match="weight: row 0 holds NaN or infinity"):
        search_scales(weights, statistics, [scheme] * 2)
