"""Writes tiny Llama folders whose linears are packed as published formats pack them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

import published_files as files
from tiny_gguf import vocabulary

LAYERS, HIDDEN, HEADS, KV_HEADS, FEED_FORWARD, GROUP = 2, 64, 4, 2, 96, 32
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": FEED_FORWARD,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "gptq": files.GPTQ,
    "gptq in order of activations": {**files.GPTQ, "desc_act": True},
    "awq": files.AWQ,
    "auto-round": files.ROUND,
    "compressed-tensors": files.compressed(symmetric=False),
    "nf4": files.BNB,
    "hqq": files.HQQ,
}
Tensors = dict[str, npt.NDArray[Any]]


def linears(experts: int = 0) -> dict[str, tuple[int, int]]:
    """Shapes of the packed weights, by the names of Llama, or with experts of Mixtral."""
    narrow = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (narrow, HIDDEN),
        "self_attn.v_proj": (narrow, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
    }
    inner = [(FEED_FORWARD, HIDDEN), (FEED_FORWARD, HIDDEN), (HIDDEN, FEED_FORWARD)]
    if not experts:
        shapes |= zip(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), inner, strict=True)
    for expert in range(experts):
        names = (f"block_sparse_moe.experts.{expert}.{name}" for name in ("w1", "w3", "w2"))
        shapes |= zip(names, inner, strict=True)
    return {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}


def packed(method: str, prefix: str, shape: tuple[int, int], rng: np.random.Generator) -> Tensors:
    """One weight of random codes, about 1 / sqrt(inputs)."""
    n, k = shape
    codes, zeros = rng.integers(0, 16, shape), rng.integers(6, 10, (n, k // GROUP))
    scales = (rng.uniform(0.5, 1.5, zeros.shape) / 4.6 / np.sqrt(k)).astype(np.float16)
    expert = int(prefix.split(".")[-2]) if ".experts." in prefix else 0
    order = np.random.default_rng([k, expert]).permutation(k)  # the same for weights that share an input
    match method:
        case "gptq" | "auto-round":
            return files.gptq(prefix, codes, scales, zeros, 4)
        case "gptq in order of activations":
            return files.gptq(prefix, codes, scales, zeros, 4, g_idx=np.arange(k)[order] // GROUP)
        case "awq":
            return files.awq(prefix, codes, scales, zeros)
        case "compressed-tensors":
            return files.compressed_tensors(prefix, codes - 8, scales, zeros - 8, 4)
        case "nf4":
            return files.bitsandbytes(prefix, codes, files.NF4, (4 * scales.reshape(-1)).astype(np.float32), GROUP)
        case "hqq":
            return files.hqq(prefix, codes, scales, zeros.astype(np.float16), 4, group=GROUP)
    raise AssertionError(method)


def write_published_llama(folder: Path, method: str, experts: int = 0) -> None:
    """Write the folder, with experts a Mixtral that uses them all; embeddings, norms, routers and the head are F16."""
    rng = np.random.default_rng(9)
    size = len(vocabulary())
    tensors: Tensors = {
        "model.embed_tokens.weight": rng.normal(size=(size, HIDDEN)).astype(np.float16),
        "lm_head.weight": (rng.normal(size=(size, HIDDEN)) / np.sqrt(HIDDEN)).astype(np.float16),
        "model.norm.weight": np.ones(HIDDEN, np.float16),
    }
    for i in range(LAYERS):
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{name}.weight"] = (1 + 0.1 * rng.normal(size=HIDDEN)).astype(np.float16)
        if experts:
            gate = rng.normal(size=(experts, HIDDEN)) / np.sqrt(HIDDEN)
            tensors[f"model.layers.{i}.block_sparse_moe.gate.weight"] = gate.astype(np.float16)
    for prefix, shape in linears(experts).items():
        tensors |= packed(method, prefix, shape, rng)
    save_file(tensors, folder / "model.safetensors")
    config = {**CONFIG, "vocab_size": size, "quantization_config": SETTINGS[method]}
    if experts:
        config |= {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": experts}
    (folder / "config.json").write_text(json.dumps(config))
