"""Schemes of GGUF's block types: fitted, placed and written by the core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cpuinfer import _core, formats
from cpuinfer.errors import InvalidRequest
from cpuinfer.formats.canonical import BlockFormat, BlockRows
from cpuinfer.quantize.scheme import Fit, counted, in_groups
from cpuinfer.quantize.tables import TABLES

BITS = 8


class Shape(NamedTuple):
    """What the levels of a type are, and how many neighbours share a scale."""

    group: int
    first: int
    last: int
    has_offset: bool = False


SHAPES = {
    "Q4_0": Shape(32, -8, 7),
    "Q4_1": Shape(32, 0, 15, True),
    "Q5_0": Shape(32, -16, 15),
    "Q5_1": Shape(32, 0, 31, True),
    "Q8_0": Shape(32, -128, 127),
    "Q2_K": Shape(16, 0, 3, True),
    "Q3_K": Shape(16, -4, 3),
    "Q4_K": Shape(32, 0, 15, True),
    "Q5_K": Shape(32, 0, 31, True),
    "Q6_K": Shape(16, -32, 31),
    "IQ4_NL": Shape(32, -127, 113),
    "IQ4_XS": Shape(32, -127, 113),
}


@dataclass(frozen=True, slots=True)
class BlockScheme:
    """One of GGUF's block types.  What a fit stores are blocks, [n, row bytes], whose codes may be any."""

    name: str

    @classmethod
    def of(cls, name: str) -> BlockScheme:
        """By GGUF's name."""
        return cls(name)

    @property
    def shape(self) -> Shape:
        """Its levels and group."""
        return SHAPES[self.name]

    @property
    def form(self) -> BlockFormat:
        """How its bytes are read."""
        form = formats.find(self.name)
        if not isinstance(form, BlockFormat):
            raise InvalidRequest(f"{self.name}: not stored in blocks")
        return form

    @property
    def levels(self) -> npt.NDArray[np.float32]:
        """Integers, or IQ4_NL's table."""
        if self.name.startswith("IQ4"):
            return np.asarray(TABLES["iq4_nl"], np.float32)
        return np.arange(self.shape.first, self.shape.last + 1, dtype=np.float32)

    @property
    def group(self) -> int:
        """Neighbours that share a scale."""
        return self.shape.group

    @property
    def block(self) -> int:
        """Neighbours stored together."""
        return self.form.elements

    @property
    def has_offset(self) -> bool:
        """Whether groups have offsets."""
        return self.shape.has_offset

    @property
    def bits_per_weight(self) -> float:
        """All bits of a block."""
        return self.form.block_bytes * BITS / self.form.elements

    def encode(
        self, w: npt.NDArray[Any], importance: npt.NDArray[np.floating] | None = None, *, search: bool = True
    ) -> npt.NDArray[np.uint8]:
        """Weights straight to the bytes of rows, [n, row bytes]; w float32, float16, or uint16: bf16's bits.

        Without search what the format's reference writes: of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 to the bit.  With it, the
        blocks of ``fit`` and its ``codes``.  Threads may take runs of rows each: the interpreter's lock is released.
        """
        weights = counted(importance, w.shape)
        return _core.quantize_blocks(self.name, np.ascontiguousarray(w), weights, search=search)

    def fit(
        self, w: npt.NDArray[np.float32], importance: npt.NDArray[np.floating] | None = None, *, search: bool = True
    ) -> Fit:
        """Without search the scales that the format's reference stores, or of K types plainly those that hold the
        extremes; ``codes`` are then nearest to what is stored, which the references' own codes sometimes are not."""
        return self._fit_of(self.encode(w, importance, search=search))

    def represent(self, scale: npt.NDArray[np.floating], offset: npt.NDArray[np.floating] | None = None) -> Fit:
        """Scales and offsets of least squared difference, among candidates, from wanted ones; [n, k / group] each."""
        if offset is not None and not self.has_offset:
            raise InvalidRequest(f"{self.name}: has no offsets")
        wanted = None if offset is None else np.ascontiguousarray(offset, np.float32)
        return self._fit_of(_core.represent_blocks(self.name, np.ascontiguousarray(scale, np.float32), wanted))

    def _fit_of(self, raw: npt.NDArray[np.uint8]) -> Fit:
        scale, offset = _core.block_scales(self.name, raw)
        return Fit(scale, offset, raw)

    def codes(self, w: npt.NDArray[np.float32], fit: Fit) -> npt.NDArray[np.uint8]:
        """[n, k]: the nearest levels."""
        return _core.nearest_codes(self.levels, self.group, np.ascontiguousarray(w), fit.scale, fit.offset)

    def values(self, codes: npt.NDArray[np.uint8], fit: Fit) -> npt.NDArray[np.float32]:
        """[n, k]: what codes stand for, to the bit what readers of the format compute in fp32."""
        values: npt.NDArray[np.float32] = in_groups(self.levels[codes], self.group) * fit.scale[:, :, None]
        if fit.offset is not None:
            values += fit.offset[:, :, None]
        return values.reshape(codes.shape)

    def rows(self, codes: npt.NDArray[np.uint8], fit: Fit) -> BlockRows:
        """The bytes of the type."""
        return BlockRows(_core.with_codes(self.name, fit.stored, codes), self.form, codes.shape[1])
