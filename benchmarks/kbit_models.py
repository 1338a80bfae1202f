"""The scaling study's models: their matrices, written again with others in their place, and what they predict.

A model is a Hugging Face folder of tests/train_tiny.py or a GGUF file.  The matrices of the layers are rounded;
embeddings, the head, norms and biases stay, and are counted as 16 bits a number.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer import LLM

Floats = npt.NDArray[np.float32]

OUTSIDE_LAYERS = re.compile(r"embed|lm_head|^token_|^output\.|^per_layer")
KEPT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True, slots=True)
class Model:
    """One that is studied."""

    name: str
    family: str
    """Models that a curve goes through: an architecture, trained alike."""
    path: Path
    matrices: Mapping[str, Floats]
    """Of the layers, in the order of the file: [outputs, inputs]."""
    others: int
    """Numbers in all else."""
    heads: int

    @property
    def layer_weights(self) -> int:
        return sum(matrix.size for matrix in self.matrices.values())


def read(path: Path) -> Model:
    """A folder or a GGUF file, which is taken as what it decodes to."""
    if path.is_dir():
        from safetensors.numpy import load_file

        config = json.loads((path / "config.json").read_text())
        tensors = load_file(path / "model.safetensors")
        family, heads = config["model_type"], config["num_attention_heads"]
    else:
        tensors = {tensor.name: _values(tensor) for tensor in _gguf_tensors(path)}
        family, heads = path.stem, 0
    matrices = {name: values for name, values in tensors.items() if _is_of_layers(name, values)}
    others = sum(values.size for name, values in tensors.items() if name not in matrices)
    return Model(path.stem, family, path, matrices, others, heads)


def _is_of_layers(name: str, values: Floats) -> bool:
    return values.ndim == 2 and OUTSIDE_LAYERS.search(name) is None


def write(model: Model, matrices: Mapping[str, Floats], folder: Path) -> Path:
    """The model with these in fp32 in the place of its own, for LLM(..., quantize="none")."""
    if not model.path.is_dir():
        return _write_gguf(model.path, matrices, folder / "model.gguf")
    from safetensors.numpy import load_file, save_file

    for name in KEPT_FILES:
        if (model.path / name).exists():
            shutil.copy(model.path / name, folder)
    save_file({**load_file(model.path / "model.safetensors"), **matrices}, folder / "model.safetensors")
    return folder


def _gguf_tensors(path: Path) -> list[Any]:
    import gguf

    return list(gguf.GGUFReader(path).tensors)


def _values(tensor: Any) -> Floats:
    import gguf

    return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)


def _write_gguf(source: Path, matrices: Mapping[str, Floats], target: Path) -> Path:
    """Its metadata as they are; `matrices` in fp32, other tensors as stored."""
    import gguf

    tensors = gguf.GGUFReader(source).tensors
    infos, offset = [], 0
    for tensor in tensors:
        name, dims = tensor.name.encode(), [int(size) for size in tensor.shape]
        kind = gguf.GGMLQuantizationType.F32 if tensor.name in matrices else tensor.tensor_type
        shape = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        infos.append(struct.pack("<Q", len(name)) + name + shape)
        offset += _aligned(matrices[tensor.name].nbytes if tensor.name in matrices else tensor.n_bytes)
    with source.open("rb") as old, target.open("wb") as file:
        file.write(old.read(tensors[0].field.offset) + b"".join(infos))
        for tensor in tensors:
            file.write(bytes(_aligned(file.tell()) - file.tell()))
            file.write(np.ascontiguousarray(matrices.get(tensor.name, tensor.data)).data)
        file.write(bytes(_aligned(file.tell()) - file.tell()))
    return target


def _aligned(size: int) -> int:
    return -(-size // 32) * 32


def writer(model: Model, name: str) -> Floats | None:
    """The matrix before this one, whose rows are the units that this one reads; None at the first, and where unknown.

    What is written to the residual stream is the rows of the last matrix that wrote it.
    """
    found = re.match(r"(.*layers\.)(\d+)\.(.*)\.weight$", name)
    if found is None:
        return None
    layers, i, part = found[1], int(found[2]), found[3]

    def of(layer: int, other: str) -> Floats | None:
        return model.matrices.get(f"{layers}{layer}.{other}.weight")

    match part:
        case "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj":
            return of(i - 1, "mlp.down_proj")
        case "self_attn.o_proj":
            values = of(i, "self_attn.v_proj")
            return values if values is not None and len(values) == model.matrices[name].shape[1] else None
        case "mlp.gate_proj" | "mlp.up_proj":
            return of(i, "self_attn.o_proj")
        case "mlp.down_proj":
            return of(i, "mlp.up_proj")
        case "attention.query_key_value" | "mlp.dense_h_to_4h":  # in parallel: both read what the last layer wrote
            return of(i - 1, "mlp.dense_4h_to_h")
        case "attention.dense":  # queries, keys and values head by head
            fused = of(i, "attention.query_key_value")
            return (
                None
                if fused is None
                else fused.reshape(model.heads, 3, -1, fused.shape[1])[:, 2].reshape(-1, fused.shape[1])
            )
        case "mlp.dense_4h_to_h":
            return of(i, "mlp.dense_h_to_4h")
    return None


@dataclass(frozen=True, slots=True)
class Predicted:
    """Natural logarithms of what a model gives each token of each window, but the first."""

    logprobs: Floats
    """[windows, positions, vocabulary]."""
    losses: npt.NDArray[np.float64]
    """[windows]: nats a token, the mean."""

    def divergence(self, other: Predicted) -> npt.NDArray[np.float64]:
        """Of another model from this one: nats a token, the mean of each window."""
        found = []
        for own, theirs in zip(self.logprobs, other.logprobs, strict=True):
            found.append(float(np.mean(np.sum(np.exp(own) * (own - theirs), axis=-1, dtype=np.float64))))
        return np.array(found)


def windows(path: Path, text: Path, *, count: int, length: int) -> list[list[int]]:
    """Tokens of windows spread evenly over a text, each begun as the model's tokenizer begins a text."""
    from cpuinfer import loader

    tokenizer = loader.open_model(path, quantize="none" if path.is_dir() else None).source.tokenizer()
    body = tokenizer.encode(text.read_text(encoding="utf-8"), add_bos=False, parse_special=False)
    whole, bare = tokenizer.encode("a"), tokenizer.encode("a", add_bos=False)
    start = whole[: len(whole) - len(bare)]
    step = max(1, (len(body) - length) // count)
    return [start + body[i * step : i * step + length - len(start)] for i in range(count)]


def predict(path: Path, texts: list[list[int]], *, threads: int | None) -> Predicted:
    """By the native engine, fp32 weights and activations."""
    quantize = "none" if path.is_dir() else None
    with LLM(
        path, threads=threads, quantize=quantize, context=len(texts[0]), deterministic=True, prefix_cache=0
    ) as llm:
        rows = np.stack([llm.logits(text)[:-1] for text in texts])
    for i in range(len(rows)):  # one at a time: a vocabulary may be large
        rows[i] -= rows[i].max(axis=-1, keepdims=True)
        rows[i] -= np.log(np.exp(rows[i]).sum(axis=-1, keepdims=True))
    targets = np.array(texts)[:, 1:, None]
    losses = -np.take_along_axis(rows, targets, axis=2)[:, :, 0].mean(axis=1, dtype=np.float64)
    return Predicted(rows, losses)
