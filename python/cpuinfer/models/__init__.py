"""Architectures, one file each: ``llama.py`` describes "llama".  The file name is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from cpuinfer.config import Config, RopeLayout
from cpuinfer.errors import UnsupportedModel
from cpuinfer.graph import Graph
from cpuinfer.ops import Value

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Split:
    """A stored weight (and its bias) whose rows are several of ours.

    "qkv": the query's, the key's and the value's; interleaved: of each key-value head in turn, its queries, key, value.
    "equal": as many rows each.
    """

    names: tuple[str, ...]
    sizes: Literal["qkv", "equal"]
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class Transposed:
    """A weight stored as (inputs, outputs)."""

    target: str | Split


@dataclass(frozen=True, slots=True)
class OneRow:
    """A vector that is a matrix of one row."""

    name: str


Target = str | Split | Transposed | OneRow | None
"""What a stored tensor is of ours; None: known, and not needed."""


@dataclass(frozen=True, slots=True)
class Option:
    """Where a file says something about the architecture beyond Config's shapes."""

    default: object
    hf: str | Callable[[Json], object] | None = None
    """Key of config.json, or what to make of it."""
    gguf: str | None = None
    """Key without the architecture's name: "attention.sliding_window"."""


@dataclass(frozen=True, slots=True)
class RopeKeys:
    """Where config.json says how heads are rotated."""

    base: str = "rope_theta"
    share: str | None = None
    """Of a head, that is rotated; None: whole heads, in every model of the architecture."""
    dims: str | None = None
    """The number of rotated dimensions, where the file gives that and not a share."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a file in this folder defines: `build`, and its other constants by the fields' names in capitals."""

    model_type: str
    build: Callable[[Graph, Config], Value]
    """Records the forward pass and returns the logits."""
    gguf_names: Mapping[str, Target] = field(default_factory=dict)
    """GGUF tensor name without `.weight` or `.bias` -> ours; `{i}` stands for the layer.  Empty: not in GGUF files."""
    gguf_rope: RopeLayout = "halves"
    """Converters to GGUF permute the rows of some architectures' query and key weights."""
    hf_names: Mapping[str, Target] = field(default_factory=dict)
    """The same for safetensors, `{e}` standing for the expert, whose rows follow one another in ours."""
    hf_rope: RopeLayout = "halves"
    hf_rope_keys: RopeKeys = field(default_factory=RopeKeys)
    hf_keys: Mapping[str, str | Callable[[Json], object]] = field(default_factory=dict)
    """Config field -> key of config.json, where it is not Llama's."""
    hf_defaults: Json = field(default_factory=dict)
    """What config.json means by leaving a key out: transformers writes none whose value is its default."""
    hf_part: str | None = None
    """The key of config.json that has the language model's settings, of a model with other parts too."""
    hf_left_out: tuple[str, ...] = ()
    """Beginnings of the names of such parts' tensors."""
    options: Mapping[str, Option] = field(default_factory=dict)
    has_rope: bool = True


GGUF_NAMES = {
    "gptneox": "gpt_neox",
    "gemma3": "gemma3_text",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "phi2": "phi",
}
"""GGUF's `general.architecture` -> our file, where they differ."""
QKV = Split(tuple(f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"), "qkv")
QKV_BY_HEAD = replace(QKV, interleaved=True)
"""Queries, keys and values in one weight: one after another, or those of each key-value head together."""
FUSED: Mapping[str, Target] = {"blk.{i}.attn_qkv": QKV}
"""What converters to GGUF make of separate queries, keys and values when asked to."""


def with_and_without(prefix: str, names: Mapping[str, Target]) -> dict[str, Target]:
    """Names in files of a whole model and of its body alone, and the head's."""
    return {**names, **{f"{prefix}{name}": ours for name, ours in names.items()}, "lm_head": "lm_head"}


def supported() -> tuple[str, ...]:
    """The model types this release runs."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(model_type: str) -> Architecture:
    """The architecture of a model type.  Raises UnsupportedModel naming those there are."""
    known = supported()
    if model_type not in known:
        raise UnsupportedModel(f"architecture {model_type!r} is not supported; supported: {', '.join(known)}")
    module = importlib.import_module(f"{__name__}.{model_type}")
    constants = {each.name: each.name.upper() for each in fields(Architecture)}
    said = {name: getattr(module, constant) for name, constant in constants.items() if hasattr(module, constant)}
    names: Mapping[str, Target] = said.get("gguf_names", {})
    said["gguf_names"] = {**FUSED, **names} if "blk.{i}.attn_q" in names else names
    return Architecture(model_type, module.build, **{"hf_names": _own_names(names), **said})


def _own_names(names: Mapping[str, Target]) -> dict[str, Target]:
    """Our names are Hugging Face's for Llama and its kin."""
    return {name: name for name in names.values() if isinstance(name, str)}
