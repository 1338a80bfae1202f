"""Every tensor name that the gguf package lists for an architecture has its place here, or is refused by name."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import MODEL_ARCH as ARCH

from architectures import exact, read_config
from converted_gguf import SETTINGS
from cpuinfer import models
from cpuinfer.errors import UnsupportedModel
from cpuinfer.gguf import ROPE_TENSORS, VARIANTS
from cpuinfer.naming import arrange

NAMES: dict[str, tuple[ARCH, frozenset[str]]] = {
    # model type -> the architecture in GGUF files, and its names that are refused: of another file of ours, of
    # StableLM 2 12B, a table we compute, or in no file.
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
    "olmo3": (ARCH.OLMO2, frozenset()),
    "smollm3": (ARCH.SMOLLM3, frozenset({"blk.{i}.attn_rot_embd"})),
    "qwen2_moe": (ARCH.QWEN2MOE, frozenset()),
    "qwen3_moe": (ARCH.QWEN3MOE, frozenset()),
    "gpt_neox": (ARCH.GPTNEOX, frozenset()),
    "gpt2": (ARCH.GPT2, frozenset()),
    "bloom": (ARCH.BLOOM, frozenset()),
    "falcon": (ARCH.FALCON, frozenset()),
    "phi": (ARCH.PHI2, frozenset({"blk.{i}.ffn_norm"})),
    "starcoder2": (ARCH.STARCODER2, frozenset({"blk.{i}.attn_rot_embd"})),
    "stablelm": (ARCH.STABLELM, frozenset({"blk.{i}.attn_q_norm", "blk.{i}.attn_k_norm"})),
}


@pytest.mark.parametrize("model_type", NAMES)
def test_every_name_that_gguf_lists_is_mapped_or_refused(model_type: str) -> None:
    arch, refused = NAMES[model_type]
    listed = {gguf.TENSOR_NAMES[tensor].replace("{bid}", "{i}") for tensor in gguf.MODEL_TENSORS[arch]}
    known = set(models.find(model_type).gguf_names) | {name.removesuffix(".weight") for name in ROPE_TENSORS}
    assert listed - known == refused
    name = gguf.MODEL_ARCH_NAMES[arch]
    assert model_type in {models.GGUF_NAMES.get(name, name), VARIANTS.get(name, ("",))[0]}


def test_every_architecture_in_gguf_files_is_among_them() -> None:
    assert set(NAMES) | {"mistral"} == {name for name in models.supported() if models.find(name).gguf_names}


@pytest.mark.parametrize("model_type", NAMES)
def test_a_refused_tensor_is_named_in_the_error(model_type: str) -> None:
    config = read_config({**SETTINGS, "model_type": "llama"})
    for name in sorted({"blk.{i}.attn_sinks", *NAMES[model_type][1]}):
        stored = name.replace("{i}", "1")
        with pytest.raises(UnsupportedModel, match=f"{stored}.weight is not part of the architecture"):
            arrange({stored: exact(f"{stored}.weight", np.zeros((2, 2)))}, models.find(model_type).gguf_names, config)
