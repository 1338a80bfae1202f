"""Describes a model file: what it holds, how the kernels read it, and what running it takes, from its header alone."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cpuinfer.config import Config
from cpuinfer.errors import InvalidRequest
from cpuinfer.loader import Blueprint, open_model
from cpuinfer.ops import Attention, Experts, Op, inputs, outputs
from cpuinfer.weight import PANEL, Weight
from cpuinfer.weights import Source

if TYPE_CHECKING:
    from cpuinfer.description import Description, TensorKind

PAGE_TOKENS = 32
"""Positions in a page of the key-value cache."""
GROUP, HALF, SEGMENT = 32, 16, 512
"""Head dimensions or inputs that share a scale; inputs that share a sum; positions whose attention is one partial
result."""
TILE_ROWS, HEAD_ROWS, SHARED_ITEMS = 8, 16, 2
"""Rows that are multiplied together; rows of logits computed at once; items of attention that each
worker should get."""
FLOAT = 4
"""Bytes of an fp32."""
BATCH = 512
"""Most rows in a step: tokens of prompts plus one for each answer under way."""
KV_CACHES = ("f16", "int8", "int4")
"""How keys and values may be kept."""
PROGRAM, TOKEN = 40_000_000, 700
"""Bytes of the interpreter with its libraries, and of a tokenizer for each token (500 to 750); both measured."""


def page_bytes(config: Config, kv_cache: str = "f16") -> int:
    """Bytes of a page of the key-value cache: keys and values of PAGE_TOKENS positions, all layers.

    fp16; or codes of 8 or 4 bits, with an fp16 scale for each group of 32 head dimensions.
    """
    check_kv_cache(kv_cache)
    padded = -(-config.head_dim // PANEL) * PANEL
    groups = -(-config.head_dim // GROUP)
    values = {
        "f16": 2 * (config.head_dim + padded),
        "int8": 2 * groups * (GROUP + 2),
        "int4": 2 * groups * (GROUP // 2 + 2),
    }
    return config.layers * config.kv_heads * PAGE_TOKENS * values[kv_cache]


def check_kv_cache(kv_cache: str) -> None:
    """Raises InvalidRequest unless it is one of KV_CACHES."""
    if kv_cache not in KV_CACHES:
        raise InvalidRequest(f"kv_cache: {kv_cache!r}, expected {', '.join(KV_CACHES[:-1])} or {KV_CACHES[-1]}")


def part_bytes(config: Config, threads: int) -> int:
    """Bytes of attention's partial results for each page of the context.

    Of so few queries that workers share out segments of 512 positions: fp32 values, a largest score and a sum each.
    """
    blocks = min(BATCH, (SHARED_ITEMS * threads - 1) // config.kv_heads) if threads > 1 else 0
    queries = blocks * max(1, TILE_ROWS * config.kv_heads // config.heads) * config.heads
    return queries * (_padded(config.head_dim, GROUP) + PANEL) * FLOAT * PAGE_TOKENS // SEGMENT


def describe(
    path: str | Path, context: int | None = None, *, quantize: str | None = None, kv_cache: str = "f16"
) -> Description:
    """What a model holds and what running it would take."""
    from cpuinfer.description import Description, MemoryEstimate

    check_kv_cache(kv_cache)
    blueprint = open_model(path, context=context, quantize=quantize)
    config, source = blueprint.config, blueprint.source
    kinds: dict[tuple[str, str, str], list[Weight]] = {}
    for ours, weight in source.weights.items():
        layout = "f32" if len(weight.shape) == 1 else weight.layout
        kinds.setdefault((_kind(ours), weight.encoding, layout), []).append(weight)
    weights = sum(weight.packed_bytes for weight in source.weights.values())
    positions = context or config.context
    cache = -(-positions // PAGE_TOKENS) * page_bytes(config, kv_cache)
    return Description(
        name=config.name or Path(path).stem,
        format=source.kind,
        architecture=config.model_type,
        parameters=sum(math.prod(weight.shape) for weight in source.weights.values()),
        layers=config.layers,
        hidden=config.hidden,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        feed_forward=config.feed_forward,
        vocabulary=config.vocabulary,
        context=positions,
        kv_cache=kv_cache,
        tied=config.tied,
        rope=_rope(config),
        tokenizer=source.tokenizer_name,
        has_chat_template=source.chat_template is not None,
        file_bytes=source.size_bytes,
        tensors=tuple(_describe_kind(*key, found) for key, found in kinds.items()),
        memory=MemoryEstimate(
            weights=weights,
            cache=cache,
            scratch=scratch_bytes(blueprint, positions),
            overhead=PROGRAM + TOKEN * config.vocabulary,
        ),
        bytes_per_token=weights - sum(source.weights[name].packed_bytes for name in _looked_up(config, source)),
        left_out=source.left_out,
    )


def _looked_up(config: Config, source: Source) -> list[str]:
    """Tables of which a token reads one row."""
    tables = ["model.embed_positions", *([] if config.tied else ["model.embed_tokens"])]
    return [name for name in tables if name in source.weights]


def scratch_bytes(blueprint: Blueprint, context: int, *, threads: int | None = None, tiles: bool | None = None) -> int:
    """What the plan's arena takes, but for rounding to cache lines.

    `threads`: None for one a processor; `tiles`: with tile units, None for whether the machine has them.
    """
    from cpuinfer import _core

    config, ops = blueprint.config, blueprint.graph.ops
    threads = threads or os.cpu_count() or 1
    if tiles is None:
        tiles = any(kernels["usable"] and kernels["tiles"] for kernels in _core.kernel_sets())
    matrices = [shape for name in blueprint.graph.used if len(shape := blueprint.tensor(name).shape) == 2]
    widest = max(shape[1] for shape in matrices)
    mixtures = [op for op in ops if isinstance(op, Experts)]
    # Of every row: rotary tables, and the widest input as floats, as codes with scales and sums, and as tile units read
    # it, in bf16.
    row = sum(rope.dims for rope in {op.rope for op in ops if isinstance(op, Attention) and op.rope})
    row += _padded(widest, PANEL) + widest // FLOAT + -(-widest // GROUP) + -(-widest // HALF) + tiles * widest // 2
    if mixtures:
        most = max(op.used for op in mixtures)
        inner = max(blueprint.tensor(op.down).shape[1] for op in mixtures)
        row += most * (5 + inner + config.hidden)  # its experts, their shares and places, values and outputs
    worker = _core.worker_bytes(
        widest=widest,
        head_dim=config.head_dim,
        experts=max((op.experts for op in mixtures), default=0),
        tiled_rows=BATCH if tiles else 0,
    )
    parts = part_bytes(config, threads) * (-(-context // SEGMENT) * SEGMENT) // PAGE_TOKENS
    logits = HEAD_ROWS * _padded(config.vocabulary, PANEL)
    return FLOAT * (BATCH * row + _value_floats(ops) + logits) + threads * worker + (parts if context > SEGMENT else 0)


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _value_floats(ops: Sequence[Op]) -> int:
    """What the values of a full batch take, each until it is read for the last time; the head's have their own room."""
    from cpuinfer import _core

    layout = _core.ArenaLayout()
    last = {value.index: i for i, op in enumerate(ops) for value in inputs(op)}
    live: dict[int, tuple[int, int]] = {}
    for i, op in enumerate(ops[:-1]):
        for value in outputs(op):
            floats = BATCH * _padded(value.width, PANEL)
            live[value.index] = layout.take(floats), floats
        for index in [index for index in live if last.get(index) == i]:
            layout.give_back(*live.pop(index))
    return layout.end


def _kind(name: str) -> str:
    """A tensor's name without its layer: `self_attn.q_proj`."""
    parts = name.split(".")
    return ".".join(parts[3:] if parts[:2] == ["model", "layers"] else parts[-1:])


def _rope(config: Config) -> str:
    rope = config.rope
    if rope is None:
        return "none"
    scaled = ", scaled" if rope.factors or rope.magnitude != 1 else ""
    return f"{rope.layout}, {rope.dims} dimensions, base {rope.base:g}{scaled}"


def _describe_kind(kind: str, encoding: str, layout: str, found: list[Weight]) -> TensorKind:
    from cpuinfer.description import TensorKind

    values = sum(math.prod(weight.shape) for weight in found)
    total = sum(weight.file_bytes for weight in found)
    return TensorKind(
        kind=kind,
        encoding=encoding,
        layout=layout,
        count=len(found),
        shape=found[0].shape,
        bits_per_weight=8 * total / values,
        packed_bits=8 * sum(weight.packed_bytes for weight in found) / values,
        bytes=total,
    )
