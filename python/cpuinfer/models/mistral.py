"""Mistral and Ministral: Llama with a window on attention, where the file names one, in all layers or some."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Option, llama
from cpuinfer.ops import Value

GGUF_ROPE = llama.GGUF_ROPE
GGUF_NAMES = llama.GGUF_NAMES
HF_DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}
OPTIONS = {
    "act": Option("silu", hf="hidden_act"),
    "sliding_window": Option(0, hf="sliding_window"),
    "layer_types": Option((), hf="layer_types"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            window = c.integer("sliding_window") if llama.has_window(c, i, otherwise=True) else 0
            x = llama.attend(g, c, x, i, rope=c.rope, window=window)
            x = llama.feed_forward(g, c, x)
    return llama.head(g, c, x)
