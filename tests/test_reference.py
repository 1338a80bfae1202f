"""The oracle against an independent implementation: transformers' Llama in float64, with the same random weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cpuinfer import models
from cpuinfer.config import Config, Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.graph import Graph
from cpuinfer.reference import Reference, quantisation_step, quantise

SHAPE = {"layers": 2, "hidden": 48, "heads": 6, "kv_heads": 2, "head_dim": 8, "feed_forward": 80, "vocabulary": 50}
LLAMA_OPTIONS = {"act": "silu"}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def make_config(*, tied: bool, rope: Rope) -> Config:
    return Config(model_type="llama", context=256, norm_eps=1e-5, tied=tied, rope=rope, options=LLAMA_OPTIONS, **SHAPE)


def make_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (config.vocabulary, config.hidden),
        "model.norm": (config.hidden,),
    }
    if not config.tied:
        shapes["lm_head"] = (config.vocabulary, config.hidden)
    for i in range(config.layers):
        shapes |= {
            f"model.layers.{i}.input_layernorm": (config.hidden,),
            f"model.layers.{i}.post_attention_layernorm": (config.hidden,),
            f"model.layers.{i}.self_attn.q_proj": (q, config.hidden),
            f"model.layers.{i}.self_attn.k_proj": (kv, config.hidden),
            f"model.layers.{i}.self_attn.v_proj": (kv, config.hidden),
            f"model.layers.{i}.self_attn.o_proj": (config.hidden, q),
            f"model.layers.{i}.mlp.gate_proj": (config.feed_forward, config.hidden),
            f"model.layers.{i}.mlp.up_proj": (config.feed_forward, config.hidden),
            f"model.layers.{i}.mlp.down_proj": (config.hidden, config.feed_forward),
        }
    return shapes


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_oracle_computes_what_transformers_computes(tied: bool, scaled: bool) -> None:
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    rope = Rope(8, 10000.0, "halves")
    config = make_config(tied=tied, rope=rope)
    theirs_config = transformers.LlamaConfig(
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocabulary,
        max_position_embeddings=512,
        rms_norm_eps=config.norm_eps,
        rope_theta=10000.0,
        rope_scaling=LLAMA3 if scaled else None,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(theirs_config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    if scaled:
        turns = theirs.model.rotary_emb.inv_freq.numpy()
        config = replace(config, rope=replace(rope, factors=tuple(rope.inverse_frequencies() / turns)))
    graph = Graph(make_shapes(config))
    models.find("llama").build(graph, config)
    weights = {name.removesuffix(".weight"): p.detach().numpy() for name, p in theirs.named_parameters()}
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, 150)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)[None]).logits[0].numpy()
    # transformers computes the rotation and the norm in float32 inside a float64 model: 2**-24 each, through 2 layers.
    np.testing.assert_allclose(Reference(graph, lambda name: weights[name]).logits(tokens), expected, atol=2e-4)


def test_interleaved_rotation_is_halves_with_permuted_rows() -> None:
    rng = np.random.default_rng(1)
    weights = {}
    results = []
    for layout in ("halves", "interleaved"):
        config = make_config(tied=True, rope=Rope(8, 10000.0, layout))
        shapes = make_shapes(config)
        graph = Graph(shapes)
        models.find("llama").build(graph, config)
        if not weights:
            weights = {name: rng.normal(size=shape) * 0.3 for name, shape in shapes.items()}
        else:
            for name in shapes:
                if name.endswith(("q_proj", "k_proj")):
                    rows = weights[name].reshape(-1, 2, 4, config.hidden)
                    weights[name] = rows.transpose(0, 2, 1, 3).reshape(weights[name].shape)
        results.append(Reference(graph, weights.__getitem__).logits(list(range(20))))
    np.testing.assert_allclose(results[0], results[1], atol=1e-10)


def test_a_missing_tensor_and_a_wrong_shape_are_named() -> None:
    config = make_config(tied=True, rope=Rope(8, 10000.0, "halves"))
    shapes = make_shapes(config)
    name = "model.layers.1.mlp.down_proj"
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.1\.mlp\.down_proj: shape \(48, 79\), expected"):
        models.find("llama").build(Graph(shapes | {name: (48, 79)}), config)
    del shapes[name]
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.1\.mlp\.down_proj: no such tensor"):
        models.find("llama").build(Graph(shapes), config)


def test_an_option_the_description_does_not_know_is_refused() -> None:
    config = make_config(tied=True, rope=Rope(8, 10000.0, "halves"))
    with pytest.raises(UnsupportedModel, match="expert_count is 8"):
        replace(config, options={"expert_count": 8}).expect(expert_count=0)


def test_quantised_activations_are_off_by_half_a_step_at_most() -> None:
    x = np.random.default_rng(2).normal(size=(5, 96))
    x[2, 32:64] = 0
    assert np.all(np.abs(quantise(x) - x) <= quantisation_step(x) / 2 + 1e-15)
    assert np.all(quantise(x)[2, 32:64] == 0)
