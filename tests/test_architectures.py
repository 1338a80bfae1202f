"""Every architecture against transformers in float64: small random models, saved as folders and opened as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from architectures import configuration
from cpuinfer import loader, models
from cpuinfer.reference import Reference

torch = pytest.importorskip("torch", reason="needs the parity extra")
transformers = pytest.importorskip("transformers", reason="needs the parity extra")

Options = dict[str, Any]
SMALL: Options = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
HALF = {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "long_factor": [1.0 + 0.5 * i for i in range(6)],
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
SAME: Options = {"num_key_value_heads": None}  # as many key-value heads as heads
MIX: Options = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

CASES: dict[str, tuple[str, Options]] = {
    "llama": ("LlamaConfig", {}),
    "llama, biases, tied": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama 3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "llama, linear": ("LlamaConfig", {"rope_parameters": LINEAR}),
    "llama, heads of 192": ("LlamaConfig", {"head_dim": 192, "num_key_value_heads": 4, "num_attention_heads": 4}),
    "mistral": ("MistralConfig", {"sliding_window": 7, "head_dim": 16}),
    "mistral, no window": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2, window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 24}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 20}),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 7}),
    "phi3": ("Phi3Config", {"pad_token_id": 0}),
    "phi3, long": ("Phi3Config", {"rope_parameters": LONG, "original_max_position_embeddings": 64, "pad_token_id": 0}),
    "phi3, window": ("Phi3Config", {"sliding_window": 9, "pad_token_id": 0}),
    "gemma3": ("Gemma3Config", {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 7}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": 6, "num_hidden_layers": 5}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 5, "pad_token_id": 0}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": 5}),
    "qwen2_moe": ("Qwen2MoeConfig", {**MIX, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("Qwen3MoeConfig", {**MIX, "norm_topk_prob": True, "head_dim": 16}),
    "qwen3_moe, plain": ("Qwen3MoeConfig", {**MIX, "norm_topk_prob": False, "head_dim": 16}),
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


def save(folder: Path, kind: str, options: Options) -> Any:
    """A random model of transformers, saved as float32 and returned in float64; weights large enough to matter."""
    torch.manual_seed(len(kind) + len(options))
    config = configuration(kind, {**SMALL, **options})
    attention = "sdpa" if options.get("alibi") else "eager"  # Falcon's eager path adds ALiBi twice
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, experts_implementation="eager"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim > 1 else 0.2
            parameter.copy_(torch.randn_like(parameter) * spread + (1 if "norm" in name and "bias" not in name else 0))
    model.eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return model.double()


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> tuple[str, Options]:
    return CASES[request.param]


def test_a_folder_computes_what_transformers_computes(case: tuple[str, Options], tmp_path: Path) -> None:
    theirs = save(tmp_path, *case)
    tokens = np.random.default_rng(1).integers(0, SMALL["vocab_size"], 90).tolist()
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    blueprint = loader.open_model(tmp_path, quantize="none", context=len(tokens))
    found = Reference(blueprint.graph, blueprint.weight).logits(tokens)
    # Their rotary tables and some norms are float32 even in a float64 model.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_every_architecture_is_among_the_cases() -> None:
    kinds = {getattr(transformers, kind).model_type for kind, _ in CASES.values()}
    assert kinds == set(models.supported())
