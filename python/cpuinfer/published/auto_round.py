"""AutoRound: tensors packed as GPTQ's or AWQ's, as `packing_format` says, with options by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cpuinfer.errors import UnsupportedFormat
from cpuinfer.published import awq, gptq, options
from cpuinfer.published.tensors import Tensors
from cpuinfer.weight import Weight

PACKED = ".qweight"
METHOD = "AutoRound"
FORMATS = {
    "auto_round:auto_gptq": "gptq",
    "auto_round:gptqmodel": "gptq_v2",
    "auto_round": "gptq_v2",
    "auto_round:auto_awq": "awq",
}
"""By `packing_format`: whose packing it is, and for GPTQ's which zero points."""
OPTIONS = ("bits", "group_size", "sym", "data_type", "act_bits")
"""That a layer may have of its own."""


def _of_layer(quantization: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    own = options.mapping(options.mapping(quantization, "extra_config"), prefix)
    return {**quantization, **{key: own[key] for key in OPTIONS if own.get(key) is not None}}


def _packing(quantization: Mapping[str, Any]) -> str:
    """The packing of one layer, its options checked."""
    stored = options.optional(quantization, "packing_format", str, "auto_round:auto_gptq")
    options.one_of(METHOD, "packing_format", stored, tuple(FORMATS))
    options.one_of(METHOD, "data_type", options.optional(quantization, "data_type", str, "int"), ("int",))
    if (bits := options.optional(quantization, "act_bits", int, 16)) < 16:
        raise UnsupportedFormat(f"{METHOD}: activations of {bits} bits (act_bits) are not supported")
    options.absent(METHOD, quantization, "rotation_config")
    return FORMATS[stored]


def check(quantization: Mapping[str, Any]) -> None:
    """Refuse what is not read here."""
    if _packing(quantization) == "awq":
        awq.scheme(quantization, METHOD)
    else:
        gptq.scheme(quantization, METHOD)
    for name, own in options.mapping(quantization, "extra_config").items():
        floats = isinstance(own, Mapping) and options.optional(own, "bits", int, 0) >= 16
        if not floats and not re.fullmatch(r"[\w.]+", name):
            raise UnsupportedFormat(f"{METHOD}: options by pattern (extra_config {name!r}) are not supported")


def open_linear(
    tensors: Tensors, prefix: str, quantization: Mapping[str, Any], shape: tuple[int, int] | None = None
) -> Weight:
    """The weight of a layer, its tensors checked against each other."""
    own = _of_layer(quantization, prefix)
    packed = _packing(own)
    if packed == "awq":
        return awq.open_linear(tensors, prefix, own, shape, method=METHOD)
    return gptq.open_linear(tensors, prefix, {**own, "checkpoint_format": packed}, shape, method=METHOD)
