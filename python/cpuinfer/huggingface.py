"""A Hugging Face folder as a model: config.json in our terms, safetensors as weights, plain or packed as published."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cpuinfer import models, rope, weights
from cpuinfer.chat import ChatTemplate
from cpuinfer.config import MOST_CONTEXT, MOST_SIZE, Config, Rope
from cpuinfer.errors import CheckpointError, UnsupportedFormat, UnsupportedModel
from cpuinfer.formats.canonical import FloatRows, Rows
from cpuinfer.models import Architecture, Json, RopeKeys
from cpuinfer.naming import arrange
from cpuinfer.published import Reader, reader
from cpuinfer.safetensors_folder import DTYPES, INDEX, SINGLE, SafetensorsFolder
from cpuinfer.tokenizer import Tokenizer
from cpuinfer.tokenizer.folder import chat_template
from cpuinfer.weight import Weight
from cpuinfer.weights import Source

CONFIG = "config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
"""What PEFT adds to a model, and transformers takes along."""
MOST_CONFIG = 10 << 20
"""Bytes of config.json."""
DEFAULT_QUANTIZE = "int4"
COMPARED_ROWS = 1024
_LAYOUTS: Mapping[str, Literal["f32", "f16", "bf16"]] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_KEYS: Mapping[str, str | Callable[[Json], object]] = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "feed_forward": "intermediate_size",
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}


def is_model_folder(path: Path) -> bool:
    """Whether a path is a folder this module opens."""
    return (path / CONFIG).is_file() and any((path / name).is_file() for name in (SINGLE, INDEX))


def open_source(path: Path, *, context: int | None = None, quantize: str | None = None) -> Source:
    """Open a folder.  Reads no weights but a head said to be the embedding table, to see whether it is.

    `context`: positions it is opened for, which some rope scalings depend on; None: those the configuration names.
    `quantize`: what float weights of matrices become: int4 (None), int8, nf4, or none to stay as they are.
    Raises CheckpointError, UnsupportedModel or UnsupportedFormat.
    """
    if any((path / name).is_file() for name in ADAPTERS):
        raise UnsupportedModel(f"{path}: an adapter beside the weights: merge it into them, or take it away")
    settings = read_json(path / CONFIG)
    architecture = models.find(_text(settings, "model_type", path))
    tensors = SafetensorsFolder(path)
    config = read_config(settings, architecture, name=path.resolve().name, context=context)
    packed = settings.get("quantization_config")
    published = reader(packed) if isinstance(packed, Mapping) else None
    if published is not None and quantize is not None:
        raise UnsupportedFormat(f"{path}: its weights are quantised already: leave out quantize (--quantize)")
    stored = stored_weights(tensors, published, architecture.hf_left_out)
    ours = arrange(stored, architecture.hf_names, config)
    _check(ours, config)
    if config.tied and "lm_head" in ours:
        if _equal(ours["lm_head"], ours.get("model.embed_tokens")):
            del ours["lm_head"]  # a copy, which some folders keep
        else:
            config = replace(config, tied=False)  # trained apart, and the flag forgotten
    if published is None and quantize != "none":
        ours = {name: _rounded(name, weight, quantize or DEFAULT_QUANTIZE) for name, weight in ours.items()}
    return Source(
        path=path,
        kind="safetensors",
        files=(path / CONFIG, *tensors.files),
        size_bytes=tensors.size_bytes,
        config=config,
        weights=ours,
        tokenizer_name=_tokenizer_name(path),
        tokenizer=lambda: Tokenizer.from_folder(path),
        chat_template=_template(path),
        left_out=tuple(
            part.rstrip(".")
            for part in architecture.hf_left_out
            if any(name.startswith(part) for name in tensors.names())
        ),
    )


def _check(ours: Mapping[str, Weight], config: Config) -> None:
    for weight in ours.values():
        if weight.encoding in DTYPES and weight.encoding not in _LAYOUTS:
            raise UnsupportedFormat(f"{weight.name}: {weight.encoding}, expected {', '.join(_LAYOUTS)}")
    table = ours.get("model.embed_tokens")
    if table is not None and table.shape[0] != config.vocabulary:
        raise UnsupportedModel(
            f"{table.name}: {table.shape[0]} rows, expected the vocabulary of {config.vocabulary} that {CONFIG} names"
        )


def _equal(head: Weight, table: Weight | None) -> bool:
    """Whether the file has the same numbers twice."""
    if table is None or (head.shape, head.encoding) != (table.shape, table.encoding):
        return False

    def same(begin: int) -> bool:
        end = min(begin + COMPARED_ROWS, head.shape[0])
        rows, others = (weight.rows(begin, end).to_float(np.float32) for weight in (head, table))
        return np.array_equal(rows, others)

    return all(same(begin) for begin in range(0, head.shape[0], COMPARED_ROWS))


def _rounded(name: str, weight: Weight, how: str) -> Weight:
    """Embeddings and the head keep 8 bits: they are few, and errors in them reach every token."""
    sensitive = name in {"model.embed_tokens", "model.embed_positions", "lm_head"}
    return weights.quantised(weight, "int8" if sensitive and how != "none" else how)


def read_config(settings: Json, architecture: Architecture, *, name: str = "", context: int | None = None) -> Config:
    """A config.json in our terms.  Raises UnsupportedModel for what it lacks and for values that cannot be."""
    settings = of_the_text(settings, architecture)

    def get(field: str) -> object:
        key = {**_KEYS, **architecture.hf_keys}[field]
        return key(settings) if callable(key) else settings.get(key)

    def size(field: str, default: int | None = None) -> int:
        value = get(field)
        value = default if value is None else value
        most = MOST_CONTEXT if field == "context" else MOST_SIZE
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            key = {**_KEYS, **architecture.hf_keys}[field]
            named = key if isinstance(key, str) else field
            raise UnsupportedModel(f"{CONFIG}: {named} is {value!r}, expected an integer from 1 to {most}")
        return value

    if settings.get("is_causal") is False:
        raise UnsupportedModel(f"{CONFIG}: is_causal is False: attention both ways is not supported")
    hidden, heads = size("hidden"), size("heads")
    kv_heads = size("kv_heads", heads)
    if heads % kv_heads:
        raise UnsupportedModel(f"{CONFIG}: {heads} heads are not a multiple of {kv_heads} key-value heads")
    head_dim = size("head_dim", hidden // heads)
    eps = get("norm_eps")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps <= 1:
        raise UnsupportedModel(f"{CONFIG}: norm_eps is {eps!r}, expected a number of 0 to 1")
    trained = size("context")
    return Config(
        model_type=architecture.model_type,
        name=name,
        layers=size("layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=size("feed_forward"),
        vocabulary=size("vocabulary"),
        context=trained,
        norm_eps=float(eps),
        tied=settings.get("tie_word_embeddings") is True,
        rope=_read_rope(settings, architecture, head_dim, trained, context) if architecture.has_rope else None,
        options={option: _option(settings, entry.hf, entry.default) for option, entry in architecture.options.items()},
    )


def of_the_text(settings: Json, architecture: Architecture) -> Json:
    """What a configuration says of the language model, and what it means by leaving out the rest."""
    if architecture.hf_part is None:
        return {**architecture.hf_defaults, **settings}
    whole = {key: settings[key] for key in ("tie_word_embeddings",) if key in settings}  # said beside the parts
    return {**architecture.hf_defaults, **_object(settings, architecture.hf_part), **whole}


def _option(settings: Json, where: str | Callable[[Json], object] | None, default: object) -> object:
    found = where(settings) if callable(where) else settings.get(where) if where is not None else None
    return default if found is None else found


def rope_scaling(settings: Json) -> Json:
    """`rope_parameters` of newer configurations has what `rope_theta` and `rope_scaling` say in older ones.

    A `rope_scaling` beside it was added by hand, as model cards tell to, and is what counts.
    """
    scaling, parameters = _object(settings, "rope_scaling"), _object(settings, "rope_parameters")
    scaling = {**_object(parameters, "full_attention"), **scaling} if "full_attention" in parameters else scaling
    scaling = scaling or parameters
    original = settings.get("original_max_position_embeddings")  # of the whole model, where the file names two
    return scaling if original is None else {**scaling, "original_max_position_embeddings": original}


def _read_rope(settings: Json, architecture: Architecture, head_dim: int, trained: int, context: int | None) -> Rope:
    keys = architecture.hf_rope_keys
    scaling = rope_scaling(settings)
    base = scaling.get("rope_theta", settings.get(keys.base, 10000.0))
    if isinstance(base, bool) or not isinstance(base, (int, float)) or not 1 < base <= 1e12:
        raise UnsupportedModel(f"{CONFIG}: {keys.base} is {base!r}, expected a number above 1")
    dims = _rotated(settings, scaling, keys, head_dim)
    plain = Rope(dims, float(base), architecture.hf_rope)
    return rope.scaled(plain, scaling, rope.Positions(trained, context or trained))


def _rotated(settings: Json, scaling: Json, keys: RopeKeys, head_dim: int) -> int:
    """Rotated dimensions of a head."""
    newer = "partial_rotary_factor"
    key = newer if newer in scaling or keys.share is None else keys.share
    share = scaling.get(key, settings.get(key))
    share = 1 if share is None else share
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise UnsupportedModel(f"{CONFIG}: {key} is {share!r}, expected a number above 0 up to 1")
    if keys.share is None and share != 1:
        raise UnsupportedModel(f"{CONFIG}: {key} is {share!r}, but the architecture rotates whole heads")
    dims = int(head_dim * share) if keys.dims is None else settings.get(keys.dims)
    dims = head_dim if dims is None else dims
    if isinstance(dims, bool) or not isinstance(dims, int) or not 2 <= dims <= head_dim or dims % 2:
        raise UnsupportedModel(f"{CONFIG}: {dims!r} rotated dimensions of {head_dim}, expected an even number of them")
    return dims


def _object(settings: Json, key: str) -> Json:
    value = settings.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UnsupportedModel(f"{CONFIG}: {key} is {value!r}, expected an object")
    return value


def stored_weights(
    tensors: SafetensorsFolder, published: Reader | None, left_out: tuple[str, ...]
) -> dict[str, Weight]:
    """The tensors of a folder, by their names without `.weight`; those of a packed layer as one, by the layer's."""
    stored: dict[str, Weight] = {}
    packed: set[str] = set()
    names = [name for name in tensors.names() if not name.startswith(left_out)]
    if published is not None:
        prefixes = {name.rpartition(".")[0] for name in names}
        for prefix in sorted(prefix for prefix in prefixes if published.is_quantised(tensors, prefix)):
            stored[prefix] = published(tensors, prefix)
            packed.update(stored[prefix].tensor_names)
    for name in names:
        if name not in packed:
            stored[name.removesuffix(".weight")] = _plain(tensors, name)
    return stored


def _plain(tensors: SafetensorsFolder, name: str) -> Weight:
    dtype, shape = tensors.dtype(name), tensors.shape(name)

    def rows(begin: int, end: int) -> Rows:
        values = tensors.read_rows(name, begin, end)
        return FloatRows(values.reshape(end - begin, -1) if len(shape) > 1 else values[None], layout)

    layout = _LAYOUTS.get(dtype, "f32")  # others have no place in a model: _check
    return Weight(
        name=name,
        shape=shape if len(shape) < 2 else (math.prod(shape[:-1]), shape[-1]),
        encoding=dtype,
        layout=layout,
        file_bytes=tensors.bytes(name),
        rows=rows,
        floats=lambda: rows(0, shape[0]).to_float(np.float64).reshape(shape),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size."""
    try:
        if path.stat().st_size > MOST_CONFIG:
            raise CheckpointError(f"{path}: more than {MOST_CONFIG >> 20} MiB, expected a small JSON file")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return found


def _text(settings: Json, key: str, path: Path) -> str:
    value = settings.get(key)
    if not isinstance(value, str):
        raise CheckpointError(f"{path / CONFIG}: {key} is {value!r}, expected a string")
    return value


def _tokenizer_name(path: Path) -> str:
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"):
        if (path / name).is_file():
            return name
    return "none"


def _template(path: Path) -> Callable[[Tokenizer], ChatTemplate] | None:
    source, tool_use = chat_template(path), chat_template(path, "tool_use")
    if source is None:
        return None

    def compiled(tokenizer: Tokenizer) -> ChatTemplate:
        bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
        eos = "" if tokenizer.eos_id is None else tokenizer.token_text(tokenizer.eos_id)
        return ChatTemplate(source, bos_token=bos, eos_token=eos, origin=str(path), tool_use=tool_use)

    return compiled
