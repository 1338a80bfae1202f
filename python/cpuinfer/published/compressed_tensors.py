"""compressed-tensors, pack-quantized: int32 words packed along the inputs of each row, weights only.

    weight_packed I32 [n, k * bits / 32]   weight_scale [n, groups]   weight_shape [2]   weight_g_idx I32 [k]
    weight_zero_point I32 [n * bits / 32, groups] packed along the outputs (or I8 [n, groups]), where not symmetric

Codes and packed zero points are signed numbers plus half the range; zero points as I8 are the signed numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import CheckpointError, UnsupportedFormat
from cpuinfer.formats.canonical import IntegerRows
from cpuinfer.published import options, packing
from cpuinfer.published.tensors import FLOATS, Tensors, expect, halved, stored_bytes, weight_shape, widened
from cpuinfer.weight import Weight

PACKED = ".weight_packed"
METHOD = "compressed-tensors"


@dataclass(frozen=True, slots=True)
class Scheme:
    """What one of the `config_groups` says of its weights."""

    bits: int
    group: int
    symmetric: bool
    ordered: bool
    """Whether weight_g_idx names the group of each column."""

    def shapes(self, n: int, k: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of weight_packed and weight_scale."""
        return (n, -(-k * self.bits // 32)), (n, packing.count_groups(k, self.group))


def schemes(quantization: Mapping[str, Any]) -> list[Scheme]:
    """The config, checked."""
    stored = options.optional(quantization, "format", str, "pack-quantized")
    options.absent(METHOD, quantization, "kv_cache_scheme", "transform_config")
    sparsity = options.optional(options.mapping(quantization, "sparsity_config"), "format", str, "dense")
    options.one_of(METHOD, "sparsity_config format", sparsity, ("dense",))
    found = []
    groups = options.mapping(quantization, "config_groups")
    for name in groups:
        one = options.mapping(groups, name)
        options.one_of(METHOD, "format", options.optional(one, "format", str, stored), ("pack-quantized",))
        for key in ("input_activations", "output_activations"):
            if one.get(key) is not None:
                raise UnsupportedFormat(f"{METHOD}: quantised activations ({name}: {key}) are not supported")
        found.append(_scheme(options.mapping(one, "weights")))
    if not found:
        raise CheckpointError("quantization_config: config_groups is empty, expected the options of the weights")
    return found


def _scheme(weights: Mapping[str, Any]) -> Scheme:
    bits = options.require(weights, "num_bits", int)
    options.one_of(METHOD, "num_bits", bits, (4, 8))
    options.one_of(METHOD, "type", options.optional(weights, "type", str, "int"), ("int",))
    strategy = options.require(weights, "strategy", str)
    options.one_of(METHOD, "strategy", strategy, ("group", "channel"))
    group = -1 if strategy == "channel" else options.group_size(METHOD, options.require(weights, "group_size", int))
    # True was "group"; "weight" and "static" leave each column in the group of its place.
    ordered = weights.get("actorder") in ("group", "dynamic", True)
    return Scheme(bits, group, options.optional(weights, "symmetric", bool, True), ordered)


def check(quantization: Mapping[str, Any]) -> None:
    """Refuse what is not read here."""
    schemes(quantization)


def open_linear(
    tensors: Tensors, prefix: str, quantization: Mapping[str, Any], shape: tuple[int, int] | None = None
) -> Weight:
    """The weight of a layer, its tensors checked against each other."""
    parts = ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")
    packed, scales, zero_point, g_idx, shape_name = (f"{prefix}.{part}" for part in parts)
    expect(tensors, shape_name, ("I64", "I32"), (2,))
    n, k = tensors.read(shape_name).tolist()
    n, k = weight_shape(shape_name, (n, k), shape)
    has_zeros = zero_point in tensors.names()
    s = _fitting(tensors, packed, scales, schemes(quantization), (n, k), has_zeros=has_zeros)
    count = packing.count_groups(k, s.group)
    zero_packed = not (has_zeros and tensors.dtype(zero_point) == "I8")
    if not s.symmetric:
        packed_rows = -(-n * s.bits // 32)
        expect(tensors, zero_point, ("I32", "I8"), (packed_rows if zero_packed else n, count))
    groups = _groups(tensors, g_idx, k, s)
    middle = 1 << (s.bits - 1)
    names = tuple(f"{prefix}.{part}" for part in parts if f"{prefix}.{part}" in tensors.names())

    def zeros_of(begin: int, end: int) -> npt.NDArray[np.uint8]:
        if not zero_packed:
            signed = tensors.read_rows(zero_point, begin, end).astype(np.int16) + middle
            if ((signed < 0) | (signed >= 2 * middle)).any():
                raise CheckpointError(f"{zero_point}: a zero point out of range, expected {s.bits} bits")
            return np.asarray(signed, np.uint8)
        per_word = 32 // s.bits
        first = begin // per_word
        words = tensors.read_rows(zero_point, first, -(-end // per_word))
        begin, end = begin - first * per_word, end - first * per_word
        codes: npt.NDArray[np.uint8] = packing.unpack_columns(words.T, begin, end, s.bits).T
        return codes

    def rows(begin: int, end: int) -> IntegerRows:
        # The last word of a row is full: k is a multiple of 32.
        codes = groups.arrange(packing.unpack(tensors.read_rows(packed, begin, end), s.bits))
        scale = halved(widened(tensors.read_rows(scales, begin, end))[:, groups.source], scales)
        if s.symmetric:
            return IntegerRows(codes, scale, zero=middle, group=groups.size)
        zeros = np.ascontiguousarray(zeros_of(begin, end)[:, groups.source])
        return IntegerRows(codes, scale, zeros=zeros, group=groups.size)

    def floats() -> npt.NDArray[np.float64]:
        shifts = np.arange(0, 32, s.bits)
        mask = 2 * middle - 1
        codes = (tensors.read(packed)[:, :, None] >> shifts & mask).reshape(n, k) - middle
        zeros: Any = 0
        if not s.symmetric:
            zeros = tensors.read(zero_point)
            if zero_packed:
                zeros = (zeros[:, None, :] >> shifts[:, None] & mask).reshape(-1, count)[:n] - middle
            zeros = zeros.astype(np.int64)[:, groups.index]
        scale = widened(tensors.read(scales)).astype(np.float64)[:, groups.index]
        values: npt.NDArray[np.float64] = scale * (codes - zeros)
        return values

    return Weight(
        name=prefix,
        encoding=options.label(METHOD, s.bits, s.group, ordered=groups.order is not None),
        shape=(n, k),
        layout="int4" if s.bits == 4 else "int8",
        group=groups.size,
        zero=middle if s.symmetric else 0,
        has_zeros=not s.symmetric,
        input_order=groups.order,
        tensor_names=names,
        file_bytes=stored_bytes(tensors, names),
        rows=rows,
        floats=floats,
    )


def _fitting(
    tensors: Tensors, packed: str, scales: str, known: list[Scheme], shape: tuple[int, int], *, has_zeros: bool
) -> Scheme:
    """The scheme that the tensors have: `targets` are patterns over module classes, which the file does not name."""
    expect(tensors, packed, ("I32",), (None, None))
    for s in sorted(known, key=lambda s: s.symmetric == has_zeros):
        packed_shape, scale_shape = s.shapes(*shape)
        fits = tuple(tensors.shape(packed)) == packed_shape and scales in tensors.names()
        if len(known) == 1 or (fits and tuple(tensors.shape(scales)) == scale_shape):
            expect(tensors, packed, ("I32",), packed_shape)
            expect(tensors, scales, FLOATS, scale_shape)
            return s
    raise CheckpointError(
        f"{packed}: I32 {tuple(tensors.shape(packed))} for a weight of shape {shape}, which fits none of config_groups"
    )


def _groups(tensors: Tensors, g_idx: str, k: int, s: Scheme) -> packing.Groups:
    """The groups of the columns, from weight_g_idx where there is one that was filled in."""
    count = packing.count_groups(k, s.group)
    if g_idx in tensors.names() or (s.ordered and count > 1):
        expect(tensors, g_idx, ("I32", "I64"), (k,))
        index = tensors.read(g_idx)
        if (index != -1).any():
            return packing.listed(index, count, g_idx)
    return packing.contiguous(k, s.group)
