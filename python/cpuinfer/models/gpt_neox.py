"""GPT-NeoX: Pythia, Dolly, RedPajama, StableLM-alpha.  LayerNorms, parallel blocks, partly rotated heads."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import QKV_BY_HEAD, Option, RopeKeys, Target, gpt2
from cpuinfer.ops import Value

GGUF_NAMES = {name: ours for name, ours in gpt2.GGUF_NAMES.items() if name != "position_embd"}
HF_NAMES: dict[str, Target] = {
    "gpt_neox.embed_in": "model.embed_tokens",
    "gpt_neox.layers.{i}.input_layernorm": "model.layers.{i}.input_layernorm",
    "gpt_neox.layers.{i}.attention.query_key_value": QKV_BY_HEAD,
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
            attended = gpt2.attend(g, c, x, i, rope=c.rope)
            h = g.layer_norm(x if c.flag("parallel") else attended, "post_attention_layernorm", c.norm_eps)
            x = gpt2.feed_forward(g, c, attended, read=h)
    return gpt2.head(g, c, x)
