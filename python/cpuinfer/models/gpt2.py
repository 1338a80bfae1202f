"""GPT-2: learned positions, LayerNorms, weights stored as (inputs, outputs)."""

from __future__ import annotations

from collections.abc import Sequence

from cpuinfer.config import Config, Rope
from cpuinfer.graph import Graph
from cpuinfer.models import QKV, Option, Target, Transposed, with_and_without
from cpuinfer.ops import Normed, Value

HAS_ROPE = False
GGUF_NAMES: dict[str, Target] = {
    "token_embd": "model.embed_tokens",
    "position_embd": "model.embed_positions",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_qkv": QKV,
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_HF: dict[str, Target] = {
    "wte": "model.embed_tokens",
    "wpe": "model.embed_positions",
    "h.{i}.ln_1": "model.layers.{i}.input_layernorm",
    "h.{i}.attn.c_attn": Transposed(QKV),
    "h.{i}.attn.c_proj": Transposed("model.layers.{i}.self_attn.o_proj"),
    "h.{i}.attn": None,
    "h.{i}.attn.masked_bias": None,
    "h.{i}.ln_2": "model.layers.{i}.post_attention_layernorm",
    "h.{i}.mlp.c_fc": Transposed("model.layers.{i}.mlp.up_proj"),
    "h.{i}.mlp.c_proj": Transposed("model.layers.{i}.mlp.down_proj"),
    "ln_f": "model.norm",
}
HF_NAMES = with_and_without("transformer.", _HF)
HF_KEYS = {
    "hidden": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
    "context": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "feed_forward": lambda settings: settings.get("n_inner") or 4 * settings.get("n_embd", 0),
}
HF_DEFAULTS = {"tie_word_embeddings": True, "n_positions": 1024}
OPTIONS = {
    "act": Option("gelu_new", hf="activation_function"),
    "scale_attn_weights": Option(True, hf="scale_attn_weights"),
    "scale_attn_by_inverse_layer_idx": Option(False, hf="scale_attn_by_inverse_layer_idx"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    x = g.embed("model.embed_tokens", positions="model.embed_positions")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = attend(g, c, x, i)
            x = feed_forward(g, c, x)
    return head(g, c, x)


def attend(
    g: Graph,
    c: Config,
    x: Value,
    i: int,
    *,
    norm: str = "input_layernorm",
    rope: Rope | None = None,
    scale: float | None = None,
    window: int = 0,
    slopes: Sequence[float] = (),
) -> Value:
    """Attention read through a LayerNorm and added to its input."""
    h = g.layer_norm(x, norm, c.norm_eps)
    q, k, v = g.linears(h, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    heads = {"heads": c.heads, "kv_heads": c.kv_heads, "head_dim": c.head_dim}
    a = g.attention(q, k, v, layer=i, **heads, rope=rope, scale=scale, window=window, slopes=slopes)
    return g.linear(a, "self_attn.o_proj", residual=x)


def feed_forward(g: Graph, c: Config, x: Value, *, read: Normed | None = None) -> Value:
    """Two linears with an activation between, added to x; they read it through a LayerNorm, or what is given."""
    h = g.layer_norm(x, "post_attention_layernorm", c.norm_eps) if read is None else read
    return g.linear(g.linear(h, "mlp.up_proj", act=c.activation()), "mlp.down_proj", residual=x)


def head(g: Graph, c: Config, x: Value) -> Value:
    """The last LayerNorm and the logits."""
    return g.linear(g.layer_norm(x, "model.norm", c.norm_eps), "model.embed_tokens" if c.tied else "lm_head")
