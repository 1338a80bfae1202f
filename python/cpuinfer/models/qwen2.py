"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and optionally a window on the upper layers."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Json, Option, llama
from cpuinfer.ops import Value


def window(settings: Json) -> object:
    """The window of layers from `max_window_layers` on, if it is in use; not named, it is of 4096."""
    return settings.get("sliding_window", 4096) if settings.get("use_sliding_window") else 0


GGUF_ROPE = "halves"
GGUF_NAMES = llama.GGUF_NAMES
OPTIONS = {
    "act": Option("silu", hf="hidden_act"),
    "sliding_window": Option(0, hf=window),
    "max_window_layers": Option(28, hf="max_window_layers"),
    "layer_types": Option((), hf="layer_types"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = llama.attend(g, c, x, i, rope=c.rope, window=window_of(c, i))
            x = llama.feed_forward(g, c, x)
    return llama.head(g, c, x)


def window_of(c: Config, i: int) -> int:
    """The window of a layer's attention, 0 for none."""
    return c.integer("sliding_window") if llama.has_window(c, i, otherwise=i >= c.integer("max_window_layers")) else 0
