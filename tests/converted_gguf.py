"""A folder of a Llama-like architecture with made-up weights, and the GGUF file that llama.cpp's converter makes of it.

Names are the gguf package's; what the converter does to the numbers is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import MODEL_ARCH as ARCH

from architectures import Array, Options
from cpuinfer import models
from cpuinfer.config import Config

VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, WIDTH, EXPERTS, SHARED = 96, 32, 4, 4, 2, 12, 48, 4, 32
Keys = Mapping[str, float | int | str | list[bool]]
SETTINGS: Options = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "moe_intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
}
SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("embed_tokens", "lm_head"), (VOCABULARY, HIDDEN)),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), (WIDTH, HIDDEN)),
    **dict.fromkeys(("down_proj", "w2"), (HIDDEN, WIDTH)),
    **dict.fromkeys(("k_proj", "v_proj"), (KV_HEADS * HEAD_DIM, HIDDEN)),
    **dict.fromkeys(("q_norm", "k_norm"), (HEAD_DIM,)),
    "q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "qkv_proj": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
    "gate_up_proj": (2 * WIDTH, HIDDEN),
    "gate": (EXPERTS, HIDDEN),
    "shared_expert_gate": (1, HIDDEN),
    "shared_expert.gate_proj": (SHARED, HIDDEN),
    "shared_expert.up_proj": (SHARED, HIDDEN),
    "shared_expert.down_proj": (HIDDEN, SHARED),
}
"""By the end of a tensor's name in a folder; all others are norms [hidden]."""


@dataclass(frozen=True, slots=True)
class Case:
    """A folder's settings, and what a converter writes for them."""

    model_type: str
    arch: ARCH
    settings: Options = field(default_factory=dict)
    metadata: Keys = field(default_factory=dict)
    permuted: bool = False
    """Rows of a head go from (i, i + pairs) to (2 i, 2 i + 1)."""
    norm_offset: float = 0.0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    """Ends of names that this folder has not, of those the architecture knows."""
    biased: tuple[str, ...] = ()
    factors: Mapping[str, list[float]] = field(default_factory=dict)
    fused: bool = False
    """Queries, keys and values end up in one tensor."""


def make_folder(case: Case) -> dict[str, Array]:
    """Tensors as a folder has them, each number exact in float32 with an offset of 1 too."""
    random = np.random.default_rng(3)
    folder: dict[str, Array] = {}
    for pattern, target in models.find(case.model_type).hf_names.items():
        if target is None or pattern.endswith(case.absent):
            continue
        for layer in range(LAYERS if "{i}" in pattern else 1):
            for expert in range(EXPERTS if "{e}" in pattern else 1):
                stem = pattern.format(i=layer, e=expert)
                shape = shape_of(stem, case)
                around = 1 - case.norm_offset if len(shape) == 1 else 0.0
                folder[f"{stem}.weight"] = around + np.round(random.normal(0, 0.3, shape) * 1024) / 1024
                if pattern.endswith(case.biased or ("no bias",)):
                    folder[f"{stem}.bias"] = np.round(random.normal(0, 0.3, shape[0]) * 1024) / 1024
    return folder


def shape_of(stem: str, case: Case) -> tuple[int, ...]:
    shapes = {**SHAPES, **case.shapes}
    ends = (".".join(stem.split(".")[-count:]) for count in (2, 1))
    return next((shapes[end] for end in ends if end in shapes), (HIDDEN,))


def write(path: Path, case: Case, folder: Mapping[str, Array], config: Config) -> Path:
    """The folder as llama.cpp's converter writes it."""
    keys: Keys = {
        "block_count": LAYERS,
        "context_length": config.context,
        "embedding_length": HIDDEN,
        "feed_forward_length": WIDTH,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "rope.dimension_count": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        **case.metadata,
    }
    factors = dict(case.factors)
    if case.permuted and config.rope is not None and config.rope.factors:
        factors["rope_freqs.weight"] = list(config.rope.factors)
    tables = {name: np.asarray(numbers, np.float64) for name, numbers in factors.items()}
    tensors = file_names(case.arch, converted(case, folder))
    return save(path, case.arch, keys, {**(fuse(tensors) if case.fused else tensors), **tables})


def fuse(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Rows of the query, the key and the value after one another in one tensor."""
    out: dict[str, Array] = {}
    for name, values in tensors.items():
        if ".attn_q." in name:
            parts = [tensors[name.replace(".attn_q.", f".attn_{part}.")] for part in "qkv"]
            out[name.replace(".attn_q.", ".attn_qkv.")] = np.concatenate(parts)
        elif ".attn_k." not in name and ".attn_v." not in name:
            out[name] = values
    return out


def file_names(arch: ARCH, folder: Mapping[str, Array]) -> dict[str, Array]:
    """Tensors of a folder by their names in a file."""
    names = gguf.get_tensor_name_map(arch, LAYERS)
    found = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in folder}
    assert None not in found.values(), found
    return {str(found[name]): values for name, values in folder.items()}


def save(path: Path, arch: ARCH, keys: Keys, tensors: Mapping[str, Array]) -> Path:
    """A GGUF file in float32; the keys are given without the architecture's name."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in keys.items():
        add.get(type(value), writer.add_array)(f"{writer.arch}.{key}", value)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(case: Case, folder: Mapping[str, Array]) -> dict[str, Array]:
    """Query and key rows permuted, norms with their offset, experts stacked in a third dimension."""
    out: dict[str, Array] = {}
    for name, values in folder.items():
        if ".experts.0." in name:
            stacked = [folder[name.replace(".experts.0.", f".experts.{e}.")] for e in range(EXPERTS)]
            out[name.replace(".experts.0.", ".experts.")] = np.stack(stacked)
        elif ".experts." in name:
            continue
        elif case.permuted and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = values.reshape(-1, 2, HEAD_DIM // 2, HIDDEN)
            out[name] = heads.swapaxes(1, 2).reshape(values.shape)
        elif name.endswith("shared_expert_gate.weight"):
            out[name] = values[0]
        else:
            out[name] = values + case.norm_offset if name.endswith("norm.weight") else values
    return out
