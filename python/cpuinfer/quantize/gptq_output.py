"""Folders of GPTQ safetensors: layers of 4 or 8 bits, tables and heads as floats.

The layout is that of published/gptq.py.  Zero points of symmetric layers are stored less one (version 1), which every
reader knows; others as they are (version 2), since a zero point of 0 has no place in version 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

import cpuinfer
from cpuinfer.errors import InvalidRequest, UnsupportedFormat
from cpuinfer.formats.canonical import IntegerRows
from cpuinfer.published import packing
from cpuinfer.quantize import folder_output
from cpuinfer.quantize.folder_output import Layer, bits_of
from cpuinfer.quantize.safetensors_file import Entry, Progress, Put
from cpuinfer.weight import Weight
from cpuinfer.weights import Source

CheckpointFormat = Literal["gptq", "gptq_v2"]
BITS = (4, 8)


def write_folder(
    out: Path,
    source: Source,
    weights: Mapping[str, Weight],
    *,
    checkpoint_format: CheckpointFormat | None = None,
    overwrite: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write the source's folder with `weights`, by our names, as GPTQ packs them; see folder_output.write_folder.

    All packed layers must have the same bits and group, and be symmetric or not; a weight's `input_order` becomes its
    g_idx.  `checkpoint_format`: None for the one that the weights need.
    """
    if checkpoint_format not in (None, "gptq", "gptq_v2"):
        raise InvalidRequest(f"checkpoint_format: {checkpoint_format!r}, expected gptq or gptq_v2")
    packed = _Gptq(checkpoint_format)
    folder_output.write_folder(out, source, weights, packed, overwrite=overwrite, threads=threads, progress=progress)


class _Gptq:
    def __init__(self, checkpoint_format: CheckpointFormat | None) -> None:
        self._format = checkpoint_format

    def entries(self, layer: Layer) -> tuple[Entry, ...]:
        weight, (n, k) = layer.weight, layer.shape
        bits = bits_of(weight)
        if bits not in BITS or weight.has_bias or n % (32 // bits):
            raise UnsupportedFormat(
                f"{layer.prefix}: {weight.encoding} {(n, k)}, expected 4 or 8 bits without biases, and a multiple of "
                f"{32 // bits} rows"
            )
        groups = k // weight.group
        entries = [
            Entry(f"{layer.prefix}.qweight", "I32", (k * bits // 32, n)),
            Entry(f"{layer.prefix}.qzeros", "I32", (groups, n * bits // 32)),
            Entry(f"{layer.prefix}.scales", "F16", (groups, n)),
            Entry(f"{layer.prefix}.g_idx", "I32", (k,)),
        ]
        return tuple(entries)

    def make(self, layer: Layer, put: Put) -> None:
        weight, (n, k) = layer.weight, layer.shape
        bits, groups, order = bits_of(weight), k // weight.group, weight.input_order
        qweight = np.empty((k * bits // 32, n), "<i4")
        scales = np.empty((groups, n), "<f2")
        zeros = np.full((groups, n), 1 << (bits - 1), np.uint8)
        for begin, end, rows in layer.chunks():
            if not isinstance(rows, IntegerRows):
                raise UnsupportedFormat(f"{layer.prefix}: {weight.encoding}, expected integer codes")
            codes = rows.codes
            if order is not None:
                codes = np.empty_like(rows.codes)
                codes[:, order] = rows.codes
            qweight[:, begin:end] = packing.pack(codes, bits).T
            scales[:, begin:end] = rows.scale.T
            if rows.zeros is not None:
                zeros[:, begin:end] = rows.zeros.T
        index = np.arange(k, dtype="<i4") // np.int32(weight.group)
        if order is not None:
            index[order] = index.copy()
        put(f"{layer.prefix}.qweight", qweight)
        put(f"{layer.prefix}.qzeros", packing.pack(self._stored(layer, zeros), bits))
        put(f"{layer.prefix}.scales", scales)
        put(f"{layer.prefix}.g_idx", index)

    def _version(self, symmetric: bool) -> CheckpointFormat:
        return self._format or ("gptq" if symmetric else "gptq_v2")

    def _stored(self, layer: Layer, zeros: Any) -> Any:
        if self._version(not layer.weight.has_zeros) == "gptq_v2":
            return zeros
        if not zeros.all():
            raise UnsupportedFormat(f"{layer.prefix}: a zero point of 0, which checkpoint_format gptq has no place for")
        return zeros - np.uint8(1)

    def config(self, packed: Iterable[Layer], floats: Iterable[str]) -> Mapping[str, Any]:
        layers = list(packed)
        bits, symmetric = _agreed(layers)
        left = sorted(name for name in floats if name != "lm_head")
        dynamic: dict[str, Any] = {"dynamic": {f"-:^{re.escape(name)}$": {} for name in left}} if left else {}
        return {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": _group_size(layers),
            "sym": symmetric,
            "desc_act": any(layer.weight.input_order is not None for layer in layers),
            "lm_head": any(layer.prefix == "lm_head" for layer in layers),
            "pack_dtype": "int32",
            "checkpoint_format": self._version(symmetric),
            **dynamic,
            "meta": {"quantizer": [f"cpuinfer:{cpuinfer.__version__}"]},
        }


def _agreed(layers: list[Layer]) -> tuple[int, bool]:
    """(bits, whether symmetric) of all layers: the config says it once."""
    first = layers[0]
    wanted = (bits_of(first.weight), not first.weight.has_zeros)
    for layer in layers:
        if (bits_of(layer.weight), not layer.weight.has_zeros) != wanted:
            raise UnsupportedFormat(
                f"{layer.prefix}: {layer.weight.encoding}, but {first.prefix}: {first.weight.encoding}: "
                "GPTQ has the same bits and symmetry for all layers"
            )
    return wanted


def _group_size(layers: list[Layer]) -> int:
    """The group of all layers; -1 where each row has one scale, however many inputs it has."""
    groups = {layer.weight.group for layer in layers}
    if all(layer.weight.group == layer.shape[1] for layer in layers):
        return -1
    if len(groups) > 1:
        found = ", ".join(map(str, sorted(groups)))
        raise UnsupportedFormat(f"{layers[0].prefix} and others: groups of {found}: GPTQ has one size for all layers")
    return groups.pop()
