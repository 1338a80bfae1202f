"""Gemma 3, text: Gemma 2 with normalised heads and no soft caps; five layers of six have a window and a rope apart."""

from __future__ import annotations

from collections.abc import Mapping

from cpuinfer.config import Config, Rope
from cpuinfer.graph import Graph
from cpuinfer.models import Json, Option, gemma2, llama
from cpuinfer.ops import Value


def local_rope(settings: Json, key: str) -> object:
    """What newer configurations say of the local layers' rope, None in older ones."""
    parameters = settings.get("rope_parameters")
    local = parameters.get("sliding_attention") if isinstance(parameters, Mapping) else None
    return local.get(key) if isinstance(local, Mapping) else None


def local_base(settings: Json) -> object:
    """The base of the local layers' rope, in older and newer configurations."""
    newer = local_rope(settings, "rope_theta")
    return settings.get("rope_local_base_freq") if newer is None else newer


GGUF_ROPE = "halves"
HF_DEFAULTS = {
    **gemma2.HF_DEFAULTS,
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}
"""Published configurations of models with an image encoder rely on them."""
GGUF_NAMES = {
    **gemma2.GGUF_NAMES,
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
}
OPTIONS = {
    **gemma2.OPTIONS,
    # 0, or no key in a GGUF file: all layers are global.
    "sliding_window": Option(0, hf="sliding_window", gguf="attention.sliding_window"),
    "every": Option(6, hf="sliding_window_pattern", gguf="attention.sliding_window_pattern"),
    "local_base": Option(10000.0, hf=local_base, gguf="rope.freq_base_swa"),
    "local_scaling": Option("default", hf=lambda settings: local_rope(settings, "rope_type")),
    "score_cap": gemma2.cap("attn_logit_softcapping", 0.0),
    "logit_cap": gemma2.cap("final_logit_softcapping", 0.0),
    "use_bidirectional_attention": Option(False, hf="use_bidirectional_attention"),
}
LARGEST = 62
"""Layers of the 27B model, whose scores are scaled by hidden / heads; GGUF files do not say so."""


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(local_scaling="default", use_bidirectional_attention=False, score_cap=0.0)
    x = g.embed("model.embed_tokens", scale=c.hidden**0.5)
    width = c.number("score_width") or (c.hidden / c.heads if c.layers == LARGEST else c.head_dim)
    every = c.integer("every")
    window, near = c.integer("sliding_window"), Rope(c.head_dim, c.number("local_base"), "halves")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            local = window > 0 and llama.has_window(c, i, otherwise=(i + 1) % every != 0)
            q, k, v = g.linears(
                gemma2.norm(g, c, x, "input_layernorm"), "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
            )
            offset = c.number("norm_offset")
            q = g.head_norm(q, "self_attn.q_norm", c.norm_eps, heads=c.heads, offset=offset)
            k = g.head_norm(k, "self_attn.k_norm", c.norm_eps, heads=c.kv_heads, offset=offset)
            reach, rope = (window, near) if local else (0, c.rope)
            x = gemma2.attend(g, c, x, (q, k, v), i, window=reach, rope=rope, width=width)
            x = gemma2.feed_forward(g, c, x)
    h = gemma2.norm(g, c, x, "model.norm")
    return g.linear(h, "model.embed_tokens" if c.tied else "lm_head", softcap=c.number("logit_cap"))
