"""Published weights that are damaged or not read here: each fault is an error that names it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import published_files as files
import published_models
from cpuinfer import loader
from cpuinfer.errors import CheckpointError, UnsupportedFormat, UnsupportedModel
from cpuinfer.published import reader
from published_files import AWQ, BNB, FORMATS, GPTQ, HQQ, ROUND, MemoryTensors, P, compressed, example, numbers


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (np.nan, CheckpointError, r"q_proj\.scales: nan, expected finite numbers"),
        (np.inf, CheckpointError, r"q_proj\.scales: inf, expected finite numbers"),
        (1e5, UnsupportedFormat, r"q_proj\.scales: 100000, expected at most 65504 \(fp16\)"),
    ],
)
def test_scales_that_fp16_does_not_hold_are_refused(scale, error, message):
    codes, scales, zeros, _ = numbers(48, 64, 32, 4)
    wide = scales.astype(np.float32)
    wide[17, 1] = scale
    weight = reader(GPTQ)(MemoryTensors(files.gptq(P, codes, wide, zeros, 4)), P)
    weight.rows(0, 17)
    with pytest.raises(error, match=message):
        weight.rows(16, 32)


def group_0(**options):
    config = compressed()
    config["config_groups"]["group_0"] |= options
    return config


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({}, CheckpointError, "quant_method is None, expected a string"),
        ({"quant_method": ["gptq"]}, CheckpointError, "quant_method is"),
        (
            {"quant_method": "fp8"},
            UnsupportedFormat,
            "quant_method fp8 is not supported; supported are auto-round, awq",
        ),
        ({**GPTQ, "bits": 3}, UnsupportedFormat, "GPTQ: bits 3 is not supported; supported are 4, 8"),
        ({**GPTQ, "bits": "4"}, CheckpointError, "bits is '4', expected an integer"),
        ({**GPTQ, "bits": True}, CheckpointError, "bits is True, expected an integer"),
        ({**GPTQ, "bits": None}, CheckpointError, "bits is missing, expected an integer"),
        ({**GPTQ, "group_size": 16}, UnsupportedFormat, "GPTQ: group_size 16 is not supported"),
        ({**GPTQ, "checkpoint_format": "marlin"}, UnsupportedFormat, "checkpoint_format marlin is not supported"),
        ({**GPTQ, "is_marlin_format": True}, UnsupportedFormat, "is_marlin_format is not supported"),
        ({**GPTQ, "pack_dtype": "int16"}, UnsupportedFormat, "pack_dtype int16"),
        ({**GPTQ, "dynamic": {"+:.*down": {"bits": 8}}}, UnsupportedFormat, r"dynamic '\+:\.\*down'"),
        ({**AWQ, "bits": 8}, UnsupportedFormat, "AWQ: bits 8"),
        ({**AWQ, "version": "gemv"}, UnsupportedFormat, "AWQ: version gemv is not supported; supported are gemm"),
        ({**ROUND, "bits": 2}, UnsupportedFormat, "AutoRound: bits 2"),
        ({**ROUND, "packing_format": "auto_round:exllamav2"}, UnsupportedFormat, "packing_format auto_round:exllamav2"),
        ({**ROUND, "data_type": "mx_fp"}, UnsupportedFormat, "data_type mx_fp"),
        ({**ROUND, "act_bits": 8}, UnsupportedFormat, "activations of 8 bits"),
        ({**ROUND, "extra_config": {".*down": {"bits": 8}}}, UnsupportedFormat, r"extra_config '\.\*down'"),
        (group_0(input_activations={"num_bits": 8}), UnsupportedFormat, r"quantised activations \(group_0: input_act"),
        (group_0(format="float-quantized"), UnsupportedFormat, "format float-quantized"),
        ({**compressed(), "config_groups": {}}, CheckpointError, "config_groups is empty"),
        ({**compressed(), "config_groups": [1]}, CheckpointError, "config_groups is list, expected an object"),
        ({**compressed(), "kv_cache_scheme": {"num_bits": 8}}, UnsupportedFormat, "kv_cache_scheme"),
        ({**compressed(), "transform_config": {"R1": {}}}, UnsupportedFormat, "transform_config"),
        ({**compressed(), "sparsity_config": {"format": "sparse-24"}}, UnsupportedFormat, "sparse-24"),
        (compressed(bits=3), UnsupportedFormat, "num_bits 3"),
        (compressed(type="float"), UnsupportedFormat, "type float"),
        (compressed(strategy="tensor"), UnsupportedFormat, "strategy tensor"),
        ({**BNB, "load_in_8bit": True}, UnsupportedFormat, "load_in_8bit is not supported"),
        ({**BNB, "bnb_4bit_quant_type": "int4"}, UnsupportedFormat, "bnb_4bit_quant_type int4"),
    ],
)
def test_what_is_not_read_is_refused_by_name(config, error, message):
    with pytest.raises(error, match=message):
        reader(config)


ARRAYS = {
    "gptq": [".qweight", ".scales", ".qzeros", ".g_idx"],
    "awq": [".qweight", ".scales", ".qzeros"],
    "compressed": [".weight_packed", ".weight_scale", ".weight_zero_point"],
    "ordered": [".weight_g_idx"],
    "bnb": [".weight", ".weight.absmax", ".weight.quant_map"],
    "nested": [".weight.absmax", ".weight.nested_absmax", ".weight.nested_quant_map"],
    "hqq": [".W_q", ".scale", ".zero"],
    "mxfp4": ["_blocks", "_scales"],
}
NUMBERS = ["nbits", "group_size", "axis", "quant_scale", "quant_zero", "view_as_float", "packing", "shape"]


@pytest.mark.parametrize(("format_name", "part"), [(name, part) for name, parts in ARRAYS.items() for part in parts])
@pytest.mark.parametrize("change", ["missing", "type", "empty", "longer", "narrower"])
def test_a_tensor_that_is_missing_or_of_another_size_or_type_is_named(format_name, part, change):
    config, sound = example(format_name)
    reader(config)(MemoryTensors(sound), P, (48, 64)).rows(0, 48)
    array = sound.pop(P + part)
    changed = {
        "type": array.astype(np.float32 if array.dtype == np.int32 else np.int32),
        "empty": array[:0],
        "longer": np.concatenate([array, array]),
        "narrower": array[..., :-1],
    }
    broken = {**sound, P + part: changed[change]} if change in changed else sound
    with pytest.raises(CheckpointError, match=rf"^{P}{part}: .*expected") as caught:
        reader(config)(MemoryTensors(broken), P, (48, 64))
    assert change != "missing" or f"{part}: missing" in str(caught.value)


@pytest.mark.parametrize(
    ("format_name", "part"),
    [("compressed", ".weight_shape"), ("bnb", ".weight.quant_state.bitsandbytes__nf4")]
    + [("hqq", f".{number}") for number in NUMBERS],
)
def test_options_among_the_tensors_that_are_missing_or_of_another_type_are_named(format_name, part):
    config, sound = example(format_name)
    array = sound.pop(P + part)
    for broken in (sound, {**sound, P + part: array.astype(np.float32)}):
        with pytest.raises(CheckpointError, match=rf"^{P}{part}: .*expected"):
            reader(config)(MemoryTensors(broken), P)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_weight_of_another_shape_than_the_model_has_is_refused(format_name):
    config, sound = example(format_name)
    with pytest.raises(CheckpointError, match=r"a weight of shape \(48, 64\), expected \(64, 48\)"):
        reader(config)(MemoryTensors(sound), P, (64, 48))


@pytest.mark.parametrize(
    ("format_name", "part", "value", "error", "message"),
    [
        ("gptq", ".g_idx", 2, CheckpointError, r"g_idx: group 2, expected 0 to 1"),
        ("gptq", ".g_idx", -1, CheckpointError, r"g_idx: group -1, expected 0 to 1"),
        ("gptq", ".g_idx", 1, UnsupportedFormat, r"g_idx: a group of 31 columns, expected multiples of 32"),
        ("ordered", ".weight_g_idx", 2, CheckpointError, r"weight_g_idx: group 2, expected 0 to 1"),
        ("bnb", ".weight.quant_map", np.nan, CheckpointError, r"quant_map: .*, expected finite numbers"),
        ("bnb", ".weight.absmax", np.inf, CheckpointError, r"absmax: inf, expected finite numbers"),
        ("hqq", ".axis", 0, UnsupportedFormat, r"axis 0 is not supported; supported are 1"),
        ("hqq", ".quant_zero", 1, UnsupportedFormat, r"quant_zero 1"),
        ("hqq", ".view_as_float", 1, UnsupportedFormat, r"view_as_float 1"),
        ("hqq", ".packing", ord("2"), UnsupportedFormat, r"packing 2bit_u8"),
        ("hqq", ".nbits", 8, CheckpointError, r"nbits: 8, expected 4 as packing is 4bit_u8"),
        ("hqq", ".group_size", 16, UnsupportedFormat, r"group_size 16"),
        ("hqq", ".group_size", 128, UnsupportedFormat, r"groups of 128 in rows of 64"),
        ("hqq", ".zero", np.inf, CheckpointError, r"zero: -?inf, expected finite numbers"),
        ("mxfp4", "_scales", 255, CheckpointError, r"_scales: 255, expected at most 252"),
    ],
)
def test_a_number_out_of_its_range_is_refused(format_name, part, value, error, message):
    config, sound = example(format_name)
    changed = sound[P + part].copy()
    changed.flat[0] = value
    with pytest.raises(error, match=message):
        reader(config)(MemoryTensors({**sound, P + part: changed}), P).rows(0, 48)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "5", "null", "{", "[" * 60_000, '{"quant_type": "nf4"}', "{}" + " " * 70_000, "\xff"]
    + [
        '{"quant_type": "nf4", "shape": [48, 64], "blocksize": SIZE}'.replace("SIZE", size)
        for size in ("0", "-64", "63", "1e400", '"64x"', "null", "NaN", "4128", "9" * 30, "9" * 5000)
    ]
    + ['{"quant_type": "fp4", "shape": [48, 64], "blocksize": 64}']
    + [
        '{"quant_type": "nf4", "blocksize": 64, "shape": SIZE}'.replace("SIZE", size)
        for size in ("[48]", "48", "[[48], 64]", "[-48, -64]")
    ]
    + ['{"quant_type": "nf4", "shape": [48, 64], "blocksize": 64, "nested_blocksize": 1, "nested_offset": 1e300}']
    + ['{"quant_type": "nf4", "shape": [48, 64], "blocksize": 64, "nested_blocksize": 0, "nested_offset": 0}'],
)
def test_a_quant_state_that_is_not_one_is_refused(text):
    _, sound = example("bnb")
    name = f"{P}.weight.quant_state.bitsandbytes__nf4"
    broken = {**sound, name: np.frombuffer(text.encode("latin-1"), np.uint8)}
    with pytest.raises(CheckpointError, match=r"bitsandbytes__nf4: "):
        reader(BNB)(MemoryTensors(broken), P)


def test_rows_of_awkward_length_are_refused():
    arrays = files.gptq(P, np.zeros((8, 40), int), np.ones((8, 1), np.float16), np.ones((8, 1), int), 4)
    with pytest.raises(UnsupportedFormat, match=r"qweight: 40 columns, expected a multiple of 32"):
        reader({**GPTQ, "group_size": -1})(MemoryTensors(arrays), P)


def test_nibbles_of_hqq_without_a_pair_are_refused():
    arrays = files.hqq(P, np.ones((4, 32)), np.ones((4, 1), np.float16), np.ones((4, 1), np.float16), 4, group=32)
    odd = {f"{P}.W_q": arrays[f"{P}.W_q"][:1], f"{P}.shape": np.array([3, 32])}
    odd |= {name: arrays[name][:3] for name in (f"{P}.scale", f"{P}.zero")}
    with pytest.raises(CheckpointError, match=r"W_q: 3 groups of 4 bits, expected an even number"):
        reader(HQQ)(MemoryTensors({**arrays, **odd}), P)


def test_an_error_of_a_layer_names_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    published_models.write_published_llama(folder, next(iter(published_models.SETTINGS)))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedFormat, match=f"^{folder}: quant_method fp8 is not supported"):
        loader.open_model(folder)
    config["quantization_config"] = {"quant_method": 8}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"^{folder}: quantization_config: quant_method is 8"):
        loader.open_model(folder)


@pytest.mark.parametrize("name", ["q", "quant_method", "."])
def test_an_error_begins_with_the_folder_also_when_its_text_holds_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    published_models.write_published_llama(folder, next(iter(published_models.SETTINGS)))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedFormat) as caught:
        loader.open_model(name)
    assert str(caught.value).startswith(f"{name}: quant_method fp8 is not supported")


def test_a_folder_named_by_a_word_of_the_message_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"^folder: a folder without config\.json"):
        loader.open_model("folder")
