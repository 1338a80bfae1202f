"""Double quantisation: the scales of another scheme are kept in 8 bits themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest
from cpuinfer.formats.canonical import Rows
from cpuinfer.quantize.scheme import WHOLE_ROW, Fit, Scheme

Floats = npt.NDArray[np.float32]
HALF_BITS = 16
FLOAT_BITS = 32


@dataclass(frozen=True, slots=True)
class DoubleStored:
    """Scales as numbers of few bits: scale = fp16(low + step * code), for each `group` neighbours in row order."""

    codes: npt.NDArray[np.uint8]
    """[n, k / the scheme's group]."""
    low: Floats
    """[ceil(codes / group)]."""
    step: Floats
    inner: Any
    """What the scheme itself keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubleScheme:
    """A scheme whose fp16 scales are rounded to `bits` bits over groups of `group` scales.

    As QLoRA has it (Dettmers et al., arXiv 2305.14314, section 3, "Double Quantization": 8 bits, 256 scales, the mean
    taken off first), but with integers between a group's least and greatest scale, as Intel's Neural Compressor has it
    (double_quant_dtype int, use_sym False), where QLoRA has a table of floats.  Scales are taken row after row,
    whatever the length of rows.  Readers of fp16 scales read them without knowing: they are rounded to fp16 last.
    """

    inner: Scheme
    bits: int = 8
    group_of_scales: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8 or self.group_of_scales < 1 or self.inner.block != self.inner.group:
            raise InvalidRequest(
                f"double quantisation of {self.inner.name}, {self.bits} bits, groups of {self.group_of_scales}: "
                "expected a scheme of one scale a group, 2 to 8 bits, at least 1"
            )

    @property
    def name(self) -> str:
        """The scheme's, and what its scales are."""
        return f"{self.inner.name}:double{self.bits}x{self.group_of_scales}"

    @property
    def levels(self) -> Floats:
        """The scheme's."""
        return self.inner.levels

    @property
    def group(self) -> int:
        """The scheme's."""
        return self.inner.group

    @property
    def block(self) -> int:
        """All of a row: neighbouring scales are rounded together."""
        return WHOLE_ROW

    @property
    def has_offset(self) -> bool:
        """The scheme's."""
        return self.inner.has_offset

    @property
    def bits_per_weight(self) -> float:
        """The scheme's, with `bits` for its 16 a scale, and two floats for a group of scales."""
        if self.group == WHOLE_ROW:
            return self.inner.bits_per_weight
        saved = HALF_BITS - self.bits - 2 * FLOAT_BITS / self.group_of_scales
        return self.inner.bits_per_weight - saved / self.group

    def fit(self, w: Floats, importance: npt.NDArray[np.floating] | None = None, *, search: bool = True) -> Fit:
        """The scheme's scales, rounded."""
        return self._rounded(self.inner.fit(w, importance, search=search))

    def represent(self, scale: npt.NDArray[np.floating], offset: npt.NDArray[np.floating] | None = None) -> Fit:
        """The nearest that can be stored."""
        return self._rounded(self.inner.represent(scale, offset))

    def codes(self, w: Floats, fit: Fit) -> npt.NDArray[np.uint8]:
        """The nearest codes."""
        return self.inner.codes(w, self._inner(fit))

    def values(self, codes: npt.NDArray[np.uint8], fit: Fit) -> Floats:
        """What codes stand for."""
        return self.inner.values(codes, self._inner(fit))

    def rows(self, codes: npt.NDArray[np.uint8], fit: Fit) -> Rows:
        """The scheme's rows, with the rounded scales in fp16."""
        return self.inner.rows(codes, self._inner(fit))

    def _inner(self, fit: Fit) -> Fit:
        return Fit(fit.scale, fit.offset, fit.stored.inner)

    def _rounded(self, fit: Fit) -> Fit:
        flat, size = fit.scale.reshape(-1), self.group_of_scales
        padded = np.pad(flat, (0, -len(flat) % size), mode="edge").reshape(-1, size)
        low = padded.min(axis=1, keepdims=True)
        step = (padded.max(axis=1, keepdims=True) - low) / np.float32((1 << self.bits) - 1)
        codes = np.rint(np.divide(padded - low, step, out=np.zeros_like(padded), where=step > 0))
        scale = (low + step * codes).astype(np.float16).astype(np.float32)
        scale, codes = (x.reshape(-1)[: len(flat)].reshape(fit.scale.shape) for x in (scale, codes))
        # Offsets follow the scale: the scheme keeps zero points, not offsets.
        again = self.inner.represent(scale, fit.offset)
        return Fit(again.scale, again.offset, DoubleStored(codes.astype(np.uint8), low[:, 0], step[:, 0], again.stored))
