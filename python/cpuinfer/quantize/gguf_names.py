"""The tensors of a GGUF file that is made of weights of ours: which rows of which, in the order that files have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cpuinfer import models
from cpuinfer.config import Config
from cpuinfer.errors import UnsupportedModel
from cpuinfer.models import QKV, Architecture, Split, Target, Transposed
from cpuinfer.quantize.placement import Placed
from cpuinfer.weight import Weight

FUSED = "blk.{i}.attn_qkv"
APART = ("blk.{i}.attn_q", "blk.{i}.attn_k", "blk.{i}.attn_v")


def place(config: Config, weights: Mapping[str, Weight]) -> list[Placed]:
    """Every tensor; queries, keys and values in one where the folder has them so, as converters leave them.

    Raises UnsupportedModel for a weight that has no place in such files.
    """
    architecture = models.find(config.model_type)
    left_out = APART if _fused(architecture) else (FUSED,) if APART[0] in architecture.gguf_names else ()
    placed: list[Placed] = []
    used: set[str] = set()
    for pattern, target in architecture.gguf_names.items():
        if pattern in left_out or "{e}" in pattern or target is None:
            continue
        for layer in range(config.layers if "{i}" in pattern else 1):
            for suffix in (".weight", ".bias"):
                found = _place((pattern, target), layer, suffix, config, weights)
                if found is not None:
                    placed.append(found)
                    used.update(found.parts)
    if unused := sorted(weights.keys() - used):
        raise UnsupportedModel(f"{config.model_type}: {unused[0]} has no place in a GGUF file ({len(unused)} such)")
    return placed


def _fused(architecture: Architecture) -> bool:
    def of(target: Target) -> bool:
        inner = target.target if isinstance(target, Transposed) else target
        return isinstance(inner, Split) and inner.names == QKV.names

    return any(map(of, architecture.hf_names.values()))


def _place(
    named: tuple[str, Target], layer: int, suffix: str, config: Config, weights: Mapping[str, Weight]
) -> Placed | None:
    pattern, target = named
    architecture = models.find(config.model_type)
    name = pattern.replace("{i}", str(layer)) + suffix
    if not isinstance(target, (str, Split)):
        raise UnsupportedModel(f"{config.model_type}: {name} is not written to GGUF files")
    ours = [target] if isinstance(target, str) else list(target.names)
    ours = [each.replace("{i}", str(layer)) + ("" if suffix == ".weight" else suffix) for each in ours]
    held = [each for each in ours if each in weights]
    if not held:
        return None
    if len(held) < len(ours):
        raise UnsupportedModel(f"{name}: there is {held[0]}, but not all of {', '.join(ours)}")
    rows = [_order(each, weights[each], config, architecture) for each in ours]
    part = np.repeat(np.arange(len(ours), dtype=np.int16), [len(each) for each in rows])
    shape = (len(part), *weights[ours[0]].shape[1:])
    return Placed(name, shape, tuple(ours), part, np.concatenate(rows))


def _order(name: str, weight: Weight, config: Config, architecture: Architecture) -> npt.NDArray[np.int32]:
    """The rows of a weight as a file has them: pairs of a head that turn together are neighbours in some."""
    rows = np.arange(weight.shape[0], dtype=np.int32)
    if architecture.gguf_rope == architecture.hf_rope or not name.removesuffix(".bias").endswith(("q_proj", "k_proj")):
        return rows
    heads = config.heads if "q_proj" in name else config.kv_heads
    return np.ascontiguousarray(rows.reshape(heads, 2, -1).swapaxes(1, 2)).reshape(-1)


def is_fp32(placed: Placed) -> bool:
    """Whether a converted file has a tensor as F32 whatever the folder has: vectors, positions, routers."""
    return len(placed.shape) == 1 or any(name in placed.name for name in ("position_embd", "ffn_gate_inp"))
