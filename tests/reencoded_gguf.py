"""Writes a GGUF file's matrices in another encoding, by the gguf package's quantisers; all else stays byte for byte."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

ALIGNMENT = 32


def reencode(source: Path, target: Path, encoding: str) -> Path:
    """Vectors, and matrices whose rows do not divide into blocks, keep the encoding they have."""
    reader = gguf.GGUFReader(source)
    kept = source.read_bytes()[: reader.tensors[0].field.offset]  # header and metadata
    infos, blocks, offset = [], [], 0
    for tensor in reader.tensors:
        kind, data = tensor.tensor_type, np.ascontiguousarray(tensor.data)
        if len(tensor.shape) > 1 and tensor.shape[0] % gguf.GGML_QUANT_SIZES[Type[encoding]][0] == 0:
            kind = Type[encoding]
            data = gguf.quants.quantize(gguf.quants.dequantize(data, tensor.tensor_type), kind)
        name = tensor.name.encode()
        dims = [int(size) for size in tensor.shape]
        infos.append(
            struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        )
        blocks.append(padded(data.tobytes()))
        offset += len(blocks[-1])
    with target.open("wb") as file:
        file.write(padded(kept + b"".join(infos)))
        file.writelines(blocks)
    return target


def padded(data: bytes) -> bytes:
    """Up to the alignment."""
    return data + bytes(-len(data) % ALIGNMENT)
