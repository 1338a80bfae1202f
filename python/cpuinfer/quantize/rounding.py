"""A weight whose rounding and scales are learned: its values as a function of them, and the gradient back to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpuinfer.quantize.quantised import Quantised, spans
from cpuinfer.quantize.scheme import Fit, Scheme

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is learned of one weight; names of arXiv 2309.05516 in brackets."""

    shift: Floats
    """[V] [n, groups, group], within 0.5 of 0: added to a weight's place among the codes before it is rounded."""
    high: Floats
    """[alpha] [n, groups]: factor of what the last code stands for; of the scale where the scheme has no offsets."""
    low: Floats
    """[beta] [n, groups]: factor of what the first code stands for, where the scheme has offsets."""


class LearnedRounding:
    """arXiv 2309.05516's s * clip(round(W / s + zero + V)), s between alpha max W and beta min W, for any scheme.

    A weight's place is the code of the level it is at; between two levels, in proportion to the distance from them:
    so that rounding the place gives the nearest level, whatever the levels, and half a step is half a code.
    """

    def __init__(
        self, w: Floats, scheme: Scheme, start: Fit, *, bounds: tuple[float, float], learn_scales: bool
    ) -> None:
        self._scheme, self._start = scheme, start
        self._bounds, self._learn_scales = bounds, learn_scales
        self._levels = scheme.levels
        self._uniform = bool((np.diff(self._levels) == 1).all())
        self._shape = w.shape
        self._groups = w.reshape(len(w), -1, spans(scheme, w.shape[1])[0])
        ones = np.ones_like(start.scale)
        self._first = Parameters(np.zeros_like(self._groups), ones, ones)
        self._parameters = self._first
        self._fit = start
        # Of the last call of `values`: codes, levels per scale of the weights, gaps between levels, where codes moved.
        self._codes = np.empty(0, np.uint8)
        self._quotient: Floats = self._groups
        self._gap: Floats | np.float32 = np.float32(1)
        self._inside = np.empty(0, bool)

    @property
    def parameters(self) -> Parameters:
        """As they are; never changed in place."""
        return self._parameters

    def set(self, parameters: Parameters) -> None:
        """Go to other parameters."""
        self._parameters = parameters
        first = self._first
        if parameters.high is first.high and parameters.low is first.low:
            self._fit = self._start  # as it was fitted: `represent` need not give the same
        else:
            self._fit = self._clipped(parameters)

    def values(self) -> Floats:
        """[n, k]: what the weight is rounded to."""
        scale, offset = self._fit.scale[:, :, None], self._fit.offset
        shifted = self._groups if offset is None else self._groups - offset[:, :, None]
        self._quotient = np.divide(shifted, scale, out=np.zeros_like(shifted), where=scale != 0)
        codes = np.rint(self._places() + self._parameters.shift)
        last = len(self._levels) - 1
        self._inside = (codes >= 0) & (codes <= last)
        self._codes = np.clip(codes, 0, last).astype(np.uint8)
        values = self._levels[self._codes] * scale
        if offset is not None:
            values += offset[:, :, None]
        return values.reshape(self._shape)

    def quantised(self) -> Quantised:
        """The codes and scales of the parameters as they are."""
        self.values()
        return Quantised(self._codes.reshape(self._shape), self._fit)

    def move(self, gradient: npt.NDArray[np.floating], rate: float, scale_rate: float) -> None:
        """A step against the sign of each parameter's gradient, for the loss's gradient by `values()`: `scale_rate` of
        scales, `rate` of the others.

        Rounding passes gradients as if it were not there (straight through); a code at the end of its range is moved
        by nothing but the scale.
        """
        g = gradient.astype(np.float32, copy=False).reshape(self._groups.shape)
        old, step, scale_step = self._parameters, np.float32(rate), np.float32(scale_rate)
        through = np.where(self._inside, g, 0)
        by_shift = through * self._gap * self._fit.scale[:, :, None]
        shift = np.clip(old.shift - step * np.sign(by_shift), -0.5, 0.5)
        if not self._learn_scales:
            self.set(Parameters(shift, old.high, old.low))
            return
        by_scale = (g * self._levels[self._codes] - through * self._quotient).sum(axis=2)
        by_offset = (g - through).sum(axis=2)
        by_high, by_low = self._by_ends(by_scale, by_offset)
        least, most = np.float32(self._bounds[0]), np.float32(self._bounds[1])
        high = np.clip(old.high - scale_step * np.sign(by_high), least, most)
        low = np.clip(old.low - scale_step * np.sign(by_low), least, most)
        self.set(Parameters(shift, high, low))

    def _places(self) -> Floats:
        if self._uniform:
            shifted: Floats = self._quotient - self._levels[0]
            return shifted
        below = np.clip(np.searchsorted(self._levels, self._quotient, side="right") - 1, 0, len(self._levels) - 2)
        gaps = np.diff(self._levels)
        gap = gaps[below]
        self._gap = gap
        beyond = self._quotient - self._levels[below]
        places: Floats = below.astype(np.float32) + np.divide(beyond, gap, out=np.zeros_like(beyond), where=gap > 0)
        return places

    def _ends(self) -> tuple[Floats, Floats, np.float32]:
        """What the first and last code stand for at the start, and the distance between their levels."""
        offset = np.float32(0) if self._start.offset is None else self._start.offset
        low = offset + self._start.scale * self._levels[0]
        high = offset + self._start.scale * self._levels[-1]
        return low, high, np.float32(self._levels[-1] - self._levels[0])

    def _clipped(self, parameters: Parameters) -> Fit:
        """The storable scales and offsets of factors."""
        if self._start.offset is None:
            return self._scheme.represent(parameters.high * self._start.scale)
        low, high, span = self._ends()
        low, high = parameters.low * low, parameters.high * high
        scale = (high - low) / span
        return self._scheme.represent(scale, low - scale * self._levels[0])

    def _by_ends(self, by_scale: Floats, by_offset: Floats) -> tuple[Floats, Floats]:
        """Gradients by `high` and `low`, from those by scale and offset."""
        if self._start.offset is None:
            return by_scale * self._start.scale, np.zeros_like(by_scale)
        low, high, span = self._ends()
        widening = (by_scale - self._levels[0] * by_offset) / span
        return widening * high, (by_offset - widening) * low
