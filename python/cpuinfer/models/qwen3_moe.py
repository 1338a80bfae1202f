"""Qwen3-MoE: Qwen3 whose feed-forward layers are sparse mixtures of experts."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Json, Option, llama, mixtral, qwen3
from cpuinfer.ops import Value


def expert_count(settings: Json) -> object:
    """Experts of a layer, by the key of older or newer configurations."""
    return settings.get("num_experts", settings.get("num_local_experts"))


_EXPERTS = "model.layers.{i}.mlp.experts."
_SHARED = {name: ours for name, ours in qwen3.GGUF_NAMES.items() if ".ffn_" not in name or "norm" in name}
GGUF_ROPE = "halves"
GGUF_NAMES = {**_SHARED, **{name: ours for name, ours in mixtral.GGUF_NAMES.items() if ".ffn_" in name}}
HF_NAMES = {
    **{name: name for name in _SHARED.values()},
    "model.layers.{i}.mlp.gate": "model.layers.{i}.mlp.gate",
    "model.layers.{i}.mlp.experts.{e}.gate_proj": _EXPERTS + "gate_proj",
    "model.layers.{i}.mlp.experts.{e}.up_proj": _EXPERTS + "up_proj",
    "model.layers.{i}.mlp.experts.{e}.down_proj": _EXPERTS + "down_proj",
}
HF_KEYS = {"feed_forward": "moe_intermediate_size"}
HF_DEFAULTS = {"num_key_value_heads": 4, "norm_topk_prob": False}
OPTIONS = {
    "act": Option("silu", hf="hidden_act"),
    "experts": Option(128, hf=expert_count, gguf="expert_count"),
    "experts_used": Option(8, hf="num_experts_per_tok", gguf="expert_used_count"),
    "norm_topk_prob": Option(True, hf="norm_topk_prob"),
    "decoder_sparse_step": Option(1, hf="decoder_sparse_step"),
    "mlp_only_layers": Option((), hf=lambda settings: settings.get("mlp_only_layers") or ()),
    "use_sliding_window": Option(False, hf="use_sliding_window"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(decoder_sparse_step=1, mlp_only_layers=(), use_sliding_window=False)
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = qwen3.attend(g, c, x, i)
            x = mixtral.mixture(g, c, x, renormalise=c.flag("norm_topk_prob"))
    return llama.head(g, c, x)
