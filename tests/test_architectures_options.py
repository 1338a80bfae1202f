"""What a configuration may say that an architecture's file refuses, and what it means by saying nothing."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from gguf import MODEL_ARCH as ARCH

from architectures import Options, arranged, exact, our_graph, read_config
from converted_gguf import SETTINGS, Case, make_folder
from cpuinfer import models
from cpuinfer.config import Config
from cpuinfer.errors import UnsupportedModel
from cpuinfer.naming import arrange

LOCAL, FULL = "sliding_attention", "full_attention"
REFUSED: dict[str, tuple[str, Options, str]] = {
    "window in llama": ("llama", {"sliding_window": 8}, "sliding_window is 8"),
    "window in smollm3": ("smollm3", {"use_sliding_window": True}, "use_sliding_window is True"),
    "windows of smollm3's layers": ("smollm3", {"layer_types": [LOCAL, FULL, FULL, FULL]}, "layer_types is"),
    "windows of qwen2_moe's layers": ("qwen2_moe", {"layer_types": [LOCAL, FULL, FULL, FULL]}, "layer_types is"),
    "dense layers among sparse": ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers is \[1\]"),
    "every second layer sparse": ("qwen2_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
    "attention both ways": (
        "gemma3_text",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention is True",
    ),
    "attention both ways, by its other name": ("qwen2", {"is_causal": False}, "is_causal is False"),
    "a cap on gemma3's scores, which nobody applies": (
        "gemma3_text",
        {"attn_logit_softcapping": 50.0},
        r"score_cap is 50\.0",
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
    our_graph(config, arranged(folder, config))


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("gpt2", ("wte", "transformer.wte")),
        ("opt", ("decoder.embed_tokens", "model.decoder.embed_tokens")),
        ("llama", ("model.layers.1.mlp.up_proj", "model.layers.01.mlp.up_proj")),
        ("mixtral", ("model.layers.0.block_sparse_moe.experts.1.w1", "model.layers.0.block_sparse_moe.experts.01.w1")),
    ],
)
def test_two_tensors_for_one_weight_are_refused_by_name(model_type: str, names: tuple[str, str]) -> None:
    config = read_config({**SETTINGS, "model_type": "llama"})
    stored = {name: exact(f"{name}.weight", np.zeros((2, 2))) for name in names}
    with pytest.raises(UnsupportedModel, match=rf"tensors {names[0]}\.weight and {names[1]}\.weight are the same"):
        arrange(stored, models.find(model_type).hf_names, config)


@pytest.mark.parametrize(("settings", "window"), [({}, 4096), ({"sliding_window": None}, 0)])
def test_mistral_has_its_first_version_s_window_unless_told_otherwise(settings: Options, window: int) -> None:
    config = read_config({**SETTINGS, **settings, "model_type": "mistral"})
    assert config.integer("sliding_window") == window


@pytest.mark.parametrize(
    ("model_type", "settings", "option", "meant"),
    [
        ("qwen2", {"use_sliding_window": True}, "sliding_window", 4096),
        ("qwen3", {"use_sliding_window": True}, "sliding_window", 4096),
        ("qwen3", {"use_sliding_window": False, "sliding_window": 8}, "sliding_window", 0),
        ("gemma2", {}, "score_width", 256),
        ("gemma3_text", {}, "score_width", 256),
        ("falcon", {"parallel_attn": None}, "parallel", False),
        ("falcon", {}, "parallel", True),
        ("gpt_neo", {"num_layers": 24, "attention_types": None}, "layer_kinds", ["global", "local"] * 12),
        (
            "gpt_neo",
            {"attention_layers": ["local"], "attention_types": [[["global"], 1]]},
            "layer_kinds",
            ["local"],
        ),
    ],
)
def test_what_is_left_out_means_what_transformers_takes_it_for(
    model_type: str, settings: Options, option: str, meant: object
) -> None:
    older = {"num_layers": 4, "num_heads": 4, "layer_norm_epsilon": 1e-5}
    config = read_config({**SETTINGS, **older, **settings, "model_type": model_type})
    assert config.options[option] == meant


SPELLED = {"layer_types", "rope_layers", "embedding_width"}
"""Options that have nothing, or 0, for what a whole configuration spells out."""


@pytest.mark.parametrize("model_type", models.supported())
def test_a_key_left_out_means_what_transformers_takes_it_for_or_is_asked_for(model_type: str) -> None:
    theirs = pytest.importorskip("transformers").AutoConfig.for_model(model_type).get_text_config().to_dict()
    whole = meaning(model_type, theirs)
    for key in theirs:
        with contextlib.suppress(UnsupportedModel):
            assert meaning(model_type, {other: theirs[other] for other in theirs if other != key}) == whole, key


def meaning(model_type: str, settings: Options) -> Config:
    config = read_config({**settings, "text_config": settings, "model_type": model_type})
    return replace(config, options={name: said for name, said in config.options.items() if name not in SPELLED})


def test_a_text_part_that_says_nothing_is_the_smallest_gemma_3_of_transformers() -> None:
    theirs = pytest.importorskip("transformers").Gemma3Config().to_dict()
    assert meaning("gemma3", {}) == meaning("gemma3", theirs["text_config"])


@pytest.mark.parametrize("part", [3, "gemma3_text", [{}]])
def test_a_text_part_that_is_no_object_is_refused(part: object) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json: text_config is .*, expected an object"):
        read_config({"model_type": "gemma3", "text_config": part})


@pytest.mark.parametrize(("said", "tied"), [({}, True), ({"tie_word_embeddings": False}, False)])
def test_whether_gemma_3_s_head_is_the_table_is_said_beside_its_parts(said: Options, tied: bool) -> None:
    settings = {"model_type": "gemma3", **said, "text_config": {}}
    assert read_config(settings).tied is tied


@pytest.mark.parametrize(
    "sizes", [{"n_head": 4, "n_layer": 3}, {"num_attention_heads": 4, "n_layer": 3}, {"num_hidden_layers": 3}]
)
def test_the_sizes_of_bloom_go_by_two_names(sizes: Options) -> None:
    named = {"hidden_size": 64, "vocab_size": 96, "layer_norm_epsilon": 1e-5, "model_type": "bloom"}
    config = read_config({**named, "num_attention_heads": 4, **sizes})
    assert (config.heads, config.layers) == (4, 3)


@pytest.mark.parametrize("types", [[["global"]], 3, [[3, 4]], [["global", "local"]]])
def test_kinds_of_layers_that_cannot_be_are_refused(types: object) -> None:
    settings = {**SETTINGS, "num_layers": 4, "num_heads": 4, "layer_norm_epsilon": 1e-5, "model_type": "gpt_neo"}
    with pytest.raises(UnsupportedModel, match="attention_types is"):
        read_config({**settings, "attention_types": types})


def test_gemma_2_has_its_caps_unless_told_otherwise() -> None:
    config = read_config({**SETTINGS, "model_type": "gemma2"})
    assert (config.number("score_cap"), config.number("logit_cap")) == (50.0, 30.0)
    none = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = read_config({**SETTINGS, **none, "model_type": "gemma2"})
    assert (config.number("score_cap"), config.number("logit_cap")) == (0.0, 0.0)


@pytest.mark.parametrize(("settings", "kept"), [({}, False), ({"norm_topk_prob": True}, True)])
def test_qwen3_moe_divides_shares_by_their_sum_only_if_told(settings: Options, kept: bool) -> None:
    assert read_config({**SETTINGS, **settings, "model_type": "qwen3_moe"}).flag("norm_topk_prob") is kept
