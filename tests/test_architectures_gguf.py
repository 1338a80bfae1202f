"""GGUF files of the Llama-like architectures: every tensor has its place, and a converted folder computes the same.

Names are the gguf package's; what converters do to the numbers is written here as llama.cpp's converter does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import MODEL_ARCH as ARCH

from architectures import Array, Options, exact, our_logits, random_tokens, read_config
from cpuinfer import models
from cpuinfer.config import Config
from cpuinfer.errors import UnsupportedModel
from cpuinfer.gguf import ROPE_TENSORS, open_source
from cpuinfer.naming import arrange

NAMES: dict[str, tuple[ARCH, frozenset[str]]] = {
    # model type -> the architecture in GGUF files, and its names that are refused: another file, or a table we compute.
    "llama": (
        ARCH.LLAMA,
        frozenset(
            f"blk.{{i}}.{name}"
            for name in ("attn_rot_embd", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
        ),
    ),
    "mixtral": (
        ARCH.LLAMA,
        frozenset({f"blk.{{i}}.{name}" for name in ("attn_rot_embd", "ffn_gate", "ffn_up", "ffn_down")}),
    ),
    "qwen2": (ARCH.QWEN2, frozenset()),
    "qwen3": (ARCH.QWEN3, frozenset()),
    "gemma2": (ARCH.GEMMA2, frozenset()),
    "gemma3_text": (ARCH.GEMMA3, frozenset()),
    "phi3": (ARCH.PHI3, frozenset()),
    "olmo2": (ARCH.OLMO2, frozenset()),
    "smollm3": (ARCH.SMOLLM3, frozenset({"blk.{i}.attn_rot_embd"})),
    "qwen2_moe": (ARCH.QWEN2MOE, frozenset()),
    "qwen3_moe": (ARCH.QWEN3MOE, frozenset()),
}


@pytest.mark.parametrize("model_type", NAMES)
def test_every_name_that_gguf_lists_is_mapped_or_refused(model_type: str) -> None:
    arch, refused = NAMES[model_type]
    listed = {gguf.TENSOR_NAMES[tensor].replace("{bid}", "{i}") for tensor in gguf.MODEL_TENSORS[arch]}
    known = set(models.find(model_type).gguf_names) | {name.removesuffix(".weight") for name in ROPE_TENSORS}
    assert listed - known == refused


@pytest.mark.parametrize("model_type", NAMES)
def test_a_refused_tensor_is_named_in_the_error(model_type: str) -> None:
    architecture = models.find(model_type)
    config = read_config({**SETTINGS, "model_type": model_type})
    for name in sorted({"blk.{i}.attn_sinks", *NAMES[model_type][1]}):
        stored = name.replace("{i}", "1")
        with pytest.raises(UnsupportedModel, match=f"{stored}.weight is not part of the architecture"):
            arrange({stored: exact(f"{stored}.weight", np.zeros((2, 2)))}, architecture.gguf_names, config)


VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, WIDTH, EXPERTS, SHARED = 96, 32, 4, 4, 2, 12, 40, 4, 24
SETTINGS: Options = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "moe_intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
}
SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("embed_tokens", "lm_head"), (VOCABULARY, HIDDEN)),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), (WIDTH, HIDDEN)),
    **dict.fromkeys(("down_proj", "w2"), (HIDDEN, WIDTH)),
    **dict.fromkeys(("k_proj", "v_proj"), (KV_HEADS * HEAD_DIM, HIDDEN)),
    **dict.fromkeys(("q_norm", "k_norm"), (HEAD_DIM,)),
    "q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "qkv_proj": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
    "gate_up_proj": (2 * WIDTH, HIDDEN),
    "gate": (EXPERTS, HIDDEN),
    "shared_expert_gate": (1, HIDDEN),
    "shared_expert.gate_proj": (SHARED, HIDDEN),
    "shared_expert.up_proj": (SHARED, HIDDEN),
    "shared_expert.down_proj": (HIDDEN, SHARED),
}
"""By the end of a tensor's name in a folder; all others are norms [hidden]."""


@dataclass(frozen=True, slots=True)
class Case:
    """A folder's settings, and what a converter writes for them."""

    model_type: str
    settings: Options = field(default_factory=dict)
    metadata: Mapping[str, float | int | str] = field(default_factory=dict)
    permuted: bool = False
    """Rows of a head go from (i, i + pairs) to (2 i, 2 i + 1)."""
    norm_offset: float = 0.0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    """Ends of names that this folder has not, of those the architecture knows."""
    biased: tuple[str, ...] = ()
    factors: Mapping[str, list[float]] = field(default_factory=dict)


LONG, SHORT = [1.0 + i / 2 for i in range(6)], [1.0 + i / 8 for i in range(6)]
QKV = (".q_proj", ".k_proj", ".v_proj")
FUSED = (*QKV, ".gate_proj", ".up_proj")
MIX = {"expert_count": EXPERTS, "expert_used_count": 2}
CASES = {
    "llama": Case("llama", permuted=True),
    "llama, tied": Case("llama", {"tie_word_embeddings": True}, permuted=True, absent=("lm_head",)),
    "llama, its 3.1 scaling": Case(
        "llama",
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
    "mixtral": Case("mixtral", {}, MIX, permuted=True),
    "qwen2": Case("qwen2", biased=QKV),
    "qwen3": Case("qwen3"),
    "gemma2": Case(
        "gemma2",
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
    "phi3": Case("phi3", {"sliding_window": 9}, {"attention.sliding_window": 9}, absent=FUSED),
    "phi3, long": Case(
        "phi3",
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
    "olmo2": Case("olmo2", shapes={"q_norm": (HEADS * HEAD_DIM,), "k_norm": (KV_HEADS * HEAD_DIM,)}),
    "smollm3": Case("smollm3", {"tie_word_embeddings": True}, permuted=True, absent=("lm_head",)),
    "qwen2_moe": Case("qwen2_moe", {}, MIX, biased=QKV),
    "qwen3_moe": Case("qwen3_moe", {"norm_topk_prob": True}, MIX),
}


@pytest.mark.parametrize("name", CASES)
def test_a_converted_file_computes_what_its_folder_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    settings = {**SETTINGS, **case.settings, "model_type": case.model_type}
    config, folder, tokens = read_config(settings), make_folder(case), random_tokens(50)
    stored = {name.removesuffix(".weight"): exact(name, values) for name, values in folder.items()}
    weights = arrange(stored, models.find(case.model_type).hf_names, config)
    expected = our_logits(config, {name: weight.floats() for name, weight in weights.items()}, tokens)
    source = open_source(write(tmp_path / "model.gguf", case, folder, config))
    found = our_logits(source.config, {name: weight.floats() for name, weight in source.weights.items()}, tokens)
    # GGUF has epsilon, bases and factors in float32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def make_folder(case: Case) -> dict[str, Array]:
    """Tensors as a folder has them, each number exact in float32 with an offset of 1 too."""
    random = np.random.default_rng(3)
    folder: dict[str, Array] = {}
    for pattern, target in models.find(case.model_type).hf_names.items():
        if target is None or pattern.endswith(case.absent):
            continue
        for layer in range(LAYERS if "{i}" in pattern else 1):
            for expert in range(EXPERTS if "{e}" in pattern else 1):
                stem = pattern.format(i=layer, e=expert)
                shape = shape_of(stem, case)
                around = 1 - case.norm_offset if len(shape) == 1 else 0.0
                folder[f"{stem}.weight"] = around + np.round(random.normal(0, 0.3, shape) * 1024) / 1024
                if pattern.endswith(case.biased or ("no bias",)):
                    folder[f"{stem}.bias"] = np.round(random.normal(0, 0.3, shape[0]) * 1024) / 1024
    return folder


def shape_of(stem: str, case: Case) -> tuple[int, ...]:
    shapes = {**SHAPES, **case.shapes}
    ends = (".".join(stem.split(".")[-count:]) for count in (2, 1))
    return next((shapes[end] for end in ends if end in shapes), (HIDDEN,))


def write(path: Path, case: Case, folder: Mapping[str, Array], config: Config) -> Path:
    """The folder as llama.cpp's converter writes it."""
    arch = NAMES[case.model_type][0]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_block_count(LAYERS)
    writer.add_context_length(config.context)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in case.metadata.items():
        add[type(value)](f"{writer.arch}.{key}", value)
    names = gguf.get_tensor_name_map(arch, LAYERS)
    for name, values in converted(case, folder).items():
        ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert ours is not None, name
        writer.add_tensor(ours, values.astype(np.float32))
    factors = dict(case.factors)
    if case.permuted and config.rope is not None and config.rope.factors:
        factors["rope_freqs.weight"] = list(config.rope.factors)
    for name, numbers in factors.items():
        writer.add_tensor(name, np.asarray(numbers, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(case: Case, folder: Mapping[str, Array]) -> dict[str, Array]:
    """Query and key rows permuted, norms with their offset, experts stacked in a third dimension."""
    out: dict[str, Array] = {}
    for name, values in folder.items():
        if ".experts.0." in name:
            stacked = [folder[name.replace(".experts.0.", f".experts.{e}.")] for e in range(EXPERTS)]
            out[name.replace(".experts.0.", ".experts.")] = np.stack(stacked)
        elif ".experts." in name:
            continue
        elif case.permuted and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = values.reshape(-1, 2, HEAD_DIM // 2, HIDDEN)
            out[name] = heads.swapaxes(1, 2).reshape(values.shape)
        elif name.endswith("shared_expert_gate.weight"):
            out[name] = values[0]
        else:
            out[name] = values + case.norm_offset if name.endswith("norm.weight") else values
    return out


def test_the_experts_of_older_mixtral_files_are_found_one_by_one() -> None:
    config = read_config({**SETTINGS, "model_type": "mixtral"})
    parts = {f"blk.2.ffn_up.{e}": exact(f"blk.2.ffn_up.{e}.weight", np.full((3, 2), float(e))) for e in (1, 0)}
    arranged = arrange(parts, models.find("mixtral").gguf_names, config)
    assert list(arranged) == ["model.layers.2.mlp.experts.up_proj"]
    np.testing.assert_array_equal(arranged["model.layers.2.mlp.experts.up_proj"].floats()[:, 0], [0, 0, 0, 1, 1, 1])


def test_an_olmo_3_file_is_refused_though_it_says_olmo2(tmp_path: Path) -> None:
    case = Case("olmo2", {}, {"attention.sliding_window": 4096}, shapes=CASES["olmo2"].shapes)
    config = read_config({**SETTINGS, "model_type": "olmo2"})
    source = open_source(write(tmp_path / "model.gguf", case, make_folder(case), config))
    with pytest.raises(UnsupportedModel, match="sliding_window is 4096"):
        our_logits(source.config, {name: weight.floats() for name, weight in source.weights.items()}, [1])
