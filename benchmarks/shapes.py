"""Writes models of real shapes with random weights: for speed, which does not depend on what the weights are.

    python benchmarks/shapes.py llama-1b Q4_0 model.gguf      (needs the packages of the extra `test`)

The tokenizer is SmolLM2's, with its 49,152 tokens.  Encodings are laid out as llama.cpp's quantiser does it: Q4_K_M
has Q6_K for the values and half of the down projections; the embedding is Q6_K, or Q8_0 where all is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from cpuinfer import store

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reencoded_gguf import quantize

ENCODINGS = {
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
TILE_ROWS = 64
"""Rows of random weights, repeated down a matrix: writing takes seconds."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a model."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int
    context: int
    tied: bool = False


SHAPES = {
    "llama-1b": Shape("llama", 16, 2048, 32, 8, 8192, 8192, tied=True),
    "llama-7b": Shape("llama", 32, 4096, 32, 32, 11008, 4096),
    "pythia-1.4b": Shape("gptneox", 24, 2048, 16, 16, 8192, 2048),
}


def write(path: Path, name: str, encoding: str, tokenizer: Path) -> Path:
    """Write the model, or leave nothing; `tokenizer` is the GGUF file whose tokenizer it gets."""
    part = path.with_suffix(".part")
    try:
        _write(part, name, encoding, tokenizer)
        os.replace(part, path)  # noqa: PTH105
    finally:
        part.unlink(missing_ok=True)
    return path


def _write(path: Path, name: str, encoding: str, tokenizer: Path) -> None:
    shape = SHAPES[name]
    reader = gguf.GGUFReader(tokenizer)
    writer = gguf.GGUFWriter(path, shape.architecture)
    _add_metadata(writer, name, shape)
    writer.add_file_type(ENCODINGS[encoding])
    for key, field in reader.fields.items():
        if key.startswith("tokenizer."):
            element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=element)
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    random = np.random.default_rng(0)
    for tensor, sizes, kind in _tensors(shape, encoding, vocabulary):
        writer.add_tensor(tensor, _values(sizes, kind, random), raw_dtype=Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_metadata(writer: gguf.GGUFWriter, name: str, shape: Shape) -> None:
    writer.add_name(name)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    if shape.architecture == "llama":
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(shape.hidden // shape.heads)
        writer.add_rope_freq_base(10000.0)
    else:
        writer.add_layer_norm_eps(1e-5)
        writer.add_rope_dimension_count(shape.hidden // shape.heads // 4)
        writer.add_parallel_residual(True)


def _tensors(shape: Shape, encoding: str, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, sizes and encoding of each, outermost size first."""
    base = "Q4_K" if encoding == "Q4_K_M" else encoding
    head = "Q8_0" if encoding == "Q8_0" else "Q6_K"
    neox = shape.architecture == "gptneox"
    width = shape.hidden // shape.heads * shape.kv_heads

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
        yield f"{name}.weight", (shape.hidden,), "F32"
        if neox:
            yield f"{name}.bias", (shape.hidden,), "F32"

    def linear(name: str, outputs: int, inputs: int, kind: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
        yield f"{name}.weight", (outputs, inputs), kind
        if neox:
            yield f"{name}.bias", (outputs,), "F32"

    yield "token_embd.weight", (vocabulary, shape.hidden), head if shape.tied else base
    for i in range(shape.layers):
        blk, more = f"blk.{i}", "Q6_K" if encoding == "Q4_K_M" and _has_more_bits(i, shape.layers) else base
        yield from norm(f"{blk}.attn_norm")
        if neox:
            yield from linear(f"{blk}.attn_qkv", shape.hidden + 2 * width, shape.hidden, base)
        else:
            yield from linear(f"{blk}.attn_q", shape.hidden, shape.hidden, base)
            yield from linear(f"{blk}.attn_k", width, shape.hidden, base)
            yield from linear(f"{blk}.attn_v", width, shape.hidden, more)
            yield from linear(f"{blk}.ffn_gate", shape.feed_forward, shape.hidden, base)
        yield from linear(f"{blk}.attn_output", shape.hidden, shape.hidden, base)
        yield from norm(f"{blk}.ffn_norm")
        yield from linear(f"{blk}.ffn_up", shape.feed_forward, shape.hidden, base)
        yield from linear(f"{blk}.ffn_down", shape.hidden, shape.feed_forward, more)
    yield from norm("output_norm")
    if not shape.tied:
        yield "output.weight", (vocabulary, shape.hidden), head


def _has_more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _values(sizes: tuple[int, ...], kind: str, random: np.random.Generator) -> np.ndarray:
    if len(sizes) == 1:
        return 1 + 0.1 * random.standard_normal(sizes, dtype=np.float32)
    rows = min(sizes[0], TILE_ROWS)
    values = random.standard_normal((rows, sizes[1]), dtype=np.float32) / np.float32(np.sqrt(sizes[1]))
    return np.tile(quantize(values, kind), (-(-sizes[0] // rows), 1))[: sizes[0]]


def main() -> None:
    """Write one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("encoding", choices=ENCODINGS)
    parser.add_argument("path", type=Path)
    args = parser.parse_args()
    write(args.path, args.shape, args.encoding, store.resolve(None, progress=True))


if __name__ == "__main__":
    main()
