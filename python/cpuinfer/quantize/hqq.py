"""HQQ: offsets that a few large errors move little, without any calibration data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest, UnsupportedFormat
from cpuinfer.quantize.levels import nearest
from cpuinfer.quantize.quantised import Quantised, checked, spans
from cpuinfer.quantize.scheme import Scheme, in_groups

Floats = npt.NDArray[np.float32]
ROWS = 256
"""Rows of a weight worked on at once."""


@dataclass(frozen=True, slots=True)
class _Penalty:
    norm: float
    beta: float
    growth: float
    iterations: int


def hqq(
    w: npt.NDArray[np.floating],
    scheme: Scheme,
    *,
    norm: float = 0.7,
    beta: float = 10.0,
    growth: float = 1.01,
    iterations: int = 20,
) -> Quantised:
    """Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs, 2023.

    Minimises the lp norm (p = `norm` < 1: indifferent to outliers) of W - Q over the offsets, with the scales of the
    scheme's rounding, by half-quadratic splitting, as the section on the optimisation has it; with E for the error,
      E <- shrink(W - Q) = sign(x) * max(|x| - |x|^(p - 1) / beta, 0)
      offset <- mean over the group of (W - E - scale * level of the nearest code)
      beta <- growth * beta                                                      (their kappa)
    Their zero point is -offset / scale.  A group stops where the mean magnitude of its error no longer falls (their
    code stops all groups at once) and keeps its best.  Offsets are then rounded as the scheme stores them: to integers
    of a few bits for one of integer zero points, which undoes most of it; their own files have 16 bits.
    """
    w = checked(w, scheme)
    if not scheme.has_offset:
        raise UnsupportedFormat(f"hqq: {scheme.name} has no offsets to optimise, expected a scheme that has (:asym)")
    if not 0 < norm <= 1 or not beta > 0 or not growth >= 1 or iterations < 1:
        raise InvalidRequest(
            f"hqq: norm {norm:g}, beta {beta:g}, growth {growth:g}, {iterations} iterations: "
            "expected 0 < norm <= 1, beta > 0, growth >= 1, at least 1"
        )
    plain = scheme.fit(w, search=False)
    group = spans(scheme, w.shape[1])[0]
    offset = np.zeros_like(plain.scale) if plain.offset is None else plain.offset.copy()
    penalty = _Penalty(norm, beta, growth, iterations)
    for begin in range(0, len(w), ROWS):
        part = slice(begin, begin + ROWS)
        groups = in_groups(w[part], group)
        offset[part] = _offsets(groups, plain.scale[part], offset[part], scheme.levels, penalty)
    fit = scheme.represent(plain.scale, offset)
    return Quantised(scheme.codes(w, fit), fit)


def _offsets(groups: Floats, scale: Floats, offset: Floats, levels: Floats, penalty: _Penalty) -> Floats:
    """[n, groups]: each group's best, by the mean magnitude of its error."""
    best, least = offset, np.full(scale.shape, np.inf, np.float32)
    going = np.ones(scale.shape, bool)
    wide, beta = scale[:, :, None], penalty.beta
    for turn in range(penalty.iterations + 1):
        scaled = wide * levels[nearest(groups - offset[:, :, None], levels, wide)]
        error = groups - scaled - offset[:, :, None]
        magnitude = np.abs(error)
        mean = magnitude.mean(axis=2)
        going &= mean < least
        best, least = np.where(going, offset, best), np.where(going, mean, least)
        if turn == penalty.iterations or not going.any():
            break
        offset = np.where(going, (groups - _shrink(error, magnitude, penalty.norm, beta) - scaled).mean(axis=2), offset)
        beta *= penalty.growth
    return best.astype(np.float32, copy=False)


def _shrink(error: Floats, magnitude: Floats, norm: float, beta: float) -> Floats:
    """The minimiser over E of |E|_p^p + beta / 2 * |E - error|^2, in their closed form."""
    some = np.maximum(magnitude, np.float32(1e-8))  # 0 ** (p - 1) is infinite, and what is left of it 0
    shrunk: Floats = np.sign(error) * np.maximum(magnitude - some ** np.float32(norm - 1) / np.float32(beta), 0)
    return shrunk
