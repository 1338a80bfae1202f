"""Every architecture against transformers in float64: small random models, saved as folders and opened as ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from architectures import Array, Options, assert_close, random_tokens, saved_logits
from cpuinfer import loader, models
from cpuinfer.reference import Reference

pytest.importorskip("torch", reason="needs the parity extra")
transformers = pytest.importorskip("transformers", reason="needs the parity extra")

HALF = {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 10000.0}
SAME: Options = {"num_key_value_heads": None}  # as many key-value heads as heads
MIX: Options = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

CASES: dict[str, tuple[str, Options]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 7, "head_dim": 16}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 24}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 20}),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 7}),
    "phi3": ("Phi3Config", {"pad_token_id": 0}),
    "gemma3": ("Gemma3Config", {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 7}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": 6, "num_hidden_layers": 5}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 5, "pad_token_id": 0}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": 5}),
    "qwen2_moe": ("Qwen2MoeConfig", {**MIX, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("Qwen3MoeConfig", {**MIX, "norm_topk_prob": True, "head_dim": 16}),
    "gpt_neox": ("GPTNeoXConfig", {**SAME, "rope_parameters": HALF}),
    "gpt_neox, in sequence": (
        "GPTNeoXConfig",
        {**SAME, "use_parallel_residual": False, "hidden_act": "gelu_fast", "rope_parameters": HALF},
    ),
    "gpt2": ("GPT2Config", {**SAME, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            **SAME,
            "num_hidden_layers": 4,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 6,
        },
    ),
    "gptj": ("GPTJConfig", {**SAME, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256, "rotary_dim": 8}),
    "bloom": ("BloomConfig", {**SAME, "n_layer": 3, "n_head": 4}),
    "bloom, six heads": ("BloomConfig", {**SAME, "n_layer": 2, "n_head": 6}),
    "opt": ("OPTConfig", {**SAME, "ffn_dim": 80, "word_embed_proj_dim": 48}),
    "opt, norms after": (
        "OPTConfig",
        {**SAME, "ffn_dim": 80, "word_embed_proj_dim": 48, "do_layer_norm_before": False},
    ),
    "falcon 7b": ("FalconConfig", {"multi_query": True, "parallel_attn": True, "bias": False, "alibi": False}),
    "falcon 40b": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False}),
    "falcon rw": (
        "FalconConfig",
        {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True, "num_hidden_layers": 2},
    ),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5, "num_key_value_heads": 4}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": 6}),
    "stablelm": ("StableLmConfig", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "stablelm, parallel": ("StableLmConfig", {"use_parallel_residual": True, "partial_rotary_factor": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_computes_what_transformers_computes(case: str, tmp_path: Path) -> None:
    tokens = random_tokens(90)
    expected = saved_logits(tmp_path, *CASES[case], tokens)
    assert_close(folder_logits(tmp_path, tokens), expected)


def folder_logits(folder: Path, tokens: list[int]) -> Array:
    """By the oracle, of a folder opened as one is."""
    blueprint = loader.open_model(folder, quantize="none", context=len(tokens))
    return Reference(blueprint.graph, blueprint.weight).logits(tokens)


def test_every_architecture_is_among_the_cases() -> None:
    kinds = {getattr(transformers, kind).model_type for kind, _ in CASES.values()}
    assert kinds == set(models.supported())
