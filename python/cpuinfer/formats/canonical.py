"""The canonical form of weights: what every way of storing them decodes to, and every kernel is packed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest

GROUP = 32
"""Neighbours along a row that share a scale."""

Layout = Literal["int4", "int8", "table4", "mxfp4", "f16", "bf16", "f32"]

FloatType = TypeVar("FloatType", np.float32, np.float64)


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


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of 4-bit codes into a table: ``value = scale * table[code]``, scale by group."""

    codes: npt.NDArray[np.uint8]
    """[rows, k], each 0 .. 15."""
    scale: npt.NDArray[np.float16]
    """[rows, k / group]."""
    table: npt.NDArray[np.float32]
    """[16]."""
    group: int


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Rows of one of GGUF's block types, as the file has them: kernels unpack them as they go."""

    raw: npt.NDArray[np.uint8]
    """[rows, row_bytes]."""
    layout: Literal["mxfp4"]
    k: int


@dataclass(frozen=True, slots=True)
class FloatRows:
    """Rows of floating-point values, kept as stored."""

    values: npt.NDArray[Any]
    """[rows, k]: float16, float32, or for bf16 its bits as uint16."""
    layout: Literal["f16", "bf16", "f32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way of storing weights."""

    name: str
    layout: Layout
    bits: int
    """Of a code, or of a floating-point value."""
    zero: int = 0
    """Subtracted from every code."""
    has_bias: bool = False
    decode: Callable[[npt.NDArray[np.uint8], int], IntegerRows | FloatRows]
    """(bytes as stored [rows, row_bytes], k) -> canonical rows."""

    @property
    def is_float(self) -> bool:
        """Whether ``decode`` gives FloatRows."""
        return self.layout not in {"int4", "int8"}


def blocks(raw: npt.NDArray[np.uint8], k: int, *, elements: int, block_bytes: int) -> npt.NDArray[np.uint8]:
    """Rows as stored, seen as blocks: uint8 [rows, k / elements, block_bytes], contiguous and aligned; no copy."""
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
    """Codes of blocks whose 16 bytes at ``offset`` hold codes 0 to 15 low and 16 to 31 high: uint8 [rows, k]."""
    packed = block[:, :, offset : offset + GROUP // 2]
    rows, groups, _ = block.shape
    codes = np.empty((rows, groups, GROUP), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, :, : GROUP // 2])
    np.right_shift(packed, 4, out=codes[:, :, GROUP // 2 :])
    return codes.reshape(rows, groups * GROUP)


def to_float(rows: IntegerRows | TableRows | FloatRows, dtype: type[FloatType]) -> npt.NDArray[FloatType]:
    """The values, [rows, k]: exact in float64, one rounding a step in float32."""
    if isinstance(rows, FloatRows):
        if rows.layout == "bf16":
            return (rows.values.astype(np.uint32) << 16).view(np.float32).astype(dtype, copy=False)
        return rows.values.astype(dtype)
    n, k = rows.codes.shape
    values: npt.NDArray[FloatType]
    if isinstance(rows, TableRows):
        values = rows.table.astype(dtype)[rows.codes].reshape(n, k // rows.group, rows.group)
    else:
        values = rows.codes.reshape(n, k // rows.group, rows.group).astype(dtype)
        values -= dtype(rows.zero) if rows.zeros is None else rows.zeros.astype(dtype)[:, :, None]
    values *= rows.scale.astype(dtype)[:, :, None]
    if isinstance(rows, IntegerRows) and rows.bias is not None:
        values += rows.bias.astype(dtype)[:, :, None]
    return values.reshape(n, k)
