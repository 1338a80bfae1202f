"""Small folders with random weights, and those weights rounded to a scheme, for tests of what is written of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH as ARCH
from safetensors.numpy import save_file

import converted_classic_gguf as classic
import converted_gguf as kin
from architectures import Options, native_logits
from cpuinfer import formats, loader, models
from cpuinfer.formats.canonical import BlockRows, IntegerRows, TableRows
from cpuinfer.graph import Graph
from cpuinfer.quantize import placement, scheme
from cpuinfer.weight import Weight
from cpuinfer.weights import Source

KEPT = ("embed_tokens", "embed_positions", "lm_head")
AWKWARD: Options = {
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 96,
    "intermediate_size": 104,  # no multiple of 32: what reads it stays as it is
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def folder_of(path: Path, name: str) -> Path:
    """A folder of an architecture: "llama", "phi3" (fused), "gpt_neox" (fused by head), "gpt2" (turned), "awkward"."""
    if name == "awkward":
        return write_folder(path, AWKWARD, _awkward())
    if name in ("gpt_neox", "gpt2"):
        case = classic.neox(parallel=True) if name == "gpt_neox" else classic.gpt2()
        return write_folder(path, case.settings, classic.make_folder(case))
    absent = tuple(f".{part}_proj" for part in ("q", "k", "v", "gate", "up")) if name == "phi3" else ()
    made = kin.Case(name, ARCH.PHI3 if name == "phi3" else ARCH.LLAMA, absent=absent)
    return write_folder(path, {**kin.SETTINGS, "model_type": name}, kin.make_folder(made))


def _awkward() -> dict[str, Any]:
    random = np.random.default_rng(11)
    shapes = {"q_proj": (96, 96), "k_proj": (32, 96), "v_proj": (32, 96), "o_proj": (96, 96)}
    inner = {"gate_proj": (104, 96), "up_proj": (104, 96), "down_proj": (96, 104)}
    layer = {f"self_attn.{name}": shape for name, shape in shapes.items()}
    layer |= {f"mlp.{name}": shape for name, shape in inner.items()}
    layer |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (96,))
    named = {f"model.layers.0.{name}": shape for name, shape in layer.items()}
    named |= {"model.embed_tokens": (37, 96), "model.norm": (96,)}
    return {f"{name}.weight": random.normal(len(shape) == 1, 0.1, shape) for name, shape in named.items()}


def write_folder(path: Path, settings: Options, tensors: Mapping[str, Any]) -> Path:
    """config.json and the tensors in float32."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(settings))
    save_file(
        {name: np.ascontiguousarray(each, np.float32) for name, each in tensors.items()}, path / "model.safetensors"
    )
    return path


def opened(path: Path) -> Source:
    """A folder or file as it is."""
    return loader.open_model(path, quantize="none" if is_float_folder(path) else None).source


def is_float_folder(path: Path) -> bool:
    return path.is_dir() and "quantization_config" not in json.loads((path / "config.json").read_text())


def rounded(source: Source, name: str, *, order: bool = False, two_level: bool = False) -> dict[str, Weight]:
    """All matrices but tables and the head, by our names, rounded to a scheme or a GGUF block type.

    order: codes are of the columns in a random order, the same for weights of as many inputs.
    """
    found = {}
    for our_name, weight in source.weights.items():
        if len(weight.shape) == 2 and not our_name.endswith(KEPT):
            made = round_weight(our_name, weight, name, order=order, two_level=two_level)
            if made is not None:
                found[our_name] = made
    return found


def round_weight(
    our_name: str, weight: Weight, name: str, *, order: bool = False, two_level: bool = False
) -> Weight | None:
    """One of them; None for inputs that do not divide."""
    values = weight.floats().astype(np.float32)
    k = values.shape[1]
    if name in formats.supported():
        form = formats.find(name)
        if k % form.elements:
            return None
        raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
        return _weight(our_name, name, BlockRows(raw, form, k), form.layout, zero=form.zero, has_bias=form.has_bias)
    found = scheme.find(name)
    if k % 32 or (found.group > 0 and k % found.group):
        return None
    columns = np.random.default_rng(k).permutation(k).astype(np.int32) if order else None
    if columns is not None:
        values = np.ascontiguousarray(values[:, columns])
    fit = found.fit(values, search=False)
    if two_level:
        from cpuinfer.quantize.own_output import two_levels

        fit = found.represent(two_levels(fit.scale)[2].astype(np.float32), fit.offset)
    rows = found.rows(found.codes(values, fit), fit)
    if isinstance(rows, TableRows):
        made = _weight(our_name, found.name, rows, "table4", group=rows.group, table=rows.table)
    else:
        assert isinstance(rows, IntegerRows)
        layout = "int4" if len(found.levels) <= 16 else "int8"
        made = _weight(
            our_name, found.name, rows, layout, group=rows.group, zero=rows.zero, has_zeros=rows.zeros is not None
        )
    return replace(made, input_order=columns)


def _weight(name: str, encoding: str, rows: Any, layout: Any, **others: Any) -> Weight:
    shape = (len(rows.raw), rows.k) if isinstance(rows, BlockRows) else rows.codes.shape
    return Weight(
        name=name,
        shape=shape,
        encoding=encoding,
        layout=layout,
        file_bytes=shape[0] * shape[1] // 2,
        rows=lambda begin, end: placement.taken(rows, np.arange(begin, end)),
        floats=lambda: rows.to_float(np.float64),
        **others,
    )


def meant(weight: Weight) -> Any:
    """The exact values of a weight's rows, columns in its own order."""
    if len(weight.shape) == 1:
        return weight.floats()
    values = weight.rows(0, weight.shape[0]).to_float(np.float64)
    if weight.input_order is not None:
        values[:, weight.input_order] = values.copy()
    return values.reshape(weight.shape)


def native(source: Source, weights: Mapping[str, Weight], tokens: Sequence[int]) -> Any:
    """Logits of the native core with these weights in place of the source's."""
    changed = replace(source, weights={**source.weights, **weights})
    graph = Graph({name: weight.shape for name, weight in changed.weights.items()})
    logits = models.find(source.config.model_type).build(graph, source.config)
    return native_logits(loader.Blueprint(changed, graph, logits, 0), tokens)


def assert_runs(path: Path, source: Source, weights: Mapping[str, Weight]) -> None:
    """What was written computes, to the bit, what these weights do."""
    tokens = np.random.default_rng(7).integers(1, source.config.vocabulary, 20).tolist()
    found = native_logits(loader.open_model(path, quantize="none" if is_float_folder(path) else None), tokens)
    np.testing.assert_array_equal(found, native(source, weights, tokens))


def assert_holds(path: Path, source: Source, weights: Mapping[str, Weight]) -> Source:
    """What was written has these weights, and the source's others, to the bit: by rows and by `floats`."""
    found = opened(path)
    assert found.weights.keys() == source.weights.keys()
    for name, before in source.weights.items():
        expected = meant(weights.get(name, before))
        np.testing.assert_array_equal(found.weights[name].floats(), expected, err_msg=name)
        np.testing.assert_array_equal(meant(found.weights[name]), expected, err_msg=name)
    return found
