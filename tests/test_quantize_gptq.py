"""GPTQ against the same sums done the slow way in float64: explicit inverses, one column at a time; and its bounds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cpuinfer.errors import InvalidRequest, NumericalError
from cpuinfer.quantize.gptq import Order, gptq
from cpuinfer.quantize.quantised import output_error
from cpuinfer.quantize.rtn import importance, opt_rtn, rtn
from cpuinfer.quantize.scheme import Scheme, find
from cpuinfer.quantize.statistics import Statistics

Array = npt.NDArray[np.float64]
ROWS = 24


def layer(k: int, *, tokens: int = 1000, seed: int = 0) -> tuple[npt.NDArray[np.float32], Statistics]:
    """A weight, and statistics of inputs that are correlated and of different sizes."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(ROWS, k)).astype(np.float32)
    mix = rng.normal(size=(12, k)) * np.exp(rng.normal(size=(12, 1)))
    x = (rng.normal(size=(tokens, 12)) @ mix + rng.normal(size=(tokens, k))) * np.exp(0.7 * rng.normal(size=k))
    statistics = Statistics.empty(k, dtype=np.float64)
    statistics.add(x)
    return w, statistics


def column_by_column(
    w: npt.NDArray[np.float32], hessian: Array, scheme: Scheme, order: npt.NDArray[np.int64], *, static: bool
) -> Array:
    """Optimal Brain Surgeon's update, from which arXiv 2210.17323 starts, for each column, the inverse of what is left
    of the Hessian computed anew each time; [n, k] values, columns in the order rounded."""
    k = w.shape[1]
    group, block = (size if size > 0 else k for size in (scheme.group, scheme.block))
    damped = hessian[np.ix_(order, order)] + 0.01 * np.mean(np.diagonal(hessian)) * np.eye(k)
    current, diagonal = w[:, order].astype(np.float64), np.diagonal(hessian)[order]
    whole = scheme.fit(w, np.diagonal(hessian))
    done = np.zeros_like(current)
    for j in range(k):
        if static:
            at = order[j] // group
            scale, offset = whole.scale[:, at], None if whole.offset is None else whole.offset[:, at]
        else:
            if j % block == 0:
                fit = scheme.fit(current[:, j : j + block].astype(np.float32), diagonal[j : j + block])
            at = j % block // group
            scale, offset = fit.scale[:, at], None if fit.offset is None else fit.offset[:, at]
        numbers = scale[:, None] * scheme.levels + (0 if offset is None else offset[:, None])
        value = np.take_along_axis(numbers, np.abs(numbers - current[:, j, None]).argmin(axis=1)[:, None], axis=1)[:, 0]
        inverse = np.linalg.inv(damped[j:, j:])
        current[:, j:] -= np.outer((current[:, j] - value) / inverse[0, 0], inverse[0])
        done[:, j] = value
    return done


@pytest.mark.parametrize("order", ["none", "static", "dynamic"])
@pytest.mark.parametrize("name", ["int4:g32", "int3:g64:asym", "nf4:g32", "int4:g-1"])
def test_values_are_those_of_explicit_inverses(name: str, order: Order) -> None:
    w, statistics = layer(128)
    scheme = find(name)
    columns = np.arange(128) if order == "none" else np.argsort(-np.diagonal(statistics.hessian), kind="stable")
    slow = np.empty((ROWS, 128))
    slow[:, columns] = column_by_column(w, statistics.hessian, scheme, columns, static=order == "static")
    found = gptq(w, statistics, scheme, order=order)
    # Where a column is all but half-way between two levels float32 may go the other way, and the row then differs.
    rows = np.isclose(found.values(scheme), slow, rtol=1e-3, atol=1e-4).all(axis=1)
    assert rows.mean() > 0.9, rows
    error, least = (output_error(w - q, statistics) for q in (found.values(scheme), slow))
    assert error == pytest.approx(least, rel=0.02)
    if order == "dynamic":
        group = scheme.group if scheme.group > 0 else 128
        assert (found.group_index(scheme)[columns] == np.arange(128) // group).all()


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q3_K", "IQ4_XS", "Q4_1", "Q4_0"])
def test_block_types_are_those_of_the_paper_s_algorithm_without_lazy_blocks(name: str) -> None:
    w, statistics = layer(768)
    scheme, k = find(name), 768
    hessian = statistics.hessian
    damped = hessian + 0.01 * np.mean(np.diagonal(hessian)) * np.eye(k)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    current, slow = w.astype(np.float64), np.empty((ROWS, k))
    for j in range(k):
        if j % scheme.block == 0:
            block = slice(j, j + scheme.block)
            fit = scheme.fit(current[:, block].astype(np.float32), np.diagonal(hessian)[block])
        at = j % scheme.block // scheme.group
        numbers = fit.scale[:, at, None] * scheme.levels + (0 if fit.offset is None else fit.offset[:, at, None])
        nearest = np.abs(numbers - current[:, j, None]).argmin(axis=1)
        slow[:, j] = np.take_along_axis(numbers, nearest[:, None], axis=1)[:, 0]
        current[:, j:] -= np.outer((current[:, j] - slow[:, j]) / upper[j, j], upper[j, j:])
    found = gptq(w, statistics, scheme, order="none")
    values = found.values(scheme)
    assert (scheme.rows(found.codes, found.fit).to_float(np.float32) == values).all()
    # The first block has no roundings before it to differ from; later ones follow any difference in a row.
    first = np.isclose(values, slow, rtol=1e-3, atol=1e-4)[:, : scheme.block]
    assert first.mean() > 0.98
    error, least = (output_error(w - q, statistics) for q in (values, slow))
    assert error == pytest.approx(least, rel=0.05)
    plain = output_error(w - rtn(w, scheme).values(scheme), statistics)
    assert error < plain / 2
    static = gptq(w, statistics, scheme)
    assert output_error(w - static.values(scheme), statistics) < plain / 2


@pytest.mark.parametrize("name", ["int4:g32", "int4:g128", "int4:g128:asym", "nf4:g64"])
def test_correlated_inputs_leave_less_than_a_third_of_the_error_of_rounding_to_nearest(name: str) -> None:
    w, statistics = layer(256)
    scheme = find(name)
    plain = output_error(w - rtn(w, scheme).values(scheme), statistics)
    for order in ("none", "static", "dynamic"):
        found = gptq(w, statistics, scheme, order=order)  # type: ignore[arg-type]
        assert output_error(w - found.values(scheme), statistics) < plain / 3


def test_importance_leaves_less_error_weighted_by_mean_squares_than_a_search_without_and_that_less_than_none() -> None:
    w, statistics = layer(256)
    scheme = find("int4:g64")
    methods = [importance(w, statistics, scheme), opt_rtn(w, scheme), rtn(w, scheme)]
    errors = [float(((w - q.values(scheme)) ** 2 @ statistics.mean_square).sum()) for q in methods]
    assert errors[0] < 0.9 * errors[1] < 0.9 * errors[2]
    assert ((w - methods[1].values(scheme)) ** 2).sum() < 0.9 * ((w - methods[2].values(scheme)) ** 2).sum()


def test_uncorrelated_inputs_make_it_round_to_nearest() -> None:
    w, statistics = layer(64)
    assert statistics.triangle is not None
    statistics.triangle[:] = np.eye(64)
    scheme = find("int4:g32")
    found = gptq(w, statistics, scheme, order="none", search=False)
    assert (found.codes == rtn(w, scheme).codes).all()


def test_inputs_that_are_always_0_are_rounded_to_nearest_and_disturb_nothing() -> None:
    w, statistics = layer(96)
    assert statistics.triangle is not None
    dead = [5, 40, 95]
    statistics.triangle[dead, :] = statistics.triangle[:, dead] = 0
    scheme = find("int4:g32")
    found = gptq(w, statistics, scheme, search=False, order="static")
    assert (found.codes[:, dead] == rtn(w, scheme).codes[:, dead]).all()
    wild = w.copy()
    wild[:, dead] *= 0.5  # within the group's extremes, so no scale changes
    again = gptq(wild, statistics, scheme, search=False, order="static")
    others = np.setdiff1d(np.arange(96), dead)
    largest = np.abs(w).reshape(ROWS, 3, 32).argmax(axis=2) + np.array([0, 32, 64])
    same = ~np.isin(largest, dead).any(axis=1)
    assert same.any()
    assert (again.codes[same][:, others] == found.codes[same][:, others]).all()


def test_no_inputs_but_zeros_round_to_nearest() -> None:
    w, _ = layer(64)
    statistics = Statistics.empty(64)
    statistics.add(np.zeros((3, 64)))
    scheme = find("int4:g32")
    assert (gptq(w, statistics, scheme).codes == opt_rtn(w, scheme).codes).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fewer_tokens_than_inputs_are_enough_with_damping(dtype: type[np.float32] | type[np.float64]) -> None:
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(ROWS, 128)).astype(np.float32), rng.normal(size=(20, 128))
    statistics = Statistics.empty(128, dtype=dtype)
    statistics.add(x)
    scheme = find("int4:g32")
    found = gptq(w, statistics, scheme)
    assert found.damping == 0.01
    assert output_error(w - found.values(scheme), statistics) < 0.3 * output_error(
        w - rtn(w, scheme).values(scheme), statistics
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_singular_hessian_raises_the_damping(dtype: type[np.float32] | type[np.float64]) -> None:
    w, _ = layer(64)
    statistics = Statistics.empty(64, dtype=dtype)
    statistics.add(np.outer([1.0, 2.0, 0.5], np.linspace(1, 2, 64)))
    scheme = find("int4:g32")
    found = gptq(w, statistics, scheme, damping=0)
    assert 0 < found.damping <= 0.1
    assert np.isfinite(found.values(scheme)).all()


def test_a_hessian_that_no_damping_makes_positive_is_refused() -> None:
    w, statistics = layer(64)
    assert statistics.triangle is not None
    statistics.triangle[:] = np.eye(64)
    statistics.triangle[3, 2] = statistics.triangle[2, 3] = 100
    with pytest.raises(NumericalError, match="hessian: not positive with 10 times its mean diagonal"):
        gptq(w, statistics, find("int4:g32"))


def test_bad_arguments_are_one_line_each() -> None:
    w, statistics = layer(64)
    scheme = find("int4:g32")
    wrong = w.copy()
    wrong[3, 7] = np.nan
    with pytest.raises(NumericalError, match="weight: row 3 holds NaN or infinity"):
        gptq(wrong, statistics, scheme)
    with pytest.raises(InvalidRequest, match=r"int4:g128:sym: rows of 64 weights, expected a multiple of 128"):
        gptq(w, statistics, find("int4:g128"))
    with pytest.raises(InvalidRequest, match="weight: rows of 32, but statistics of 64 inputs"):
        gptq(w[:, :32], statistics, scheme)
    with pytest.raises(InvalidRequest, match="of no tokens, expected at least one"):
        gptq(w, Statistics.empty(64), scheme)
    with pytest.raises(InvalidRequest, match="no Hessian was accumulated"):
        some = Statistics.empty(64, hessian=False)
        some.add(np.ones((1, 64)))
        gptq(w, some, scheme)
    with pytest.raises(InvalidRequest, match="order 'best'"):
        gptq(w, statistics, scheme, order="best")  # type: ignore[arg-type]
    assert statistics.triangle is not None
    statistics.triangle[0, 0] = np.inf
    with pytest.raises(NumericalError, match="hessian: holds NaN or infinity"):
        gptq(w, statistics, scheme)
