"""HQQ against its authors' iteration, written plainly in their terms: zero points and inverse scales."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cpuinfer.errors import InvalidRequest, NumericalError, UnsupportedFormat
from cpuinfer.quantize import hqq as module
from cpuinfer.quantize.hqq import hqq
from cpuinfer.quantize.rtn import rtn
from cpuinfer.quantize.scheme import Fit, find

Array = npt.NDArray[np.float64]


def weights(rows: int = 12, k: int = 128) -> npt.NDArray[np.float32]:
    """Heavy tails, as weights have them."""
    return np.random.default_rng(0).standard_t(3, size=(rows, k)).astype(np.float32) / 40


def naive(group: Array, inverse: float, zero: float, last: int) -> tuple[float, Array]:
    """(zero point, errors after each turn) by the loop of the authors' `optimize_weights_proximal`."""
    p, beta, kappa, best, errors = 0.7, 10.0, 1.01, np.inf, []
    kept = zero
    for turn in range(21):
        codes = np.clip(np.round(group * inverse + zero), 0, last)
        read = (codes - zero) / inverse
        error = np.mean(np.abs(group - read))
        errors.append(error)
        if error >= best:
            break
        best, kept = error, zero
        if turn == 20:
            break
        x = group - read
        with np.errstate(divide="ignore"):
            shrunk = np.sign(x) * np.maximum(np.abs(x) - np.abs(x) ** (p - 1) / beta, 0)
        zero = np.mean(codes - (group - shrunk) * inverse)
        beta *= kappa
    return kept, np.array(errors)


@pytest.mark.parametrize("name", ["int4:g64:asym", "int3:g32:asym", "int2:g128:asym"])
def test_offsets_are_those_of_the_authors_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 5)
    w, scheme = 20 * weights(), find(name)  # so large that not every error shrinks to 0
    wanted: list[Array] = []
    exact = type(scheme).represent

    def kept(self: object, scale: Array, offset: Array | None = None) -> Fit:
        wanted.append(np.array(offset))
        return exact(self, scale, offset)  # type: ignore[arg-type]

    monkeypatch.setattr(type(scheme), "represent", kept)
    hqq(w, scheme)
    offsets = wanted[-1]
    plain = scheme.fit(w, search=False)
    assert plain.offset is not None
    moved = same = 0
    for r, c in np.ndindex(plain.scale.shape):
        scale, offset = float(plain.scale[r, c]), float(plain.offset[r, c])
        group = w[r, c * scheme.group : (c + 1) * scheme.group].astype(np.float64)
        zero, errors = naive(group, 1 / scale, -offset / scale, len(scheme.levels) - 1)
        same += abs(offsets[r, c] + zero * scale) < 1e-3 * scale
        moved += len(errors) > 2
    # A weight half-way between two levels may go the other way in float32, and its group another way from there.
    assert same > 0.95 * plain.scale.size
    assert moved > plain.scale.size / 4


def test_free_offsets_bring_down_the_mean_magnitude_of_errors() -> None:
    w, scheme = weights(64, 512), find("Q4_1")
    errors = [np.abs(w - q.values(scheme)).mean() for q in (hqq(w, scheme), rtn(w, scheme))]
    assert errors[0] < 0.99 * errors[1]


def test_a_scheme_without_offsets_is_refused() -> None:
    with pytest.raises(UnsupportedFormat, match=r"hqq: int4:g32:sym has no offsets to optimise"):
        hqq(weights(), find("int4:g32:sym"))
    with pytest.raises(InvalidRequest, match=r"hqq: norm 2, .*expected 0 < norm <= 1"):
        hqq(weights(), find("int4:g32:asym"), norm=2)
    wrong = weights()
    wrong[2, 3] = np.nan
    with pytest.raises(NumericalError, match="row 2 holds NaN"):
        hqq(wrong, find("int4:g32:asym"))


def test_zero_groups_stay_zero() -> None:
    w, scheme = weights(), find("int4:g32:asym")
    w[1, 32:64] = 0
    assert (hqq(w, scheme).values(scheme)[1, 32:64] == 0).all()
