"""GGUF files of the architectures older than Llama: what llama.cpp's converter makes of a folder computes the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import MODEL_ARCH as ARCH

from architectures import Array, Options, exact, our_logits, random_tokens, read_config, save, settings_of
from cpuinfer import models
from cpuinfer.config import Config
from cpuinfer.gguf import open_source
from cpuinfer.naming import arrange

pytest.importorskip("torch", reason="needs the parity extra")
pytest.importorskip("transformers", reason="needs the parity extra")
from safetensors.numpy import load_file

Convert = Callable[[str, Array, Config], Array]


def as_stored(_name: str, values: Array, _config: Config) -> Array:
    return values


def conv1d(name: str, values: Array, _config: Config) -> Array:
    """GPT-2 has (inputs, outputs)."""
    return values.T if re.search(r"(c_attn|c_proj|c_fc)\.weight$", name) else values


def heads_apart(name: str, values: Array, config: Config) -> Array:
    """Those of a key-value head lie together in the folder; in the file queries come first, then keys, then values."""
    if "query_key_value" not in name:
        return values
    groups = values.reshape(config.kv_heads, config.heads // config.kv_heads + 2, config.head_dim, *values.shape[1:])
    parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
    return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])


SAME: Options = {"num_key_value_heads": None}
HALF: Options = {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 10000.0}
GPT2: Options = {**SAME, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256}
NEOX: Options = {**SAME, "rope_parameters": HALF}
ROTATED = {"rope.dimension_count": 6}
# Name: configuration class, options, architecture in the file, keys it has beside the usual, numbers.
CASES: dict[str, tuple[str, Options, ARCH, dict[str, bool | int], Convert]] = {
    "gpt_neox": ("GPTNeoXConfig", NEOX, ARCH.GPTNEOX, {**ROTATED, "use_parallel_residual": True}, heads_apart),
    "gpt_neox, in sequence": (
        "GPTNeoXConfig",
        {**NEOX, "use_parallel_residual": False},
        ARCH.GPTNEOX,
        {**ROTATED, "use_parallel_residual": False},
        heads_apart,
    ),
    "gpt2": ("GPT2Config", GPT2, ARCH.GPT2, {}, conv1d),
    "bloom": ("BloomConfig", {**SAME, "n_layer": 3, "n_head": 4}, ARCH.BLOOM, {}, heads_apart),
    "falcon 7b": ("FalconConfig", {"multi_query": True, "parallel_attn": True}, ARCH.FALCON, {}, heads_apart),
    "falcon 40b": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}, ARCH.FALCON, {}, heads_apart),
    "phi": ("PhiConfig", {"num_key_value_heads": 4}, ARCH.PHI2, ROTATED, as_stored),
    "starcoder2": ("Starcoder2Config", {"sliding_window": None}, ARCH.STARCODER2, {}, as_stored),
    "stablelm": (
        "StableLmConfig",
        {"use_qkv_bias": True, "partial_rotary_factor": 0.5},
        ARCH.STABLELM,
        {**ROTATED, "use_parallel_residual": False},
        as_stored,
    ),
    "stablelm, parallel": (
        "StableLmConfig",
        {"use_parallel_residual": True, "partial_rotary_factor": 0.5},
        ARCH.STABLELM,
        {**ROTATED, "use_parallel_residual": True},
        as_stored,
    ),
}


def write(path: Path, name: str, folder: dict[str, Array], config: Config) -> Path:
    """The folder as llama.cpp's converter writes it."""
    _, _, arch, keys, convert = CASES[name]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_eps(config.norm_eps)
    for key, value in keys.items():
        (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(f"{writer.arch}.{key}", value)
    names = gguf.get_tensor_name_map(arch, config.layers)
    for stored, values in folder.items():
        known = (
            names.get_name(n, try_suffixes=(".weight", ".bias")) for n in (stored, stored.removeprefix("transformer."))
        )
        ours = next(filter(None, known), None)
        assert ours is not None, stored
        writer.add_tensor(ours, np.ascontiguousarray(convert(stored, values, config), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_converted_file_computes_what_its_folder_does(name: str, tmp_path: Path) -> None:
    kind, options, *_ = CASES[name]
    save(tmp_path, kind, options)
    settings = settings_of(tmp_path)
    config, tokens = read_config(settings), random_tokens(50)
    folder = {n: x.astype(np.float32).astype(np.float64) for n, x in load_file(tmp_path / "model.safetensors").items()}
    stored = {name.removesuffix(".weight"): exact(name, values) for name, values in folder.items()}
    weights = arrange(stored, models.find(config.model_type).hf_names, config)
    expected = our_logits(config, {name: weight.floats() for name, weight in weights.items()}, tokens)
    source = open_source(write(tmp_path / "model.gguf", name, folder, config))
    assert source.config.model_type == config.model_type
    found = our_logits(source.config, {name: weight.floats() for name, weight in source.weights.items()}, tokens)
    # GGUF has the epsilon in float32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


ABSENT = {"rope_freqs", *(f"blk.{{i}}.{name}" for name in ("attn_rot_embd", "attn_q_norm", "attn_k_norm"))}
"""Listed, but in no file of an architecture as supported: tables we compute, norms of heads."""


@pytest.mark.parametrize("arch", sorted({case[2] for case in CASES.values()}), ids=lambda arch: arch.name)
def test_every_name_that_gguf_lists_is_mapped_or_refused(arch: ARCH) -> None:
    listed = {gguf.TENSOR_NAMES[tensor].replace("{bid}", "{i}") for tensor in gguf.MODEL_TENSORS[arch]}
    name = gguf.MODEL_ARCH_NAMES[arch]
    known = set(models.find(models.GGUF_NAMES.get(name, name)).gguf_names)
    unused = {"blk.{i}.ffn_norm"} if arch == ARCH.PHI2 else set()  # its blocks have one norm
    assert listed - known <= ABSENT | unused
