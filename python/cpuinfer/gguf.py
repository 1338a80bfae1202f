"""How a GGUF file says what a model is: its hyper-parameters and tensor names, in our terms.

Keys and their meaning are those of the GGUF specification's section on standardised key-value pairs.
"""

from __future__ import annotations

import re

import numpy as np

from cpuinfer import models
from cpuinfer.checkpoint import Checkpoint
from cpuinfer.config import Config, Rope, RopeLayout
from cpuinfer.errors import UnsupportedModel

MOST_SIZE = 1 << 20
"""No size in a real model's hyper-parameters comes near this; beyond it a file is damaged or hostile."""

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, one a pair: how converters write Llama 3's scaling."""


def read_config(checkpoint: Checkpoint) -> Config:
    """Hyper-parameters of the model in a GGUF file.

    Raises UnsupportedModel for an architecture or option not known, CheckpointError for values that cannot be.
    """
    arch = checkpoint.require("general.architecture", str)
    layout = models.find(arch).gguf_rope

    def size(key: str) -> int:
        return checkpoint.require(f"{arch}.{key}", int, minimum=1, maximum=MOST_SIZE)

    hidden, heads = size("embedding_length"), size("attention.head_count")
    kv_heads = checkpoint.optional(f"{arch}.attention.head_count_kv", int, heads, minimum=1, maximum=MOST_SIZE)
    if heads % kv_heads:
        raise checkpoint.error("header", f"{heads} heads are not a multiple of {kv_heads} key-value heads")
    head_dim = checkpoint.optional(f"{arch}.attention.key_length", int, hidden // heads, minimum=1, maximum=MOST_SIZE)
    value_dim = checkpoint.optional(f"{arch}.attention.value_length", int, head_dim, minimum=1, maximum=MOST_SIZE)
    if value_dim != head_dim:
        raise UnsupportedModel(f"values of {value_dim} per head, keys of {head_dim}: must be equal")
    embedding = checkpoint.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise checkpoint.error("tensor token_embd.weight", "missing or not a matrix")
    if embedding.shape[1] != hidden:
        raise checkpoint.error("tensor token_embd.weight", f"shape {embedding.shape}, expected (*, {hidden})")
    return Config(
        model_type=arch,
        name=checkpoint.optional("general.name", str, ""),
        layers=size("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=size("feed_forward_length"),
        vocabulary=embedding.shape[0],
        context=checkpoint.require(f"{arch}.context_length", int, minimum=1, maximum=1 << 30),
        norm_eps=checkpoint.require(f"{arch}.attention.layer_norm_rms_epsilon", float, minimum=0.0, maximum=1.0),
        tied="output.weight" not in checkpoint.tensors,
        rope=_read_rope(checkpoint, arch, head_dim, layout),
        options={
            "sliding_window": checkpoint.optional(f"{arch}.attention.sliding_window", int, 0),
            "expert_count": checkpoint.optional(f"{arch}.expert_count", int, 0),
        },
    )


def _read_rope(checkpoint: Checkpoint, arch: str, head_dim: int, layout: RopeLayout) -> Rope:
    dims = checkpoint.optional(f"{arch}.rope.dimension_count", int, head_dim, minimum=2, maximum=head_dim)
    if dims % 2:
        raise checkpoint.error(f"key {arch}.rope.dimension_count", f"is {dims}, expected an even number")
    base = checkpoint.optional(f"{arch}.rope.freq_base", float, 10000.0, minimum=1.0, maximum=1e12)
    scaling = checkpoint.optional(f"{arch}.rope.scaling.type", str, "none")
    factors: tuple[float, ...] = ()
    if scaling == "linear":
        factor = checkpoint.require(f"{arch}.rope.scaling.factor", float, minimum=1.0, maximum=1e6)
        factors = (factor,) * (dims // 2)
    elif scaling != "none":
        raise UnsupportedModel(f"rope scaling {scaling!r}, supported: 'none', 'linear', Llama 3's")
    if ROPE_FACTORS in checkpoint.tensors:
        factors = _read_factors(checkpoint, dims // 2)
    return Rope(dims, base, layout, factors)


def _read_factors(checkpoint: Checkpoint, pairs: int) -> tuple[float, ...]:
    info = checkpoint.tensors[ROPE_FACTORS]
    if info.encoding != "F32" or info.shape != (pairs,):
        raise checkpoint.error(f"tensor {ROPE_FACTORS}", f"{info.encoding} {info.shape}, expected F32 ({pairs},)")
    values = checkpoint.read_rows(ROPE_FACTORS, 0, 1).view(np.float32).ravel()
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise checkpoint.error(f"tensor {ROPE_FACTORS}", "expected finite, positive numbers")
    return tuple(float(value) for value in values)


def tensor_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Our name (without `.weight`) of each tensor the architecture knows -> its name in the file.

    Raises UnsupportedModel for a tensor the architecture does not know: ignoring one would give wrong text.
    """
    known = models.find(checkpoint.require("general.architecture", str)).gguf_names
    names = {}
    for tensor in checkpoint.tensors:
        if tensor == ROPE_FACTORS:
            continue
        stem, _, kind = tensor.rpartition(".")
        layer = re.match(r"blk\.(\d+)\.", stem)
        pattern = re.sub(r"^blk\.\d+\.", "blk.{i}.", stem)
        if kind != "weight" or pattern not in known:
            raise UnsupportedModel(f"tensor {tensor} is not part of the architecture as supported")
        names[known[pattern].replace("{i}", layer.group(1) if layer else "")] = tensor
    return names
