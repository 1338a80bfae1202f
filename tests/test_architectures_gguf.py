"""GGUF files of the Llama-like architectures: every tensor has its place, and a converted folder computes the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import MODEL_ARCH as ARCH

from architectures import Options, arranged, exact, native_logits, our_graph, our_logits, random_tokens, read_config
from converted_gguf import EXPERTS, HEAD_DIM, HEADS, KV_HEADS, SETTINGS, Case, make_folder, write
from cpuinfer import loader, models
from cpuinfer.errors import UnsupportedModel
from cpuinfer.gguf import open_source
from cpuinfer.naming import arrange
from cpuinfer.ops import Attention
from kept_halves import assert_native

Metadata = dict[str, float | int | str]
LONG, SHORT = [1.0 + i / 2 for i in range(6)], [1.0 + i / 8 for i in range(6)]
QKV = (".q_proj", ".k_proj", ".v_proj")
WHOLE_NORMS = {"q_norm": (HEADS * HEAD_DIM,), "k_norm": (KV_HEADS * HEAD_DIM,)}
FUSED = (*QKV, ".gate_proj", ".up_proj")
MIX = {"expert_count": EXPERTS, "expert_used_count": 2}
CASES = {
    "llama": Case("llama", ARCH.LLAMA, permuted=True),
    "llama, tied": Case("llama", ARCH.LLAMA, {"tie_word_embeddings": True}, permuted=True, absent=("lm_head",)),
    "llama, fused": Case("llama", ARCH.LLAMA, permuted=True, fused=True),
    "llama, its 3.1 scaling": Case(
        "llama",
        ARCH.LLAMA,
        {
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        {"rope.freq_base": 500000.0},
        permuted=True,
    ),
    "mixtral": Case("mixtral", ARCH.LLAMA, {}, MIX, permuted=True),
    "qwen2": Case("qwen2", ARCH.QWEN2, biased=QKV),
    "qwen2, fused": Case("qwen2", ARCH.QWEN2, biased=QKV, fused=True),
    "qwen3": Case("qwen3", ARCH.QWEN3),
    "gemma2": Case(
        "gemma2",
        ARCH.GEMMA2,
        {
            "sliding_window": 6,
            "query_pre_attn_scalar": HEAD_DIM,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": True,
        },
        {"attention.sliding_window": 6, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        norm_offset=1.0,
        absent=("lm_head",),
    ),
    "gemma2, keys its first converter left out": Case(
        "gemma2",
        ARCH.GEMMA2,
        {
            "query_pre_attn_scalar": HEAD_DIM,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
        },
        norm_offset=1.0,
        absent=("lm_head",),
    ),
    "gemma3_text": Case(
        "gemma3_text",
        ARCH.GEMMA3,
        {
            "sliding_window": 6,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": HEAD_DIM,
            "rope_theta": 1e6,
            "rope_local_base_freq": 5000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "tie_word_embeddings": True,
        },
        {
            "attention.sliding_window": 6,
            "attention.sliding_window_pattern": 3,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 5000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        norm_offset=1.0,
        absent=("lm_head",),
    ),
    "phi3": Case("phi3", ARCH.PHI3, {"sliding_window": 9}, {"attention.sliding_window": 9}, absent=FUSED),
    "phi3, long": Case(
        "phi3",
        ARCH.PHI3,
        {
            "original_max_position_embeddings": 32,
            "rope_scaling": {"rope_type": "longrope", "long_factor": LONG, "short_factor": SHORT},
        },
        {
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(256 / 32) / np.log(32))),
        },
        absent=FUSED,
        factors={"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT},
    ),
    "olmo2": Case("olmo2", ARCH.OLMO2, shapes=WHOLE_NORMS),
    "olmo3": Case(
        "olmo3",
        ARCH.OLMO2,
        {"sliding_window": 6, "rope_theta": 500000.0},
        {
            "attention.sliding_window": 6,
            "attention.sliding_window_pattern": [True, True, True, False],
            "rope.freq_base": 500000.0,
        },
        shapes=WHOLE_NORMS,
    ),
    "olmo3, scaled where there is no window": Case(
        "olmo3",
        ARCH.OLMO2,
        {
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "factor": 8.0,
                    "attention_factor": 1.25,
                    "original_max_position_embeddings": 32,
                    "rope_theta": 500000.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
        {
            "attention.sliding_window": 6,
            "attention.sliding_window_pattern": [False, True, False, True],
            "rope.freq_base": 500000.0,
            "rope.freq_base_swa": 5000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.yarn_attn_factor": 1.25,
        },
        shapes=WHOLE_NORMS,
    ),
    "smollm3": Case("smollm3", ARCH.SMOLLM3, {"tie_word_embeddings": True}, permuted=True, absent=("lm_head",)),
    "qwen2_moe": Case("qwen2_moe", ARCH.QWEN2MOE, {}, MIX, biased=QKV),
    "qwen3_moe": Case("qwen3_moe", ARCH.QWEN3MOE, {"norm_topk_prob": True}, MIX),
}


@pytest.mark.parametrize("name", CASES)
def test_a_converted_file_computes_what_its_folder_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    settings = {**SETTINGS, **case.settings, "model_type": case.model_type}
    config, folder, tokens = read_config(settings), make_folder(case), random_tokens(50)
    expected = our_logits(config, arranged(folder, config), tokens)
    source = open_source(write(tmp_path / "model.gguf", case, folder, config))
    found = our_logits(source.config, {name: weight.floats() for name, weight in source.weights.items()}, tokens)
    # GGUF has epsilon, bases and factors in float32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_the_native_core_runs_a_converted_file(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    config = read_config({**SETTINGS, **case.settings, "model_type": case.model_type})
    blueprint = loader.open_model(write(tmp_path / "model.gguf", case, make_folder(case), config))
    tokens = random_tokens(50)
    assert_native(native_logits(blueprint, tokens), blueprint.graph, blueprint.weight, tokens)


YARN_40 = {"rope.scaling.type": "yarn", "rope.scaling.factor": 40.0}
ORIGINAL = {"rope.scaling.original_context_length": 64}
MEANT: dict[str, tuple[Metadata, Options, float]] = {
    "a factor without a type": ({"rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}, 1.0),
    "a factor as in files of 2023": ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}, 1.0),
    "a factor of zero": ({"rope.scale_linear": 0.0}, {}, 1.0),
    "no scaling whatever the factor": ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}, 1.0),
    "yarn": (YARN_40, {"rope_type": "yarn", "factor": 40.0}, 1.0),
    "yarn of a shorter context": (
        {**YARN_40, **ORIGINAL},
        {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64},
        1.0,
    ),
    "yarn with a ramp of its own": (
        {**YARN_40, **ORIGINAL, "rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 4.0},
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
            "beta_slow": 4.0,
        },
        1.0,
    ),
    "yarn with a factor for scores": (
        {**YARN_40, "rope.scaling.attn_factor": 0.5, "rope.scaling.yarn_attn_factor": 0.25},
        {"rope_type": "yarn", "factor": 40.0, "attention_factor": 0.25},
        0.5,
    ),
    "a factor for scores alone": ({"rope.scaling.attn_factor": 0.5}, {}, 0.5),
}


@pytest.mark.parametrize("name", MEANT)
def test_keys_of_rope_scaling_mean_what_converters_wrote_them_for(name: str, tmp_path: Path) -> None:
    metadata, meant, magnitude = MEANT[name]
    case = Case("llama", ARCH.LLAMA, {}, metadata, permuted=True)
    config = read_config({**SETTINGS, "model_type": "llama", "rope_scaling": meant})
    plain = read_config({**SETTINGS, "model_type": "llama"})
    found = open_source(write(tmp_path / "model.gguf", case, make_folder(case), plain)).config.rope
    assert found is not None
    assert config.rope is not None
    expected = replace(config.rope, layout="interleaved", magnitude=config.rope.magnitude * magnitude)
    assert found == expected


ODD = {
    "attention.causal": False,
    "attention.scale": 0.1,
    "logit_scale": 0.5,
    "embedding_scale": 12.0,
    "residual_scale": 0.5,
    "expert_gating_func": 2,
    "expert_weights_scale": 2.5,
    "leading_dense_block_count": 1,
    "rope.scaling.yarn_ext_factor": 0.5,
    "rope.scaling.yarn_log_multiplier": 0.1,
    "attention.layer_norm_epsilon": 0.25,
}


@pytest.mark.parametrize("key", ODD)
def test_keys_that_change_what_is_computed_and_are_not_read_are_refused(key: str, tmp_path: Path) -> None:
    case = Case("llama", ARCH.LLAMA, {}, {key: ODD[key]}, permuted=True)
    config = read_config({**SETTINGS, "model_type": "llama"})
    with pytest.raises(UnsupportedModel, match=rf"keys? llama\.{key}"):
        open_source(write(tmp_path / "model.gguf", case, make_folder(case), config))


def test_divisors_of_frequencies_beside_another_scaling_are_refused(tmp_path: Path) -> None:
    case = Case("llama", ARCH.LLAMA, {}, dict(YARN_40), permuted=True, factors={"rope_freqs.weight": SHORT})
    config = read_config({**SETTINGS, "model_type": "llama"})
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight beside rope\.scaling\.type 'yarn', factor 40"):
        open_source(write(tmp_path / "model.gguf", case, make_folder(case), config))


def test_the_experts_of_older_mixtral_files_are_found_one_by_one() -> None:
    config = read_config({**SETTINGS, "model_type": "mixtral"})
    parts = {f"blk.2.ffn_up.{e}": exact(f"blk.2.ffn_up.{e}.weight", np.full((3, 2), float(e))) for e in (1, 0)}
    arranged = arrange(parts, models.find("mixtral").gguf_names, config)
    assert list(arranged) == ["model.layers.2.mlp.experts.up_proj"]
    np.testing.assert_array_equal(arranged["model.layers.2.mlp.experts.up_proj"].floats()[:, 0], [0, 0, 0, 1, 1, 1])


def test_gemma_3_without_a_key_for_its_window_has_none(tmp_path: Path) -> None:
    case = Case("gemma3_text", ARCH.GEMMA3, {}, {"rope.freq_base": 1e6}, norm_offset=1.0, absent=("lm_head",))
    config = read_config({**SETTINGS, "model_type": "gemma3_text"})
    source = open_source(write(tmp_path / "model.gguf", case, make_folder(case), config))
    graph = our_graph(source.config, {name: weight.floats() for name, weight in source.weights.items()})
    attentions = [op for op in graph.ops if isinstance(op, Attention)]
    assert {(op.window, op.rope) for op in attentions} == {(0, source.config.rope)}
