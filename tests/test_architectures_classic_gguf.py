"""GGUF files of the architectures older than Llama, or unlike it: a converted folder means and computes the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import MODEL_ARCH as ARCH

from architectures import Options, arranged, native_logits, our_logits, random_tokens, read_config
from converted_classic_gguf import (
    HEAD_DIM,
    HIDDEN,
    KV_HEADS,
    bloom,
    falcon,
    gpt2,
    make_folder,
    neox,
    phi,
    stablelm,
    starcoder2,
    write,
)
from converted_gguf import save
from cpuinfer import loader
from cpuinfer.config import Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.gguf import open_source
from kept_halves import assert_native

CASES = {
    "gpt_neox": neox(parallel=True),
    "gpt_neox, in sequence": neox(parallel=False),
    "gpt2": gpt2(),
    "gpt2, as first published": gpt2(prefix=""),
    "gpt2, a head of its own": gpt2(head=True),
    "bloom": bloom("transformer."),
    "bloom, as first published": bloom(""),
    "falcon 7b": falcon({"multi_query": True, "parallel_attn": True}, 1, "input_layernorm"),
    "falcon 40b": falcon({"new_decoder_architecture": True, "num_kv_heads": KV_HEADS}, KV_HEADS, "ln_attn", "ln_mlp"),
    "falcon2 11b": falcon(
        {
            "new_decoder_architecture": True,
            "num_kv_heads": KV_HEADS,
            "num_ln_in_parallel_attn": 1,
            "rope_theta": 500042.0,
        },
        KV_HEADS,
        "input_layernorm",
    ),
    "phi": phi(),
    "phi, fused": phi(fused=True),  # or converted when the folder had it so
    "starcoder2": starcoder2({"sliding_window": 4096}, {}),
    "starcoder2, a window that the file names": starcoder2({"sliding_window": 6}, {"attention.sliding_window": 6}),
    "starcoder2, fused": starcoder2({"sliding_window": 4096}, {}, fused=True),
    "stablelm": stablelm({"use_parallel_residual": False}),
    "stablelm, silent about its blocks": stablelm({}),
    "stablelm, parallel and fused": stablelm({"use_parallel_residual": True}, parallel=True, fused=True),
}
UNSAID: dict[str, Options] = {"falcon": {"rope_base": None}, "stablelm": {"parallel": False}}
"""What is read where only a file's tensors tell."""


@pytest.mark.parametrize("name", CASES)
def test_a_converted_file_says_what_its_folder_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    config = read_config(case.settings)
    expected = replace(config, options={**config.options, **UNSAID.get(config.model_type, {})})
    if name == "falcon2 11b":
        expected = replace(expected, rope=Rope(HEAD_DIM, 10000.0, "halves"))
    assert open_source(write(tmp_path / "model.gguf", case, make_folder(case))).config == expected


@pytest.mark.parametrize("name", CASES)
def test_a_converted_file_computes_what_its_folder_does(name: str, tmp_path: Path) -> None:
    case, tokens = CASES[name], random_tokens(50)
    config, folder = read_config(case.settings), make_folder(case)
    expected = our_logits(config, arranged(folder, config), tokens)
    source = open_source(write(tmp_path / "model.gguf", case, folder))
    found = our_logits(source.config, {name: weight.floats() for name, weight in source.weights.items()}, tokens)
    # The numbers are the same and in the same order: at most products over other matrices round differently.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_the_native_core_runs_a_converted_file(name: str, tmp_path: Path) -> None:
    blueprint = loader.open_model(write(tmp_path / "model.gguf", CASES[name], make_folder(CASES[name])))
    tokens = random_tokens(50)
    assert_native(native_logits(blueprint, tokens), blueprint.graph, blueprint.weight, tokens)


def test_gptj_which_no_converter_writes_is_refused_in_gguf_files(tmp_path: Path) -> None:
    path = save(tmp_path / "model.gguf", ARCH.GPTJ, {}, {"token_embd.weight": np.zeros((4, HIDDEN))})
    with pytest.raises(UnsupportedModel, match="'gptj' is supported in safetensors folders, not in GGUF files"):
        open_source(path)
