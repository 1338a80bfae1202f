"""Schemes of 2 to 8 bit integers with a scale a group: around a fixed zero, or with a zero point for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer import _core
from cpuinfer.errors import InvalidRequest
from cpuinfer.formats.canonical import IntegerRows
from cpuinfer.quantize.scheme import WHOLE_ROW, Fit, counted, halved, in_groups

HALF_BITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerScheme:
    """Symmetric: value = scale * (code - 2**(bits - 1)), the scale of either sign.  Else value = scale * (code - zero),
    the zero point an integer of as many bits: ``offset`` is -scale * zero, exactly."""

    bits: int
    group: int
    has_offset: bool = False

    @property
    def name(self) -> str:
        """As ``find`` takes it."""
        return f"int{self.bits}:g{self.group}:{'asym' if self.has_offset else 'sym'}"

    @property
    def last(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def zero(self) -> int:
        """Subtracted from every code, where groups have no zero points."""
        return 0 if self.has_offset else 1 << (self.bits - 1)

    @property
    def levels(self) -> npt.NDArray[np.float32]:
        """Integers."""
        levels: npt.NDArray[np.float32] = np.arange(self.last + 1, dtype=np.float32) - np.float32(self.zero)
        return levels

    @property
    def block(self) -> int:
        """A group."""
        return self.group

    @property
    def bits_per_weight(self) -> float:
        """The code, and its share of fp16 scale and zero point."""
        shared = HALF_BITS + (self.bits if self.has_offset else 0)
        return self.bits + (0 if self.group == WHOLE_ROW else shared / self.group)

    def fit(
        self, w: npt.NDArray[np.float32], importance: npt.NDArray[np.floating] | None = None, *, search: bool = True
    ) -> Fit:
        """Without search, symmetric: the number of largest magnitude becomes the lowest level, as Q4_0 has it; else
        the extremes, and zero, become the first and last code, as GPTQ and AWQ have it."""
        groups, weights, counts = in_groups(w, self.group), np.ascontiguousarray(w), counted(importance, w.shape)
        if not self.has_offset:
            largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
            plain = halved(largest / self.levels[0])
            if not search:
                return Fit(plain)
            return Fit(_core.search_scales(self.levels, groups.shape[2], weights, counts, plain))
        low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
        plain_fit = self.represent((high - low) / self.last, low)
        if not search:
            return plain_fit
        scale, zero = _core.search_zeros(self.last, groups.shape[2], weights, counts, plain_fit.scale, plain_fit.stored)
        return self._with_zero(scale, zero)

    def represent(self, scale: npt.NDArray[np.floating], offset: npt.NDArray[np.floating] | None = None) -> Fit:
        """Scales rounded to fp16; the zero points whose offsets are nearest with them."""
        stored = halved(scale)
        if not self.has_offset:
            if offset is not None:
                raise InvalidRequest(f"{self.name}: has no offsets")
            return Fit(stored)
        wanted = np.zeros_like(stored) if offset is None else offset
        quotient = np.divide(-wanted, stored, out=np.zeros_like(stored), where=stored != 0)
        return self._with_zero(stored, np.clip(np.rint(quotient), 0, self.last))

    def _with_zero(self, scale: npt.NDArray[np.float32], zero: npt.NDArray[Any]) -> Fit:
        points = zero.astype(np.uint8)
        return Fit(scale, -scale * points.astype(np.float32), points)

    def codes(self, w: npt.NDArray[np.float32], fit: Fit) -> npt.NDArray[np.uint8]:
        """[n, k]: the nearest levels."""
        group = in_groups(w, self.group).shape[2]
        return _core.nearest_codes(self.levels, group, np.ascontiguousarray(w), fit.scale, fit.offset)

    def values(self, codes: npt.NDArray[np.uint8], fit: Fit) -> npt.NDArray[np.float32]:
        """[n, k]: what codes stand for, exact."""
        values: npt.NDArray[np.float32] = in_groups(self.levels[codes], self.group) * fit.scale[:, :, None]
        if fit.offset is not None:
            values += fit.offset[:, :, None]
        return values.reshape(codes.shape)

    def rows(self, codes: npt.NDArray[np.uint8], fit: Fit) -> IntegerRows:
        """Rows of integers."""
        group = codes.shape[1] if self.group == WHOLE_ROW else self.group
        return IntegerRows(codes, fit.scale.astype(np.float16), zero=self.zero, zeros=fit.stored, group=group)
