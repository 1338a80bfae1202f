"""Statistics of inputs against the sums done at once in float64; what is saved goes on where it stopped."""

from __future__ import annotations

import numpy as np
import pytest

from cpuinfer.errors import InvalidRequest, NumericalError
from cpuinfer.quantize import statistics as module
from cpuinfer.quantize.quantised import output_error, sampled_error
from cpuinfer.quantize.statistics import Statistics

K, TOKENS = 70, 500


def inputs() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(TOKENS, K)) * np.exp(rng.normal(size=K))).astype(np.float32)


def added(x: np.ndarray, chunks: int, **options: object) -> Statistics:
    found = Statistics.empty(K, capacity=40, **options)  # type: ignore[arg-type]
    for part in np.array_split(x, chunks):
        found.add(part)
    return found


@pytest.mark.parametrize("panel", [1024, 32])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_are_those_of_all_tokens_at_once(
    panel: int, dtype: type[np.float32] | type[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PANEL", panel)
    monkeypatch.setattr(module, "TOKENS", 64)
    x = inputs()
    found, exact = added(x, 7, dtype=dtype), x.astype(np.float64)
    wanted = exact.T @ exact
    size = np.sqrt(np.outer(np.diagonal(wanted), np.diagonal(wanted)))
    assert found.tokens == TOKENS
    assert found.hessian.dtype == dtype
    assert (np.abs(found.hessian - wanted) < 1e-6 * size).all()
    np.testing.assert_allclose(found.mean_square, np.mean(exact**2, axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.mean_magnitude, np.mean(np.abs(exact), axis=0), rtol=1e-6)
    found.add(x[:3])  # after the Hessian was read
    assert (np.abs(found.hessian - wanted - exact[:3].T @ exact[:3]) < 1e-6 * size).all()


def test_the_sample_does_not_depend_on_chunks_and_draws_evenly() -> None:
    x = inputs()
    x[:, 0] = np.arange(TOKENS)
    one, many = added(x, 1), added(x, 23)
    assert (one.sample == many.sample).all()
    drawn = np.concatenate([added(x, 1, seed=seed).sample[:, 0] for seed in range(200)])
    assert len(set(one.sample[:, 0])) == 40
    counts = np.bincount((drawn / TOKENS * 10).astype(int), minlength=10)
    # 8,000 draws in 10 bins, 800 each with a deviation of 27: six of them.
    assert (np.abs(counts - 800) < 160).all()
    first = np.array([added(x, 1, seed=seed).sample[0, 0] for seed in range(200)])
    assert abs(first.mean() - TOKENS / 2) < 6 * TOKENS / np.sqrt(12 * 200)


def test_a_saved_state_goes_on_as_if_never_saved() -> None:
    x = inputs()
    straight = added(x, 4)
    stopped = Statistics.empty(K, capacity=40)
    for part in np.array_split(x, 4):
        stopped.add(part)
        stopped = Statistics.of_arrays({name: array.copy() for name, array in stopped.arrays().items()})
    assert (stopped.hessian == straight.hessian).all()
    assert (stopped.sample == straight.sample).all()
    assert (stopped.mean_square == straight.mean_square).all()
    assert (stopped.tokens, stopped.capacity, stopped.seed) == (TOKENS, 40, 0)
    light = Statistics.of_arrays(Statistics.empty(K, hessian=False).arrays())
    assert light.triangle is None


def test_errors_are_the_mean_square_of_the_output() -> None:
    x, delta = inputs(), np.random.default_rng(1).normal(size=(9, K))
    wanted = np.mean(np.sum((x.astype(np.float64) @ delta.T) ** 2, axis=1))
    assert output_error(delta, added(x, 3, dtype=np.float64)) == pytest.approx(wanted, rel=1e-6)
    assert sampled_error(delta, x) == pytest.approx(wanted, rel=1e-5)


def test_bad_inputs_change_nothing() -> None:
    found, x = added(inputs(), 1), inputs()
    before = found.hessian.copy()
    x[4, 6] = np.inf
    with pytest.raises(NumericalError, match="inputs: column 6 holds NaN or infinity"):
        found.add(x)
    with pytest.raises(InvalidRequest, match=r"inputs: shape \(2, 3\), expected \('\*', 70\)"):
        found.add(np.zeros((2, 3)))
    assert (found.hessian == before).all()
    assert found.tokens == TOKENS
    with pytest.raises(InvalidRequest, match="of no tokens"):
        _ = Statistics.empty(3).mean_square
    with pytest.raises(InvalidRequest, match="expected at least 1 and 0"):
        Statistics.empty(0)
