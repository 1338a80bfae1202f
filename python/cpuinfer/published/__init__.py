"""Checkpoints of 4-bit and 8-bit weights as they are published: one file for each way of packing them.

Weights are read as they are: codes stay what they are, nothing is quantised again.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cpuinfer.errors import CheckpointError, UnsupportedFormat
from cpuinfer.published.tensors import Tensors
from cpuinfer.weight import Weight

__all__ = ["METHODS", "Reader", "Tensors", "reader"]

METHODS = {
    "gptq": "gptq",
    "awq": "awq",
    "auto-round": "auto_round",
    "intel/auto-round": "auto_round",
    "compressed-tensors": "compressed_tensors",
    "bitsandbytes": "bitsandbytes",
    "hqq": "hqq",
    "mxfp4": "mxfp4",
    "cpuinfer": "cpuinfer",
}
"""The file that reads each `quant_method`."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Opens the packed weights of one checkpoint."""

    quantization: Mapping[str, Any]
    module: ModuleType

    def is_quantised(self, tensors: Tensors, prefix: str) -> bool:
        """Whether a layer ("model.layers.0.self_attn.q_proj") is packed; others are floats, read as any are."""
        return prefix + self.module.PACKED in tensors.names()

    def __call__(self, tensors: Tensors, prefix: str, shape: tuple[int, int] | None = None) -> Weight:
        """The weight of a packed layer, which must be of shape (n, k) where that is given.

        Raises CheckpointError for tensors that are missing or do not fit each other, UnsupportedFormat for what is
        sound but not read here.
        """
        weight: Weight = self.module.open_linear(tensors, prefix, self.quantization, shape)
        return weight


def reader(quantization: Mapping[str, Any]) -> Reader:
    """The reader for a `quantization_config`; UnsupportedFormat names a method, width or option that is not read."""
    method = quantization.get("quant_method")
    if not isinstance(method, str):
        raise CheckpointError(f"quantization_config: quant_method is {method!r}, expected a string")
    if method not in METHODS:
        raise UnsupportedFormat(f"quant_method {method} is not supported; supported are {', '.join(sorted(METHODS))}")
    module = importlib.import_module(f"{__name__}.{METHODS[method]}")
    module.check(quantization)
    return Reader(quantization, module)
