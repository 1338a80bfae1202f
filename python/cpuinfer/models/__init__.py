"""Architectures, one file each: ``llama.py`` describes "llama".  The file name is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from cpuinfer.config import Config, RopeLayout
from cpuinfer.errors import UnsupportedModel
from cpuinfer.graph import Graph
from cpuinfer.ops import Value


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a file in this folder defines: `build`, GGUF_NAMES and GGUF_ROPE."""

    build: Callable[[Graph, Config], Value]
    """Records the forward pass and returns the logits."""
    gguf_names: Mapping[str, str]
    """GGUF tensor name without `.weight` -> ours; `{i}` stands for the layer."""
    gguf_rope: RopeLayout
    """Converters to GGUF permute the rows of some architectures' query and key weights."""


def supported() -> tuple[str, ...]:
    """The model types this release runs."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(model_type: str) -> Architecture:
    """The architecture of a model type.  Raises UnsupportedModel naming those there are."""
    known = supported()
    if model_type not in known:
        raise UnsupportedModel(f"architecture {model_type!r} is not supported; supported: {', '.join(known)}")
    module = importlib.import_module(f"{__name__}.{model_type}")
    return Architecture(
        cast("Callable[[Graph, Config], Value]", module.build),
        cast("Mapping[str, str]", module.GGUF_NAMES),
        cast("RopeLayout", module.GGUF_ROPE),
    )
