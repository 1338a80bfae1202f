"""OPT: learned positions that start at 2, LayerNorms before or after the blocks, ReLU."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Option, Target, gpt2, with_and_without
from cpuinfer.ops import Value

HAS_ROPE = False
_HF: dict[str, Target] = {
    "decoder.embed_tokens": "model.embed_tokens",
    "decoder.embed_positions": "model.embed_positions",
    **{f"decoder.layers.{{i}}.self_attn.{part}_proj": f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"},
    "decoder.layers.{i}.self_attn.out_proj": "model.layers.{i}.self_attn.o_proj",
    "decoder.layers.{i}.self_attn_layer_norm": "model.layers.{i}.input_layernorm",
    "decoder.layers.{i}.fc1": "model.layers.{i}.mlp.up_proj",
    "decoder.layers.{i}.fc2": "model.layers.{i}.mlp.down_proj",
    "decoder.layers.{i}.final_layer_norm": "model.layers.{i}.post_attention_layernorm",
    "decoder.final_layer_norm": "model.norm",
}
HF_NAMES = with_and_without("model.", _HF)
HF_KEYS = {"feed_forward": "ffn_dim", "norm_eps": lambda _: 1e-5}
HF_DEFAULTS = {"tie_word_embeddings": True, "max_position_embeddings": 2048}
OPTIONS = {
    "act": Option("relu", hf="activation_function"),
    "norm_first": Option(True, hf="do_layer_norm_before"),
    "embedding_width": Option(0, hf="word_embed_proj_dim"),
    "remove_final_layer_norm": Option(False, hf="_remove_final_layer_norm"),
}
POSITION_OFFSET = 2


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(remove_final_layer_norm=False)
    if c.integer("embedding_width") not in {0, c.hidden}:
        c.expect(embedding_width=c.hidden)
    x = g.embed("model.embed_tokens", positions="model.embed_positions", position_offset=POSITION_OFFSET)
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            if c.flag("norm_first"):
                x = gpt2.attend(g, c, x, i)
                x = gpt2.feed_forward(g, c, x)
            else:
                x = norms_after(g, c, x, i)
    if c.flag("norm_first"):
        return gpt2.head(g, c, x)
    return g.linear(x, "model.embed_tokens" if c.tied else "lm_head")


def norms_after(g: Graph, c: Config, x: Value, i: int) -> Value:
    """Both blocks of a layer, their sums with x normalised."""
    q, k, v = g.linears(x, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    a = g.attention(q, k, v, layer=i, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, rope=None)
    x = g.normalize(g.layer_norm(g.linear(a, "self_attn.o_proj", residual=x), "input_layernorm", c.norm_eps))
    m = g.linear(x, "mlp.up_proj", act=c.activation())
    return g.normalize(g.layer_norm(g.linear(m, "mlp.down_proj", residual=x), "post_attention_layernorm", c.norm_eps))
