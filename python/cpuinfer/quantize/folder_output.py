"""A model's folder with some of its weights packed: tensors by the source's names, its other files, its config.json."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cpuinfer import huggingface, models
from cpuinfer.errors import OutputError, UnsupportedFormat, UnsupportedModel
from cpuinfer.formats.canonical import FloatRows, Rows
from cpuinfer.published import reader
from cpuinfer.quantize import placement, replacing, safetensors_file
from cpuinfer.quantize.placement import Placed
from cpuinfer.quantize.safetensors_file import Entry, Part, Progress, Put
from cpuinfer.safetensors_folder import INDEX, SafetensorsFolder
from cpuinfer.weight import Weight
from cpuinfer.weights import Source

COPY_BYTES = 16 << 20
COPIED = {".json", ".jinja", ".txt", ".model", ".md"}
"""Ends of the names of files that go with the weights: tokenizers, templates, licences."""
MOST_COPIED = 64 << 20
TABLES = {"model.embed_tokens", "model.embed_positions"}
_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


@dataclass(frozen=True, slots=True)
class Layer:
    """A tensor of the source that is to be packed."""

    prefix: str
    """Its name without `.weight`."""
    placed: Placed
    weights: Mapping[str, Weight]
    """Ours, all of the model."""
    threads: int

    @property
    def weight(self) -> Weight:
        """One of those that it is made of, which are stored alike."""
        return self.weights[self.placed.parts[0]]

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return len(self.placed.row), self.weight.shape[1]

    def chunks(self) -> Iterator[tuple[int, int, Rows]]:
        """(begin, end, rows [begin, end)) of all, in order."""
        spans = self.placed.chunks(self.weights)

        def rows(begin: int, end: int) -> Rows:
            return self.placed.rows(self.weights, begin, end)

        tasks = [lambda span=span: rows(*span) for span in spans]
        for (begin, end), found in zip(spans, placement.in_order(tasks, self.threads), strict=True):
            yield begin, end, found


class Packing(Protocol):
    """A way of writing packed weights."""

    def entries(self, layer: Layer) -> tuple[Entry, ...]:
        """The tensors of a weight; UnsupportedFormat naming one that cannot be written so."""

    def make(self, layer: Layer, put: Put) -> None:
        """Put them."""

    def config(self, packed: Iterable[Layer], floats: Iterable[str]) -> Mapping[str, Any]:
        """The `quantization_config`.  `floats`: names of linear layers that are not packed."""


def write_folder(
    out: Path,
    source: Source,
    weights: Mapping[str, Weight],
    packing: Packing,
    *,
    overwrite: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write the source's folder anew with `weights`, by our names, in place of its own; others stay as they are.

    Raises OutputError for a target that exists or cannot be written, UnsupportedFormat or UnsupportedModel for weights
    that do not go into such files.  Nothing is left of what fails.
    """
    _refuse_gguf(source)
    with replacing.new_folder(out, overwrite=overwrite) as folder:
        settings = huggingface.read_json(source.path / huggingface.CONFIG)
        plan = _Plan(source, settings, {**source.weights, **weights}, packing, threads)
        config = {key: value for key, value in settings.items() if key != "quantization_config"}
        if plan.packed:
            config["quantization_config"] = packing.config(plan.packed, plan.floats)
        safetensors_file.write(folder, plan.parts, progress)
        (folder / huggingface.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        _copy_others(source.path, folder)


class _Plan:
    """What becomes of each tensor."""

    def __init__(
        self,
        source: Source,
        settings: Mapping[str, Any],
        weights: Mapping[str, Weight],
        packing: Packing,
        threads: int,
    ) -> None:
        self._tensors = SafetensorsFolder(source.path)
        self._source, self._weights, self._packing, self._threads = source, weights, packing, threads
        self.parts: list[Part] = []
        self.packed: list[Layer] = []
        self.floats: list[str] = []
        stored, placed = _placed(source, self._tensors, settings)
        taken = {name for weight in stored.values() for name in (weight.tensor_names or (weight.name,))}
        for stem, weight in stored.items():
            self._place(stem, weight, placed.get(stem))
        for name in self._tensors.names():
            if name not in taken:
                self._copy(name)

    def _place(self, stem: str, weight: Weight, placed: Placed | None) -> None:
        if placed is None:
            self._copy(weight.name)  # a mask, which is known and has no place in the model
            return
        if missing := [name for name in placed.parts if name not in self._weights]:
            if self._source.config.tied and missing == ["lm_head"]:
                return  # a copy of the embedding table
            raise UnsupportedModel(f"{placed.name}: there is no weight {missing[0]} to make it of")
        new = [self._weights[name] for name in placed.parts]
        plain = not weight.tensor_names
        if all(each.is_float for each in new):
            if len(weight.shape) == 2 and not set(placed.parts) & TABLES:
                self.floats.append(stem)
            if plain and all(each is self._source.weights[name] for each, name in zip(new, placed.parts, strict=True)):
                self._copy(weight.name)
            else:
                self._float(weight.name if plain else f"{stem}.weight", placed, plain)
            return
        self._pack(stem, weight, placed)

    def _copy(self, name: str) -> None:
        tensors = self._tensors
        entry = Entry(name, tensors.dtype(name), tensors.shape(name))

        def make(put: Put) -> None:
            if not entry.shape:
                put(name, tensors.read(name))
                return
            step = max(1, COPY_BYTES * entry.shape[0] // max(entry.bytes, 1))
            for begin in range(0, entry.shape[0], step):
                put(name, tensors.read_rows(name, begin, min(begin + step, entry.shape[0])))

        self.parts.append(Part((entry,), make, _layer(name)))

    def _float(self, name: str, placed: Placed, plain: bool) -> None:
        layer = Layer(name, placed, self._weights, self._threads)
        layouts = {self._weights[each].layout for each in placed.parts}
        layout = layouts.pop() if len(layouts) == 1 else "f32"
        shape = self._tensors.shape(placed.name) if plain else layer.shape

        def make(put: Put) -> None:
            pieces = []
            for _, _, rows in layer.chunks():
                if not isinstance(rows, FloatRows):
                    raise UnsupportedFormat(f"{name}: rows of another kind, expected floats")
                values = rows.values if rows.layout == layout else rows.to_float(np.float32)
                if not placed.transposed:
                    put(name, values)
                else:
                    pieces.append(values)
            if pieces:
                put(name, np.concatenate(pieces).T)

        self.parts.append(Part((Entry(name, _DTYPES[layout], tuple(shape)),), make, _layer(name)))

    def _pack(self, stem: str, weight: Weight, placed: Placed) -> None:
        if set(placed.parts) & TABLES:
            raise UnsupportedFormat(f"{placed.name}: packed folders have embedding tables as floats")
        if not _is_linear(weight, placed, self._tensors):
            raise UnsupportedFormat(f"{placed.name}: is not a linear layer's (outputs, inputs): it must stay floats")
        placement.alike(placed, self._weights)
        layer = Layer(stem, placed, self._weights, self._threads)
        entries = self._packing.entries(layer)
        self.packed.append(layer)
        self.parts.append(Part(entries, lambda put: self._packing.make(layer, put), _layer(stem)))


def tensors_of(source: Source) -> dict[str, tuple[str, ...]]:
    """The tensors of a folder that may be packed, linear layers, by name: our weights that each is made of.

    Raises UnsupportedFormat for a GGUF file.
    """
    _refuse_gguf(source)
    tensors = SafetensorsFolder(source.path)
    stored, placed = _placed(source, tensors, huggingface.read_json(source.path / huggingface.CONFIG))
    return {
        stem: found.parts
        for stem, found in placed.items()
        if not set(found.parts) & TABLES and _is_linear(stored[stem], found, tensors) and len(found.shape) > 1
    }


def _refuse_gguf(source: Source) -> None:
    if source.kind != "safetensors":
        raise UnsupportedFormat(f"{source.path}: a GGUF file becomes another GGUF file, not a safetensors folder")


def _placed(
    source: Source, tensors: SafetensorsFolder, settings: Mapping[str, Any]
) -> tuple[dict[str, Weight], dict[str, Placed]]:
    """The tensors of a folder, and which of our weights each is made of."""
    architecture, before = models.find(source.config.model_type), settings.get("quantization_config")
    published = reader(before) if isinstance(before, Mapping) else None
    stored = huggingface.stored_weights(tensors, published, architecture.hf_left_out)
    return stored, placement.find(stored, architecture.hf_names, source.config)


def _is_linear(weight: Weight, placed: Placed, tensors: SafetensorsFolder) -> bool:
    dimensions = 2 if weight.tensor_names else len(tensors.shape(weight.name))
    named = bool(weight.tensor_names) or weight.name.endswith(".weight")
    return not placed.transposed and dimensions == 2 and named


def _layer(name: str) -> int:
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    return int(number.group()) if number else -1


def _copy_others(source: Path, folder: Path) -> None:
    """Tokenizer, templates, generation settings, licence."""
    for path in sorted([*source.iterdir(), *source.glob("additional_chat_templates/*.jinja")]):
        if not path.is_file() or path.name in (huggingface.CONFIG, INDEX, "quantize_config.json"):
            continue
        if path.suffix not in COPIED and not path.name.startswith("LICENSE"):
            continue
        if path.stat().st_size > MOST_COPIED:
            raise OutputError(f"{path}: more than {MOST_COPIED >> 20} MiB, expected a tokenizer's file or smaller")
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def bits_of(weight: Weight) -> int:
    """Bits of the integer codes of a weight, as its encoding names them ("int4:g128:asym", "GPTQ int4 g128")."""
    found = re.search(r"\bint([2-8])\b", weight.encoding)
    if found is None or weight.layout not in ("int4", "int8"):
        raise UnsupportedFormat(f"{weight.name}: {weight.encoding}, expected integer codes")
    return int(found.group(1))
