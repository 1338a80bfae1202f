"""Folders in the layout of our own, which holds every scheme: HACKING.md defines it, published/cpuinfer.py reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer import formats
from cpuinfer.errors import UnsupportedFormat, UnsupportedModel
from cpuinfer.formats.canonical import BlockFormat, BlockRows, IntegerRows, TableRows
from cpuinfer.published import cpuinfer as layout
from cpuinfer.published import packing
from cpuinfer.quantize import folder_output
from cpuinfer.quantize.folder_output import Layer, bits_of
from cpuinfer.quantize.safetensors_file import Entry, Progress, Put
from cpuinfer.weight import Weight
from cpuinfer.weights import Source


@dataclass(frozen=True, slots=True, eq=False)
class Outliers:
    """Columns of a weight that are kept in 16 bits, whatever its codes there."""

    columns: npt.NDArray[np.int32]
    """[c], in the weight's own order."""
    values: npt.NDArray[np.float16]
    """[n, c]."""


def write_folder(
    out: Path,
    source: Source,
    weights: Mapping[str, Weight],
    *,
    outliers: Mapping[str, Outliers] | None = None,
    two_level: bool = False,
    overwrite: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write the source's folder with `weights`, by our names, packed; see folder_output.write_folder.

    `outliers`: by our names too; a weight that shares a tensor with others has them in the same columns.
    `two_level`: scales of integers and tables take 8 bits and a share of two ends; UnsupportedFormat for any that is
    not as `two_levels` rounds it.
    """
    packed = _Own(outliers or {}, two_level)
    folder_output.write_folder(out, source, weights, packed, overwrite=overwrite, threads=threads, progress=progress)


def two_levels(
    scale: npt.NDArray[np.floating[Any]],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """Scales [n, groups] as (codes [n, groups], ends [n, blocks, 2], the scales that these mean, fp16 [n, groups]).

    Ends are the least and the greatest of a block, so that rounding what this gives gives the same again.
    """
    exact = scale.astype(np.float16).astype(np.float32)
    codes = np.empty(exact.shape, np.uint8)
    ends = np.empty((len(exact), -(-exact.shape[1] // layout.SCALES_OF_A_BLOCK), 2), np.float16)
    for block in range(ends.shape[1]):
        here = slice(block * layout.SCALES_OF_A_BLOCK, (block + 1) * layout.SCALES_OF_A_BLOCK)
        low, high = exact[:, here].min(axis=1), exact[:, here].max(axis=1)
        step = ((high - low) / np.float32(255))[:, None]
        steps = np.divide(exact[:, here] - low[:, None], step, out=np.zeros_like(exact[:, here]), where=step > 0)
        codes[:, here] = np.clip(np.rint(steps), 0, 255)
        ends[:, block, 0], ends[:, block, 1] = low, high
    return codes, ends, layout.scales(codes, ends)


class _Own:
    def __init__(self, outliers: Mapping[str, Outliers], two_level: bool) -> None:
        self._outliers = outliers
        self._two_level = two_level

    def entries(self, layer: Layer) -> tuple[Entry, ...]:
        weight, (n, k) = layer.weight, layer.shape
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {"shape": ("I64", (2,))}
        form = _block_format(weight)
        if form is not None:
            shapes["codes"] = ("U8", (n, k // form.elements * form.block_bytes))
            shapes["type"] = ("U8", (len(weight.encoding),))
        else:
            bits, groups = _bits(weight), k // weight.group
            shapes["codes"] = ("U8", (n, k * bits // 8))
            if self._two_level:
                shapes["scale_codes"] = ("U8", (n, groups))
                shapes["scale_ends"] = ("F16", (n, -(-groups // layout.SCALES_OF_A_BLOCK), 2))
            else:
                shapes["scale"] = ("F16", (n, groups))
            if weight.has_zeros:
                shapes["zeros"] = ("U8", (n, -(-groups * bits // 8)))
            if weight.has_bias:
                shapes["offset"] = ("F16", (n, groups))
            if weight.table is not None:
                shapes["table"] = ("F32", (16,))
            if weight.input_order is not None:
                shapes["order"] = ("I32", (k,))
        kept = self._kept(layer)
        if kept is not None:
            if form is not None:
                raise UnsupportedFormat(f"{layer.prefix}: outlier columns beside {weight.encoding}, expected integers")
            shapes["outlier_columns"] = ("I32", kept[0].columns.shape)
            shapes["outliers"] = ("F16", (n, len(kept[0].columns)))
        return tuple(Entry(f"{layer.prefix}.{part}", dtype, shape) for part, (dtype, shape) in shapes.items())

    def make(self, layer: Layer, put: Put) -> None:
        weight, prefix = layer.weight, layer.prefix
        put(f"{prefix}.shape", np.array(layer.shape, "<i8"))
        for _, _, rows in layer.chunks():
            match rows:
                case BlockRows():
                    put(f"{prefix}.codes", rows.raw)
                case IntegerRows() | TableRows():
                    put(f"{prefix}.codes", packing.pack_bits(rows.codes, _bits(weight)))
                    self._put_scale(prefix, rows.scale, put)
                    if isinstance(rows, IntegerRows) and rows.zeros is not None:
                        put(f"{prefix}.zeros", packing.pack_bits(rows.zeros, _bits(weight)))
                    if isinstance(rows, IntegerRows) and rows.bias is not None:
                        put(f"{prefix}.offset", rows.bias)
                case _:
                    raise UnsupportedFormat(f"{prefix}: {weight.encoding}, expected codes")
        if _block_format(weight) is not None:
            put(f"{prefix}.type", np.frombuffer(weight.encoding.encode("ascii"), np.uint8))
        if weight.table is not None:
            put(f"{prefix}.table", weight.table.astype("<f4"))
        if weight.input_order is not None:
            put(f"{prefix}.order", weight.input_order.astype("<i4"))
        kept = self._kept(layer)
        if kept is not None:
            put(f"{prefix}.outlier_columns", kept[0].columns.astype("<i4"))
            values, starts = np.concatenate([each.values for each in kept]), [0]
            starts += np.cumsum([len(each.values) for each in kept]).tolist()
            rows_of = np.array(starts)[layer.placed.part] + layer.placed.row
            put(f"{prefix}.outliers", values[rows_of].astype("<f2"))

    def _put_scale(self, prefix: str, scale: npt.NDArray[np.float16], put: Put) -> None:
        if not self._two_level:
            put(f"{prefix}.scale", scale)
            return
        codes, ends, meant = two_levels(scale)
        if not np.array_equal(meant, scale):
            raise UnsupportedFormat(f"{prefix}: scales that two levels do not give: round them before the codes")
        put(f"{prefix}.scale_codes", codes)
        put(f"{prefix}.scale_ends", ends)

    def _kept(self, layer: Layer) -> list[Outliers] | None:
        """The outliers of all parts of a tensor."""
        found = [self._outliers[name] for name in layer.placed.parts if name in self._outliers]
        if not found:
            return None
        same = all(np.array_equal(each.columns, found[0].columns) for each in found)
        if len(found) < len(layer.placed.parts) or not same:
            raise UnsupportedModel(f"{layer.prefix}: is one tensor of several weights, with outliers in other columns")
        return found

    def config(self, packed: Iterable[Layer], floats: Iterable[str]) -> Mapping[str, Any]:
        del packed, floats  # tensors say it all
        return {"quant_method": layout.METHOD, "version": layout.VERSION}


def _block_format(weight: Weight) -> BlockFormat | None:
    if weight.encoding not in formats.supported():
        return None
    form = formats.find(weight.encoding)
    return form if isinstance(form, BlockFormat) else None


def _bits(weight: Weight) -> int:
    return 4 if weight.table is not None else bits_of(weight)
