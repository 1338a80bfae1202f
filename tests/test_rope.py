"""Rope scalings as configurations describe them, beside the definitions of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cpuinfer.config import Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.huggingface import read_config
from cpuinfer.models import find
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
        "rms_norm_eps": 1e-5,
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
    ("config", "dims", "base"),
    [
        ({}, 64, 10000.0),
        ({"rope_theta": 1000000}, 64, 1000000.0),
        ({"partial_rotary_factor": 0.25}, 16, 10000.0),
        ({"rotary_pct": 0.5}, 32, 10000.0),
        ({"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_type": "default"}}, 32, 5e5),
        ({"head_dim": 96, "rotary_dim": 48}, 48, 10000.0),
        ({"rope_scaling": None}, 64, 10000.0),
    ],
)
def test_the_plain_rope_is_read_from_every_key_in_use(config: dict[str, object], dims: int, base: float) -> None:
    assert read_config(settings(**config), find("llama")).rope == Rope(dims, base, "halves")


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
        {"rotary_pct": "half"},
        {"rotary_dim": 65},
        {"rotary_dim": -2},
        {"partial_rotary_factor": float("inf")},
        {"partial_rotary_factor": float("nan")},
    ],
)
def test_rope_keys_of_another_kind_are_refused_not_ignored(config: dict[str, object]) -> None:
    with pytest.raises(UnsupportedModel):
        read_config(settings(**config), find("llama"))
