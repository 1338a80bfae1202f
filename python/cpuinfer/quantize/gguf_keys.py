"""A folder's hyper-parameters as the keys of a GGUF file.

Keys and what converters write are those of the GGUF specification and of llama.cpp's conversion scripts.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cpuinfer import gguf, huggingface, models
from cpuinfer.config import Config, Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.models import Json, llama
from cpuinfer.quantize.gguf_writer import Entry

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt_neox": "gptneox",
    "gpt2": "gpt2",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "starcoder2": "starcoder2",
}
"""`general.architecture` of those that are converted."""
LAYER_NORMS = {"gpt_neox", "gpt2", "starcoder2"}
"""Those whose epsilon is that of LayerNorms."""
WINDOWED = {"gemma2", "gemma3_text", "phi3", "starcoder2"}
"""Those that GGUF files name a window for."""
FREQUENCIES = {"llama", "mistral"}
"""Those for which llama.cpp reads divisors of frequencies."""
Keys = dict[str, Entry]
Tables = dict[str, npt.NDArray[np.float32]]


def architecture_of(config: Config) -> str:
    """`general.architecture`; UnsupportedModel for one that is not converted."""
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(f"{config.model_type}: is not converted to GGUF; converted are {known}")
    return ARCHITECTURES[config.model_type]


def keys_of(config: Config, settings: Json) -> tuple[Keys, Tables]:
    """The keys of the model, without `general.*`, and the tables of rotary factors that go with them.

    `settings`: config.json.  Raises UnsupportedModel for what GGUF cannot say.
    """
    arch = architecture_of(config)
    text = huggingface.of_the_text(settings, models.find(config.model_type))
    keys: Keys = {
        "block_count": Entry("uint32", config.layers),
        "context_length": Entry("uint32", config.context),
        "embedding_length": Entry("uint32", config.hidden),
        "feed_forward_length": Entry("uint32", config.feed_forward),
        "attention.head_count": Entry("uint32", config.heads),
    }
    if config.model_type not in ("gpt_neox", "gpt2"):
        keys["attention.head_count_kv"] = Entry("uint32", config.kv_heads)
    if text.get("head_dim") is not None or config.head_dim * config.heads != config.hidden:
        keys["attention.key_length"] = keys["attention.value_length"] = Entry("uint32", config.head_dim)
    norm = "attention.layer_norm_epsilon" if config.model_type in LAYER_NORMS else "attention.layer_norm_rms_epsilon"
    keys[norm] = Entry("float32", config.norm_eps)
    if arch == "llama":
        keys["vocab_size"] = Entry("uint32", config.vocabulary)
    keys |= _options(config)
    tables: Tables = {}
    if config.rope is not None:
        more, tables = _rope(config, config.rope, huggingface.rope_scaling(text))
        keys |= more
    return {f"{arch}.{key}": entry for key, entry in keys.items()}, tables


def _options(config: Config) -> Keys:
    keys: Keys = {}
    if config.model_type in WINDOWED:
        keys["attention.sliding_window"] = Entry("uint32", config.integer("sliding_window"))
    if config.model_type == "gpt_neox":
        keys["use_parallel_residual"] = Entry("bool", config.flag("parallel"))
    if config.model_type == "gemma2":
        keys["attn_logit_softcapping"] = Entry("float32", config.number("score_cap"))
    if config.model_type in ("gemma2", "gemma3_text") and config.number("logit_cap"):
        keys["final_logit_softcapping"] = Entry("float32", config.number("logit_cap"))
    if config.model_type == "gemma3_text":
        keys["rope.freq_base_swa"] = Entry("float32", config.number("local_base"))
        every = _every(config)
        if every != models.find(config.model_type).options["every"].default:  # llama.cpp's, which converters leave out
            keys["attention.sliding_window_pattern"] = Entry("uint32", every)
    return keys


def _every(config: Config) -> int:
    """Of so many layers the last is global."""
    local = [
        llama.has_window(config, i, otherwise=(i + 1) % config.integer("every") != 0) for i in range(config.layers)
    ]
    every = local.index(False) + 1 if False in local else max(config.integer("every"), config.layers + 1)
    if local != [(i + 1) % every != 0 for i in range(config.layers)]:
        raise UnsupportedModel(f"{config.model_type}: layer_types that no period gives, which a GGUF file cannot say")
    return every


def _rope(config: Config, rope: Rope, scaling: Json) -> tuple[Keys, Tables]:
    keys: Keys = {
        "rope.dimension_count": Entry("uint32", rope.dims),
        "rope.freq_base": Entry("float32", rope.base),
    }
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    original = scaling.get("original_max_position_embeddings")
    match kind:
        case "default" | "none" | "dynamic":  # dynamic: nothing changes up to the trained context
            pass
        case "linear":
            keys["rope.scaling.type"] = Entry("string", "linear")
            keys["rope.scaling.factor"] = Entry("float32", float(scaling["factor"]))
        case "yarn":
            keys |= _yarn(config, rope, scaling)
        case "llama3" if config.model_type in FREQUENCIES:
            return keys, {gguf.ROPE_FACTORS: np.array(rope.factors, np.float32)}
        case "longrope" | "su" if config.model_type == "phi3":
            return _longrope(config, keys, scaling)
        case _:
            raise UnsupportedModel(f"{config.model_type}: rope scaling {kind!r} is not converted to GGUF")
    if config.model_type == "phi3" and isinstance(original, int):
        keys["rope.scaling.original_context_length"] = Entry("uint32", original)
    return keys, {}


def _yarn(config: Config, rope: Rope, scaling: Json) -> Keys:
    if scaling.get("truncate", True) is not True:
        raise UnsupportedModel(f"{config.model_type}: yarn with truncate false, which a GGUF file cannot say")
    keys = {
        "rope.scaling.type": Entry("string", "yarn"),
        "rope.scaling.factor": Entry("float32", float(scaling["factor"])),
        "rope.scaling.original_context_length": Entry(
            "uint32", int(scaling.get("original_max_position_embeddings") or config.context)
        ),
    }
    usual = 0.1 * math.log(max(float(scaling["factor"]), 1)) + 1
    if not math.isclose(rope.magnitude, usual, rel_tol=1e-6):
        keys["rope.scaling.yarn_attn_factor"] = Entry("float32", rope.magnitude)
    for key in gguf.BETAS:
        if scaling.get(key) is not None:
            keys[f"rope.scaling.yarn_{key}"] = Entry("float32", float(scaling[key]))
    return keys


def _longrope(config: Config, keys: Keys, scaling: Json) -> tuple[Keys, Tables]:
    """Two sets of divisors; which is used is for the reader to say, by the context it is opened for."""
    original = int(scaling.get("original_max_position_embeddings") or config.context)
    magnitude = config.rope.magnitude if config.rope is not None else 1.0
    keys |= {
        "rope.scaling.type": Entry("string", "longrope"),
        "rope.scaling.original_context_length": Entry("uint32", original),
        "rope.scaling.attn_factor": Entry("float32", magnitude),
    }
    tables = {name: np.array(scaling[key], np.float32) for name, key in _LONG.items()}
    return keys, tables


_LONG = {gguf.LONG: "long_factor", gguf.SHORT: "short_factor"}
