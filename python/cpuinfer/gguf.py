"""How a GGUF file says what a model is: its hyper-parameters and tensor names, in our terms.

Keys and their meaning are those of the GGUF specification's section on standardised key-value pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cpuinfer import models
from cpuinfer.chat import ChatTemplate
from cpuinfer.checkpoint import Checkpoint, open_checkpoint
from cpuinfer.config import MOST_CONTEXT, MOST_SIZE, Config, Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.models import Architecture, Option
from cpuinfer.naming import arrange
from cpuinfer.rope import Positions, scaled
from cpuinfer.tokenizer import Tokenizer
from cpuinfer.weight import Weight
from cpuinfer.weights import Source, from_checkpoint

ROPE_FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = (ROPE_FACTORS, LONG, SHORT)
"""Divisors of the rotary frequencies, one a pair: how converters write Llama 3's scaling, and LongRoPE's two sets."""
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""Rotations between which YaRN's ramp lies."""
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),  # 1: softmax
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
"""Keys that change what is computed, with the values that leave it as it is here."""
VARIANTS = {"llama": ("mixtral", "expert_count"), "olmo2": ("olmo3", "attention.sliding_window")}
"""Architectures of which a key that is not 0 makes another."""
TEMPLATE, TOOL_USE = "tokenizer.chat_template", "tokenizer.chat_template.tool_use"


def open_source(path: Path, *, context: int | None = None) -> Source:
    """Open a GGUF file, or all parts of a split one.  Reads no weights.

    `context`: positions it is opened for, which LongRoPE depends on; None: those the file names.
    Raises CheckpointError, UnsupportedModel or UnsupportedFormat.
    """
    checkpoint = open_checkpoint(path)
    architecture = find_architecture(checkpoint)
    config = read_config(checkpoint, architecture, context)
    metadata = checkpoint.metadata
    kind = checkpoint.optional("tokenizer.ggml.model", str, "none")
    return Source(
        path=path,
        kind="GGUF",
        files=checkpoint.files,
        size_bytes=checkpoint.size_bytes,
        config=config,
        weights=arrange(stored_weights(checkpoint), architecture.gguf_names, config),
        tokenizer_name=f"{kind} ({checkpoint.optional('tokenizer.ggml.pre', str, 'default')})",
        tokenizer=lambda: Tokenizer.from_metadata(metadata, str(path)),
        chat_template=(lambda tokenizer: _template(checkpoint, tokenizer)) if TEMPLATE in metadata else None,
    )


def stored_weights(checkpoint: Checkpoint) -> dict[str, Weight]:
    """The tensors of a file that are weights, by their names without `.weight`."""
    return {
        name.removesuffix(".weight"): from_checkpoint(checkpoint, info)
        for name, info in checkpoint.tensors.items()
        if name not in ROPE_TENSORS
    }


def _template(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ChatTemplate:
    def text(key: str) -> str:
        token = checkpoint.metadata.get(f"tokenizer.ggml.{key}")
        return tokenizer.token_text(token) if isinstance(token, int) else ""

    source = checkpoint.require(TEMPLATE, str)
    bos, eos = text("bos_token_id"), text("eos_token_id")
    tool_use = checkpoint.require(TOOL_USE, str) if TOOL_USE in checkpoint.metadata else None
    return ChatTemplate(source, bos_token=bos, eos_token=eos, origin=str(checkpoint.path), tool_use=tool_use)


def find_architecture(checkpoint: Checkpoint) -> Architecture:
    """The architecture that a GGUF file names."""
    name = checkpoint.require("general.architecture", str)
    variant, key = VARIANTS.get(name, (name, ""))
    if key and checkpoint.optional(f"{name}.{key}", int, 0):
        name = variant
    architecture = models.find(models.GGUF_NAMES.get(name, name))
    if not architecture.gguf_names:
        raise UnsupportedModel(f"architecture {name!r} is supported in safetensors folders, not in GGUF files")
    return architecture


def read_config(checkpoint: Checkpoint, architecture: Architecture, context: int | None = None) -> Config:
    """Hyper-parameters of the model in a GGUF file.

    Raises UnsupportedModel for an architecture or option not known, CheckpointError for values that cannot be.
    """
    arch = checkpoint.require("general.architecture", str)
    _refuse_others(checkpoint, arch)

    def size(key: str) -> int:
        return checkpoint.require(f"{arch}.{key}", int, minimum=1, maximum=MOST_SIZE)

    hidden, heads = size("embedding_length"), size("attention.head_count")
    kv_heads = checkpoint.optional(f"{arch}.attention.head_count_kv", int, heads, minimum=1, maximum=MOST_SIZE)
    if heads % kv_heads:
        raise checkpoint.error("header", f"{heads} heads are not a multiple of {kv_heads} key-value heads")
    head_dim = checkpoint.optional(f"{arch}.attention.key_length", int, hidden // heads, minimum=1, maximum=MOST_SIZE)
    value_dim = checkpoint.optional(f"{arch}.attention.value_length", int, head_dim, minimum=1, maximum=MOST_SIZE)
    if value_dim != head_dim:
        raise UnsupportedModel(f"values of {value_dim} per head, keys of {head_dim}: must be equal")
    embedding = checkpoint.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise checkpoint.error("tensor token_embd.weight", "missing or not a matrix")
    if embedding.shape[1] != hidden:
        raise checkpoint.error("tensor token_embd.weight", f"shape {embedding.shape}, expected (*, {hidden})")
    trained = checkpoint.require(f"{arch}.context_length", int, minimum=1, maximum=MOST_CONTEXT)
    return Config(
        model_type=architecture.model_type,
        name=checkpoint.optional("general.name", str, ""),
        layers=size("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=size("feed_forward_length"),
        vocabulary=embedding.shape[0],
        context=trained,
        norm_eps=checkpoint.require(_norm_key(checkpoint, arch), float, minimum=0.0, maximum=1.0),
        tied="output.weight" not in checkpoint.tensors,
        rope=_read_rope(checkpoint, architecture, head_dim, Positions(trained, context or trained)),
        options={name: _option(checkpoint, arch, option) for name, option in architecture.options.items()},
    )


def _refuse_others(checkpoint: Checkpoint, arch: str) -> None:
    for name, values in NEUTRAL.items():
        found = checkpoint.metadata.get(f"{arch}.{name}", values[0])
        if not isinstance(found, (bool, int, float)) or found not in values:
            raise UnsupportedModel(f"key {arch}.{name} is {found!r}, only {values[-1]!r} is supported")


def _norm_key(checkpoint: Checkpoint, arch: str) -> str:
    layer, root = (f"{arch}.attention.layer_norm_{kind}epsilon" for kind in ("", "rms_"))
    metadata = checkpoint.metadata
    if layer in metadata and root in metadata and metadata[layer] != metadata[root]:
        raise UnsupportedModel(f"keys {layer} and {root} are {metadata[layer]!r} and {metadata[root]!r}, expected one")
    return layer if layer in metadata else root


def _option(checkpoint: Checkpoint, arch: str, option: Option) -> object:
    key = f"{arch}.{option.gguf}"
    if option.gguf is None or key not in checkpoint.metadata:
        return option.default
    value = checkpoint.metadata[key]
    return value[:MOST_SIZE].tolist() if isinstance(value, memoryview) else value


def _read_rope(checkpoint: Checkpoint, architecture: Architecture, head_dim: int, positions: Positions) -> Rope | None:
    if not architecture.has_rope:
        return None
    arch = checkpoint.require("general.architecture", str)
    dims = checkpoint.optional(f"{arch}.rope.dimension_count", int, head_dim, minimum=2, maximum=head_dim)
    if dims % 2:
        raise checkpoint.error(f"key {arch}.rope.dimension_count", f"is {dims}, expected an even number")
    base = checkpoint.optional(f"{arch}.rope.freq_base", float, 10000.0, minimum=1.0, maximum=1e12)
    rope = Rope(dims, base, architecture.gguf_rope)
    attention_factor = _scaling(checkpoint, arch, "attn_factor", 1.0)
    long = LONG in checkpoint.tensors
    # A factor counts though no type is named, also by the key of files of 2023; 0 stands for none.
    kind = "longrope" if long else checkpoint.optional(f"{arch}.rope.scaling.type", str, "linear")
    older = checkpoint.optional(f"{arch}.rope.scale_linear", float, 1.0, minimum=0.0, maximum=1e12)
    factor = _scaling(checkpoint, arch, "factor", older) or 1.0
    original = checkpoint.optional(
        f"{arch}.rope.scaling.original_context_length", int, positions.trained, minimum=1, maximum=MOST_CONTEXT
    )
    scaling: dict[str, object] = {"rope_type": kind, "original_max_position_embeddings": original}
    if long:
        given = f"{arch}.rope.scaling.attn_factor" in checkpoint.metadata
        scaling |= {
            "attention_factor": attention_factor if given else None,
            "long_factor": _read_factors(checkpoint, LONG, dims // 2),
            "short_factor": _read_factors(checkpoint, SHORT, dims // 2),
        }
        return scaled(rope, scaling, positions)
    if ROPE_FACTORS in checkpoint.tensors:
        if kind != "none" and (kind, factor) != ("linear", 1.0):
            raise UnsupportedModel(f"tensor {ROPE_FACTORS} beside rope.scaling.type {kind!r}, factor {factor:g}")
        return replace(rope, factors=_read_factors(checkpoint, ROPE_FACTORS, dims // 2), magnitude=attention_factor)
    if (kind, factor) != ("linear", 1.0):
        # Converters' name for the attention_factor of config.json.
        magnitude = _scaling(checkpoint, arch, "yarn_attn_factor", 0.0) or None
        scaling |= {"factor": factor, "attention_factor": magnitude}
        scaling |= {key: _scaling(checkpoint, arch, f"yarn_{key}", usual) for key, usual in BETAS.items()}
        rope = scaled(rope, scaling, positions)
    return replace(rope, magnitude=rope.magnitude * attention_factor)


def _scaling(checkpoint: Checkpoint, arch: str, key: str, default: float) -> float:
    return checkpoint.optional(f"{arch}.rope.scaling.{key}", float, default, minimum=0.0, maximum=1e12)


def _read_factors(checkpoint: Checkpoint, name: str, pairs: int) -> tuple[float, ...]:
    import numpy as np

    info = checkpoint.tensor(name)
    if info.encoding != "F32" or info.shape != (pairs,):
        raise checkpoint.error(f"tensor {name}", f"{info.encoding} {info.shape}, expected F32 ({pairs},)")
    values = checkpoint.read_rows(name, 0, 1).view(np.float32).ravel()
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise checkpoint.error(f"tensor {name}", "expected finite, positive numbers")
    return tuple(float(value) for value in values)
