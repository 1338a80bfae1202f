"""The Llama-like architectures against transformers in float64, with every option that published models use."""

from __future__ import annotations

from pathlib import Path

import pytest

from architectures import (
    Options,
    assert_close,
    our_graph,
    our_logits,
    our_weights,
    random_tokens,
    read_config,
    save,
    saved_logits,
    settings_of,
)

pytest.importorskip("torch", reason="needs the parity extra")
pytest.importorskip("transformers", reason="needs the parity extra")

LENGTH = 90
"""Positions: past every window and every trained length below."""
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TRAINED = {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
YARN = {**TRAINED, "rope_type": "yarn", "factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LLAMA3 = {**TRAINED, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def long_rope(pairs: int) -> Options:
    return {
        **TRAINED,
        "rope_type": "longrope",
        "long_factor": [1.0 + 0.5 * i for i in range(pairs)],
        "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
    }


TRAINED_64 = {"original_max_position_embeddings": 64}
MIX: Options = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL, FULL = "sliding_attention", "full_attention"

CASES: dict[str, tuple[str, Options]] = {
    "llama": ("LlamaConfig", {}),
    "llama, every head its own keys": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama, biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama, gelu": ("LlamaConfig", {"hidden_act": "gelu"}),
    "llama, large base and epsilon": (
        "LlamaConfig",
        {"rms_norm_eps": 0.01, "rope_parameters": {**PLAIN_ROPE, "rope_theta": 5e5}},
    ),
    "llama, its 3.1 scaling": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "llama, yarn with a factor for scores": ("LlamaConfig", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "llama, linear": ("LlamaConfig", {"rope_parameters": LINEAR}),
    "llama, dynamic": ("LlamaConfig", {"rope_parameters": DYNAMIC, "max_position_embeddings": 64}),
    "llama, heads of 192": ("LlamaConfig", {"head_dim": 192, "num_key_value_heads": 4}),
    "llama, heads of 80": ("LlamaConfig", {"head_dim": 80}),
    "llama, heads of 86": ("LlamaConfig", {"head_dim": 86}),
    "mistral": ("MistralConfig", {"sliding_window": 7}),
    "mistral, no window": ("MistralConfig", {"sliding_window": None}),
    "mistral, wide heads": ("MistralConfig", {"sliding_window": None, "head_dim": 32}),
    "mistral, a window longer than the text": ("MistralConfig", {"sliding_window": 4096}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2, tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2, yarn": ("Qwen2Config", {"rope_parameters": YARN}),
    "qwen2, window above a layer": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen2, window named and not used": ("Qwen2Config", {"use_sliding_window": False, "sliding_window": 6}),
    "qwen2, kinds of layers": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 6, "layer_types": [LOCAL, FULL, LOCAL]},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 24}),
    "qwen3, tied": ("Qwen3Config", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3, biases": ("Qwen3Config", {"head_dim": 24, "attention_bias": True}),
    "qwen3, window above a layer": (
        "Qwen3Config",
        {"head_dim": 24, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 20}),
    "gemma2, caps that bind": (
        "Gemma2Config",
        {
            "head_dim": 16,
            "sliding_window": 6,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma2, no caps": (
        "Gemma2Config",
        {"head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma2, untied": ("Gemma2Config", {"head_dim": 16, "tie_word_embeddings": False}),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 7}),
    "gemma3_text, kinds of layers": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 6, "layer_types": [FULL, LOCAL, FULL], "query_pre_attn_scalar": 20},
    ),
    "gemma3_text, scaled far rope": (
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "sliding_window": 6,
            "layer_types": [LOCAL, LOCAL, FULL],
            "rope_parameters": {
                FULL: {**LINEAR, "rope_theta": 1e6, "factor": 8.0},
                LOCAL: {**PLAIN_ROPE, "rope_theta": 5000.0},
            },
        },
    ),
    "phi3": ("Phi3Config", {}),
    "phi3, window": ("Phi3Config", {"sliding_window": 9}),
    "phi3, long": ("Phi3Config", {"rope_parameters": long_rope(6), **TRAINED_64}),
    "phi3, partly rotated, tied": (
        "Phi3Config",
        {
            **TRAINED_64,
            "hidden_size": 64,
            "tie_word_embeddings": True,
            "partial_rotary_factor": 0.75,
            "rope_parameters": {**long_rope(6), "partial_rotary_factor": 0.75},
        },
    ),
    "olmo2": ("Olmo2Config", {}),
    "gemma3": ("Gemma3Config", {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 7}),
    "gemma3, untied": ("Gemma3Config", {"head_dim": 16, "sliding_window": 6, "tie_word_embeddings": False}),
    "olmo2, shared keys, biases, tied": (
        "Olmo2Config",
        {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "olmo3": ("Olmo3Config", {"sliding_window": 6, "num_hidden_layers": 5}),
    "olmo3, kinds of layers, biases, tied": (
        "Olmo3Config",
        {"sliding_window": 6, "layer_types": [FULL, LOCAL, FULL], "attention_bias": True, "tie_word_embeddings": True},
    ),
    "olmo3, yarn where there is no window": (
        "Olmo3Config",
        {
            "sliding_window": 6,
            "num_hidden_layers": 5,
            "rope_parameters": {FULL: YARN, LOCAL: {**PLAIN_ROPE, "rope_theta": 5000.0}},
        },
    ),
    "olmo3, yarn as published": (
        "Olmo3Config",
        {"sliding_window": 6, "num_hidden_layers": 5, "rope_parameters": {FULL: YARN, LOCAL: PLAIN_ROPE}},
    ),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 5}),
    "smollm3, layers named": ("SmolLM3Config", {"no_rope_layers": [0, 1, 0], "tie_word_embeddings": False}),
    "smollm3, every second": ("SmolLM3Config", {"no_rope_layer_interval": 2, "attention_bias": True}),
    "smollm3, yarn": ("SmolLM3Config", {"num_hidden_layers": 5, "rope_parameters": YARN}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 5}),
    "mixtral, window": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": 5, "num_experts_per_tok": 3}),
    "qwen2_moe": ("Qwen2MoeConfig", {**MIX, "shared_expert_intermediate_size": 64}),
    "qwen2_moe, shares of the kept": (
        "Qwen2MoeConfig",
        {**MIX, "shared_expert_intermediate_size": 64, "norm_topk_prob": True},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**MIX, "norm_topk_prob": True, "head_dim": 16}),
    "qwen3_moe, shares of all": ("Qwen3MoeConfig", {**MIX, "norm_topk_prob": False, "head_dim": 16}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    tokens = random_tokens(LENGTH)
    expected = saved_logits(tmp_path, *CASES[case], tokens)
    config = read_config(settings_of(tmp_path), context=LENGTH)
    assert_close(our_logits(config, our_weights(tmp_path, config), tokens), expected)


def test_mistral_with_kinds_of_layers_is_ministral(tmp_path: Path) -> None:
    tokens = random_tokens(LENGTH)
    options = {"head_dim": 16, "sliding_window": 7, "layer_types": [LOCAL, FULL, LOCAL]}
    expected = saved_logits(tmp_path, "MinistralConfig", options, tokens)
    config = read_config({**settings_of(tmp_path), "model_type": "mistral"})
    assert_close(our_logits(config, our_weights(tmp_path, config), tokens), expected)


OLDER = {
    "llama": {},
    "llama, its 3.1 scaling": {},
    "llama, yarn": {},
    "qwen2, window above a layer": {"layer_types": None},
    "gemma2": {"layer_types": None},
    "gemma3_text": {"layer_types": None, "sliding_window_pattern": 6},
    "gemma3_text, scaled far rope": {},
    "phi3, long": {},
    "phi3, partly rotated, tied": {},
    "olmo3, yarn as published": {"layer_types": None},
    "smollm3": {"no_rope_layers": None},
    "mixtral": {},
    "qwen3_moe": {},
}
"""What older configurations lack or say otherwise, beside the rope."""


@pytest.mark.parametrize("case", OLDER)
def test_a_configuration_as_transformers_4_wrote_it_means_the_same(case: str, tmp_path: Path) -> None:
    save(tmp_path, *CASES[case])
    settings = settings_of(tmp_path)
    config = read_config(settings, context=LENGTH)
    weights = our_weights(tmp_path, config)
    older = {**settings, **OLDER[case], **older_rope(settings.pop("rope_parameters"))}
    older = {key: value for key, value in older.items() if value is not None and key != "rope_parameters"}
    assert our_graph(read_config(older, context=LENGTH), weights).ops == our_graph(config, weights).ops


def older_rope(parameters: Options) -> Options:
    """`rope_parameters` as the keys of before version 5."""
    far, near = parameters.get(FULL, parameters), parameters.get(LOCAL)
    scaling = {key: value for key, value in far.items() if key not in {"rope_theta", "partial_rotary_factor"}}
    older = {"rope_theta": far["rope_theta"], "rope_scaling": None if far["rope_type"] == "default" else scaling}
    return older if near is None else {**older, "rope_local_base_freq": near["rope_theta"]}
