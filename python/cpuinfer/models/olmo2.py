"""OLMo 2: Llama whose norms are on queries, keys and the blocks' outputs, not on their inputs."""

from __future__ import annotations

from cpuinfer.config import Config, Rope
from cpuinfer.graph import Graph
from cpuinfer.models import Option, llama
from cpuinfer.ops import Value

GGUF_ROPE = "halves"
GGUF_NAMES = {
    **{name: ours for name, ours in llama.GGUF_NAMES.items() if name not in {"blk.{i}.attn_norm", "blk.{i}.ffn_norm"}},
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    "blk.{i}.post_attention_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.post_ffw_norm": "model.layers.{i}.post_feedforward_layernorm",
}
OPTIONS = {"act": Option("silu", hf="hidden_act")}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = attend(g, c, x, i, rope=c.rope)
            x = feed_forward(g, c, x)
    return llama.head(g, c, x)


def attend(g: Graph, c: Config, x: Value, i: int, *, rope: Rope | None, window: int = 0) -> Value:
    """Attention with normalised queries and keys, its output through a norm, added to x."""
    q, k, v = g.linears(x, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q = g.normalize(g.norm(q, "self_attn.q_norm", c.norm_eps))
    k = g.normalize(g.norm(k, "self_attn.k_norm", c.norm_eps))
    a = g.attention(q, k, v, layer=i, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, rope=rope, window=window)
    return g.normalize(g.norm(g.linear(a, "self_attn.o_proj"), "post_attention_layernorm", c.norm_eps), residual=x)


def feed_forward(g: Graph, c: Config, x: Value) -> Value:
    """A gated feed-forward layer, its output through a norm, added to x."""
    m = g.linear(g.glu(x, "mlp.gate_proj", "mlp.up_proj", act=c.activation()), "mlp.down_proj")
    return g.normalize(g.norm(m, "post_feedforward_layernorm", c.norm_eps), residual=x)
