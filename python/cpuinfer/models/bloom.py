"""BLOOM: ALiBi instead of positions, a LayerNorm on the embeddings."""

from __future__ import annotations

from cpuinfer.config import Config
from cpuinfer.graph import Graph, alibi_slopes
from cpuinfer.models import QKV_BY_HEAD, Option, Target, gpt2, with_and_without
from cpuinfer.ops import Value

HAS_ROPE = False
GGUF_NAMES: dict[str, Target] = {
    **{name: ours for name, ours in gpt2.GGUF_NAMES.items() if name != "position_embd"},
    "token_embd_norm": "model.embed_norm",
}
BODY: dict[str, Target] = {
    "word_embeddings": "model.embed_tokens",
    "word_embeddings_layernorm": "model.embed_norm",
    "h.{i}.input_layernorm": "model.layers.{i}.input_layernorm",
    "h.{i}.self_attention.query_key_value": QKV_BY_HEAD,
    "h.{i}.self_attention.dense": "model.layers.{i}.self_attn.o_proj",
    "h.{i}.post_attention_layernorm": "model.layers.{i}.post_attention_layernorm",
    "h.{i}.mlp.dense_h_to_4h": "model.layers.{i}.mlp.up_proj",
    "h.{i}.mlp.dense_4h_to_h": "model.layers.{i}.mlp.down_proj",
    "ln_f": "model.norm",
}
HF_NAMES = with_and_without("transformer.", BODY)
HF_KEYS = {
    "hidden": lambda settings: settings.get("hidden_size", settings.get("n_embed")),
    "layers": lambda settings: settings.get("n_layer", settings.get("num_hidden_layers")),
    "heads": lambda settings: settings.get("n_head", settings.get("num_attention_heads")),
    "context": "seq_length",
    "norm_eps": "layer_norm_epsilon",
    "feed_forward": lambda settings: 4 * settings.get("hidden_size", settings.get("n_embed", 0)),
}
HF_DEFAULTS = {"tie_word_embeddings": True, "seq_length": 2048}
OPTIONS = {
    "act": Option("gelu_pytorch_tanh"),
    "residual_after_norm": Option(False, hf="apply_residual_connection_post_layernorm"),
}


def build(g: Graph, c: Config) -> Value:
    """Record the forward pass; returns the logits."""
    c.expect(residual_after_norm=False)
    x = g.normalize(g.layer_norm(g.embed("model.embed_tokens"), "model.embed_norm", c.norm_eps))
    for i in range(c.layers):
        with g.scope(f"model.layers.{i}"):
            x = gpt2.attend(g, c, x, i, slopes=alibi_slopes(c.heads))
            x = gpt2.feed_forward(g, c, x)
    return gpt2.head(g, c, x)
