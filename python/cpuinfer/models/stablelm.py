"""StableLM 2 and 3B-4E1T: Llama with LayerNorms and partly rotated heads, in parallel blocks or in sequence."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.models import Option, RopeKeys, gpt2, llama
from cpuinfer.ops import Value

GGUF_ROPE = "halves"
GGUF_NAMES = llama.GGUF_NAMES
HF_ROPE_KEYS = RopeKeys(share="partial_rotary_factor")
HF_DEFAULTS = {"partial_rotary_factor": 0.25}
HF_KEYS = {"norm_eps": "layer_norm_eps"}
OPTIONS = {
    "act": Option("silu", hf="hidden_act"),
    "parallel": Option(False, hf="use_parallel_residual"),  # GGUF's key is true where config.json said nothing
    "qk_layernorm": Option(False, hf="qk_layernorm"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(qk_layernorm=False)
    parallel = c.flag("parallel") or "model.layers.0.post_attention_layernorm" not in g.shapes
    x = g.embed("model.embed_tokens")
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            h = g.layer_norm(x, "input_layernorm", c.norm_eps)
            attended = gpt2.attend(g, c, x, i, rope=c.rope)
            if not parallel:
                h = g.layer_norm(attended, "post_attention_layernorm", c.norm_eps)
            m = g.glu(h, "mlp.gate_proj", "mlp.up_proj", act=c.activation())
            x = g.linear(m, "mlp.down_proj", residual=attended)
    return gpt2.head(g, c, x)
