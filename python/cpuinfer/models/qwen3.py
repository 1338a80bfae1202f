"""Qwen3: Llama with an RMSNorm on each head of queries and keys."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import llama, qwen2
from cpuinfer.ops import Value

GGUF_ROPE = "halves"
GGUF_NAMES = {
    **llama.GGUF_NAMES,
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
}
HF_DEFAULTS = {"head_dim": 128}
OPTIONS = qwen2.OPTIONS


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = attend(g, c, x, i, window=qwen2.window_of(c, i))
            x = llama.feed_forward(g, c, x)
    return llama.head(g, c, x)


def attend(g: Graph, c: Config, x: Value, i: int, *, window: int = 0) -> Value:
    """Llama's attention with normalised heads."""
    h = g.norm(x, "input_layernorm", c.norm_eps)
    q, k, v = g.linears(h, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q = g.head_norm(q, "self_attn.q_norm", c.norm_eps, heads=c.heads)
    k = g.head_norm(k, "self_attn.k_norm", c.norm_eps, heads=c.kv_heads)
    a = g.attention(
        q, k, v, layer=i, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, rope=c.rope, window=window
    )
    return g.linear(a, "self_attn.o_proj", residual=x)
