"""Mixtral: Mistral whose feed-forward layers are sparse mixtures of experts."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Option, llama
from cpuinfer.ops import Value

_EXPERTS = "model.layers.{i}.mlp.experts."
_SHARED = {name: ours for name, ours in llama.GGUF_NAMES.items() if ".ffn_" not in name or "norm" in name}
GGUF_ROPE = "interleaved"
GGUF_NAMES = {
    **_SHARED,
    "blk.{i}.ffn_gate_inp": "model.layers.{i}.mlp.gate",
    "blk.{i}.ffn_gate_exps": _EXPERTS + "gate_proj",
    "blk.{i}.ffn_up_exps": _EXPERTS + "up_proj",
    "blk.{i}.ffn_down_exps": _EXPERTS + "down_proj",
    # Older converters wrote each expert by itself.
    "blk.{i}.ffn_gate.{e}": _EXPERTS + "gate_proj",
    "blk.{i}.ffn_up.{e}": _EXPERTS + "up_proj",
    "blk.{i}.ffn_down.{e}": _EXPERTS + "down_proj",
}
HF_DEFAULTS = {"num_key_value_heads": 8, "rope_theta": 1e6}
HF_NAMES = {
    **{name: name for name in _SHARED.values()},
    "model.layers.{i}.block_sparse_moe.gate": "model.layers.{i}.mlp.gate",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w1": _EXPERTS + "gate_proj",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w3": _EXPERTS + "up_proj",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w2": _EXPERTS + "down_proj",
}
OPTIONS = {
    "act": Option("silu", hf="hidden_act"),
    "sliding_window": Option(0, hf="sliding_window", gguf="attention.sliding_window"),
    "experts": Option(8, hf="num_local_experts", gguf="expert_count"),
    "experts_used": Option(2, hf="num_experts_per_tok", gguf="expert_used_count"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = llama.attend(g, c, x, i, rope=c.rope, window=c.integer("sliding_window"))
            x = mixture(g, c, x, renormalise=True)
    return llama.head(g, c, x)


def mixture(g: Graph, c: Config, x: Value, *, renormalise: bool, residual: Value | None = None) -> Value:
    """Experts that read x through the layer's second norm; added to x, or to another value."""
    return g.experts(
        g.norm(x, "post_attention_layernorm", c.norm_eps),
        router="mlp.gate",
        gate="mlp.experts.gate_proj",
        up="mlp.experts.up_proj",
        down="mlp.experts.down_proj",
        experts=c.integer("experts"),
        used=c.integer("experts_used"),
        renormalise=renormalise,
        act=c.activation(),
        residual=x if residual is None else residual,
    )
