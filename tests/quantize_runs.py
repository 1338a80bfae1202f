"""Small models for tests of the flow of `cpuinfer quantize`: a folder with a tokenizer, a text, and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tiny_folder
from cpuinfer.cli import main
from tiny_gguf import vocabulary, write_tiny_llama

TEXT = "The other word in the hall was there, or on a wall: the water, the winter, the tower.\n" * 40
FEW = ("--windows", 3, "--length", 48, "-t", 1, "--iterations", 3)
"""So little that a run takes a second."""


def llama(folder: Path) -> Path:
    """A Llama of two layers with tied tables."""
    file = write_tiny_llama(folder.with_suffix(".gguf"), encoding="F32", embedding="F32")
    tensors = tiny_folder.tensors_of(file)
    file.unlink()
    return tiny_folder.write_folder(folder, tensors)


def mixtral(folder: Path) -> Path:
    """Two layers of four experts, a head of its own and a vocabulary of odd size."""
    random = np.random.default_rng(5)
    tokens, hidden, width = len(vocabulary()), 64, 96
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (tokens, hidden), "lm_head": (tokens, hidden)}
    shapes["model.norm"] = (hidden,)
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.{name}": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}.self_attn.{name}_proj": (hidden, hidden) for name in "qo"}
        shapes |= {f"{at}.self_attn.{name}_proj": (hidden // 2, hidden) for name in "kv"}
        shapes[f"{at}.block_sparse_moe.gate"] = (4, hidden)
        for e in range(4):
            expert = f"{at}.block_sparse_moe.experts.{e}"
            shapes |= {f"{expert}.{name}": (width, hidden) for name in ("w1", "w3")} | {f"{expert}.w2": (hidden, width)}
    tensors = {
        f"{name}.weight": random.normal(len(shape) == 1, 0.1 if len(shape) == 1 else shape[-1] ** -0.5, shape)
        for name, shape in shapes.items()
    }
    arrays = {name: values.astype(np.float32) for name, values in tensors.items()}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return tiny_folder.write_folder(folder, arrays, model_type="mixtral", tie_word_embeddings=False, **experts)


def run(*words: object) -> int:
    """The command; its exit code."""
    return main(["quantize", *map(str, words)])


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a folder, or the file."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}
