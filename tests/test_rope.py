"""Rope scalings as configurations describe them, beside the definitions of transformers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from cpuinfer.config import Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.huggingface import read_config
from cpuinfer.models import find, supported
from cpuinfer.rope import Positions, scaled

DIMS, BASE, TRAINED = 64, 500000.0, 4096
PLAIN = Rope(DIMS, BASE, "halves")
LONG = {
    "short_factor": [1 + i / 40 for i in range(DIMS // 2)],
    "long_factor": [1 + i / 3 for i in range(DIMS // 2)],
    "original_max_position_embeddings": 1024,
}
CASES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn, own ramp": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    "yarn, ramp not rounded": {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 128,
        "truncate": False,
    },
    "yarn, given magnitude": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "attention_factor": 0.9,
    },
    "yarn, mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 1024,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
    },
    "yarn, from the context": {"rope_type": "yarn", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "longrope": {"rope_type": "longrope", **LONG},
    "longrope, given factor": {"rope_type": "longrope", "factor": 32.0, **LONG},
    "longrope, given magnitude": {"rope_type": "longrope", "attention_factor": 1.25, **LONG},
}


@pytest.mark.parametrize("length", [100, 1024, 1025, 4096, 10000])
@pytest.mark.parametrize("case", CASES)
def test_scaled_frequencies_are_those_of_transformers(case: str, length: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = CASES[case]
    config = transformers.LlamaConfig(
        hidden_size=DIMS * 4,
        num_attention_heads=4,
        max_position_embeddings=TRAINED,
        rope_parameters={"rope_theta": BASE, **given},
    )
    theirs, magnitude = ROPE_INIT_FUNCTIONS[given["rope_type"]](config, torch.device("cpu"), seq_len=length)
    found = scaled(PLAIN, given, Positions(TRAINED, length))
    # They compute in float32: a power's relative error is its exponent's, some 13 * 2^-24, and then a few roundings.
    np.testing.assert_allclose(found.inverse_frequencies(), theirs.numpy(), rtol=32 * 2.0**-24)
    assert found.magnitude == pytest.approx(magnitude, rel=1e-6)


def settings(**more: object) -> dict[str, object]:
    return {
        "hidden_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 10,
        "max_position_embeddings": TRAINED,
        **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), 1e-5),
        **more,
    }


@pytest.mark.parametrize("case", CASES)
def test_older_and_newer_keys_say_the_same(case: str) -> None:
    llama = find("llama")
    kind = CASES[case]["rope_type"]
    older = {("type" if key == "rope_type" else key): value for key, value in CASES[case].items()}
    old = read_config(settings(rope_theta=BASE, rope_scaling=older), llama, context=8000).rope
    new = read_config(settings(rope_parameters={"rope_theta": BASE, **CASES[case]}), llama, context=8000).rope
    assert old == new == scaled(PLAIN, CASES[case], Positions(TRAINED, 8000))
    assert old != PLAIN, kind


@pytest.mark.parametrize(
    ("model_type", "config", "dims", "base"),
    [
        ("llama", {}, 64, 10000.0),
        ("llama", {"rope_theta": 1000000}, 64, 1000000.0),
        ("llama", {"partial_rotary_factor": 1.0}, 64, 10000.0),
        ("llama", {"rope_scaling": None}, 64, 10000.0),
        ("stablelm", {"partial_rotary_factor": 0.5}, 32, 10000.0),
        ("phi3", {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}}, 32, 5e5),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 300}, 32, 300.0),
        ("gpt_neox", {"rotary_pct": 0.25, "rope_parameters": {"partial_rotary_factor": 0.5}}, 32, 10000.0),
        ("gptj", {"n_positions": 8, "n_embd": 256, "n_head": 4, "n_layer": 1, "rotary_dim": 48}, 48, 10000.0),
    ],
)
def test_the_plain_rope_is_read_from_the_keys_of_its_architecture(
    model_type: str, config: dict[str, object], dims: int, base: float
) -> None:
    found = read_config(settings(**config), find(model_type)).rope
    assert found == Rope(dims, base, find(model_type).hf_rope)


@pytest.mark.parametrize("model_type", [name for name in supported() if find(name).has_rope])
def test_a_configuration_that_says_nothing_of_its_rope_means_its_architecture_s(model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(model_type).get_text_config()
    said = {**theirs.to_dict(), "rope_parameters": None}
    found = read_config({**said, "text_config": said}, find(model_type)).rope
    meant = getattr(theirs, "rope_parameters", None) or {"rope_theta": 10000.0, "rope_type": "default"}
    meant = meant.get("full_attention", meant)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    dims = 64 if model_type == "gptj" else int(head_dim * meant.get("partial_rotary_factor", 1))
    assert found == Rope(dims, meant["rope_theta"], find(model_type).hf_rope)


def test_phi3_was_trained_for_4096_positions_unless_it_says_otherwise() -> None:
    scaling = {key: value for key, value in LONG.items() if key != "original_max_position_embeddings"}
    said = settings(max_position_embeddings=131072, rope_scaling={"type": "longrope", **scaling})
    short, far = (read_config(said, find("phi3"), context=length).rope for length in (4096, 4097))
    assert short is not None
    assert far is not None
    assert (list(short.factors), list(far.factors)) == (LONG["short_factor"], LONG["long_factor"])


TWICE: dict[str, dict[str, Any]] = {
    "scaling added to a newer configuration": {
        "rope_parameters": {"rope_type": "default", "rope_theta": BASE},
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    },
    "a trained length of the model and another of the scaling": {
        "rope_theta": BASE,
        "original_max_position_embeddings": 512,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    },
    "a trained length beside dynamic scaling": {
        "rope_theta": BASE,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 1024},
    },
    "a base beside parameters that have one": {
        "rope_theta": 1e6,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": BASE},
    },
}


@pytest.mark.parametrize("case", TWICE)
def test_of_keys_that_say_a_thing_twice_the_one_that_transformers_takes_counts(case: str) -> None:
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    given = settings(**TWICE[case])
    found = read_config(given, find("llama"), context=5000).rope
    theirs = llama.LlamaRotaryEmbedding(llama.LlamaConfig.from_dict(copy.deepcopy(given)))
    theirs(torch.zeros(1), torch.arange(5000)[None])
    assert found is not None
    np.testing.assert_allclose(found.inverse_frequencies(), theirs.inv_freq.numpy(), rtol=32 * 2.0**-24)
    assert found.magnitude == pytest.approx(theirs.attention_scaling, rel=1e-6)


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"rope_type": "linear"}, "factor is None"),
        ({"rope_type": "linear", "factor": 0}, "factor is 0"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor is nan"),
        ({"rope_type": "linear", "factor": True}, "factor is True"),
        ({"rope_type": ["linear"]}, "rope scaling"),
        ({"rope_type": "llama3", "factor": 8.0}, "original_max_position_embeddings is None"),
        ({**CASES["llama3"], "high_freq_factor": 1.0}, "not above low_freq_factor"),
        ({**CASES["longrope"], "long_factor": [1.0] * 31}, "long_factor is not a list of 32 numbers"),
        ({**CASES["longrope"], "long_factor": [0.0] * 32}, "long_factor is 0.0"),
        ({**CASES["longrope"], "long_factor": "1" * 32}, "long_factor"),
        ({**CASES["yarn"], "beta_slow": "1"}, "beta_slow is '1'"),
        ({"type": "mrope", "mrope_section": [1]}, "rope scaling 'mrope', supported"),
    ],
)
def test_a_scaling_that_cannot_be_is_refused_by_key(scaling: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        scaled(PLAIN, scaling, Positions(TRAINED, TRAINED))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_scaling": "yarn"},
        {"rope_scaling": [1]},
        {"rope_parameters": "yarn"},
        {"rope_theta": "big"},
        {"rope_theta": 0},
        {"partial_rotary_factor": "half"},
        {"partial_rotary_factor": float("inf")},
        {"partial_rotary_factor": float("nan")},
    ],
)
def test_rope_keys_of_another_kind_are_refused_not_ignored(config: dict[str, object]) -> None:
    with pytest.raises(UnsupportedModel):
        read_config(settings(**config), find("llama"))


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling", None])
def test_a_share_of_the_heads_where_the_architecture_rotates_all_is_refused(key: str | None) -> None:
    share = {"partial_rotary_factor": 0.5}
    with pytest.raises(UnsupportedModel, match=r"partial_rotary_factor is 0\.5, but the architecture rotates whole"):
        read_config(settings(**(share if key is None else {key: share})), find("llama"))


@pytest.mark.parametrize("dims", [65, -2, True, "64", 258])
def test_rotated_dimensions_that_cannot_be_are_refused(dims: object) -> None:
    sizes = {"n_positions": 8, "n_embd": 256, "n_head": 4, "n_layer": 1}
    with pytest.raises(UnsupportedModel, match="rotated dimensions of 64"):
        read_config(settings(**sizes, rotary_dim=dims), find("gptj"))
