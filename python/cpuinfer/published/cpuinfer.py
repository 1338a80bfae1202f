"""The layout of our own, for what no other holds: HACKING.md, "The safetensors layout of our own", defines it.

codes U8 [n, k * bits / 8]   scale F16 [n, groups]   zeros U8 [n, groups * bits / 8]   offset F16 [n, groups]
table F32 [16]   order I32 [k]   outlier_columns I32 [c]   outliers F16 [n, c]   shape I64 [2]
scale_codes U8 [n, groups] and scale_ends F16 [n, blocks, 2] in place of scale; type U8 for a GGUF block type
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer import formats
from cpuinfer.errors import CheckpointError, UnsupportedFormat
from cpuinfer.formats.canonical import BlockFormat, FloatRows, IntegerRows, Rows, TableRows
from cpuinfer.published import options, packing
from cpuinfer.published.tensors import Tensors, expect, stored_bytes, weight_shape
from cpuinfer.weight import Weight

PACKED = ".codes"
METHOD = "cpuinfer"
VERSION = 1
SCALES_OF_A_BLOCK = 256
"""Neighbouring scales of a row that two levels describe together."""
PARTS = (
    *("codes", "shape", "type", "scale", "scale_codes", "scale_ends"),
    *("zeros", "offset", "table", "order", "outlier_columns", "outliers"),
)


def check(quantization: Mapping[str, Any]) -> None:
    """Refuse a version that is not this one."""
    options.one_of(METHOD, "version", options.require(quantization, "version", int), (VERSION,))


def scales(codes: npt.NDArray[np.uint8], ends: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
    """Scales of two levels, [n, groups]: from the first end of their block to the second in 255 equal steps.

    codes [n, groups]; ends [n, blocks, 2].  In fp32, each operation rounded: fp16(low + (high - low) / 255 * code).
    """
    block = np.arange(codes.shape[1]) // SCALES_OF_A_BLOCK
    low, high = ends[:, block, 0].astype(np.float32), ends[:, block, 1].astype(np.float32)
    step = (high - low) / np.float32(255)
    values: npt.NDArray[np.float16] = (low + step * codes.astype(np.float32)).astype(np.float16)
    return values


@dataclass(frozen=True, slots=True)
class _Stored:
    """A weight's tensors, checked against each other."""

    tensors: Tensors
    prefix: str
    n: int
    k: int
    bits: int
    groups: int
    held: frozenset[str]
    """Of PARTS, those there are."""

    def name(self, part: str) -> str:
        return f"{self.prefix}.{part}"

    def take(self, part: str, begin: int, end: int) -> npt.NDArray[Any]:
        return self.tensors.read_rows(self.name(part), begin, end)

    def scale(self, begin: int, end: int) -> npt.NDArray[np.float16]:
        if "scale" in self.held:
            return self.take("scale", begin, end)
        return scales(self.take("scale_codes", begin, end), self.take("scale_ends", begin, end))

    def zeros(self, begin: int, end: int) -> npt.NDArray[np.uint8] | None:
        if "zeros" not in self.held:
            return None
        return packing.unpack_bits(self.take("zeros", begin, end), self.bits, self.groups)

    def table(self) -> npt.NDArray[np.float32] | None:
        return self.tensors.read(self.name("table")) if "table" in self.held else None

    def order(self) -> npt.NDArray[np.int32] | None:
        """[k]: column i of the codes is column order[i] of the weight."""
        if "order" not in self.held:
            return None
        order: npt.NDArray[np.int32] = self.tensors.read(self.name("order"))
        if not np.array_equal(np.sort(order), np.arange(self.k)):
            raise CheckpointError(f"{self.name('order')}: not each of the {self.k} columns once")
        return order

    def rows(self, begin: int, end: int) -> IntegerRows | TableRows:
        """As the kernels take them, without the outliers."""
        codes = packing.unpack_bits(self.take("codes", begin, end), self.bits, self.k)
        scale, group, table = self.scale(begin, end), self.k // self.groups, self.table()
        if table is not None:
            return TableRows(codes, scale, table, group)
        bias = self.take("offset", begin, end) if "offset" in self.held else None
        zeros = self.zeros(begin, end)
        return IntegerRows(codes, scale, bias, 0 if zeros is not None else 1 << (self.bits - 1), zeros, group)

    def exact(self, begin: int, end: int) -> npt.NDArray[np.float32]:
        """With the outliers, columns in the weight's own order; exact but for a bias, which may cost a rounding."""
        values = self.rows(begin, end).to_float(np.float32)
        order = self.order()
        if order is not None:
            values[:, order] = values.copy()
        if "outliers" in self.held:
            columns = self.tensors.read(self.name("outlier_columns"))
            values[:, columns] = self.take("outliers", begin, end).astype(np.float32)
        return values


def open_linear(
    tensors: Tensors, prefix: str, quantization: Mapping[str, Any], shape: tuple[int, int] | None = None
) -> Weight:
    """The weight of a layer, its tensors checked against each other."""
    check(quantization)
    held = frozenset(part for part in PARTS if f"{prefix}.{part}" in tensors.names())
    expect(tensors, f"{prefix}.shape", ("I64",), (2,))
    n, k = weight_shape(f"{prefix}.shape", tuple(tensors.read(f"{prefix}.shape").tolist()), shape)
    names = tuple(f"{prefix}.{part}" for part in PARTS if part in held)
    if "type" in held:
        return _blocks(tensors, prefix, (n, k), names)
    s = _checked(tensors, prefix, n, k, held)
    if "outliers" in held:
        return _with_outliers(s, names)
    form = "table" if "table" in held else "int"
    return Weight(
        name=prefix,
        encoding=options.label(METHOD, s.bits, -1 if s.groups == 1 else k // s.groups).replace("int", form),
        shape=(n, k),
        layout="table4" if form == "table" else "int4" if s.bits <= 4 else "int8",
        group=k // s.groups,
        zero=0 if held & {"zeros", "table"} else 1 << (s.bits - 1),
        has_zeros="zeros" in held,
        has_bias="offset" in held,
        table=s.table(),
        input_order=s.order(),
        tensor_names=names,
        file_bytes=stored_bytes(tensors, names),
        rows=s.rows,
        floats=lambda: _floats(s),
    )


def _checked(tensors: Tensors, prefix: str, n: int, k: int, held: frozenset[str]) -> _Stored:
    _, width = expect(tensors, f"{prefix}.codes", ("U8",), (n, None))
    bits = width * 8 // k
    if bits * k != width * 8 or not 2 <= bits <= 8:
        raise CheckpointError(f"{prefix}.codes: rows of {width} bytes, expected {k} codes of 2 to 8 bits")
    scale = "scale" if "scale" in held else "scale_codes"
    dtype = "F16" if scale == "scale" else "U8"
    _, groups = expect(tensors, f"{prefix}.{scale}", (dtype,), (n, None))
    if not groups or k % groups or k // groups % 32:
        raise UnsupportedFormat(f"{prefix}.{scale}: {groups} groups of {k} columns, expected multiples of 32 in each")
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        "scale_ends": ("F16", (n, -(-groups // SCALES_OF_A_BLOCK), 2)),
        "zeros": ("U8", (n, -(-groups * bits // 8))),
        "offset": ("F16", (n, groups)),
        "table": ("F32", (16,)),
        "order": ("I32", (k,)),
    }
    needed = held | ({"scale_ends"} if scale == "scale_codes" else set())
    for part in wanted.keys() & needed:
        expect(tensors, f"{prefix}.{part}", (wanted[part][0],), wanted[part][1])
    if "table" in held and (bits != 4 or held & {"zeros", "offset"}):
        raise CheckpointError(f"{prefix}.table: beside codes of {bits} bits or offsets, expected 4 bits and none")
    if "outliers" in held:
        _check_outliers(tensors, prefix, n, k)
    return _Stored(tensors, prefix, n, k, bits, groups, held)


def _check_outliers(tensors: Tensors, prefix: str, n: int, k: int) -> None:
    (count,) = expect(tensors, f"{prefix}.outlier_columns", ("I32",), (None,))
    expect(tensors, f"{prefix}.outliers", ("F16",), (n, count))
    columns = tensors.read(f"{prefix}.outlier_columns")
    if count and (columns.min() < 0 or columns.max() >= k or len(np.unique(columns)) < count):
        raise CheckpointError(f"{prefix}.outlier_columns: expected each once, from 0 to {k - 1}")


def _floats(s: _Stored) -> npt.NDArray[np.float64]:
    """By the definition, one column of a group at a time."""
    bits = np.unpackbits(s.tensors.read(s.name("codes")), axis=1, bitorder="little").reshape(s.n, s.k, s.bits)
    codes = (bits * (1 << np.arange(s.bits))).sum(axis=2)
    group = np.arange(s.k) // (s.k // s.groups)
    scale = s.scale(0, s.n).astype(np.float64)[:, group]
    table, zeros = s.table(), s.zeros(0, s.n)
    if table is not None:
        values: npt.NDArray[np.float64] = scale * table.astype(np.float64)[codes]
    else:
        zero: Any = 1 << (s.bits - 1) if zeros is None else zeros.astype(np.int64)[:, group]
        values = scale * (codes - zero)
    if "offset" in s.held:
        values += s.take("offset", 0, s.n).astype(np.float64)[:, group]
    order = s.order()
    if order is not None:
        values[:, order] = values.copy()
    if "outliers" in s.held:
        values[:, s.tensors.read(s.name("outlier_columns"))] = s.take("outliers", 0, s.n)
    return values


def _with_outliers(s: _Stored, names: tuple[str, ...]) -> Weight:
    """No kernel adds columns of another type: the weight runs as the fp32 numbers that it means."""
    count = s.tensors.shape(s.name("outlier_columns"))[0]
    label = options.label(METHOD, s.bits, -1 if s.groups == 1 else s.k // s.groups)
    return Weight(
        name=s.prefix,
        encoding=f"{label} and {count} columns F16, as F32",
        shape=(s.n, s.k),
        layout="f32",
        tensor_names=names,
        file_bytes=stored_bytes(s.tensors, names),
        rows=lambda begin, end: FloatRows(s.exact(begin, end), "f32"),
        floats=lambda: _floats(s),
    )


def _blocks(tensors: Tensors, prefix: str, shape: tuple[int, int], names: tuple[str, ...]) -> Weight:
    """A GGUF block type's own bytes."""
    expect(tensors, f"{prefix}.type", ("U8",), (None,))
    kind = bytes(tensors.read(f"{prefix}.type")).decode("ascii", errors="replace")
    form = formats.find(kind)
    n, k = shape
    if not isinstance(form, BlockFormat) or k % form.elements:
        raise CheckpointError(f"{prefix}.type: {kind} for rows of {k}, expected a block type that divides them")
    expect(tensors, f"{prefix}.codes", ("U8",), (n, k // form.elements * form.block_bytes))

    def rows(begin: int, end: int) -> Rows:
        return form.decode(tensors.read_rows(f"{prefix}.codes", begin, end), k)

    return Weight(
        name=prefix,
        encoding=kind,
        shape=shape,
        layout=form.layout,
        zero=form.zero,
        has_bias=form.has_bias,
        tensor_names=names,
        file_bytes=stored_bytes(tensors, names),
        rows=rows,
        floats=lambda: rows(0, n).to_float(np.float64),
    )
