"""Schemes of one scale a group and given levels: NF4, FP4, AF4, IQ4_NL's, dynamic, or any numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpuinfer import _core
from cpuinfer.errors import InvalidRequest, UnsupportedFormat
from cpuinfer.formats.canonical import TableRows
from cpuinfer.quantize.scheme import WHOLE_ROW, Fit, counted, halved, in_groups

HALF_BITS = 16
MOST_KERNEL_LEVELS = 16

# fmt: off
TABLES: dict[str, tuple[float, ...]] = {
    # Dettmers et al., QLoRA (arXiv 2305.14314), appendix E, as bitsandbytes writes them into files.
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    # E2M1 with the subnormal that bitsandbytes' files have; zero twice.
    "fp4": (
        -1.0, -2 / 3, -0.5, -1 / 3, -0.25, -1 / 6, -0.0625 / 12, 0.0, 0.0, 0.0625 / 12, 1 / 6, 0.25, 1 / 3, 0.5,
        2 / 3, 1.0,
    ),
    # Yoshida, NF4 Isn't Information Theoretically Optimal (arXiv 2306.06965), for blocks of 64.
    "af4": (
        -1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0, 0.04273164,
        0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0,
    ),
    # GGUF's IQ4_NL and IQ4_XS.
    "iq4_nl": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
    # Dettmers, 8-bit Approximations for Parallelism in Deep Learning (arXiv 1511.04561), with 4 bits.
    "dynamic4": (
        -0.8875, -0.6625, -0.4375, -0.2125, -0.0775, -0.0325, -0.0055, 0.0, 0.0055, 0.0325, 0.0775, 0.2125, 0.4375,
        0.6625, 0.8875, 1.0,
    ),
}
# fmt: on


@dataclass(frozen=True, slots=True)
class TableScheme:
    """Any levels, a scale a group in fp16.  Levels of equal steps are better served by ``IntegerScheme``."""

    table: tuple[float, ...]
    """Ascending, at most 256; kernels take up to 16."""
    group: int
    kind: str = "table"

    def __post_init__(self) -> None:
        table = np.asarray(self.table, np.float32)
        if not 2 <= len(table) <= 256 or not np.isfinite(table).all() or (np.diff(table) < 0).any() or not table.any():
            raise InvalidRequest(f"table {self.table}: expected 2 to 256 ascending numbers, not all 0")

    @classmethod
    def named(cls, kind: str, *, group: int = 64) -> TableScheme:
        """One of TABLES."""
        return cls(TABLES[kind], group, kind)

    @property
    def name(self) -> str:
        """As ``find`` takes it."""
        return f"{self.kind}:g{self.group}"

    @property
    def levels(self) -> npt.NDArray[np.float32]:
        """The table."""
        return np.asarray(self.table, np.float32)

    @property
    def block(self) -> int:
        """A group."""
        return self.group

    @property
    def has_offset(self) -> bool:
        """Never."""
        return False

    @property
    def bits_per_weight(self) -> float:
        """Whole bits a code, and the scale."""
        bits = (len(self.table) - 1).bit_length()
        return bits + (0 if self.group == WHOLE_ROW else HALF_BITS / self.group)

    def fit(
        self, w: npt.NDArray[np.float32], importance: npt.NDArray[np.floating] | None = None, *, search: bool = True
    ) -> Fit:
        """Without search the largest magnitude becomes the level of the largest magnitude, as bitsandbytes has it."""
        groups = in_groups(w, self.group)
        plain = halved(np.abs(groups).max(axis=2) / np.abs(self.levels).max())
        if not search:
            return Fit(plain)
        weights, group = counted(importance, w.shape), groups.shape[2]
        return Fit(_core.search_scales(self.levels, group, np.ascontiguousarray(w), weights, plain))

    def represent(self, scale: npt.NDArray[np.floating], offset: npt.NDArray[np.floating] | None = None) -> Fit:
        """Scales rounded to fp16."""
        if offset is not None:
            raise InvalidRequest(f"{self.name}: has no offsets")
        return Fit(halved(scale))

    def codes(self, w: npt.NDArray[np.float32], fit: Fit) -> npt.NDArray[np.uint8]:
        """[n, k]: the nearest levels."""
        group = in_groups(w, self.group).shape[2]
        return _core.nearest_codes(self.levels, group, np.ascontiguousarray(w), fit.scale)

    def values(self, codes: npt.NDArray[np.uint8], fit: Fit) -> npt.NDArray[np.float32]:
        """[n, k]: what codes stand for."""
        values: npt.NDArray[np.float32] = in_groups(self.levels[codes], self.group) * fit.scale[:, :, None]
        return values.reshape(codes.shape)

    def rows(self, codes: npt.NDArray[np.uint8], fit: Fit) -> TableRows:
        """Rows of a table of 16."""
        if len(self.levels) > MOST_KERNEL_LEVELS:
            raise UnsupportedFormat(f"{self.name}: {len(self.levels)} levels, kernels take up to {MOST_KERNEL_LEVELS}")
        table = np.pad(self.levels, (0, MOST_KERNEL_LEVELS - len(self.levels)), mode="edge")
        group = codes.shape[1] if self.group == WHOLE_ROW else self.group
        return TableRows(codes, fit.scale.astype(np.float16), table, group)
