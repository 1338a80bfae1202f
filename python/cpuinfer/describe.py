"""Describes a model file: what it holds, how the kernels read it, and what running it takes, from its header alone."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cpuinfer.config import Config
from cpuinfer.errors import InvalidRequest
from cpuinfer.loader import open_model
from cpuinfer.weight import PANEL, Weight
from cpuinfer.weights import Source

if TYPE_CHECKING:
    from cpuinfer.description import Description, TensorKind

PAGE_TOKENS = 32
"""Positions in a page of the key-value cache."""
GROUP, SEGMENT = 32, 512
"""Head dimensions that share a scale; positions whose attention is one partial result."""
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
    blocks = min(BATCH, (2 * threads - 1) // config.kv_heads) if threads > 1 else 0
    queries = blocks * max(1, 8 * config.kv_heads // config.heads) * config.heads
    return queries * (-(-config.head_dim // GROUP) * GROUP + 16) * 4 * PAGE_TOKENS // SEGMENT


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
            scratch=scratch_bytes(config, positions),
            overhead=PROGRAM + TOKEN * config.vocabulary,
        ),
        bytes_per_token=weights - sum(source.weights[name].packed_bytes for name in _looked_up(config, source)),
        left_out=source.left_out,
    )


def _looked_up(config: Config, source: Source) -> list[str]:
    """Tables of which a token reads one row."""
    tables = ["model.embed_positions", *([] if config.tied else ["model.embed_tokens"])]
    return [name for name in tables if name in source.weights]


def scratch_bytes(config: Config, context: int, *, batch: int = BATCH, threads: int | None = None) -> int:
    """About what the plan's arena takes: activations of a batch, logits of 16 rows, attention's partial results."""
    width = 3 * config.hidden + config.feed_forward + (config.heads + 2 * config.kv_heads) * config.head_dim
    parts = part_bytes(config, threads or os.cpu_count() or 1) * context // PAGE_TOKENS
    return 4 * (batch * (width + 2 * max(config.hidden, config.feed_forward)) + 16 * config.vocabulary) + parts


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
