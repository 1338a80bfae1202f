"""MXFP4: blocks of 32 four-bit floats (E2M1) with an 8-bit exponent, for one matrix or one for each expert.

    NAME_blocks U8 [..., n, k / 32, 16]: low nibble first, neighbours in one byte   NAME_scales U8 [..., n, k / 32]

The experts' rows follow each other in one weight of (experts * n, k).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import CheckpointError
from cpuinfer.formats import mxfp4
from cpuinfer.formats.canonical import BlockRows
from cpuinfer.published.tensors import Tensors, expect, stored_bytes, weight_shape
from cpuinfer.weight import Weight

PACKED = "_blocks"
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""Of the codes: sign, two bits of exponent, one of mantissa."""
MOST_EXPONENT = 252
"""Of a block: 6 * 2**(252 - 127) is the largest that fp32 holds; 255 is NaN."""


def check(quantization: Mapping[str, Any]) -> None:
    """Nothing: there is one MXFP4."""


def open_linear(
    tensors: Tensors, prefix: str, quantization: Mapping[str, Any], shape: tuple[int, int] | None = None
) -> Weight:
    """The weight of a layer, its tensors checked against each other."""
    check(quantization)
    names = blocks, scales = f"{prefix}_blocks", f"{prefix}_scales"
    found = expect(tensors, blocks, ("U8",))
    if len(found) not in {3, 4} or found[-1] != 16:
        raise CheckpointError(f"{blocks}: U8 {found}, expected U8 (*, *, 16) or (*, *, *, 16)")
    *outer, per_row, _ = found
    n, k = weight_shape(blocks, (math.prod(outer), per_row * 32), shape)
    expect(tensors, scales, ("U8",), found[:-1])
    matrix_rows = outer[-1] if len(outer) == 2 else 1  # of one row of the tensor, as `read_rows` counts them

    def read(name: str, begin: int, end: int) -> npt.NDArray[np.uint8]:
        first = begin // matrix_rows
        values = tensors.read_rows(name, first, -(-end // matrix_rows))
        values = values.reshape(-1, *found[len(outer) : len(tensors.shape(name))])
        return np.asarray(values[begin - first * matrix_rows : end - first * matrix_rows], np.uint8)

    def rows(begin: int, end: int) -> BlockRows:
        exponent = read(scales, begin, end)
        if exponent.size and (most := int(exponent.max())) > MOST_EXPONENT:
            raise CheckpointError(f"{scales}: {most}, expected at most {MOST_EXPONENT}")
        # GGUF's block: the exponent, then 16 bytes, element i in the low nibble of byte i, 16 + i in the high one.
        pairs = read(blocks, begin, end)
        raw = np.empty((end - begin, per_row, 17), np.uint8)
        raw[:, :, 0] = exponent
        raw[:, :, 1::2] = pairs[:, :, :8] & 15 | pairs[:, :, 8:] << 4
        raw[:, :, 2::2] = pairs[:, :, :8] >> 4 | pairs[:, :, 8:] & 0xF0
        return BlockRows(raw.reshape(end - begin, per_row * 17), mxfp4.FORMAT, k)

    def floats() -> npt.NDArray[np.float64]:
        pairs = tensors.read(blocks).reshape(-1, 16)
        values = VALUES[np.stack([pairs % 16, pairs // 16], axis=2).reshape(-1, 32)]
        exponent = tensors.read(scales).astype(np.int32).reshape(-1, 1) - 127
        scaled: npt.NDArray[np.float64] = np.ldexp(values, exponent)
        return scaled.reshape(n, k)

    return Weight(
        name=prefix,
        encoding="MXFP4",
        shape=(n, k),
        layout="mxfp4",
        group=32,
        tensor_names=names,
        file_bytes=stored_bytes(tensors, names),
        rows=rows,
        floats=floats,
    )
