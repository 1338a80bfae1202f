"""Llama 3, SmolLM2 and others of their shape: grouped-query attention with rotary positions, SwiGLU.

Llama 1 and 2 and TinyLlama have it too, but their SentencePiece tokenizers are not read in this release.
"""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.ops import Value

GGUF_ROPE = "interleaved"
GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(sliding_window=0, expert_count=0)
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            h = g.norm(x, "input_layernorm", c.norm_eps)
            q, k, v = g.linears(h, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
            a = g.attention(q, k, v, layer=i, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, rope=c.rope)
            x = g.linear(a, "self_attn.o_proj", residual=x)
            h = g.norm(x, "post_attention_layernorm", c.norm_eps)
            m = g.glu(h, "mlp.gate_proj", "mlp.up_proj", act="silu")
            x = g.linear(m, "mlp.down_proj", residual=x)
    h = g.norm(x, "model.norm", c.norm_eps)
    return g.linear(h, "model.embed_tokens" if c.tied else "lm_head")
