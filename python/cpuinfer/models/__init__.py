"""Architectures: one file each, named by its model type; the file is the registry."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cpuinfer.config import Config, RopeLayout
from cpuinfer.errors import UnsupportedModel
from cpuinfer.graph import Graph, Value


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a file in this folder defines: BUILD is its `build`, the rest how GGUF spells it."""

    build: Callable[[Graph, Config], Value]
    gguf_names: Mapping[str, str]
    """GGUF tensor name without `.weight` -> ours; `{i}` stands for the layer."""
    gguf_rope: RopeLayout
    """Converters to GGUF permute the rows of some architectures' query and key weights."""


def supported() -> tuple[str, ...]:
    """The model types this release runs."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__"))


def find(model_type: str) -> Architecture:
    """The architecture of a model type.  Raises UnsupportedModel naming those there are."""
    if model_type not in supported():
        known = ", ".join(supported())
        raise UnsupportedModel(f"architecture {model_type!r} is not supported; supported: {known}")
    module = importlib.import_module(f"cpuinfer.models.{model_type}")
    return Architecture(
        cast("Callable[[Graph, Config], Value]", module.build),
        cast("Mapping[str, str]", module.GGUF_NAMES),
        cast("RopeLayout", module.GGUF_ROPE),
    )
