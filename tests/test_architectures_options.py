"""What a configuration may say that an architecture's file refuses, and what it means by saying nothing."""

from __future__ import annotations

import pytest
from gguf import MODEL_ARCH as ARCH

from architectures import Options, exact, read_config
from converted_gguf import SETTINGS, Case, make_folder
from cpuinfer import models
from cpuinfer.errors import UnsupportedModel
from cpuinfer.graph import Graph
from cpuinfer.naming import arrange

REFUSED: dict[str, tuple[str, Options, str]] = {
    "window in llama": ("llama", {"sliding_window": 8}, "sliding_window is 8"),
    "window in smollm3": ("smollm3", {"use_sliding_window": True}, "use_sliding_window is True"),
    "dense layers among sparse": ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers is \[1\]"),
    "every second layer sparse": ("qwen2_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
    "attention both ways": (
        "gemma3_text",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention is True",
    ),
    "scaled near rope": (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": {"rope_type": "yarn", "rope_theta": 1e4}}},
        "local_scaling is 'yarn'",
    ),
    "another kind of layer": ("qwen2", {"layer_types": ["chunked_attention"] * 4}, "layer_types is"),
    "too few kinds of layers": ("gemma2", {"layer_types": ["full_attention"]}, "each of 4 layers"),
    "kinds of layers that are no list": ("gemma2", {"layer_types": 3}, "layer_types is 3, expected a list"),
    "an activation nobody has": ("llama", {"hidden_act": "mish"}, "activation 'mish', supported: relu"),
    "a window that is no number": ("mistral", {"sliding_window": "wide"}, "sliding_window is 'wide'"),
    "a cap that is no number": ("gemma2", {"final_logit_softcapping": True}, "logit_cap is True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case: str) -> None:
    model_type, settings, message = REFUSED[case]
    with pytest.raises(UnsupportedModel, match=message):
        build(model_type, settings)


def build(model_type: str, settings: Options) -> None:
    """Record the graph of a folder that lacks no tensor."""
    config = read_config({**SETTINGS, **settings, "model_type": model_type})
    folder = make_folder(Case(model_type, ARCH.LLAMA))
    stored = {name.removesuffix(".weight"): exact(name, values) for name, values in folder.items()}
    weights = arrange(stored, models.find(model_type).hf_names, config)
    models.find(model_type).build(Graph({name: weight.shape for name, weight in weights.items()}), config)


@pytest.mark.parametrize(("settings", "window"), [({}, 4096), ({"sliding_window": None}, 0)])
def test_mistral_has_its_first_version_s_window_unless_told_otherwise(settings: Options, window: int) -> None:
    config = read_config({**SETTINGS, **settings, "model_type": "mistral"})
    assert config.integer("sliding_window") == window


def test_gemma_2_has_its_caps_unless_told_otherwise() -> None:
    config = read_config({**SETTINGS, "model_type": "gemma2"})
    assert (config.number("score_cap"), config.number("logit_cap")) == (50.0, 30.0)
    none = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = read_config({**SETTINGS, **none, "model_type": "gemma2"})
    assert (config.number("score_cap"), config.number("logit_cap")) == (0.0, 0.0)


@pytest.mark.parametrize(("settings", "kept"), [({}, False), ({"norm_topk_prob": True}, True)])
def test_qwen3_moe_divides_shares_by_their_sum_only_if_told(settings: Options, kept: bool) -> None:
    assert read_config({**SETTINGS, **settings, "model_type": "qwen3_moe"}).flag("norm_topk_prob") is kept
