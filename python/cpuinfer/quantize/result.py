"""Rounded matrices as weights of a model: what the loader packs and what files are written from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer import formats
from cpuinfer.errors import CpuInferError, NumericalError
from cpuinfer.formats.canonical import BlockRows, FloatLayout, FloatRows, Rows
from cpuinfer.quantize.blocks import BlockScheme
from cpuinfer.quantize.forward import read_matrix
from cpuinfer.quantize.grids import IntegerScheme
from cpuinfer.quantize.hqq import hqq
from cpuinfer.quantize.recipe import FLOATS
from cpuinfer.quantize.scheme import BLOCK_NAMES, WHOLE_ROW, Scheme, find
from cpuinfer.quantize.tables import TableScheme
from cpuinfer.weight import Weight

Fetch = Callable[[int, int], Rows]
LAYOUTS: dict[str, FloatLayout] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def as_scheme(source: Weight, scheme: Scheme, rows: Fetch, order: npt.NDArray[np.integer] | None = None) -> Weight:
    """A matrix whose rows are of a scheme; `order`: column i of them is column order[i] of the weight."""
    form = formats.find(scheme.name) if scheme.name in BLOCK_NAMES else None
    integers = scheme if isinstance(scheme, IntegerScheme) else None
    table = scheme.levels if isinstance(scheme, TableScheme) else None
    n, k = source.shape

    def floats() -> npt.NDArray[np.float64]:
        values = rows(0, n).to_float(np.float64)
        if order is None:
            return values
        placed = np.empty_like(values)
        placed[:, order] = values
        return placed

    return replace(
        source,
        encoding=scheme.name,
        layout=form.layout if form else "table4" if integers is None else "int4" if integers.bits <= 4 else "int8",
        file_bytes=int(n * k * scheme.bits_per_weight / 8),
        rows=rows,
        floats=floats,
        group=32 if form else k if scheme.group == WHOLE_ROW else scheme.group,
        zero=form.zero if form else integers.zero if integers else 0,
        has_zeros=integers is not None and integers.has_offset,
        has_bias=form is not None and form.has_bias,
        table=table,
        input_order=None if order is None else order.astype(np.int32),
        whole=source.whole or source.input_order is not None,
    )


def as_floats(source: Weight, rows: Fetch, encoding: str = "F32") -> Weight:
    """A vector or a matrix of numbers."""
    shape = source.shape
    count = shape[0] if len(shape) == 2 else 1
    return replace(
        source,
        encoding=encoding,
        layout=LAYOUTS[encoding],
        file_bytes=int(np.prod(shape)) * (4 if encoding == "F32" else 2),
        rows=rows,
        floats=lambda: rows(0, count).to_float(np.float64).reshape(shape),
        group=32,
        zero=0,
        has_zeros=False,
        has_bias=False,
        table=None,
        input_order=None,
    )


def plain(source: Weight, encoding: str | None, method: str, counted: npt.NDArray[np.float32] | None = None) -> Weight:
    """A tensor rounded as it is read, a stretch of rows at a time, by a method that takes each row by itself.

    counted [k]: what the square of an error counts in each column.  As encoding, None
    leaves it as it is stored: vectors, and matrices that the file's own encoding is kept of.
    """
    if encoding is None or len(source.shape) == 1:
        return source
    if encoding in FLOATS:
        return as_floats(source, _narrowed(source, encoding), encoding)
    scheme = find(encoding)

    def rows(begin: int, end: int) -> Rows:
        try:
            if isinstance(scheme, BlockScheme) and method != "hqq":
                w = _stored(source, begin, end)
                return BlockRows(scheme.encode(w, counted, search=method != "rtn"), scheme.form, source.shape[1])
            w = _some(source, begin, end)
            if method == "hqq" and scheme.has_offset:
                result = hqq(w, scheme)
                return scheme.rows(result.codes, result.fit)
            fit = scheme.fit(w, counted, search=method != "rtn")
            return scheme.rows(scheme.codes(w, fit), fit)
        except CpuInferError as error:
            raise type(error)(f"{source.name}, rows from {begin}: {error}") from None

    return as_scheme(source, scheme, rows)


def _stored(source: Weight, begin: int, end: int) -> npt.NDArray[Any]:
    """Rows in float32, float16, or as the bits of bf16: as they are stored, if they are so."""
    if source.is_float and source.input_order is None:
        found = source.rows(begin, end)
        if isinstance(found, FloatRows):
            return found.values
    return _some(source, begin, end)


def _some(source: Weight, begin: int, end: int) -> npt.NDArray[np.float32]:
    """Rows as floats, their columns in the weight's own order."""
    if source.input_order is not None:
        return read_matrix(source)[begin:end]
    return source.rows(begin, end).to_float(np.float32)


def _narrowed(source: Weight, encoding: str) -> Fetch:
    def rows(begin: int, end: int) -> Rows:
        values = _some(source, begin, end)
        if encoding == "BF16":
            stored = _to_bf16(values)
        else:
            with np.errstate(over="ignore"):
                stored = values.astype(np.float16 if encoding == "F16" else np.float32)
            if not np.isfinite(stored).all():
                raise NumericalError(f"{source.name}: holds NaN, infinity or a number too large for {encoding}")
        return FloatRows(stored, LAYOUTS[encoding])

    return rows


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Rounded to nearest, ties to even, as its bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return rounded
