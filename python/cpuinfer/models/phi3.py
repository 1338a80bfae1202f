"""Phi-3 and Phi-4: Llama with query, key and value, and gate and up, stored as one; LongRoPE; optionally a window."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import QKV, Option, RopeKeys, Split, llama
from cpuinfer.ops import Value

_GATE_UP = Split(("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"), "equal")
GGUF_ROPE = "halves"
GGUF_NAMES = {
    **{name: ours for name, ours in llama.GGUF_NAMES.items() if "ffn_gate" not in name},
    "blk.{i}.ffn_up": _GATE_UP,
}
HF_NAMES = {
    **llama.HF_NAMES,
    "model.layers.{i}.self_attn.qkv_proj": QKV,
    "model.layers.{i}.mlp.gate_up_proj": _GATE_UP,
}
HF_ROPE_KEYS = RopeKeys(share="partial_rotary_factor")
HF_DEFAULTS = {"original_max_position_embeddings": 4096}
OPTIONS = {
    "act": Option("silu", hf="hidden_act"),
    "sliding_window": Option(0, hf="sliding_window", gguf="attention.sliding_window"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = llama.attend(g, c, x, i, rope=c.rope, window=c.integer("sliding_window"))
            x = llama.feed_forward(g, c, x)
    return llama.head(g, c, x)
