"""OLMo 3: OLMo 2 with a window on three layers of four, whose rope is never scaled."""

from __future__ import annotations

from dataclasses import replace

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Json, Option, gemma3_text, llama, olmo2
from cpuinfer.ops import Value


def local_base(settings: Json) -> object:
    """The base of the local layers' rope: older configurations have one for all layers."""
    newer = gemma3_text.local_rope(settings, "rope_theta")
    return settings["rope_theta"] if newer is None else newer


GGUF_NAMES = olmo2.GGUF_NAMES
HF_DEFAULTS = {"sliding_window": 4096, "rope_theta": 5e5}
OPTIONS = {
    "act": Option("silu", hf="hidden_act"),
    "sliding_window": Option(0, hf="sliding_window", gguf="attention.sliding_window"),
    "layer_types": Option((), hf="layer_types", gguf="attention.sliding_window_pattern"),
    "local_base": Option(0.0, hf=local_base, gguf="rope.freq_base_swa"),
    "local_scaling": Option("default", hf=lambda settings: gemma3_text.local_rope(settings, "rope_type")),
}
EVERY = 4
"""Layers from one without a window to the next, where the file does not list them."""


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(local_scaling="default")
    near = c.rope and replace(c.rope, base=c.number("local_base") or c.rope.base, factors=(), magnitude=1.0)
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            local = llama.has_window(c, i, otherwise=(i + 1) % EVERY != 0)
            window, rope = (c.integer("sliding_window"), near) if local else (0, c.rope)
            x = olmo2.attend(g, c, x, i, rope=rope, window=window)
            x = olmo2.feed_forward(g, c, x)
    return llama.head(g, c, x)
