"""Gemma 2: norms before and after each block, soft caps, every other layer's attention through a window."""

from __future__ import annotations

from cpuinfer.config import Config, Rope
from cpuinfer.graph import Graph
from cpuinfer.models import Json, Option, llama
from cpuinfer.ops import Normed, Value


def cap(key: str, absent: float) -> Option:
    """A soft cap: null stands for none, and a file that does not name it means the family's (early GGUF files)."""

    def read(settings: Json) -> object:
        value = settings.get(key, absent)
        return 0.0 if value is None else value

    return Option(absent, hf=read, gguf=key)


GGUF_ROPE = "halves"
GGUF_NAMES = {
    **llama.GGUF_NAMES,
    "blk.{i}.post_attention_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "blk.{i}.post_ffw_norm": "model.layers.{i}.post_feedforward_layernorm",
}
HF_DEFAULTS = {
    "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
OPTIONS = {
    "act": Option("gelu_pytorch_tanh", hf="hidden_activation"),
    "norm_offset": Option(0.0, hf=lambda _: 1.0),  # converters to GGUF add it to the weights
    "score_width": Option(0.0, hf="query_pre_attn_scalar"),
    "sliding_window": Option(4096, hf="sliding_window", gguf="attention.sliding_window"),
    "layer_types": Option((), hf="layer_types"),
    "score_cap": cap("attn_logit_softcapping", 50.0),
    "logit_cap": cap("final_logit_softcapping", 30.0),
}
LARGEST = 46
"""Layers of the 27B model, whose scores are scaled by hidden / heads; GGUF files do not say so."""


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    x = g.embed("model.embed_tokens", scale=c.hidden**0.5)
    width = c.number("score_width") or (c.hidden / c.heads if c.layers == LARGEST else c.head_dim)
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            window = c.integer("sliding_window") if llama.has_window(c, i, otherwise=i % 2 == 0) else 0
            q, k, v = g.linears(
                norm(g, c, x, "input_layernorm"), "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
            )
            x = attend(g, c, x, (q, k, v), i, window=window, rope=c.rope, width=width)
            x = feed_forward(g, c, x)
    h = norm(g, c, x, "model.norm")
    return g.linear(h, "model.embed_tokens" if c.tied else "lm_head", softcap=c.number("logit_cap"))


def norm(g: Graph, c: Config, x: Value, name: str) -> Normed:
    """An RMSNorm whose stored weight is less by the offset."""
    return g.norm(x, name, c.norm_eps, offset=c.number("norm_offset"))


def attend(
    g: Graph, c: Config, x: Value, qkv: tuple[Value, ...], i: int, *, window: int, rope: Rope | None, width: float
) -> Value:
    """Attention, its output through a norm, added to x."""
    q, k, v = qkv
    a = g.attention(
        q,
        k,
        v,
        layer=i,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        rope=rope,
        scale=width**-0.5,
        window=window,
        softcap=c.number("score_cap"),
    )
    return g.normalize(norm(g, c, g.linear(a, "self_attn.o_proj"), "post_attention_layernorm"), residual=x)


def feed_forward(g: Graph, c: Config, x: Value) -> Value:
    """A gated feed-forward layer between two norms, added to x."""
    h = norm(g, c, x, "pre_feedforward_layernorm")
    m = g.linear(g.glu(h, "mlp.gate_proj", "mlp.up_proj", act=c.activation()), "mlp.down_proj")
    return g.normalize(norm(g, c, m, "post_feedforward_layernorm"), residual=x)
