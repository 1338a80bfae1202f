"""bitsandbytes, 4 bits (NF4, FP4): codes into a table that the file holds, high nibble first, in flat blocks.

    weight [n * k / 2, 1] bytes   weight.quant_map F32 [16]   weight.quant_state.bitsandbytes__nf4: JSON, as U8
    weight.absmax F32 [n * k / blocksize]; or with double quantisation U8, and
    weight.nested_absmax F32 [blocks / nested_blocksize], weight.nested_quant_map F32 [256], nested_offset in the JSON

Blocks run on from row to row.  The bytes of `weight` may be stored as another dtype (`bnb_4bit_quant_storage`).
The table of real FP4 files is not the one that its generator in the sources makes: it is always read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import CheckpointError, UnsupportedFormat
from cpuinfer.formats.canonical import TableRows
from cpuinfer.published import options
from cpuinfer.published.tensors import ITEM_BYTES, Tensors, expect, halved, stored_bytes, weight_shape
from cpuinfer.weight import Weight

PACKED = ".weight.absmax"
METHOD = "bitsandbytes"
TYPES = ("nf4", "fp4")
MOST_BLOCKSIZE = 4096
MOST_STATE_BYTES = 1 << 16


def check(quantization: Mapping[str, Any]) -> None:
    """Refuse what is not read here."""
    if options.optional(quantization, "load_in_8bit", bool, False):
        raise UnsupportedFormat(f"{METHOD}: load_in_8bit is not supported; supported is load_in_4bit")
    options.one_of(
        METHOD, "bnb_4bit_quant_type", options.optional(quantization, "bnb_4bit_quant_type", str, "fp4"), TYPES
    )


@dataclass(frozen=True, slots=True)
class State:
    """What the JSON says."""

    type: str
    blocksize: int
    shape: tuple[int, int]
    nested_blocksize: int
    """0 without double quantisation."""
    nested_offset: float


def _state(tensors: Tensors, weight: str) -> tuple[State, str]:
    """The quant_state of a weight, checked, and the name of its tensor."""
    named = {kind: f"{weight}.quant_state.bitsandbytes__{kind}" for kind in TYPES}
    kind = next((kind for kind in TYPES if named[kind] in tensors.names()), TYPES[0])
    name = named[kind]
    (size,) = expect(tensors, name, ("U8",), (None,))
    if size > MOST_STATE_BYTES:
        raise CheckpointError(f"{name}: {size} bytes, expected at most {MOST_STATE_BYTES}")
    try:
        found = json.loads(tensors.read(name).tobytes())
        nested = "nested_blocksize" in found
        state = State(
            found["quant_type"],
            int(found["blocksize"]),
            tuple(map(int, found["shape"])),  # type: ignore[arg-type]
            int(found["nested_blocksize"]) if nested else 0,
            float(found["nested_offset"] if nested else 0),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{name}: {error!r}, expected JSON of a quant_state") from error
    sizes_fit = 32 <= state.blocksize <= MOST_BLOCKSIZE and not state.blocksize % 32
    sizes_fit &= 1 <= state.nested_blocksize <= MOST_BLOCKSIZE or not nested
    if state.type != kind or len(state.shape) != 2 or not sizes_fit or not abs(state.nested_offset) < 65504:
        raise CheckpointError(f"{name}: {state}, expected type {kind}, two sizes and blocks of 32 to {MOST_BLOCKSIZE}")
    return state, name


def open_linear(
    tensors: Tensors, prefix: str, quantization: Mapping[str, Any], shape: tuple[int, int] | None = None
) -> Weight:
    """The weight of a layer, its tensors checked against each other."""
    check(quantization)
    weight = f"{prefix}.weight"
    absmax, quant_map, nested_absmax, nested_map = (
        f"{weight}.{part}" for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    )
    s, state_name = _state(tensors, weight)
    n, k = weight_shape(state_name, s.shape, shape)
    expect(tensors, weight, ("U8", "BF16", "F16", "F32"))
    item_bytes = ITEM_BYTES[tensors.dtype(weight)]
    expect(tensors, weight, (tensors.dtype(weight),), (n * k // 2 // item_bytes, 1))
    blocks = -(-n * k // s.blocksize)
    expect(tensors, absmax, ("U8" if s.nested_blocksize else "F32",), (blocks,))
    names: tuple[str, ...] = (weight, absmax, quant_map, state_name)
    if s.nested_blocksize:
        expect(tensors, nested_absmax, ("F32",), (-(-blocks // s.nested_blocksize),))
        expect(tensors, nested_map, ("F32",), (256,))
        names += (nested_absmax, nested_map)
    expect(tensors, quant_map, ("F32",), (16,))
    table = np.array(tensors.read(quant_map), np.float32)
    if not np.isfinite(table).all():
        raise CheckpointError(f"{quant_map}: {table.tolist()}, expected finite numbers")
    # Blocks and rows both end at multiples of this, so that a run of so many neighbours lies in one block.
    group = math.gcd(s.blocksize, k)

    def scales(begin: int, end: int) -> npt.NDArray[np.float32]:
        """Of blocks [begin, end); double quantisation undone in fp32, as it is defined."""
        stored = tensors.read_rows(absmax, begin, end)
        if not s.nested_blocksize:
            return np.asarray(stored, np.float32)
        outer = tensors.read(nested_absmax)[np.arange(begin, end) // s.nested_blocksize]
        scale: npt.NDArray[np.float32] = tensors.read(nested_map)[stored] * outer + np.float32(s.nested_offset)
        return scale

    def rows(begin: int, end: int) -> TableRows:
        pairs = tensors.read_rows(weight, begin * k // 2 // item_bytes, end * k // 2 // item_bytes)
        pairs = np.ascontiguousarray(pairs).view(np.uint8).reshape(end - begin, k // 2)
        codes = np.empty((end - begin, k // 2, 2), np.uint8)
        np.right_shift(pairs, 4, out=codes[:, :, 0])
        np.bitwise_and(pairs, 15, out=codes[:, :, 1])
        first = begin * k // s.blocksize
        block = np.arange(begin * k, end * k, group) // s.blocksize - first
        scale = scales(first, -(-end * k // s.blocksize))[block]
        return TableRows(codes.reshape(-1, k), halved(scale.reshape(-1, k // group), absmax), table, group)

    def floats() -> npt.NDArray[np.float64]:
        pairs = np.ascontiguousarray(tensors.read(weight)).view(np.uint8).reshape(-1)
        values = table.astype(np.float64)[np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)]
        return (values * np.repeat(scales(0, blocks).astype(np.float64), s.blocksize)[: n * k]).reshape(n, k)

    return Weight(
        name=prefix,
        encoding=f"{METHOD} {s.type.upper()} g{s.blocksize}{' double' if s.nested_blocksize else ''}",
        shape=(n, k),
        layout="table4",
        group=group,
        table=table,
        tensor_names=names,
        file_bytes=stored_bytes(tensors, names),
        rows=rows,
        floats=floats,
    )
