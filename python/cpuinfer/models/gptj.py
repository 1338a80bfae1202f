"""GPT-J: attention and feed-forward side by side behind one LayerNorm, heads rotated in part and by neighbours."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Option, RopeKeys, Target, gpt2
from cpuinfer.ops import Value

HF_ROPE = "interleaved"
HF_ROPE_KEYS = RopeKeys(dims="rotary_dim")
HF_DEFAULTS = {"rotary_dim": 64}
HF_NAMES: dict[str, Target] = {
    "transformer.wte": "model.embed_tokens",
    "transformer.h.{i}.ln_1": "model.layers.{i}.input_layernorm",
    **{f"transformer.h.{{i}}.attn.{part}_proj": f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"},
    "transformer.h.{i}.attn.out_proj": "model.layers.{i}.self_attn.o_proj",
    "transformer.h.{i}.attn": None,
    "transformer.h.{i}.attn.masked_bias": None,
    "transformer.h.{i}.mlp.fc_in": "model.layers.{i}.mlp.up_proj",
    "transformer.h.{i}.mlp.fc_out": "model.layers.{i}.mlp.down_proj",
    "transformer.ln_f": "model.norm",
    "lm_head": "lm_head",
}
HF_KEYS = gpt2.HF_KEYS
OPTIONS = {"act": Option("gelu_new", hf="activation_function")}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = parallel(g, c, x, i)
    return gpt2.head(g, c, x)


def parallel(g: Graph, c: Config, x: Value, i: int) -> Value:
    """Attention and feed-forward that read the same LayerNorm, both added to its input."""
    h = g.layer_norm(x, "input_layernorm", c.norm_eps)
    return gpt2.feed_forward(g, c, gpt2.attend(g, c, x, i, rope=c.rope), read=h)
