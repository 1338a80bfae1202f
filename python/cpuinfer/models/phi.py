"""Phi-1, Phi-1.5 and Phi-2: GPT-J's parallel block with biases everywhere and heads rotated in part."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Option, RopeKeys, Target, gpt2, gptj
from cpuinfer.ops import Value

GGUF_NAMES: dict[str, Target] = {
    "token_embd": "model.embed_tokens",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    **{f"blk.{{i}}.attn_{part}": f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"},
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
HF_NAMES: dict[str, Target] = {
    "model.embed_tokens": "model.embed_tokens",
    "model.layers.{i}.input_layernorm": "model.layers.{i}.input_layernorm",
    **{f"model.layers.{{i}}.self_attn.{part}_proj": f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"},
    "model.layers.{i}.self_attn.dense": "model.layers.{i}.self_attn.o_proj",
    "model.layers.{i}.mlp.fc1": "model.layers.{i}.mlp.up_proj",
    "model.layers.{i}.mlp.fc2": "model.layers.{i}.mlp.down_proj",
    "model.final_layernorm": "model.norm",
    "lm_head": "lm_head",
}
HF_ROPE_KEYS = RopeKeys(share="partial_rotary_factor")
HF_DEFAULTS = {"partial_rotary_factor": 0.5}
HF_KEYS = {"norm_eps": "layer_norm_eps"}
OPTIONS = {"act": Option("gelu_new", hf="hidden_act"), "qk_layernorm": Option(False, hf="qk_layernorm")}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(qk_layernorm=False)
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = gptj.parallel(g, c, x, i)
    return gpt2.head(g, c, x)
