"""Folders of packed weights: what went in comes out to the bit, in the layout that others read, or nothing is left."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import published_files as files
from cpuinfer.errors import OutputError, UnsupportedFormat, UnsupportedModel
from cpuinfer.formats.canonical import FloatRows, IntegerRows
from cpuinfer.quantize import compressed_output, gptq_output, own_output, safetensors_file
from cpuinfer.weight import Weight
from quantised_models import assert_holds, assert_runs, folder_of, is_float_folder, meant, opened, round_weight, rounded

ARCHITECTURES = ["llama", "phi3", "gpt_neox", "awkward"]
WRITERS = {"gptq": gptq_output, "compressed": compressed_output, "own": own_output}
PACKED = [f"int{bits}:g{group}:{kind}" for bits in (4, 8) for group in (32, -1) for kind in ("sym", "asym")]


def quantization(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "config.json").read_text())["quantization_config"]
    return found


def names_in(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_packed_folder_holds_what_was_written(writer: str, name: str, tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, name)
    assert len(weights) == 6  # all but down, whose inputs do not divide
    WRITERS[writer].write_folder(tmp_path / "out", source, weights)
    assert_holds(tmp_path / "out", source, weights)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("writer", WRITERS)
def test_weights_that_share_a_tensor_of_the_file_find_their_rows(
    writer: str, architecture: str, tmp_path: Path
) -> None:
    source = opened(folder_of(tmp_path / "in", architecture))
    weights = rounded(source, "int4:g32:asym")
    WRITERS[writer].write_folder(tmp_path / "out", source, weights, threads=2)
    found = assert_holds(tmp_path / "out", source, weights)
    assert sum("int4" in weight.encoding for weight in found.weights.values()) == len(weights) > 0


@pytest.mark.parametrize("writer", WRITERS)
def test_a_packed_folder_runs(writer: str, tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "llama"))
    weights = rounded(source, "int4:g32:asym")
    WRITERS[writer].write_folder(tmp_path / "out", source, weights)
    assert_runs(tmp_path / "out", source, weights)


@pytest.mark.parametrize("writer", ["gptq", "own"])
def test_columns_in_an_order_of_their_own_are_those_of_the_weight(writer: str, tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, "int4:g32:asym", order=True)
    WRITERS[writer].write_folder(tmp_path / "out", source, weights)
    assert_holds(tmp_path / "out", source, weights)
    assert_runs(tmp_path / "out", source, weights)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("name", ["int4:g32:sym", "int8:g32:asym"])
def test_gptq_tensors_are_those_of_the_format(name: str, order: bool, tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, name, order=order)
    gptq_output.write_folder(tmp_path / "out", source, weights)
    config = quantization(tmp_path / "out")
    version = {"gptq": 1, "gptq_v2": 2}[config["checkpoint_format"]]
    assert (config["sym"], version) == ((True, 1) if name.endswith(":sym") else (False, 2))
    assert config["desc_act"] is order
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for our_name, weight in weights.items():
        codes, scale, zeros, index = parts(weight)
        expected = files.gptq(our_name, codes, scale, zeros, config["bits"], version=version, g_idx=index)
        for part, array in expected.items():
            assert stored[part].dtype == array.dtype
            np.testing.assert_array_equal(stored[part], array, err_msg=part)


@pytest.mark.parametrize("name", ["int4:g32:sym", "int4:g32:asym", "int8:g32:asym"])
def test_compressed_tensors_are_those_of_the_format(name: str, tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, name)
    compressed_output.write_folder(tmp_path / "out", source, weights)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for our_name, weight in weights.items():
        codes, scale, zeros, _ = parts(weight)
        bits = 4 if name.startswith("int4") else 8
        half = 1 << (bits - 1)
        signed = None if name.endswith(":sym") else zeros.astype(int) - half
        expected = files.compressed_tensors(our_name, codes.astype(int) - half, scale, signed, bits)
        for part, array in expected.items():
            assert stored[part].dtype == array.dtype
            np.testing.assert_array_equal(stored[part], array, err_msg=part)


@pytest.mark.parametrize("name", PACKED)
def test_the_compressed_tensors_package_reads_what_is_written(name: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors")
    import torch
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    source = opened(folder_of(tmp_path / "in", "gpt_neox"))
    weights = rounded(source, name)
    compressed_output.write_folder(tmp_path / "out", source, weights)
    scheme = QuantizationConfig.model_validate(quantization(tmp_path / "out")).config_groups["group_0"]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    prefix = "gpt_neox.layers.1.attention.query_key_value"
    state = {part.rpartition(".")[2]: torch.tensor(each) for part, each in stored.items() if part.startswith(prefix)}
    del state["bias"]
    state["weight_scale"] = state["weight_scale"].double()  # it computes in the scale's type
    found = PackedQuantizationCompressor.decompress(state, scheme)["weight"].numpy()
    heads = [meant(weights[f"model.layers.1.self_attn.{part}_proj"]).reshape(4, 8, 32) for part in "qkv"]
    np.testing.assert_array_equal(found, np.stack(heads, axis=1).reshape(96, 32))


@pytest.mark.parametrize(("name", "ones"), [("int4:g32:sym", 0x11111111), ("int8:g32:sym", 0x01010101)])
def test_gptq_of_version_1_is_unpacked_as_other_readers_do(name: str, ones: int, tmp_path: Path) -> None:
    """gptqmodel adds one to each zero point of a word at once, and shifts codes out along the inputs."""
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, name, order=True)
    gptq_output.write_folder(tmp_path / "out", source, weights)
    bits = quantization(tmp_path / "out")["bits"]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for prefix, weight in weights.items():
        words = (stored[f"{prefix}.qzeros"].astype(np.int64) + ones).astype(np.uint32)
        shifts, mask = np.arange(0, 32, bits), (1 << bits) - 1
        zeros = (words[:, :, None] >> shifts & mask).reshape(len(words), -1)
        qweight = stored[f"{prefix}.qweight"].view(np.uint32)
        codes = (qweight[:, None, :] >> shifts[:, None] & mask).reshape(-1, qweight.shape[1])
        index = stored[f"{prefix}.g_idx"]
        scale = stored[f"{prefix}.scales"].astype(np.float64)
        values = scale[index] * (codes.astype(np.int64) - zeros[index].astype(np.int64))
        np.testing.assert_array_equal(values.T, meant(weight))


def test_compressed_tensors_have_columns_in_their_own_order(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    with pytest.raises(UnsupportedFormat, match=r"_proj: columns in an order of their own"):
        compressed_output.write_folder(tmp_path / "out", source, rounded(source, "int4:g32:sym", order=True))


def parts(weight: Weight) -> tuple[Any, Any, Any, Any]:
    """Codes in the weight's own order of columns, scale, zero points, and the group of each column."""
    rows = weight.rows(0, weight.shape[0])
    assert isinstance(rows, IntegerRows)
    k = weight.shape[1]
    order = np.arange(k) if weight.input_order is None else weight.input_order
    codes, index = np.empty_like(rows.codes), np.empty(k, int)
    for i in range(k):
        codes[:, order[i]], index[order[i]] = rows.codes[:, i], i // rows.group
    zeros = np.full(rows.scale.shape, rows.zero, np.uint8) if rows.zeros is None else rows.zeros
    return codes, rows.scale, zeros, index


def test_layers_may_differ_where_the_format_can_say_so(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, "int4:g32:asym")
    name = "model.layers.0.mlp.up_proj"
    mixed = {**weights, name: round_weight(name, source.weights[name], "int8:g-1:sym")}
    for writer in (compressed_output, own_output):
        writer.write_folder(tmp_path / writer.__name__, source, mixed)
        assert_holds(tmp_path / writer.__name__, source, mixed)
    with pytest.raises(UnsupportedFormat, match=r"up_proj: int8:g-1:sym, but .*GPTQ has the same bits"):
        gptq_output.write_folder(tmp_path / "gptq", source, mixed)
    assert not (tmp_path / "gptq").exists()


def test_a_layer_that_stays_float_is_named_to_other_readers(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, "int4:g32:sym")
    gptq_output.write_folder(tmp_path / "gptq", source, weights)
    assert quantization(tmp_path / "gptq")["dynamic"] == {r"-:^model\.layers\.0\.mlp\.down_proj$": {}}
    compressed_output.write_folder(tmp_path / "compressed", source, weights)
    assert quantization(tmp_path / "compressed")["ignore"] == ["lm_head", "model.layers.0.mlp.down_proj"]


def test_other_files_go_with_the_weights_and_weights_of_others_do_not(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "awkward")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"other weights")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    source = opened(folder)
    own_output.write_folder(tmp_path / "out", source, {})
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["additional_chat_templates/tool_use.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert is_float_folder(tmp_path / "out")  # nothing was packed


def test_a_packed_folder_can_be_packed_again(tmp_path: Path) -> None:
    first = opened(folder_of(tmp_path / "in", "gpt_neox"))
    gptq_output.write_folder(tmp_path / "gptq", first, rounded(first, "int4:g32:asym"))
    source = opened(tmp_path / "gptq")
    compressed_output.write_folder(tmp_path / "out", source, {})
    assert_holds(tmp_path / "out", source, {})


def test_large_folders_are_cut_between_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "SHARD_BYTES", 30_000)
    source = opened(folder_of(tmp_path / "in", "llama"))
    weights = rounded(source, "int4:g32:asym")
    seen: list[tuple[int, int]] = []
    gptq_output.write_folder(tmp_path / "out", source, weights, progress=lambda done, total: seen.append((done, total)))
    assert_holds(tmp_path / "out", source, weights)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    for layer in range(4):
        assert len({file for name, file in index.items() if f".layers.{layer}." in name}) == 1
    assert len(set(index.values())) > 2
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


BAD = {
    "a table in GPTQ": (gptq_output, "nf4:g32", r"gate_proj: nf4:g32, expected integer codes"),
    "3 bits in GPTQ": (gptq_output, "int3:g32:sym", r"gate_proj: int3:g32:sym \(104, 96\), expected 4 or 8 bits"),
    "3 bits in compressed-tensors": (
        compressed_output,
        "int3:g32:sym",
        r"gate_proj: int3:g32:sym, expected 4 or 8 bits",
    ),
    "blocks in compressed-tensors": (compressed_output, "Q4_0", r"gate_proj: Q4_0, expected integer codes"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_left(case: str, tmp_path: Path) -> None:
    writer, name, message = BAD[case]
    source = opened(folder_of(tmp_path / "in", "awkward"))
    with pytest.raises(UnsupportedFormat, match=message):
        writer.write_folder(tmp_path / "out", source, rounded(source, name))
    assert names_in(tmp_path) == ["in"]


def test_a_zero_point_of_zero_has_no_place_in_version_1(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, "int4:g32:asym")
    name = "model.layers.0.self_attn.q_proj"
    rows = weights[name].rows(0, 96)
    zeros = rows.zeros.copy()
    zeros[3, 1] = 0
    changed = replace(rows, zeros=zeros)
    weights[name] = replace(weights[name], rows=lambda begin, end: taken_rows(changed, begin, end))
    with pytest.raises(UnsupportedFormat, match=r"q_proj: a zero point of 0"):
        gptq_output.write_folder(tmp_path / "out", source, weights, checkpoint_format="gptq")
    gptq_output.write_folder(tmp_path / "out", source, weights)
    assert_holds(tmp_path / "out", source, weights)


def taken_rows(rows: Any, begin: int, end: int) -> Any:
    from cpuinfer.quantize.placement import taken

    return taken(rows, np.arange(begin, end))


def test_weights_stored_with_inputs_first_stay_floats(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "gpt2"))
    with pytest.raises(UnsupportedFormat, match=r"c_attn\.weight: is not a linear layer's \(outputs, inputs\)"):
        own_output.write_folder(tmp_path / "out", source, rounded(source, "int4:g32:sym"))


def test_embedding_tables_stay_floats(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    table = "model.embed_tokens"
    packed = {table: round_weight(table, source.weights[table], "int8:g32:sym")}
    with pytest.raises(
        UnsupportedFormat, match=r"embed_tokens\.weight: packed folders have embedding tables as floats"
    ):
        gptq_output.write_folder(tmp_path / "out", source, packed)


def test_weights_of_one_tensor_must_be_stored_alike(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "gpt_neox"))
    weights = rounded(source, "int4:g32:sym")
    name = "model.layers.1.self_attn.k_proj"
    weights[name] = round_weight(name, source.weights[name], "int8:g32:sym")
    with pytest.raises(UnsupportedModel, match=r"layers\.1\..*query_key_value.*stored alike"):
        own_output.write_folder(tmp_path / "out", source, weights)


def test_floats_that_changed_are_written_as_they_are(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "gpt2"))
    names = ("model.layers.2.mlp.up_proj", "model.norm")
    changed = {}
    for name in names:
        values = (source.weights[name].floats() * 3 + 1).astype(np.float16)
        matrix = values.reshape(-1, values.shape[-1])
        changed[name] = replace(
            source.weights[name],
            layout="f16",
            encoding="F16",
            rows=lambda begin, end, matrix=matrix: FloatRows(matrix[begin:end], "f16"),
            floats=lambda values=values: values.astype(np.float64),
        )
    own_output.write_folder(tmp_path / "out", source, changed)
    assert_holds(tmp_path / "out", source, changed)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["transformer.h.2.mlp.c_fc.weight"].dtype == np.float16


def test_a_target_that_exists_is_replaced_when_asked(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, "int4:g32:sym")
    own_output.write_folder(tmp_path / "out", source, {})
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"out: exists"):
        own_output.write_folder(tmp_path / "out", source, weights)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    own_output.write_folder(tmp_path / "out", source, weights, overwrite=True)
    assert_holds(tmp_path / "out", source, weights)
    assert names_in(tmp_path) == ["in", "out"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("ten years of work")
    with pytest.raises(OutputError, match=r"out: not a folder of a model"):
        own_output.write_folder(tmp_path / "out", source, {}, overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "ten years of work"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_clear_error_and_nothing_is_left(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, "int4:g32:sym")
    room = 20_000

    def pwrite(file: int, data: Any, offset: int, real: Any = os.pwrite) -> int:
        if offset + len(data) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(real(file, data, offset))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OutputError, match=r"out: not written: No space left on device"):
        WRITERS[writer].write_folder(tmp_path / "out", source, weights)
    assert names_in(tmp_path) == ["in"]


def test_a_folder_that_may_not_be_written_to_is_one_clear_error(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    with pytest.raises(OutputError, match=r"nowhere/out: not written: No such file or directory"):
        own_output.write_folder(tmp_path / "nowhere" / "out", source, {})
