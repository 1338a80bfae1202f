"""Folders of compressed-tensors, pack-quantized: layers of 4 or 8 bits, each kind of layer a group of its own.

The layout is that of published/compressed_tensors.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cpuinfer.errors import UnsupportedFormat
from cpuinfer.formats.canonical import IntegerRows
from cpuinfer.published import packing
from cpuinfer.quantize import folder_output
from cpuinfer.quantize.folder_output import Layer, bits_of
from cpuinfer.quantize.safetensors_file import Entry, Progress, Put
from cpuinfer.weight import Weight
from cpuinfer.weights import Source

BITS = (4, 8)


def write_folder(
    out: Path,
    source: Source,
    weights: Mapping[str, Weight],
    *,
    overwrite: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write the source's folder with `weights`, by our names, packed; see folder_output.write_folder.

    Layers may differ in bits, group and symmetry.  Columns must be in their own order: compressed-tensors once had a
    weight_g_idx for others, and from release 0.20 on refuses it.
    """
    folder_output.write_folder(
        out, source, weights, _Compressed(), overwrite=overwrite, threads=threads, progress=progress
    )


class _Compressed:
    def entries(self, layer: Layer) -> tuple[Entry, ...]:
        weight, (n, k) = layer.weight, layer.shape
        bits = bits_of(weight)
        if bits not in BITS or weight.has_bias:
            raise UnsupportedFormat(f"{layer.prefix}: {weight.encoding}, expected 4 or 8 bits without biases")
        if weight.input_order is not None:
            raise UnsupportedFormat(f"{layer.prefix}: columns in an order of their own: GPTQ files can have that")
        groups = k // weight.group
        entries = [
            Entry(f"{layer.prefix}.weight_packed", "I32", (n, k * bits // 32)),
            Entry(f"{layer.prefix}.weight_scale", "F16", (n, groups)),
            Entry(f"{layer.prefix}.weight_shape", "I64", (2,)),
        ]
        if weight.has_zeros:
            entries.append(Entry(f"{layer.prefix}.weight_zero_point", "I32", (-(-n * bits // 32), groups)))
        return tuple(entries)

    def make(self, layer: Layer, put: Put) -> None:
        weight, (n, k) = layer.weight, layer.shape
        bits = bits_of(weight)
        zeros = np.zeros((n, k // weight.group), np.uint8)
        for begin, end, rows in layer.chunks():
            if not isinstance(rows, IntegerRows):
                raise UnsupportedFormat(f"{layer.prefix}: {weight.encoding}, expected integer codes")
            put(f"{layer.prefix}.weight_packed", packing.pack(rows.codes, bits))
            put(f"{layer.prefix}.weight_scale", rows.scale)
            if rows.zeros is not None:
                zeros[begin:end] = rows.zeros
        put(f"{layer.prefix}.weight_shape", np.array([n, k], "<i8"))
        if weight.has_zeros:
            put(f"{layer.prefix}.weight_zero_point", packing.pack(np.ascontiguousarray(zeros.T), bits).T)

    def config(self, packed: Iterable[Layer], floats: Iterable[str]) -> Mapping[str, Any]:
        kinds: dict[tuple[int, int | None, bool], list[str]] = {}
        for layer in packed:
            weight = layer.weight
            group = None if weight.group == layer.shape[1] else weight.group
            kind = (bits_of(weight), group, not weight.has_zeros)
            kinds.setdefault(kind, []).append(layer.prefix)
        groups = {}
        for number, ((bits, group, symmetric), names) in enumerate(kinds.items()):
            groups[f"group_{number}"] = {
                "targets": ["Linear"] if len(kinds) == 1 else sorted(names),
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": symmetric,
                    "strategy": "channel" if group is None else "group",
                    "group_size": group,
                    "actorder": None,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": sorted({*floats, "lm_head"}),
            "kv_cache_scheme": None,
        }
