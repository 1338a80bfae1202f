"""AWQ, gemm order: int32 words packed along the outputs, a scale and a zero point for each group and output.

    qweight I32 [k, n / 8]   scales [groups, n]   qzeros I32 [groups, n / 8]

The nibbles of a word, lowest first, are outputs 0 2 4 6 1 3 5 7 of its eight; zero points are stored as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.formats.canonical import IntegerRows
from cpuinfer.published import options, packing
from cpuinfer.published.tensors import FLOATS, Kept, Tensors, expect, halved, stored_bytes, weight_shape, widened
from cpuinfer.weight import Weight

PACKED = ".qweight"
NIBBLE_OF_OUTPUT = (0, 4, 1, 5, 2, 6, 3, 7)


def scheme(quantization: Mapping[str, Any], method: str = "AWQ") -> int:
    """The config, checked: the group size."""
    options.one_of(method, "bits", options.require(quantization, "bits", int), (4,))
    for key in ("version", "format", "checkpoint_format"):
        options.one_of(method, key, options.optional(quantization, key, str, "gemm").lower(), ("gemm",))
    return options.group_size(method, options.require(quantization, "group_size", int))


def check(quantization: Mapping[str, Any]) -> None:
    """Refuse what is not read here."""
    scheme(quantization)


def open_linear(
    tensors: Tensors,
    prefix: str,
    quantization: Mapping[str, Any],
    shape: tuple[int, int] | None = None,
    *,
    method: str = "AWQ",
) -> Weight:
    """The weight of a layer, its tensors checked against each other."""
    group = scheme(quantization, method)
    names = qweight, scales, qzeros = f"{prefix}.qweight", f"{prefix}.scales", f"{prefix}.qzeros"
    k, words = expect(tensors, qweight, ("I32",), (None, None))
    n, k = weight_shape(qweight, (words * 8, k), shape)
    count = packing.count_groups(k, group)
    expect(tensors, scales, FLOATS, (count, n))
    expect(tensors, qzeros, ("I32",), (count, words))
    groups = packing.contiguous(k, group)
    kept = Kept(tensors, names, n)

    def rows(begin: int, end: int) -> IntegerRows:
        held = kept.take(end - begin)
        scale = halved(widened(held[scales][:, begin:end]).T[:, groups.source], scales)
        zeros = _outputs(held[qzeros], begin, end).T[:, groups.source]
        codes = np.ascontiguousarray(_outputs(held[qweight], begin, end).T)
        return IntegerRows(codes, scale, zeros=np.ascontiguousarray(zeros), group=groups.size)

    def floats() -> npt.NDArray[np.float64]:
        shifts = 4 * np.array(NIBBLE_OF_OUTPUT)
        codes, zeros = (
            (tensors.read(name)[:, :, None] >> shifts & 15).reshape(-1, n).astype(np.float64)
            for name in (qweight, qzeros)
        )
        scale = widened(tensors.read(scales))[groups.index]
        values: npt.NDArray[np.float64] = ((codes - zeros[groups.index]) * scale).T
        return values

    return Weight(
        name=prefix,
        encoding=options.label(method, 4, group),
        shape=(n, k),
        layout="int4",
        group=groups.size,
        has_zeros=True,
        tensor_names=names,
        file_bytes=stored_bytes(tensors, names),
        rows=rows,
        floats=floats,
    )


def _outputs(words: npt.NDArray[np.int32], begin: int, end: int) -> npt.NDArray[np.uint8]:
    """The codes of outputs [begin, end): [rows, end - begin]."""
    first = begin // 8
    codes = packing.unpack(words[:, first : -(-end // 8)], 4)
    in_order = codes.reshape(codes.shape[0], -1, 8)[:, :, NIBBLE_OF_OUTPUT].reshape(codes.shape)
    return in_order[:, begin - first * 8 : end - first * 8]
