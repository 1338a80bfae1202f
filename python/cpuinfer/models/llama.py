"""Llama 1, 2 and 3, SmolLM2, TinyLlama and others of their shape: grouped-query attention, rotary positions, SwiGLU."""

from __future__ import annotations

from cpuinfer.config import Config, Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.graph import Graph
from cpuinfer.models import Option
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
HF_NAMES = {
    **{name: name for name in GGUF_NAMES.values()},
    "model.layers.{i}.self_attn.rotary_emb.inv_freq": None,
}
OPTIONS = {
    "act": Option("silu", hf="hidden_act"),
    "sliding_window": Option(0, hf="sliding_window", gguf="attention.sliding_window"),
    "expert_count": Option(0, gguf="expert_count"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(sliding_window=0, expert_count=0)
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = attend(g, c, x, i, rope=c.rope)
            x = feed_forward(g, c, x)
    return head(g, c, x)


def attend(g: Graph, c: Config, x: Value, i: int, *, rope: Rope | None, window: int = 0) -> Value:
    """Attention read through a norm and added to its input."""
    h = g.norm(x, "input_layernorm", c.norm_eps)
    q, k, v = g.linears(h, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    a = g.attention(q, k, v, layer=i, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, rope=rope, window=window)
    return g.linear(a, "self_attn.o_proj", residual=x)


def feed_forward(g: Graph, c: Config, x: Value) -> Value:
    """A gated feed-forward layer read through a norm and added to its input."""
    h = g.norm(x, "post_attention_layernorm", c.norm_eps)
    m = g.glu(h, "mlp.gate_proj", "mlp.up_proj", act=c.activation())
    return g.linear(m, "mlp.down_proj", residual=x)


def head(g: Graph, c: Config, x: Value) -> Value:
    """The last norm and the logits."""
    return g.linear(g.norm(x, "model.norm", c.norm_eps), "model.embed_tokens" if c.tied else "lm_head")


def expect_no_windows(c: Config) -> None:
    """Refuse a model whose option `layer_types` gives a layer's attention a window."""
    if any(has_window(c, i, otherwise=False) for i in range(c.layers)):
        c.expect(layer_types=["full_attention"] * c.layers)


_KINDS = ("full_attention", "sliding_attention", False, True)


def has_window(c: Config, i: int, *, otherwise: bool) -> bool:
    """Whether a layer's attention has a window: as the option `layer_types` says, where the file has it.

    GGUF has true and false for what config.json calls sliding_attention and full_attention.
    """
    kinds = c.items("layer_types")
    if not kinds:
        return otherwise
    if len(kinds) != c.layers or kinds[i] not in _KINDS:
        expected = f"full_attention or sliding_attention for each of {c.layers} layers"
        raise UnsupportedModel(f"{c.model_type}: layer_types is {kinds}, expected {expected}")
    return kinds[i] in ("sliding_attention", True)
