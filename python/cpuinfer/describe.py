"""Describes a model file: what it holds, how the kernels read it, and what running it takes, from its header alone."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cpuinfer.config import Config
from cpuinfer.loader import open_model
from cpuinfer.weight import PANEL, Weight
from cpuinfer.weights import Source

if TYPE_CHECKING:
    from cpuinfer.description import Description, TensorKind

PAGE_TOKENS = 32
"""Positions in a page of the key-value cache."""
PROGRAM, TOKEN = 40_000_000, 700
"""Bytes of the interpreter with its libraries, and of a tokenizer for each token (500 to 750); both measured."""


def page_bytes(config: Config) -> int:
    """Bytes of a page of the key-value cache: fp16 keys and values of PAGE_TOKENS positions, all layers."""
    padded = -(-config.head_dim // PANEL) * PANEL
    return config.layers * config.kv_heads * PAGE_TOKENS * (config.head_dim + padded) * 2


def score_bytes(threads: int) -> int:
    """Bytes of attention scores for each position of the context: fp32, 8 rows of a tile for each thread."""
    return threads * 8 * 4


def describe(path: str | Path, context: int | None = None, *, quantize: str | None = None) -> Description:
    """What a model holds and what running it would take."""
    from cpuinfer.description import Description, MemoryEstimate

    blueprint = open_model(path, context=context, quantize=quantize)
    config, source = blueprint.config, blueprint.source
    kinds: dict[tuple[str, str, str], list[Weight]] = {}
    for ours, weight in source.weights.items():
        layout = "f32" if len(weight.shape) == 1 else weight.layout
        kinds.setdefault((_kind(ours), weight.encoding, layout), []).append(weight)
    weights = sum(weight.packed_bytes for weight in source.weights.values())
    positions = context or config.context
    cache = -(-positions // PAGE_TOKENS) * page_bytes(config)
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


def scratch_bytes(config: Config, context: int, *, batch: int = 512, threads: int | None = None) -> int:
    """About what the plan's arena takes: activations of a batch, logits of 16 rows, attention scores per thread."""
    width = 3 * config.hidden + config.feed_forward + (config.heads + 2 * config.kv_heads) * config.head_dim
    scores = score_bytes(threads or os.cpu_count() or 1) * context
    return 4 * (batch * (width + 2 * max(config.hidden, config.feed_forward)) + 16 * config.vocabulary) + scores


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
