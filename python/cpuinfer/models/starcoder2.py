"""StarCoder2: grouped-query attention with rotary positions, LayerNorms and biases, optionally a window."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Json, Option, Target, gpt2, llama
from cpuinfer.ops import Value


def window(settings: Json) -> object:
    """Positions that attention reaches back; 0 for all."""
    return settings.get("sliding_window") or 0


GGUF_ROPE = "halves"
GGUF_NAMES: dict[str, Target] = {name: ours for name, ours in llama.GGUF_NAMES.items() if "ffn_gate" not in name}
HF_NAMES: dict[str, Target] = {
    **{name: name for name in GGUF_NAMES.values() if isinstance(name, str) and ".mlp." not in name},
    "model.layers.{i}.mlp.c_fc": "model.layers.{i}.mlp.up_proj",
    "model.layers.{i}.mlp.c_proj": "model.layers.{i}.mlp.down_proj",
}
HF_KEYS = {"norm_eps": "norm_epsilon"}
HF_DEFAULTS = {"tie_word_embeddings": True, "num_key_value_heads": 2}
OPTIONS = {
    "act": Option("gelu_pytorch_tanh", hf="hidden_act"),
    # Converters to GGUF leave it out; all published models have 4096 (arXiv 2402.19173).
    "sliding_window": Option(4096, hf=window, gguf="attention.sliding_window"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = gpt2.attend(g, c, x, i, rope=c.rope, window=c.integer("sliding_window"))
            x = gpt2.feed_forward(g, c, x)
    return gpt2.head(g, c, x)
