"""GPT-NeoX: Pythia, Dolly, RedPajama, StableLM-alpha.  LayerNorms, parallel blocks, partly rotated heads."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Option, RopeKeys, Split, Target
from cpuinfer.ops import Value

_PARTS = tuple(f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv")
GGUF_NAMES: dict[str, Target] = {
    "token_embd": "model.embed_tokens",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_qkv": Split(_PARTS, "qkv"),
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
HF_NAMES: dict[str, Target] = {
    "gpt_neox.embed_in": "model.embed_tokens",
    "gpt_neox.layers.{i}.input_layernorm": "model.layers.{i}.input_layernorm",
    "gpt_neox.layers.{i}.attention.query_key_value": Split(_PARTS, "qkv", interleaved=True),
    "gpt_neox.layers.{i}.attention.dense": "model.layers.{i}.self_attn.o_proj",
    "gpt_neox.layers.{i}.attention.bias": None,
    "gpt_neox.layers.{i}.attention": None,
    "gpt_neox.layers.{i}.attention.masked_bias": None,
    "gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": None,
    "gpt_neox.layers.{i}.post_attention_layernorm": "model.layers.{i}.post_attention_layernorm",
    "gpt_neox.layers.{i}.mlp.dense_h_to_4h": "model.layers.{i}.mlp.up_proj",
    "gpt_neox.layers.{i}.mlp.dense_4h_to_h": "model.layers.{i}.mlp.down_proj",
    "gpt_neox.final_layer_norm": "model.norm",
    "embed_out": "lm_head",
}
HF_ROPE_KEYS = RopeKeys(base="rotary_emb_base", share="rotary_pct")
HF_DEFAULTS = {"rotary_pct": 0.25}
HF_KEYS = {"norm_eps": "layer_norm_eps"}
OPTIONS = {
    "act": Option("gelu", hf="hidden_act"),
    "parallel": Option(True, hf="use_parallel_residual", gguf="use_parallel_residual"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            h = g.layer_norm(x, "input_layernorm", c.norm_eps)
            q, k, v = g.linears(h, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
            a = g.attention(q, k, v, layer=i, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, rope=c.rope)
            attended = g.linear(a, "self_attn.o_proj", residual=x)
            h = g.layer_norm(x if c.flag("parallel") else attended, "post_attention_layernorm", c.norm_eps)
            m = g.linear(h, "mlp.up_proj", act=c.activation())
            x = g.linear(m, "mlp.down_proj", residual=attended)
    return g.linear(g.layer_norm(x, "model.norm", c.norm_eps), "model.embed_tokens" if c.tied else "lm_head")
