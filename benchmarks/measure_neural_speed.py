"""Neural Speed 1.0 in one process, whose runtime the first paper's became; see `benchmarks/measurement.py`.

It reads files of its own, so a Llama in Q4_0 is written as one beside the GGUF file, once: the same codes, in groups of
32 with scales in bfloat16, products in int8; the head in 8 bits and the embedding in fp32, as its converters do.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import torch  # noqa: F401  (loads libraries that the next needs)
from neural_speed.llama_cpp import Model

import measurement

F32, PACKED = 0, 19
"""Types of tensors."""
LAYER = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
}
OUTSIDE = {"token_embd": "tok_embeddings", "output_norm": "norm", "output": "output"}
EMBEDDING, HEAD = "token_embd", "output"
BEGIN, END = 1, 2
"""Tokens."""


class Engine:
    """One sequence; tokens are random, so that none is sampled."""

    def __init__(self, model: str, plan: measurement.Plan) -> None:
        path = Path(model).with_suffix(".neural-speed.bin")
        reader = gguf.GGUFReader(model)
        if not path.exists():
            part = path.with_suffix(".part")
            write(part, reader)
            os.replace(part, path)  # noqa: PTH105
        self.vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
        self.system = "Neural Speed 1.0"
        self._model = Model()
        self._model.init_model(str(path), ctx_size=plan.context, threads=plan.threads, n_batch=512)
        self._random = np.random.default_rng(0)

    def generate(self, prompts: list[list[int]], steps: int) -> tuple[float, list[float]]:
        """Until logits are there."""
        if len(prompts) > 1:
            raise NotImplementedError
        self._model.reinit()
        durations = []
        prompt = [BEGIN, *prompts[0][1:]]  # else it refuses
        for tokens in (prompt, *([token] for token in self._random.integers(0, self.vocabulary, steps).tolist())):
            began = time.perf_counter()
            self._model.evaluate([tokens])
            durations.append(time.perf_counter() - began)
        return durations[0], durations[1:]


def write(path: Path, reader: gguf.GGUFReader) -> None:
    """The model, in the layout of version 1 of its files."""

    def number(key: str) -> float:
        return reader.fields[f"llama.{key}"].contents()

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    hidden, heads = number("embedding_length"), number("attention.head_count")
    sizes = (1, len(tokens), hidden, 256, heads, number("attention.head_count_kv"), number("block_count"))
    rest = (hidden // heads, 0, 0, 0.0, 0.0, 0, 0, 0, 0, number("feed_forward_length"), 0, 0, 0, 0)
    epsilon, base = number("attention.layer_norm_rms_epsilon"), number("rope.freq_base")
    with path.open("wb") as file:
        file.write(b"tjgg" + struct.pack("<7i", *sizes))
        file.write(
            struct.pack("<3i2f9i", *rest) + struct.pack("<4f6i", epsilon, base, 1.0, 0.0, 0, 0, BEGIN, END, 0, 0)
        )
        for token in tokens:
            text = token.encode()
            file.write(struct.pack("<i", len(text)) + text + struct.pack("<f", 0.0))
        for tensor in reader.tensors:
            write_tensor(file, tensor)


def write_tensor(file: BinaryIO, tensor: gguf.ReaderTensor) -> None:
    """One, under its name there."""
    name = tensor.name.removesuffix(".weight")
    block, _, kind = name.removeprefix("blk.").partition(".")
    target = OUTSIDE[name] if name in OUTSIDE else f"layers.{block}.{LAYER[kind]}"
    shape = [int(size) for size in tensor.shape]
    vector = len(shape) == 1 or name == EMBEDDING
    text = f"{target}.weight".encode()
    file.write(struct.pack("<3i", len(shape), len(text), F32 if vector else PACKED))
    file.write(struct.pack(f"<{len(shape)}i", *shape) + text)
    file.seek((file.tell() + 31) & -32)
    if vector:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        file.write(np.ascontiguousarray(values, np.float32).tobytes())
    else:
        file.write(pack(*codes(tensor), bits=8 if name == HEAD else 4))


def codes(tensor: gguf.ReaderTensor) -> tuple[np.ndarray, np.ndarray]:
    """(int8 codes [inputs, outputs], scales [inputs / 32, outputs]); 4 bits stand in the high half of a byte."""
    rows = int(tensor.shape[1])
    if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0:
        blocks = np.ascontiguousarray(tensor.data).reshape(rows, -1, 18)
        scales = blocks[:, :, :2].copy().view(np.float16)[:, :, 0].astype(np.float32) / 16
        packed = blocks[:, :, 2:]
        values = np.concatenate([packed & 15, packed >> 4], axis=2).astype(np.int8)
        return ((values - 8) * 16).reshape(rows, -1).T, scales.T
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(rows, -1, 32)
    scales = np.abs(values).max(axis=2) / 127
    rounded = np.rint(values / np.maximum(scales, 1e-30)[:, :, None]).astype(np.int8)
    return rounded.reshape(rows, -1).T, scales.T


def pack(values: np.ndarray, scales: np.ndarray, *, bits: int) -> bytes:
    """As its kernels read it."""
    inputs, outputs = values.shape
    room = np.zeros((inputs, outputs * 4), np.int8)
    none = np.empty(0, np.int8), np.empty(0, np.int32)
    arrays = (np.ascontiguousarray(values), np.ascontiguousarray(scales, np.float32), *none, room)
    # With several threads it fails now and then.
    options = {"weight_dtype": f"int{bits}", "group_size": 32, "scale_dtype": "bf16", "threads": 1}
    return room.reshape(-1)[: Model.np_bestla_qpack(*arrays, alg="sym", compute_dtype="int8", **options)].tobytes()


if __name__ == "__main__":
    measurement.main(Engine)
