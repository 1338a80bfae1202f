"""Folders of architectures older than Llama, or unlike it, and the GGUF files that llama.cpp's converter makes of them.

Names in files are the gguf package's; what folders have, and what becomes of numbers and keys, is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH as ARCH

from architectures import Array, Options
from converted_gguf import HIDDEN, LAYERS, VOCABULARY, Keys, file_names, fuse, save

HEADS, KV_HEADS, HEAD_DIM, ROTATED = 4, 2, HIDDEN // 4, 4
WIDTH = 4 * HIDDEN  # most of these converters write no other
CONTEXT = 2048  # Falcon's writes no other
EPSILON = 2.0**-17  # GGUF has it in float32

Shapes = Mapping[str, tuple[int, ...]]
Convert = Callable[[str, Array], Array]
NORM, SQUARE, UP, DOWN = (HIDDEN,), (HIDDEN, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)
TABLE, FUSED, KV = (VOCABULARY, HIDDEN), (3 * HIDDEN, HIDDEN), (KV_HEADS * HEAD_DIM, HIDDEN)


@dataclass(frozen=True, slots=True)
class Case:
    """A folder and what the converter makes of it."""

    settings: Options
    """config.json."""
    shapes: Shapes
    """By name without `.weight`; `{i}` stands for the layer."""
    arch: ARCH
    keys: Keys
    """Written beside those of every file."""
    convert: Convert = lambda _, values: values
    unbiased: tuple[str, ...] = ()
    """Ends of names; all other tensors have a bias."""
    fused: bool = False
    """Queries, keys and values end up in one tensor."""


def make_folder(case: Case) -> dict[str, Array]:
    """Tensors as the folder has them, each number exact in float32."""
    random = np.random.default_rng(5)

    def numbers(shape: tuple[int, ...], around: float) -> Array:
        return around + np.round(random.normal(0, 0.3, shape) * 1024) / 1024

    folder: dict[str, Array] = {}
    for pattern, shape in case.shapes.items():
        for layer in range(LAYERS if "{i}" in pattern else 1):
            stem = pattern.format(i=layer)
            name = f"{stem}.weight"
            folder[name] = numbers(shape, float(len(shape) == 1))
            if not stem.endswith(case.unbiased):
                folder[f"{stem}.bias"] = numbers(case.convert(name, folder[name]).shape[:1], 0.0)
    return folder


def write(path: Path, case: Case, folder: Mapping[str, Array]) -> Path:
    """The folder as llama.cpp's converter writes it."""
    keys: Keys = {
        "block_count": LAYERS,
        "context_length": CONTEXT,
        "embedding_length": HIDDEN,
        "feed_forward_length": WIDTH,
        "attention.head_count": HEADS,
        "attention.layer_norm_epsilon": EPSILON,
        **case.keys,
    }
    prefix = "transformer." if case.arch == ARCH.BLOOM else ""  # which the gguf package does not know there
    converted = {name.removeprefix(prefix): case.convert(name, values) for name, values in folder.items()}
    tensors = file_names(case.arch, converted)
    return save(path, case.arch, keys, fuse(tensors) if case.fused else tensors)


def turned(name: str, values: Array) -> Array:
    """GPT-2's folders have weights as (inputs, outputs)."""
    return values.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else values


def parted(kv_heads: int) -> Convert:
    """Folders have the rows of each key-value head together: its queries, key, value.  Files have all queries first."""

    def convert(name: str, values: Array) -> Array:
        if "query_key_value" not in name:
            return values
        groups = values.reshape(kv_heads, HEADS // kv_heads + 2, HEAD_DIM, *values.shape[1:])
        parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
        return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])

    return convert


def layers(stem: str, shapes: Shapes) -> Shapes:
    """The tensors of every layer."""
    return {f"{stem}.{{i}}.{name}": shape for name, shape in shapes.items()}


def block(query_key_value: tuple[int, ...]) -> Shapes:
    """What GPT-NeoX, BLOOM and Falcon have in a layer alike."""
    return {
        "self_attention.query_key_value": query_key_value,
        "self_attention.dense": SQUARE,
        "mlp.dense_h_to_4h": UP,
        "mlp.dense_4h_to_h": DOWN,
    }


SIZES: Options = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": WIDTH,
    "max_position_embeddings": CONTEXT,
    "layer_norm_eps": EPSILON,
    "tie_word_embeddings": False,
}
ROTARY: Keys = {"rope.dimension_count": ROTATED}


def neox(*, parallel: bool) -> Case:
    inner = {name.replace("self_attention", "attention"): shape for name, shape in block(FUSED).items()}
    return Case(
        {
            **SIZES,
            "model_type": "gpt_neox",
            "hidden_act": "gelu",
            "rotary_pct": ROTATED / HEAD_DIM,
            "rotary_emb_base": 10000,
            "use_parallel_residual": parallel,
        },
        {
            "gpt_neox.embed_in": TABLE,
            **layers("gpt_neox.layers", {"input_layernorm": NORM, "post_attention_layernorm": NORM, **inner}),
            "gpt_neox.final_layer_norm": NORM,
            "embed_out": TABLE,
        },
        ARCH.GPTNEOX,
        {**ROTARY, "use_parallel_residual": parallel},
        parted(HEADS),
        ("embed_in", "embed_out"),
    )


def gpt2(*, prefix: str = "transformer.", head: bool = False) -> Case:
    inner = {
        "ln_1": NORM,
        "attn.c_attn": FUSED[::-1],
        "attn.c_proj": SQUARE,
        "ln_2": NORM,
        "mlp.c_fc": UP[::-1],
        "mlp.c_proj": DOWN[::-1],
    }
    return Case(
        {
            "model_type": "gpt2",
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_ctx": CONTEXT,
            "n_positions": CONTEXT,
            "layer_norm_epsilon": EPSILON,
            "activation_function": "gelu_new",
            "tie_word_embeddings": not head,
        },
        {
            f"{prefix}wte": TABLE,
            f"{prefix}wpe": (CONTEXT, HIDDEN),
            **layers(f"{prefix}h", inner),
            f"{prefix}ln_f": NORM,
            **({"lm_head": TABLE} if head else {}),
        },
        ARCH.GPT2,
        {},
        turned,
        ("wte", "wpe", "lm_head"),
    )


def bloom(prefix: str) -> Case:
    norms = {"input_layernorm": NORM, "post_attention_layernorm": NORM}
    return Case(
        {
            "model_type": "bloom",
            "vocab_size": VOCABULARY,
            "n_embed": HIDDEN,
            "n_layer": LAYERS,
            "num_attention_heads": HEADS,
            "seq_length": CONTEXT,
            "layer_norm_epsilon": EPSILON,
        },
        {
            f"{prefix}word_embeddings": TABLE,
            f"{prefix}word_embeddings_layernorm": NORM,
            **layers(f"{prefix}h", {**norms, **block(FUSED)}),
            f"{prefix}ln_f": NORM,
        },
        ARCH.BLOOM,
        {"attention.head_count_kv": HEADS},
        parted(HEADS),
        ("word_embeddings",),
    )


def falcon(settings: Options, kv_heads: int, *norms: str) -> Case:
    fused = ((HEADS + 2 * kv_heads) * HEAD_DIM, HIDDEN)
    common = {key: value for key, value in SIZES.items() if key not in ("intermediate_size", "layer_norm_eps")}
    return Case(
        {**common, "model_type": "falcon", "layer_norm_epsilon": EPSILON, "bias": False, "alibi": False, **settings},
        {
            "transformer.word_embeddings": TABLE,
            **layers("transformer.h", {**dict.fromkeys(norms, NORM), **block(fused)}),
            "transformer.ln_f": NORM,
            "lm_head": TABLE,
        },
        ARCH.FALCON,
        {"tensor_data_layout": "jploski", "attention.head_count_kv": kv_heads},
        parted(kv_heads),
        ("word_embeddings", "lm_head", *block(fused)),
    )


def separate(heads: tuple[int, ...], output: str) -> Shapes:
    """Attention with queries, keys and values of their own."""
    return {
        "self_attn.q_proj": SQUARE,
        "self_attn.k_proj": heads,
        "self_attn.v_proj": heads,
        f"self_attn.{output}": SQUARE,
    }


def phi(*, fused: bool = False) -> Case:
    inner = {"input_layernorm": NORM, **separate(SQUARE, "dense"), "mlp.fc1": UP, "mlp.fc2": DOWN}
    return Case(
        {**SIZES, "model_type": "phi", "hidden_act": "gelu_new", "partial_rotary_factor": ROTATED / HEAD_DIM},
        {
            "model.embed_tokens": TABLE,
            **layers("model.layers", inner),
            "model.final_layernorm": NORM,
            "lm_head": TABLE,
        },
        ARCH.PHI2,
        {**ROTARY, "attention.head_count_kv": HEADS},
        unbiased=("embed_tokens",),
        fused=fused,
    )


def starcoder2(settings: Options, keys: Keys, *, fused: bool = False) -> Case:
    norms = {"input_layernorm": NORM, "post_attention_layernorm": NORM}
    inner = {**norms, **separate(KV, "o_proj"), "mlp.c_fc": UP, "mlp.c_proj": DOWN}
    common = {key: value for key, value in SIZES.items() if key not in ("layer_norm_eps", "tie_word_embeddings")}
    return Case(
        {
            **common,
            "model_type": "starcoder2",
            "num_key_value_heads": KV_HEADS,
            "hidden_act": "gelu_pytorch_tanh",
            "norm_epsilon": EPSILON,
            "rope_theta": 999999.5,
            **settings,
        },
        {"model.embed_tokens": TABLE, **layers("model.layers", inner), "model.norm": NORM},
        ARCH.STARCODER2,
        {"attention.head_count_kv": KV_HEADS, "rope.freq_base": 999999.5, **keys},
        unbiased=("embed_tokens",),
        fused=fused,
    )


def stablelm(settings: Options, *, parallel: bool = False, fused: bool = False) -> Case:
    norms = {"input_layernorm": NORM} if parallel else {"input_layernorm": NORM, "post_attention_layernorm": NORM}
    feed_forward = {"mlp.gate_proj": UP, "mlp.up_proj": UP, "mlp.down_proj": DOWN}
    return Case(
        {
            **SIZES,
            "model_type": "stablelm",
            "num_key_value_heads": KV_HEADS,
            "hidden_act": "silu",
            "rope_theta": 10000,
            "partial_rotary_factor": ROTATED / HEAD_DIM,
            "use_qkv_bias": True,
            **settings,
        },
        {
            "model.embed_tokens": TABLE,
            **layers("model.layers", {**norms, **separate(KV, "o_proj"), **feed_forward}),
            "model.norm": NORM,
            "lm_head": TABLE,
        },
        ARCH.STABLELM,
        {
            **ROTARY,
            "attention.head_count_kv": KV_HEADS,
            "use_parallel_residual": settings.get("use_parallel_residual", True),  # whatever the model is
        },
        unbiased=("embed_tokens", "lm_head", "o_proj", *feed_forward),
        fused=fused,
    )
