"""Whether a GGUF file that is not written yet will mean the model that it is made of: its keys are read back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cpuinfer import gguf, models
from cpuinfer.checkpoint import Checkpoint
from cpuinfer.config import Config, Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.models import gemma2, gemma3_text, llama
from cpuinfer.quantize.gguf_writer import Entry, PlannedTensor

if TYPE_CHECKING:
    from cpuinfer.checkpoint import MetadataValue

Tables = Mapping[str, npt.NDArray[np.float32]]
"""Rotary factors, by tensor."""


class _Planned:
    """A file that is not written yet, for our reader: cpuinfer.checkpoint.Reader."""

    def __init__(self, path: Path, keys: Mapping[str, Entry], tensors: Sequence[PlannedTensor], tables: Tables) -> None:
        self._path, self._keys, self._tensors, self._tables = path, keys, tensors, tables

    def files(self) -> list[tuple[bytes, int]]:
        return [(str(self._path).encode(), 0)]

    def keys(self) -> list[str]:
        return list(self._keys)

    def type(self, key: str) -> tuple[str, int | None]:
        entry = self._keys[key]
        return entry.type, len(entry.value) if entry.is_array else None

    def value(self, key: str) -> MetadataValue:
        entry = self._keys[key]
        value: MetadataValue = float(np.float32(entry.value)) if entry.type == "float32" else entry.value
        return value

    def tensors(self) -> list[tuple[str, tuple[int, ...], str, int, int]]:
        rows = [(tensor, math.prod(tensor.shape[:-1])) for tensor in self._tensors]
        return [(each.name, each.shape, each.encoding, each.bytes, each.bytes // count) for each, count in rows]

    def floats(self, name: str) -> memoryview:
        return self._tables[name].data

    def read_rows(self, name: str, begin: int, end: int, out: npt.NDArray[np.uint8]) -> None:
        del begin, end  # of a vector, which has one row
        out[:] = self._tables[name].view(np.uint8)


def check(
    path: Path, config: Config, keys: Mapping[str, Entry], tensors: Sequence[PlannedTensor], tables: Tables
) -> None:
    """Read back what will be written: UnsupportedModel for anything of the model that it does not say.

    Warns where layers would lose a window of attention that is shorter than the context.
    """
    checkpoint = Checkpoint(path, _Planned(path, keys, tensors, tables))
    found = gguf.read_config(checkpoint, gguf.find_architecture(checkpoint))
    alike = replace(found, model_type=config.model_type, name=config.name, rope=config.rope)
    if replace(alike, options=config.options, norm_eps=config.norm_eps) != config or not _close(
        config.norm_eps, found.norm_eps
    ):
        raise UnsupportedModel(f"{config.model_type}: {config}, but its GGUF file would mean {found}")
    if not _same_rope(config.rope, found.rope):
        raise UnsupportedModel(f"{config.model_type}: {config.rope}, but its GGUF file would mean {found.rope}")
    for option, value in config.options.items():
        default = models.find(config.model_type).options[option].default
        meant = found.options.get(option, default)
        if not _same_option(config, option, value, meant):
            raise UnsupportedModel(
                f"{config.model_type}: {option} is {value!r}, which a GGUF file cannot say: it would mean {meant!r}"
            )


def _same_rope(a: Rope | None, b: Rope | None) -> bool:
    """But for the order of rows, and the roundings of fp32."""
    if a is None or b is None:
        return a is b
    numbers = [(x.dims, x.base, x.magnitude, *(x.factors or (1.0,) * (x.dims // 2))) for x in (a, b)]
    return len(numbers[0]) == len(numbers[1]) and all(map(_close, *numbers))


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)


def _same_option(config: Config, option: str, value: Any, meant: Any) -> bool:
    match option:
        case "norm_offset" | "every" | "layer_types" if config.model_type in ("gemma2", "gemma3_text"):
            return option != "layer_types" or config.model_type != "gemma2" or _alternate(config)
        case "act":
            return config.activation() == replace(config, options={"act": meant}).activation()
        case "score_width":
            default = config.hidden / config.heads if _is_largest(config) else config.head_dim
            return _close(float(value) or default, default)
        case "sliding_window" | "layer_types" | "max_window_layers" if config.model_type in (
            "mistral",
            "qwen2",
            "qwen3",
        ):
            if option == "sliding_window" and 0 < int(value) < config.context:
                warnings.warn(
                    f"{config.model_type}: attention windows of {value} positions, which a GGUF file cannot say: "
                    "beyond them it attends to more than the folder does",
                    UserWarning,
                    stacklevel=4,
                )
            return True
    if isinstance(value, (list, tuple)) and not value:
        return meant is None or list(meant) == []
    if isinstance(value, float) and isinstance(meant, (int, float)):
        return _close(value, float(meant))
    return bool(value == meant)


def _alternate(config: Config) -> bool:
    """Whether every other layer has a window, from the first."""
    return all(llama.has_window(config, i, otherwise=i % 2 == 0) == (i % 2 == 0) for i in range(config.layers))


def _is_largest(config: Config) -> bool:
    """Of Gemma's models, the one whose scores are scaled otherwise."""
    largest = gemma2.LARGEST if config.model_type == "gemma2" else gemma3_text.LARGEST
    return config.layers == largest
