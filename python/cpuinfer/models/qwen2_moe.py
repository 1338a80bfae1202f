"""Qwen1.5-MoE and Qwen2-MoE: Qwen2 with sparse experts, and one that every token takes, through a gate."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import OneRow, Option, llama, mixtral, qwen3_moe
from cpuinfer.models.qwen3_moe import expert_count
from cpuinfer.ops import Value

_SHARED = "model.layers.{i}.mlp.shared_expert."
GGUF_ROPE = "halves"
GGUF_NAMES = {
    **mixtral.GGUF_NAMES,
    "blk.{i}.ffn_gate_inp_shexp": OneRow("model.layers.{i}.mlp.shared_expert_gate"),
    "blk.{i}.ffn_gate_shexp": _SHARED + "gate_proj",
    "blk.{i}.ffn_up_shexp": _SHARED + "up_proj",
    "blk.{i}.ffn_down_shexp": _SHARED + "down_proj",
}
HF_NAMES = {
    **{name: name for name in GGUF_NAMES.values() if isinstance(name, str) and ".experts." not in name},
    **{name: ours for name, ours in qwen3_moe.HF_NAMES.items() if ".experts." in name},
    "model.layers.{i}.mlp.shared_expert_gate": "model.layers.{i}.mlp.shared_expert_gate",
}
HF_KEYS = qwen3_moe.HF_KEYS
OPTIONS = {
    **qwen3_moe.OPTIONS,
    "experts": Option(60, hf=expert_count, gguf="expert_count"),
    "experts_used": Option(4, hf="num_experts_per_tok", gguf="expert_used_count"),
    "norm_topk_prob": Option(False, hf="norm_topk_prob"),
    "layer_types": Option((), hf="layer_types"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(decoder_sparse_step=1, mlp_only_layers=(), use_sliding_window=False)
    llama.expect_no_windows(c)
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = llama.attend(g, c, x, i, rope=c.rope)
            h = g.norm(x, "post_attention_layernorm", c.norm_eps)
            m = g.glu(h, "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", act=c.activation())
            shared = g.linear(m, "mlp.shared_expert.down_proj")
            shared = g.gated(shared, g.linear(h, "mlp.shared_expert_gate"), residual=x)
            x = mixtral.mixture(g, c, x, renormalise=c.flag("norm_topk_prob"), residual=shared)
    return llama.head(g, c, x)
