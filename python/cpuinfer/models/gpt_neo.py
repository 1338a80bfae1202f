"""GPT-Neo: GPT-2 with scores that are not scaled, and a window on some layers' attention."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.errors import UnsupportedModel
from cpuinfer.graph import Graph
from cpuinfer.models import Json, Option, Target, gpt2
from cpuinfer.ops import Value


def layer_kinds(settings: Json) -> object:
    """`attention_layers`, or `attention_types`, such as [[["global", "local"], 6]], written out."""
    if "attention_layers" in settings:
        return settings["attention_layers"]
    types = settings.get("attention_types")
    try:
        return [kind for kinds, count in types or [[["global", "local"], 12]] for _ in range(count) for kind in kinds]
    except (TypeError, ValueError):
        raise UnsupportedModel(f"gpt_neo: attention_types is {types!r}, expected lists of kinds and a count") from None


HAS_ROPE = False
HF_NAMES: dict[str, Target] = {
    "transformer.wte": "model.embed_tokens",
    "transformer.wpe": "model.embed_positions",
    "transformer.h.{i}.ln_1": "model.layers.{i}.input_layernorm",
    **{
        f"transformer.h.{{i}}.attn.attention.{part}_proj": f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"
    },
    "transformer.h.{i}.attn.attention.out_proj": "model.layers.{i}.self_attn.o_proj",
    "transformer.h.{i}.attn.attention": None,
    "transformer.h.{i}.attn.attention.masked_bias": None,
    "transformer.h.{i}.ln_2": "model.layers.{i}.post_attention_layernorm",
    "transformer.h.{i}.mlp.c_fc": "model.layers.{i}.mlp.up_proj",
    "transformer.h.{i}.mlp.c_proj": "model.layers.{i}.mlp.down_proj",
    "transformer.ln_f": "model.norm",
    "lm_head": "lm_head",
}
HF_KEYS = {
    "layers": "num_layers",
    "heads": "num_heads",
    "norm_eps": "layer_norm_epsilon",
    "feed_forward": lambda settings: settings.get("intermediate_size") or 4 * settings.get("hidden_size", 0),
}
HF_DEFAULTS = {"tie_word_embeddings": True, "max_position_embeddings": 2048}
OPTIONS = {
    "act": Option("gelu_new", hf="activation_function"),
    "window": Option(256, hf="window_size"),
    "layer_kinds": Option((), hf=layer_kinds),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    kinds = c.items("layer_kinds")
    if len(kinds) != c.layers or any(kind not in ("global", "local") for kind in kinds):
        c.expect(layer_kinds=f"{c.layers} of global and local")
    x = g.embed("model.embed_tokens", positions="model.embed_positions")
    for i, kind in enumerate(kinds):
        with g.scope(f"model.layers.{i}"):
            x = gpt2.attend(g, c, x, i, scale=1.0, window=c.integer("window") if kind == "local" else 0)
            x = gpt2.feed_forward(g, c, x)
    return gpt2.head(g, c, x)
