"""The canonical form of weights: what every way of storing them decodes to, and every kernel is packed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from cpuinfer.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cpuinfer import _core

    FloatType = TypeVar("FloatType", np.float32, np.float64)

GROUP = 32
"""Neighbours along a row that share a scale."""

FloatLayout = Literal["f16", "bf16", "f32"]
BlockLayout = Literal[
    "q5_0",
    "q5_1",
    "q2_k",
    "q3_k",
    "q4_k",
    "q5_k",
    "q6_k",
    "iq4_nl",
    "iq4_xs",
    "mxfp4",
    "tq1_0",
    "tq2_0",
    "iq2_xxs",
    "iq2_xs",
    "iq2_s",
    "iq3_xxs",
    "iq3_s",
    "iq1_s",
    "iq1_m",
]
Layout = Literal["int4", "int8", "table4"] | FloatLayout | BlockLayout


@dataclass(frozen=True, slots=True)
class IntegerRows:
    """Rows of integer codes: ``value = scale * (code - zero) + bias``, scale, zero point and bias by group."""

    codes: npt.NDArray[np.uint8]
    """[rows, k], each 0 .. 2**bits - 1."""
    scale: npt.NDArray[np.float16]
    """[rows, k / group]."""
    bias: npt.NDArray[np.float16] | None = None
    """[rows, k / group], or None for zero."""
    zero: int = 0
    """Where there are no `zeros`."""
    zeros: npt.NDArray[np.uint8] | None = None
    """[rows, k / group], or None."""
    group: int = GROUP
    """Neighbours that share a scale: a multiple of 32."""

    def to_float(self, dtype: type[FloatType]) -> npt.NDArray[FloatType]:
        """The values, [rows, k]: exact in float64, one rounding a step in float32."""
        n, k = self.codes.shape
        values = self.codes.reshape(n, k // self.group, self.group).astype(dtype)
        values -= dtype(self.zero) if self.zeros is None else self.zeros.astype(dtype)[:, :, None]
        values *= self.scale.astype(dtype)[:, :, None]
        if self.bias is not None:
            values += self.bias.astype(dtype)[:, :, None]
        return values.reshape(n, k)

    def pack(self, matrix: _core.PackedMatrix, begin: int) -> None:
        """Put the rows into a packed matrix, from row `begin` on."""
        matrix.set_integer_rows(begin, self.codes, self.scale, self.bias, self.zeros)


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of 4-bit codes into a table: ``value = scale * table[code]``, scale by group."""

    codes: npt.NDArray[np.uint8]
    """[rows, k], each 0 .. 15."""
    scale: npt.NDArray[np.float16]
    """[rows, k / group]."""
    table: npt.NDArray[np.float32]
    """[16].  Kernels take it in steps of its largest magnitude / 32512."""
    group: int

    def to_float(self, dtype: type[FloatType]) -> npt.NDArray[FloatType]:
        """The values, [rows, k]."""
        n, k = self.codes.shape
        values = self.table.astype(dtype)[self.codes].reshape(n, k // self.group, self.group)
        values *= self.scale.astype(dtype)[:, :, None]
        return values.reshape(n, k)

    def pack(self, matrix: _core.PackedMatrix, begin: int) -> None:
        """Put the rows into a packed matrix, from row `begin` on."""
        matrix.set_integer_rows(begin, self.codes, self.scale)


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Rows of one of GGUF's block types, as the file has them: the core puts their bytes where kernels read them."""

    raw: npt.NDArray[np.uint8]
    """[rows, row_bytes]."""
    form: BlockFormat
    k: int

    def to_float(self, dtype: type[FloatType]) -> npt.NDArray[FloatType]:
        """The values, [rows, k]: exact in float64, by the format's NumPy; rounded once in float32, by the core."""
        import numpy as np

        from cpuinfer import _core

        if dtype is np.float32 and self.form.layout not in ("int4", "int8"):
            layout = cast("BlockLayout", self.form.layout)
            return _core.read_blocks(layout, self.raw, self.k).astype(dtype, copy=False)
        block = blocks(self.raw, self.k, elements=self.form.elements, block_bytes=self.form.block_bytes)
        with np.errstate(invalid="ignore"):  # infinite scales times zero are NaN, as in kernels
            return self.form.values(block).reshape(len(self.raw), self.k).astype(dtype, copy=False)

    def pack(self, matrix: _core.PackedMatrix, begin: int) -> None:
        """Put the rows into a packed matrix, from row `begin` on."""
        matrix.set_block_rows(begin, self.raw)


@dataclass(frozen=True, slots=True)
class FloatRows:
    """Rows of floating-point values, kept as stored."""

    values: npt.NDArray[Any]
    """[rows, k]: float16, float32, or for bf16 its bits as uint16."""
    layout: FloatLayout

    def to_float(self, dtype: type[FloatType]) -> npt.NDArray[FloatType]:
        """The values, [rows, k]."""
        import numpy as np

        if self.layout == "bf16":
            return (self.values.astype(np.uint32) << 16).view(np.float32).astype(dtype, copy=False)
        return self.values.astype(dtype)

    def pack(self, matrix: _core.PackedMatrix, begin: int) -> None:
        """Put the rows into a packed matrix, from row `begin` on."""
        matrix.set_float_rows(begin, self.values)


Rows = IntegerRows | TableRows | BlockRows | FloatRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way of storing weights."""

    layout: Layout
    elements: int
    """Neighbours along a row that are stored together."""
    block_bytes: int
    """Of such neighbours, in the file and when packed."""
    zero: int = 0
    """Subtracted from every code."""
    has_bias: bool = False
    decode: Callable[[npt.NDArray[np.uint8], int], Rows]
    """(bytes as stored [rows, row_bytes], k) -> canonical rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """One of GGUF's block types, whose bytes are packed as they are: a ``Format`` that decodes nothing."""

    layout: BlockLayout | Literal["int4", "int8"]
    """int4 and int8 for blocks of 32: fp16 scale, fp16 bias if any, codes in the order of the kernels' groups."""
    elements: int
    """Values of a block."""
    block_bytes: int
    zero: int = 0
    """Subtracted from every code, of int4 and int8."""
    has_bias: bool = False
    values: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float64]]
    """uint8 [rows, blocks, block_bytes] -> exact values [rows, blocks, elements]."""

    def decode(self, raw: npt.NDArray[np.uint8], k: int) -> BlockRows:
        """The bytes as they are."""
        block = blocks(raw, k, elements=self.elements, block_bytes=self.block_bytes)
        return BlockRows(block.reshape(raw.shape), self, k)


def blocks(raw: npt.NDArray[np.uint8], k: int, *, elements: int, block_bytes: int) -> npt.NDArray[np.uint8]:
    """Rows as stored, seen as blocks: uint8 [rows, k / elements, block_bytes], contiguous and aligned; no copy."""
    import numpy as np

    expected = k // elements * block_bytes
    if raw.dtype != np.uint8 or raw.ndim != 2 or k % elements or raw.shape[1] != expected:
        shape = f"{raw.dtype} {raw.shape} for rows of {k} values"
        raise InvalidRequest(f"raw: {shape}, expected uint8 (rows, {expected}) and a multiple of {elements} values")
    return np.require(raw, requirements=["C", "A"]).reshape(raw.shape[0], k // elements, block_bytes)


def halves(block: npt.NDArray[np.uint8], offset: int) -> npt.NDArray[np.float16]:
    """The little-endian fp16 at an even byte offset of every block of even size: float16 [rows, blocks], a copy."""
    values: npt.NDArray[np.float16] = block.view("<f2")[:, :, offset // 2].copy()
    return values


def split_nibbles(block: npt.NDArray[np.uint8], offset: int) -> npt.NDArray[np.uint8]:
    """Codes of blocks whose 16 bytes at ``offset`` hold codes 0 to 15 low and 16 to 31 high: [rows, blocks, 32]."""
    import numpy as np

    packed = block[:, :, offset : offset + GROUP // 2]
    return np.concatenate([packed & 15, packed >> 4], axis=2)
