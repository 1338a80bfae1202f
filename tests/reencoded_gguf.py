"""Writes a GGUF file's matrices in another encoding; all else stays byte for byte."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

import block_quantizers

ALIGNMENT = 32


class Reencoder:
    """Of one file, which is parsed once."""

    def __init__(self, source: Path, importances: Mapping[str, npt.NDArray[np.float32]] | None = None) -> None:
        self._importances = importances or {}
        self._tensors = gguf.GGUFReader(source).tensors
        self._kept = source.read_bytes()[: self._tensors[0].field.offset]  # header and metadata

    def write(self, target: Path, encoding: str, *, only: str = "") -> Path:
        """Vectors, matrices whose rows do not divide into blocks, and names without `only`, a pattern, stay."""
        infos, blocks, offset = [], [], 0
        for tensor in self._tensors:
            kind, data = tensor.tensor_type, np.ascontiguousarray(tensor.data)
            divides = len(tensor.shape) > 1 and tensor.shape[0] % gguf.GGML_QUANT_SIZES[Type[encoding]][0] == 0
            if divides and re.search(only, tensor.name):
                kind = Type[encoding]
                values = gguf.quants.dequantize(data, tensor.tensor_type)
                data = quantize(values, encoding, self._importances.get(tensor.name))
            name = tensor.name.encode()
            dims = [int(size) for size in tensor.shape]
            infos.append(
                struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
            )
            blocks.append(padded(data.tobytes()))
            offset += len(blocks[-1])
        with target.open("wb") as file:
            file.write(padded(self._kept + b"".join(infos)))
            file.writelines(blocks)
        return target


def bits(encoding: str) -> float:
    """Per weight."""
    elements, size = gguf.GGML_QUANT_SIZES[Type[encoding]]
    return 8 * size / elements


def quantize(
    values: npt.NDArray[np.float32], encoding: str, importance: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.generic]:
    """By the gguf package where it can, which knows of no importance."""
    if encoding in block_quantizers.ENCODINGS:
        return block_quantizers.quantize(values, encoding, importance)
    return gguf.quants.quantize(values, Type[encoding])


def padded(data: bytes) -> bytes:
    """Up to the alignment."""
    return data + bytes(-len(data) % ALIGNMENT)
