"""Falcon: 7B (one key-value head), 40B and 180B (grouped heads, two LayerNorms), Falcon 2 11B (grouped heads, one),
RW (ALiBi, blocks in sequence).
"""

from __future__ import annotations

from dataclasses import replace

from cpuinfer.config import Config
from cpuinfer.graph import Graph, alibi_slopes
from cpuinfer.models import QKV, Json, Option, Target, bloom, gpt2, with_and_without
from cpuinfer.ops import Value


def kv_heads(settings: Json) -> object:
    """Key-value heads, which older configurations say by two flags."""
    if settings.get("new_decoder_architecture"):
        return settings.get("num_kv_heads")
    return 1 if settings.get("multi_query", True) else settings.get("num_attention_heads")


HF_NAMES = with_and_without(
    "transformer.",
    {
        **{name: ours for name, ours in bloom.BODY.items() if name != "word_embeddings_layernorm"},
        "h.{i}.ln_attn": "model.layers.{i}.attention_layernorm",
        "h.{i}.ln_mlp": "model.layers.{i}.input_layernorm",
    },
)
HF_KEYS = {
    "layers": lambda settings: settings.get("num_hidden_layers", settings.get("n_layer")),
    "heads": lambda settings: settings.get("num_attention_heads", settings.get("n_head")),
    "kv_heads": kv_heads,
    "norm_eps": "layer_norm_epsilon",
    "feed_forward": lambda settings: settings.get("ffn_hidden_size") or 4 * settings.get("hidden_size", 0),
}
GGUF_NAMES: dict[str, Target] = {
    "token_embd": "model.embed_tokens",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_norm_2": "model.layers.{i}.attention_layernorm",
    "blk.{i}.attn_qkv": QKV,
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
HF_DEFAULTS = {"tie_word_embeddings": True, "max_position_embeddings": 2048, "rope_theta": 10000.0}
OPTIONS = {
    "act": Option("gelu", hf="activation"),
    "parallel": Option(True, hf=lambda settings: settings.get("parallel_attn", True) or False),
    "alibi": Option(False, hf="alibi"),
    "rope_base": Option(None, hf="rope_theta", gguf="rope.freq_base"),
}
FALCON2_BASE = 500042.0
"""Of rotations in Falcon 2 11B, the one model with grouped heads and one LayerNorm; converters to GGUF leave it out."""


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    rope, slopes = c.rope, ()
    if c.flag("alibi"):  # added before the scores are scaled
        rope, slopes = None, tuple(slope * c.head_dim**-0.5 for slope in alibi_slopes(c.heads))
    own_norm = "model.layers.0.attention_layernorm" in g.shapes
    if rope is not None and c.options["rope_base"] is None and c.kv_heads > 1 and not own_norm:
        rope = replace(rope, base=FALCON2_BASE)
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            h = g.layer_norm(x, "input_layernorm", c.norm_eps)
            norm = "attention_layernorm" if own_norm else "input_layernorm"
            attended = gpt2.attend(g, c, x, i, norm=norm, rope=rope, slopes=slopes)
            x = gpt2.feed_forward(g, c, attended, read=h if c.flag("parallel") else None)
    return gpt2.head(g, c, x)
