"""From a checkpoint to a program ready to run: records the graph, packs the weights, writes the program down."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cpuinfer import formats, gguf, models
from cpuinfer.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from cpuinfer.config import Config
from cpuinfer.description import Description, MemoryEstimate, TensorKind
from cpuinfer.errors import NumericalError, UnsupportedFormat, UnsupportedModel
from cpuinfer.graph import Graph
from cpuinfer.ops import Value
from cpuinfer.program import write_program

if TYPE_CHECKING:
    from cpuinfer import _core

PANEL = 16
"""Rows of a packed panel; packing goes by whole panels."""
CHUNK_BYTES = 1 << 20
"""Of a tensor, read and packed at once by a thread."""
PARTS, CACHE_LINE = 3, 64
"""A packed matrix is at most codes, scales and biases, each from a cache line on."""
PAGE_TOKENS = 32
"""Positions in a page of the key-value cache."""
OVERHEAD = 90 << 20
"""Interpreter, libraries and tokenizer of a process, measured."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model as recorded, before any weight is read."""

    checkpoint: Checkpoint
    config: Config
    graph: Graph
    logits: Value
    names: dict[str, str]
    """Our tensor name -> the file's."""

    def tensor(self, name: str) -> TensorInfo:
        """The directory entry of a tensor by our name."""
        return self.checkpoint.tensors[self.names[name]]

    def weight(self, name: str) -> npt.NDArray[np.float64]:
        """A tensor as exact float64, for the reference interpreter."""
        info = self.tensor(name)
        raw = self.checkpoint.read_rows(info.name, 0, info.rows)
        return formats.find(info.encoding).decode(raw, info.shape[-1]).to_float(np.float64).reshape(info.shape)


def open_model(path: str | Path) -> Blueprint:
    """Open a model file and record its graph.  Reads no weights.

    Raises CheckpointError for a damaged file, UnsupportedModel or UnsupportedFormat, all naming the file.
    """
    checkpoint = open_checkpoint(Path(path))
    try:
        config = gguf.read_config(checkpoint)
        names = gguf.tensor_names(checkpoint)
        graph = Graph({ours: checkpoint.tensors[theirs].shape for ours, theirs in names.items()})
        logits = models.find(config.model_type).build(graph, config)
        unused = sorted(set(names) - graph.used.keys())
        if unused:
            raise UnsupportedModel(f"tensor {names[unused[0]]} has no place in the model ({len(unused)} such)")
        for name in sorted(graph.used):
            _check_encoding(checkpoint.tensors[names[name]])
    except (UnsupportedModel, UnsupportedFormat) as error:
        raise type(error)(f"{path}: {error}") from None
    return Blueprint(checkpoint, config, graph, logits, names)


def _check_encoding(info: TensorInfo) -> None:
    try:
        formats.find(info.encoding)
    except UnsupportedFormat as error:
        raise UnsupportedFormat(f"tensor {info.name}: {error}") from None


def load_program(blueprint: Blueprint, *, threads: int) -> _core.Program:
    """Read and pack every weight with `threads` threads, and write the program down."""
    from cpuinfer import _core

    matrices: dict[str, _core.PackedMatrix] = {}
    vectors: dict[str, npt.NDArray[np.float32]] = {}
    tasks: list[Callable[[], None]] = []
    sizes = [packed_bytes(blueprint.tensor(name)) for name in blueprint.graph.used]
    pool = _core.BufferPool(sum(sizes) + PARTS * CACHE_LINE * len(sizes))
    for name in blueprint.graph.used:
        info = blueprint.tensor(name)
        if len(info.shape) == 1:
            vectors[name] = _finite(blueprint, name)
            continue
        matrices[name] = formats.find(info.encoding).new_matrix(info.shape[0], info.shape[1], pool)
        tasks.extend(_packing_tasks(blueprint.checkpoint, info, matrices[name]))
    with ThreadPoolExecutor(threads) as executor:
        for _ in executor.map(lambda task: task(), tasks):
            pass
    return write_program(blueprint.graph.ops, matrices, vectors)


def _finite(blueprint: Blueprint, name: str) -> npt.NDArray[np.float32]:
    values = blueprint.weight(name).astype(np.float32)
    if not np.isfinite(values).all():
        raise NumericalError(f"{blueprint.checkpoint.path}: {blueprint.names[name]}: holds NaN or infinity")
    return values


def _packing_tasks(checkpoint: Checkpoint, info: TensorInfo, matrix: _core.PackedMatrix) -> list[Callable[[], None]]:
    form = formats.find(info.encoding)
    rows, columns = info.shape
    chunk = max(PANEL, CHUNK_BYTES // info.row_bytes // PANEL * PANEL)

    def pack(begin: int) -> None:
        form.decode(checkpoint.read_rows(info.name, begin, min(begin + chunk, rows)), columns).pack(matrix, begin)

    return [lambda begin=begin: pack(begin) for begin in range(0, rows, chunk)]  # type: ignore[misc]


def page_bytes(config: Config) -> int:
    """Bytes of a page of the key-value cache: fp16 keys and values of PAGE_TOKENS positions, all layers."""
    padded = -(-config.head_dim // PANEL) * PANEL
    return config.layers * config.kv_heads * PAGE_TOKENS * (config.head_dim + padded) * 2


def score_bytes(threads: int) -> int:
    """Bytes of attention scores for each position of the context: fp32, 8 rows of a tile for each thread."""
    return threads * 8 * 4


def packed_bytes(info: TensorInfo) -> int:
    """Bytes a tensor takes when packed: its own bits, rows padded to whole panels."""
    if len(info.shape) == 1:
        return info.shape[0] * 4
    form = formats.find(info.encoding)
    return -(-info.shape[0] // PANEL) * PANEL * info.shape[1] // form.inputs * form.bytes


def describe(path: str | Path, context: int | None = None) -> Description:
    """What a model file holds and what running it would take, from its header alone."""
    blueprint = open_model(path)
    config, checkpoint = blueprint.config, blueprint.checkpoint
    kinds: dict[tuple[str, str], list[TensorInfo]] = {}
    for ours, theirs in blueprint.names.items():
        info = checkpoint.tensors[theirs]
        kinds.setdefault((_kind(ours), info.encoding), []).append(info)
    weights = sum(packed_bytes(blueprint.tensor(name)) for name in blueprint.graph.used)
    table = packed_bytes(blueprint.tensor("model.embed_tokens"))
    positions = context or config.context
    cache = -(-positions // PAGE_TOKENS) * page_bytes(config)
    return Description(
        name=config.name or Path(path).stem,
        architecture=config.model_type,
        parameters=sum(math.prod(checkpoint.tensors[theirs].shape) for theirs in blueprint.names.values()),
        layers=config.layers,
        hidden=config.hidden,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        feed_forward=config.feed_forward,
        vocabulary=config.vocabulary,
        context=positions,
        tied=config.tied,
        rope=f"{config.rope.layout}, base {config.rope.base:g}" + (", scaled" if config.rope.factors else ""),
        tokenizer=_tokenizer_name(checkpoint),
        has_chat_template="tokenizer.chat_template" in checkpoint.metadata,
        file_bytes=checkpoint.size_bytes,
        tensors=tuple(_describe_kind(kind, encoding, infos) for (kind, encoding), infos in kinds.items()),
        memory=MemoryEstimate(
            weights=weights, cache=cache, scratch=scratch_bytes(config, positions), overhead=OVERHEAD
        ),
        bytes_per_token=weights if config.tied else weights - table,
    )


def scratch_bytes(config: Config, context: int, *, batch: int = 512, threads: int | None = None) -> int:
    """About what the plan's arena takes: activations of a batch, logits of 16 rows, attention scores per thread."""
    width = 3 * config.hidden + config.feed_forward + (config.heads + 2 * config.kv_heads) * config.head_dim
    scores = score_bytes(threads or os.cpu_count() or 1) * context
    return 4 * (batch * (width + 2 * max(config.hidden, config.feed_forward)) + 16 * config.vocabulary) + scores


def _kind(name: str) -> str:
    """A tensor's name without its layer: `self_attn.q_proj`."""
    parts = name.split(".")
    return ".".join(parts[3:] if parts[:2] == ["model", "layers"] else parts[-1:])


def _tokenizer_name(checkpoint: Checkpoint) -> str:
    kind = checkpoint.optional("tokenizer.ggml.model", str, "none")
    return f"{kind} ({checkpoint.optional('tokenizer.ggml.pre', str, 'default')})"


def _describe_kind(kind: str, encoding: str, infos: list[TensorInfo]) -> TensorKind:
    matrix = len(infos[0].shape) > 1
    return TensorKind(
        kind=kind,
        encoding=encoding,
        layout=formats.find(encoding).layout if matrix else "f32",
        count=len(infos),
        shape=infos[0].shape,
        bits_per_weight=8 * infos[0].bytes / math.prod(infos[0].shape),
        bytes=sum(info.bytes for info in infos),
    )
