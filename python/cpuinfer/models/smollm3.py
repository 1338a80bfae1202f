"""SmolLM3: Llama that leaves positions out of every fourth layer (NoPE, arXiv 2305.19466)."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Option, llama
from cpuinfer.ops import Value

GGUF_ROPE = "interleaved"
GGUF_NAMES = llama.GGUF_NAMES
HF_DEFAULTS = {"tie_word_embeddings": True, "num_key_value_heads": 4, "rope_theta": 2e6}
OPTIONS = {
    "act": Option("silu", hf="hidden_act"),
    "rope_layers": Option((), hf="no_rope_layers"),  # 1: has positions
    "every": Option(4, hf="no_rope_layer_interval"),
    "use_sliding_window": Option(False, hf="use_sliding_window"),
    "layer_types": Option((), hf="layer_types"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(use_sliding_window=False)
    llama.expect_no_windows(c)
    given = c.items("rope_layers")
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        turned = bool(given[i]) if i < len(given) else (i + 1) % c.integer("every") != 0
        with g.scope(f"model.layers.{i}"):
            x = llama.attend(g, c, x, i, rope=c.rope if turned else None)
            x = llama.feed_forward(g, c, x)
    return llama.head(g, c, x)
