"""GPTQ: int32 words packed along the inputs, a scale and a zero point for each group and output.

    qweight I32 [k * bits / 32, n]   scales [groups, n]   qzeros I32 [groups, n * bits / 32]   g_idx I32 [k]

Version 1 stores zero points less one, version 2 (`checkpoint_format: gptq_v2`) as they are.  With `sym` the zero point
is the middle of the codes; the stored ones are of either version, whatever the config says, and are not read.
(Sources: AutoGPTQ pull request 640; vLLM pull requests 38966 and 45656.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import UnsupportedFormat
from cpuinfer.formats.canonical import IntegerRows
from cpuinfer.published import options, packing
from cpuinfer.published.tensors import FLOATS, Kept, Tensors, expect, halved, stored_bytes, weight_shape, widened
from cpuinfer.weight import Weight

PACKED = ".qweight"
FORMATS = {"gptq": 1, "gptq_v2": 0}
"""By `checkpoint_format`: what is added to a stored zero point."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """What the config says of a weight."""

    bits: int
    group: int
    sym: bool
    zero_offset: int
    ordered: bool
    """Whether columns were quantised in an order of their own, so that g_idx is needed."""


def scheme(quantization: Mapping[str, Any], method: str = "GPTQ") -> Scheme:
    """The config, checked."""
    bits = options.require(quantization, "bits", int)
    options.one_of(method, "bits", bits, (4, 8))
    stored = options.optional(
        quantization, "checkpoint_format", str, options.optional(quantization, "format", str, "gptq")
    )
    options.one_of(method, "checkpoint_format", stored, tuple(FORMATS))
    options.one_of(method, "pack_dtype", options.optional(quantization, "pack_dtype", str, "int32"), ("int32",))
    options.absent(method, quantization, "is_marlin_format", "rotation")
    for pattern in options.mapping(quantization, "dynamic"):
        if not pattern.startswith("-:"):  # "-:" leaves a module unquantised: it has no packed tensors
            raise UnsupportedFormat(f"{method}: options by module (dynamic {pattern!r}) are not supported")
    return Scheme(
        bits,
        options.group_size(method, options.require(quantization, "group_size", int)),
        options.optional(quantization, "sym", bool, False),
        FORMATS[stored],
        options.optional(quantization, "desc_act", bool, False),
    )


def check(quantization: Mapping[str, Any]) -> None:
    """Refuse what is not read here."""
    scheme(quantization)


def open_linear(
    tensors: Tensors,
    prefix: str,
    quantization: Mapping[str, Any],
    shape: tuple[int, int] | None = None,
    *,
    method: str = "GPTQ",
) -> Weight:
    """The weight of a layer, its tensors checked against each other."""
    s = scheme(quantization, method)
    qweight, scales, qzeros, g_idx = (f"{prefix}.{part}" for part in ("qweight", "scales", "qzeros", "g_idx"))
    words, n = expect(tensors, qweight, ("I32",), (None, None))
    n, k = weight_shape(qweight, (n, words * 32 // s.bits), shape)
    count = packing.count_groups(k, s.group)
    expect(tensors, scales, FLOATS, (count, n))
    if not s.sym:
        expect(tensors, qzeros, ("I32",), (count, -(-n * s.bits // 32)))
    groups = _groups(tensors, g_idx, k, count, s)
    middle = 1 << (s.bits - 1)
    names = tuple(name for name in (qweight, scales, qzeros, g_idx) if name in tensors.names())
    kept = Kept(tensors, (qweight, scales) if s.sym else (qweight, scales, qzeros), n)

    def rows(begin: int, end: int) -> IntegerRows:
        held = kept.take(end - begin)
        codes = groups.arrange(packing.unpack(held[qweight][:, begin:end].T, s.bits))
        scale = halved(widened(held[scales][:, begin:end]).T[:, groups.source], scales)
        if s.sym:
            return IntegerRows(codes, scale, zero=middle, group=groups.size)
        zeros = packing.unpack_columns(held[qzeros], begin, end, s.bits)
        # A zero point of 0 less one is stored as all ones.
        zeros = (zeros + np.uint8(s.zero_offset)) & np.uint8(2 * middle - 1)
        return IntegerRows(codes, scale, zeros=np.ascontiguousarray(zeros.T[:, groups.source]), group=groups.size)

    def floats() -> npt.NDArray[np.float64]:
        shifts = np.arange(0, 32, s.bits)
        mask = 2 * middle - 1
        codes = (tensors.read(qweight)[:, None, :] >> shifts[:, None] & mask).reshape(k, n)
        zeros: Any = middle
        if not s.sym:
            stored = (tensors.read(qzeros)[:, :, None] >> shifts & mask).reshape(count, -1)[:, :n]
            zeros = (stored + s.zero_offset & mask)[groups.index]
        scale = widened(tensors.read(scales)).astype(np.float64)[groups.index]
        values: npt.NDArray[np.float64] = (scale * (codes - zeros)).T
        return values

    return Weight(
        name=prefix,
        encoding=options.label(method, s.bits, s.group, ordered=groups.order is not None),
        shape=(n, k),
        layout="int4" if s.bits == 4 else "int8",
        group=groups.size,
        zero=middle if s.sym else 0,
        has_zeros=not s.sym,
        input_order=groups.order,
        tensor_names=names,
        file_bytes=stored_bytes(tensors, names),
        rows=rows,
        floats=floats,
    )


def _groups(tensors: Tensors, g_idx: str, k: int, count: int, s: Scheme) -> packing.Groups:
    """The groups of the columns, from g_idx where there is one."""
    if g_idx in tensors.names() or (s.ordered and count > 1):
        expect(tensors, g_idx, ("I32",), (k,))
        index = tensors.read(g_idx)
        if index.any() or count == 1 or s.ordered:
            return packing.listed(index, count, g_idx)
        return packing.contiguous(k, s.group)  # zeros without `desc_act`: never filled in
    return packing.contiguous(k, s.group)
