"""Writes a GGUF file of tests/tiny_gguf.py as the Hugging Face folder it would have been converted from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tiny_gguf import CHAT_TEMPLATE, MERGES, SPECIAL_TOKENS, vocabulary

Arrays = dict[str, npt.NDArray[Any]]

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HEADS, KV_HEADS = 4, 2
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": 96,
    "vocab_size": len(vocabulary()),
    "max_position_embeddings": 512,
    "rms_norm_eps": float(np.float32(1e-5)),  # as GGUF holds it
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def tensors_of(path: Path) -> Arrays:
    """A GGUF file's F32 tensors under their Hugging Face names, the rows of queries and keys in their order there."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        stem = tensor.name.removesuffix(".weight")
        values = np.array(tensor.data, np.float32)
        if stem.startswith("blk."):
            _, layer, kind = stem.split(".")
            name = f"model.layers.{layer}.{NAMES[kind]}"
            if kind in {"attn_q", "attn_k"}:
                values = _unpermuted(values, HEADS if kind == "attn_q" else KV_HEADS)
        else:
            name = NAMES[stem]
        found[f"{name}.weight"] = values
    return found


def _unpermuted(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Conversion takes a head's rows i and i + half to 2 i and 2 i + 1; this takes them back."""
    rows, width = values.shape
    return np.ascontiguousarray(values.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width))


def write_folder(folder: Path, tensors: Arrays, *, shards: int = 1, **config: object) -> Path:
    """config.json, tokenizer and safetensors; `config` replaces keys, None leaves one out."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in {**CONFIG, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(settings))
    _write_tokenizer(folder)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[shard::shards]}
        save_file(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _write_tokenizer(folder: Path) -> None:
    tokens = {token: number for number, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[tuple(merge.split(" ")) for merge in MERGES]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": CHAT_TEMPLATE, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
