"""HQQ, groups along the inputs: ``value = (code - zero) * scale``, zero points being floats.

W_q U8: 8 bits [n * k / group, group]; 4 bits [n * k / group / 2, group], whose high nibbles are the first half
of those rows and low nibbles the second;  scale, zero [n * k / group, 1];  the options, one tensor each
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import CheckpointError, UnsupportedFormat
from cpuinfer.formats.canonical import IntegerRows
from cpuinfer.published import options
from cpuinfer.published.tensors import FLOATS, Tensors, expect, halved, number, stored_bytes, weight_shape, widened
from cpuinfer.weight import Weight

PACKED = ".W_q"
METHOD = "HQQ"
PACKINGS = {"8bit_u8": 8, "4bit_u8": 4}
OPTIONS = (
    "nbits",
    "group_size",
    "shape",
    "axis",
    "packing",
    "unpack_view_dtype",
    "view_as_float",
    "quant_scale",
    "quant_zero",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
)
"""What a file may hold of a layer beside its numbers."""


def check(quantization: Mapping[str, Any]) -> None:
    """Nothing: every layer holds its own options."""
    options.mapping(quantization, "quant_config")


def _bits(tensors: Tensors, prefix: str) -> int:
    """The width of the codes, once no option of the layer asks for what is not read here."""
    name = f"{prefix}.packing"
    expect(tensors, name, ("U8",), (None,))
    stored = tensors.read(name).tobytes().decode("ascii", "replace")
    options.one_of(METHOD, f"{prefix}: packing", stored, tuple(PACKINGS))
    for key, expected in (("axis", 1), ("quant_scale", 0), ("quant_zero", 0), ("view_as_float", 0)):
        options.one_of(METHOD, f"{prefix}: {key}", number(tensors, f"{prefix}.{key}"), (expected,))
    if (found := number(tensors, f"{prefix}.nbits")) != PACKINGS[stored]:
        raise CheckpointError(f"{prefix}.nbits: {found}, expected {PACKINGS[stored]} as packing is {stored}")
    return PACKINGS[stored]


def open_linear(
    tensors: Tensors, prefix: str, quantization: Mapping[str, Any], shape: tuple[int, int] | None = None
) -> Weight:
    """The weight of a layer, its tensors checked against each other."""
    check(quantization)
    bits = _bits(tensors, prefix)
    codes_name, scale_name, zero_name = f"{prefix}.W_q", f"{prefix}.scale", f"{prefix}.zero"
    expect(tensors, f"{prefix}.shape", ("I64", "I32"), (2,))
    n, k = tensors.read(f"{prefix}.shape").tolist()
    n, k = weight_shape(f"{prefix}.shape", (n, k), shape)
    group = options.group_size(METHOD, number(tensors, f"{prefix}.group_size"))
    if group == -1 or k % group:
        raise UnsupportedFormat(f"{prefix}: groups of {group} in rows of {k} are not supported: they share rows")
    count, half = n * k // group, n * k // group // 2
    expect(tensors, codes_name, ("U8",), (count * bits // 8, group))
    for name in (scale_name, zero_name):
        expect(tensors, name, FLOATS, (count, 1))
    if bits == 4 and count % 2:
        raise CheckpointError(f"{codes_name}: {count} groups of 4 bits, expected an even number")
    # Zero points that are whole numbers stay exact; others become a bias, -scale * zero, rounded to fp16 once.
    zero = widened(tensors.read(zero_name))
    whole = bool(((zero == np.round(zero)) & (zero >= 0) & (zero < 1 << bits)).all())
    del zero
    names = tuple(
        name for name in (f"{prefix}.{part}" for part in ("W_q", "scale", "zero", *OPTIONS)) if name in tensors.names()
    )

    def codes_of(first: int, last: int) -> npt.NDArray[np.uint8]:
        """Codes of groups [first, last): [last - first, group]."""
        if bits == 8:
            return np.asarray(tensors.read_rows(codes_name, first, last), np.uint8)
        high = tensors.read_rows(codes_name, min(first, half), min(last, half)) >> 4
        low = tensors.read_rows(codes_name, max(first - half, 0), max(last - half, 0)) & 15
        return np.concatenate([high, low])

    def rows(begin: int, end: int) -> IntegerRows:
        first, last = begin * k // group, end * k // group
        codes = codes_of(first, last).reshape(-1, k)
        scale, zero = (
            widened(tensors.read_rows(name, first, last)).reshape(-1, k // group) for name in (scale_name, zero_name)
        )
        halves = halved(scale, scale_name)
        if whole:
            return IntegerRows(codes, halves, zeros=zero.astype(np.uint8), group=group)
        with np.errstate(invalid="ignore"):  # `halved` refuses what comes of it
            bias = -scale.astype(np.float64) * zero
        return IntegerRows(codes, halves, bias=halved(bias, zero_name), group=group)

    def floats() -> npt.NDArray[np.float64]:
        codes = tensors.read(codes_name)
        if bits == 4:
            codes = np.concatenate([codes // 16, codes % 16])
        scale, zeros = (widened(tensors.read(name)).astype(np.float64) for name in (scale_name, zero_name))
        return np.multiply(codes - zeros, scale).reshape(n, k)

    return Weight(
        name=prefix,
        encoding=options.label(METHOD, bits, group),
        shape=(n, k),
        layout="int4" if bits == 4 else "int8",
        group=group,
        has_zeros=whole,
        has_bias=not whole,
        tensor_names=names,
        file_bytes=stored_bytes(tensors, names),
        rows=rows,
        floats=floats,
    )
