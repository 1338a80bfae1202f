"""One tensor of a model, however its file stores it: what it is, and its rows in canonical form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cpuinfer import formats
from cpuinfer.formats.canonical import Layout, Rows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cpuinfer import _core
    from cpuinfer.checkpoint import Checkpoint

PANEL = 16
"""Rows of a packed panel; packing goes by whole panels."""


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The rows of a tensor of a GGUF file, which the core can also read by itself: ``Weight.rows``."""

    checkpoint: Checkpoint
    name: str
    decode: Callable[[npt.NDArray[np.uint8]], Rows]

    def __call__(self, begin: int, end: int) -> Rows:
        """Rows [begin, end) in canonical form."""
        return self.decode(self.checkpoint.read_rows(self.name, begin, end))


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor of ours: what it is, and its rows in canonical form."""

    name: str
    """As the file calls it."""
    shape: tuple[int, ...]
    """(outputs, inputs), or (width,)."""
    encoding: str
    """How the file stores it: "Q4_K", "BF16", "GPTQ int4 g128"."""
    layout: Layout
    """How the kernels read it."""
    file_bytes: int
    rows: Callable[[int, int], Rows]
    """(begin, end) -> canonical rows; several threads may ask at once."""
    floats: Callable[[], npt.NDArray[np.float64]]
    """() -> the values as the file means them, in the shape, columns in the weight's own order; of published layers
    without the rounding of scales to fp16 that `rows` does, and not by way of `rows`."""
    group: int = 32
    """Neighbours that share a scale, in `input_order`: a multiple of 32 that divides the inputs."""
    zero: int = 0
    """Subtracted from every code, where there is no zero point for each group."""
    has_zeros: bool = False
    """Whether there is a zero point for each group."""
    has_bias: bool = False
    """Whether there is a bias for each group."""
    table: npt.NDArray[np.float32] | None = None
    """[16]: the values of the codes, for "table4"."""
    input_order: npt.NDArray[np.int32] | None = None
    """[inputs]: column i of `rows` is column input_order[i] of the weight; of experts [experts, inputs]."""
    tensor_names: tuple[str, ...] = ()
    """All that the files hold of a published layer."""
    whole: bool = False
    """Rows come from all of the stored tensor: better taken at once."""

    @property
    def is_float(self) -> bool:
        """Whether the kernels multiply floats."""
        return self.layout in {"f32", "f16", "bf16"}

    @property
    def packed_bytes(self) -> int:
        """Bytes when packed: the weight's own bits, rows padded to whole panels."""
        if len(self.shape) == 1:
            return self.shape[0] * 4
        rows, k = -(-self.shape[0] // PANEL) * PANEL, self.shape[1]
        scales = k // self.group * (2 + 2 * self.has_bias + self.has_zeros)
        match self.layout:
            case "f32" | "f16" | "bf16":
                return rows * k * (4 if self.layout == "f32" else 2)
            case "int8":
                return rows * (k + scales)
            case "int4" | "table4":
                return rows * (k // 2 + scales)
        form = formats.find(self.layout.upper())
        return rows * k // form.elements * form.block_bytes

    @property
    def panel_bytes(self) -> int:
        """Bytes of a packed panel of a matrix."""
        return self.packed_bytes // -(-self.shape[0] // PANEL)

    def new_matrix(
        self, pool: _core.BufferPool, *, room: int = 0, beside: _core.PackedMatrix | None = None
    ) -> _core.PackedMatrix:
        """An empty packed matrix for this weight, with `room` bytes behind each panel, or in that of another."""
        from cpuinfer import _core

        return _core.PackedMatrix(
            self.layout,
            self.shape[0],
            self.shape[1],
            zero=self.zero,
            has_bias=self.has_bias,
            has_zeros=self.has_zeros,
            group=self.group,
            table=self.table,
            pool=pool,
            room=room,
            beside=beside,
        )
