"""The mixes of GGUF types: what the rules of llama.cpp give each tensor, as published files have them."""

from __future__ import annotations

from collections import Counter

import gguf
import pytest

from cpuinfer.errors import UnsupportedFormat
from cpuinfer.quantize.mixes import MIXES, ModelShape, find_mix, fitting, more_bits, tensor_types

MATRICES = {
    "attn_q": (2048, 2048),
    "attn_k": (512, 2048),
    "attn_v": (512, 2048),
    "attn_output": (2048, 2048),
    "ffn_gate": (5632, 2048),
    "ffn_up": (5632, 2048),
    "ffn_down": (2048, 5632),
}


def model(layers: int, *, tied: bool = False, hidden: int = 2048) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes like TinyLlama's."""
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (32000, hidden)),
        ("output_norm.weight", (2048,)),
    ]
    for layer in range(layers):
        tensors += [(f"blk.{layer}.{name}.weight", shape) for name, shape in MATRICES.items()]
        tensors += [(f"blk.{layer}.attn_norm.weight", (2048,))]
    return tensors if tied else [*tensors, ("output.weight", (32000, hidden))]


SHAPE = ModelShape(layers=22, heads=32, kv_heads=4)


def test_file_types_are_the_gguf_packages() -> None:
    for name, mix in MIXES.items():
        assert gguf.LlamaFileType(mix.file_type).name == f"MOSTLY_{name}"
        assert mix.base in gguf.GGMLQuantizationType.__members__
    assert gguf.GGML_QUANT_VERSION == 2


def test_q4_k_m_has_half_of_values_and_second_matrices_in_q6_k() -> None:
    """As in TinyLlama-1.1B-Chat Q4_K_M, which has 22 layers."""
    types = tensor_types("Q4_K_M", model(22), SHAPE)
    six = [layer for layer in range(22) if types[f"blk.{layer}.ffn_down.weight"] == "Q6_K"]
    assert six == [0, 1, 4, 7, 10, 13, 16, 19, 20, 21]
    assert [layer for layer in range(22) if types[f"blk.{layer}.attn_v.weight"] == "Q6_K"] == six
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == "Q4_K"
    assert Counter(types.values()) == {"Q4_K": 22 * 7 + 1 - 2 * len(six), "Q6_K": 2 * len(six) + 1}
    assert "output_norm.weight" not in types


COUNTS = {
    "Q2_K": {"Q2_K": 89, "Q3_K": 44, "Q4_K": 22, "Q6_K": 1},
    "Q3_K_S": {"Q3_K": 155, "Q6_K": 1},
    "Q3_K_M": {"Q3_K": 89, "Q4_K": 63, "Q5_K": 3, "Q6_K": 1},
    "Q3_K_L": {"Q3_K": 89, "Q5_K": 66, "Q6_K": 1},
    "Q4_0": {"Q4_0": 155, "Q6_K": 1},
    "Q4_1": {"Q4_1": 155, "Q6_K": 1},
    "Q4_K_S": {"Q4_K": 149, "Q5_K": 6, "Q6_K": 1},
    "Q5_0": {"Q5_0": 155, "Q6_K": 1},
    "Q5_1": {"Q5_1": 155, "Q6_K": 1},
    "Q5_K_S": {"Q5_K": 155, "Q6_K": 1},
    "Q5_K_M": {"Q5_K": 135, "Q6_K": 21},
    "Q6_K": {"Q6_K": 156},
    "Q8_0": {"Q8_0": 156},
    "IQ4_NL": {"IQ4_NL": 131, "Q5_K": 24, "Q6_K": 1},
    "IQ4_XS": {"IQ4_XS": 131, "Q5_K": 24, "Q6_K": 1},
}


@pytest.mark.parametrize("mix", COUNTS)
def test_every_mix_has_its_types(mix: str) -> None:
    """By hand from the rules, for 22 layers with 8 query heads to a key-value head."""
    assert Counter(tensor_types(mix, model(22), SHAPE).values()) == COUNTS[mix]


def test_a_tied_embedding_is_encoded_as_the_output() -> None:
    assert tensor_types("Q4_0", model(2, tied=True), SHAPE)["token_embd.weight"] == "Q6_K"
    assert tensor_types("Q8_0", model(2, tied=True), SHAPE)["token_embd.weight"] == "Q8_0"
    assert tensor_types("Q4_K_M", model(2, tied=True, hidden=576), SHAPE)["token_embd.weight"] == "Q8_0"


def test_rows_that_are_no_multiple_of_256_get_other_types() -> None:
    wanted = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
    assert {name: fitting(name, 576) for name in wanted} == wanted
    assert {name: fitting(name, 512) for name in wanted} == {name: name for name in wanted}
    assert fitting("Q4_0", 576) == "Q4_0"
    assert fitting("Q4_0", 72) == fitting("Q4_K", 72) == "F16"


def test_importance_changes_what_needs_guarding() -> None:
    plain, weighted = (tensor_types("Q4_0", model(22), SHAPE, importance=use) for use in (False, True))
    assert [name for name in plain if plain[name] != weighted[name]] == [
        "blk.0.ffn_down.weight",
        "blk.1.ffn_down.weight",
    ]
    assert weighted["blk.1.ffn_down.weight"] == "Q4_1"
    assert tensor_types("IQ4_XS", model(22), SHAPE, importance=True)["blk.0.ffn_down.weight"] == "IQ4_XS"


def test_more_bits_go_to_the_ends_and_every_third_between() -> None:
    assert [layer for layer in range(16) if more_bits(layer, 16)] == [0, 1, 4, 7, 10, 13, 14, 15]


def test_mixtral_llama_70b_and_falcon_have_rules_of_their_own() -> None:
    experts = ModelShape(layers=8, heads=32, kv_heads=8, experts=8)
    names = [*model(8), ("blk.0.ffn_gate_inp.weight", (8, 2048)), ("blk.0.ffn_down_exps.weight", (8, 2048, 5632))]
    types = tensor_types("Q4_K_M", names, experts)
    assert (types["blk.3.attn_k.weight"], types["blk.3.attn_v.weight"]) == ("Q8_0", "Q8_0")
    assert (types["blk.3.attn_output.weight"], types["blk.0.ffn_down_exps.weight"]) == ("Q5_K", "Q6_K")
    assert "blk.0.ffn_gate_inp.weight" not in types
    large = tensor_types("Q4_K_M", model(80), ModelShape(layers=80, heads=64, kv_heads=8))
    assert {large[f"blk.{layer}.attn_v.weight"] for layer in range(80)} == {"Q5_K", "Q6_K"}
    falcon = tensor_types("Q4_K_M", model(32), ModelShape(layers=32, heads=71, kv_heads=1, architecture="falcon"))
    assert [falcon[f"blk.{layer}.ffn_down.weight"] for layer in (0, 2, 5, 6)] == ["Q6_K", "Q5_K", "Q4_K", "Q5_K"]
    assert falcon["output.weight"] == "Q8_0"


def test_an_unknown_mix_is_told_what_there_is() -> None:
    with pytest.raises(UnsupportedFormat, match=r"'Q4_K': expected one of Q4_0.*Q4_K_M"):
        find_mix("Q4_K")
