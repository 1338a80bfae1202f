"""Writes GGUF files: of a GGUF file with other weights, or of a folder, as llama.cpp's converter would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer import formats, gguf, huggingface
from cpuinfer.checkpoint import Checkpoint, open_checkpoint
from cpuinfer.errors import UnsupportedFormat, UnsupportedModel
from cpuinfer.formats.canonical import BlockRows, FloatRows
from cpuinfer.quantize import gguf_check, gguf_keys, gguf_names, gguf_tokenizer, placement, replacing
from cpuinfer.quantize.gguf_writer import Entry, GgufWriter, PlannedTensor, metadata_of
from cpuinfer.quantize.mixes import QUANTIZATION_VERSION
from cpuinfer.quantize.placement import Placed
from cpuinfer.weight import Weight
from cpuinfer.weights import Source

COPY_BYTES = 16 << 20
FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
Progress = Callable[[int, int], None]
"""Called with bytes written, and bytes in all."""


@dataclass(frozen=True, slots=True)
class _Planned:
    tensor: PlannedTensor
    data: Callable[[], Iterator[npt.NDArray[Any]]]


def write_gguf(
    out: Path,
    source: Source,
    weights: Mapping[str, Weight],
    *,
    file_type: int,
    overwrite: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write a GGUF file of the source with `weights`, by our names, in place of its own.

    Each has the encoding that it names, which must be one of GGUF's; others stay as they are.  `file_type`: llama.cpp's
    number for the mixture.  Of a GGUF source all other metadata, and the order of tensors, stay too; parts become one
    file.  Raises UnsupportedModel for a folder that is not converted, UnsupportedFormat for weights that GGUF has no
    type for, OutputError for a target that exists, and CpuInferError for one that cannot be written.
    """
    replacing.refuse_existing(out, overwrite=overwrite)
    whole = {**source.weights, **weights}
    general = {
        "general.file_type": Entry("uint32", file_type),
        "general.quantization_version": Entry("uint32", QUANTIZATION_VERSION),
    }
    if source.kind == "GGUF":
        checkpoint = open_checkpoint(source.path)
        metadata, plan = metadata_of(checkpoint, general), _changed(checkpoint, source, whole, threads)
    else:
        metadata, plan = _converted(out, source, whole, general, threads)
    total, done = sum(each.tensor.bytes for each in plan), 0
    with GgufWriter(out, metadata, [each.tensor for each in plan]) as writer:
        for each in plan:
            for piece in each.data():
                writer.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
                done += piece.nbytes
                if progress is not None:
                    progress(done, total)
        replacing.refuse_existing(out, overwrite=overwrite)


def _changed(checkpoint: Checkpoint, source: Source, weights: Mapping[str, Weight], threads: int) -> list[_Planned]:
    """A GGUF file's tensors in its order: new ones, and the bytes of those that stay."""
    stored = gguf.stored_weights(checkpoint)
    placed = placement.find(stored, gguf.find_architecture(checkpoint).gguf_names, source.config)
    plan = []
    for name, info in checkpoint.tensors.items():
        found = placed.get(name.removesuffix(".weight"))
        if found is None or all(weights[part] is source.weights[part] for part in found.parts):
            plan.append(_Planned(PlannedTensor(name, info.shape, info.encoding), _copied(checkpoint, name)))
        else:
            plan.append(_made(replace(found, name=name, shape=info.shape), weights, threads))
    return plan


def _copied(checkpoint: Checkpoint, name: str) -> Callable[[], Iterator[npt.NDArray[Any]]]:
    info = checkpoint.tensors[name]
    step = max(1, COPY_BYTES // info.row_bytes)

    def data() -> Iterator[npt.NDArray[Any]]:
        for begin in range(0, info.rows, step):
            yield checkpoint.read_rows(name, begin, min(begin + step, info.rows))

    return data


def _converted(
    out: Path, source: Source, weights: Mapping[str, Weight], general: Mapping[str, Entry], threads: int
) -> tuple[dict[str, Entry], list[_Planned]]:
    config = source.config
    if source.left_out:
        raise UnsupportedModel(f"{source.path}: has {', '.join(source.left_out)}, which is not converted to GGUF")
    keys, tables = gguf_keys.keys_of(config, huggingface.read_json(source.path / huggingface.CONFIG))
    metadata = {
        "general.architecture": Entry("string", gguf_keys.architecture_of(config)),
        "general.type": Entry("string", "model"),
        "general.name": Entry("string", config.name or source.path.resolve().name),
        **keys,
        **general,
        **gguf_tokenizer.metadata(source.path, config.vocabulary),
    }
    shifted = {name: _shifted(name, weight, config.options.get("norm_offset")) for name, weight in weights.items()}
    plan = [_table(name, values) for name, values in tables.items()]
    plan += [
        _made(placed, shifted, threads, fp32=gguf_names.is_fp32(placed)) for placed in gguf_names.place(config, shifted)
    ]
    gguf_check.check(out, config, metadata, [each.tensor for each in plan], tables)
    return metadata, plan


def _shifted(name: str, weight: Weight, offset: object) -> Weight:
    """Gemma's norms multiply by one more than their weight, which converters add to it."""
    if not isinstance(offset, float) or not offset or len(weight.shape) != 1 or not name.endswith("norm"):
        return weight

    def floats() -> npt.NDArray[np.float64]:
        return weight.floats() + offset

    def rows(_begin: int, _end: int) -> FloatRows:
        return FloatRows(floats().astype(np.float32)[None], "f32")

    return replace(weight, encoding="F32", layout="f32", rows=rows, floats=floats)


def _table(name: str, values: npt.NDArray[np.float32]) -> _Planned:
    return _Planned(PlannedTensor(name, values.shape, "F32"), lambda: iter([values]))


def _made(placed: Placed, weights: Mapping[str, Weight], threads: int, *, fp32: bool = False) -> _Planned:
    """A tensor of weights of ours, taken by some rows at a time."""
    weight = placement.alike(placed, weights) if not fp32 else weights[placed.parts[0]]
    encoding = "F32" if fp32 or len(placed.shape) == 1 else weight.encoding
    if encoding not in formats.supported() or weight.input_order is not None:
        raise UnsupportedFormat(f"{placed.name}: {weight.encoding}: GGUF has no type for it")

    def data() -> Iterator[npt.NDArray[Any]]:
        spans = placed.chunks(weights)
        tasks = [lambda span=span: _bytes(placed, weights, span, encoding) for span in spans]
        yield from placement.in_order(tasks, threads)

    return _Planned(PlannedTensor(placed.name, placed.shape, encoding), data)


def _bytes(placed: Placed, weights: Mapping[str, Weight], span: tuple[int, int], encoding: str) -> npt.NDArray[Any]:
    rows = placed.rows(weights, *span)
    match rows:
        case BlockRows() if rows.form is formats.find(encoding):
            return rows.raw
        case FloatRows() if encoding == "F32":
            return rows.to_float(np.float32)
        case FloatRows() if rows.layout == FLOATS.get(encoding):
            return rows.values
    raise UnsupportedFormat(f"{placed.name}: rows that are not {encoding}, as their weight says")
