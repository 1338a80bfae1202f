"""Our own layout holds what no other does, and it comes back to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from architectures import native_logits
from cpuinfer import loader
from cpuinfer.errors import CheckpointError, UnsupportedFormat
from cpuinfer.formats.canonical import FloatRows
from cpuinfer.quantize import own_output
from kept_halves import assert_native
from quantised_models import assert_holds, assert_runs, folder_of, meant, opened, rounded

OWN = [
    *(f"int{bits}:g{group}:{kind}" for bits in (2, 3, 5, 6, 7) for group in (32, -1) for kind in ("sym", "asym")),
    *("nf4:g32", "nf4:g-1", "fp4:g32", "af4:g32", "iq4_nl:g32", "dynamic4:g32"),
    *("Q4_0", "Q5_1", "Q8_0"),
]


@pytest.mark.parametrize("name", OWN)
def test_our_own_layout_holds_every_scheme(name: str, tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, name)
    own_output.write_folder(tmp_path / "out", source, weights)
    assert_holds(tmp_path / "out", source, weights)


@pytest.mark.parametrize("name", ["int3:g32:asym", "int6:g-1:sym", "nf4:g32", "Q5_1"])
def test_what_our_own_layout_holds_runs(name: str, tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    weights = rounded(source, name)
    own_output.write_folder(tmp_path / "out", source, weights)
    assert_runs(tmp_path / "out", source, weights)


@pytest.mark.parametrize("architecture", ["awkward", "gpt_neox"])
@pytest.mark.parametrize("name", ["int4:g32:sym", "nf4:g32"])
def test_scales_of_two_levels_come_back(name: str, architecture: str, tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", architecture))
    weights = rounded(source, name, two_level=True)
    own_output.write_folder(tmp_path / "out", source, weights, two_level=True)
    assert_holds(tmp_path / "out", source, weights)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert any(part.endswith(".scale_ends") for part in stored)
    assert not any(part.endswith(".scale") for part in stored)


def test_scales_that_two_levels_do_not_give_are_refused(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    with pytest.raises(UnsupportedFormat, match=r"_proj: scales that two levels do not give"):
        own_output.write_folder(tmp_path / "out", source, rounded(source, "int4:g32:sym"), two_level=True)


@pytest.mark.parametrize("columns", [1, 8, 256, 257, 700])
def test_two_levels_round_once(columns: int) -> None:
    random = np.random.default_rng(columns)
    scale = (random.normal(0, 1, (50, columns)) * 2.0 ** random.integers(-24, 15, (50, 1))).astype(np.float16)
    scale[0], scale[1, : columns // 2] = 0, 0
    codes, ends, meant = own_output.two_levels(scale)
    again, same_ends, twice = own_output.two_levels(meant)
    np.testing.assert_array_equal(twice, meant)
    np.testing.assert_array_equal(same_ends, ends)
    # Nearest of 256 equal steps: off by half a step, two fp32 roundings and half a unit of fp16.
    high = np.maximum.reduceat(np.abs(scale.astype(float)), np.arange(0, columns, 256), axis=1)
    bound = high * (1 / 255 + 2.0**-11) + 2.0**-25
    assert (np.abs(meant.astype(float) - scale.astype(float)) <= bound[:, np.arange(columns) // 256]).all()
    assert codes.shape == again.shape == scale.shape


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("architecture", ["awkward", "gpt_neox"])
def test_outlier_columns_take_the_place_of_codes(architecture: str, order: bool, tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", architecture))
    weights = rounded(source, "int3:g32:asym", order=order)
    kept, expected = {}, dict(weights)
    for name, weight in weights.items():
        columns = np.array([30, 2, 7], np.int32)
        values = source.weights[name].floats()[:, columns].astype(np.float16)
        kept[name] = own_output.Outliers(columns, values)
        whole = meant(weight)
        whole[:, columns] = values
        expected[name] = replace(
            weight,
            input_order=None,
            rows=lambda begin, end, whole=whole: FloatRows(whole[begin:end].astype(np.float32), "f32"),
        )
    own_output.write_folder(tmp_path / "out", source, weights, outliers=kept)
    found = assert_holds(tmp_path / "out", source, expected)
    assert {found.weights[name].layout for name in weights} == {"f32"}
    blueprint, tokens = loader.open_model(tmp_path / "out"), [5, 36, 1, 7]
    assert_native(native_logits(blueprint, tokens), blueprint.graph, blueprint.weight, tokens)


DAMAGE = {
    "codes": (np.zeros((96, 10), np.uint8), r"codes: rows of 10 bytes, expected 96 codes of 2 to 8 bits"),
    "scale": (np.zeros((96, 2), np.float16), r"scale: 2 groups of 96 columns, expected multiples of 32"),
    "zeros": (np.zeros((96, 9), np.uint8), r"zeros: U8 \(96, 9\), expected U8 \(96, 2\)"),
    "order": (np.zeros(96, np.int32), r"order: not each of the 96 columns once"),
    "outlier_columns": (np.array([96], np.int32), r"outlier_columns: expected each once, from 0 to 95"),
}


@pytest.mark.parametrize("part", DAMAGE)
def test_tensors_that_do_not_fit_each_other_are_refused(part: str, tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    own_output.write_folder(tmp_path / "out", source, rounded(source, "int4:g32:asym"))
    file = tmp_path / "out" / "model.safetensors"
    tensors, name = load_file(file), "model.layers.0.self_attn.q_proj"
    values, message = DAMAGE[part]
    tensors[f"{name}.{part}"] = values
    if part == "outlier_columns":
        tensors[f"{name}.outliers"] = np.zeros((96, 1), np.float16)
    save_file(tensors, file)
    with pytest.raises((CheckpointError, UnsupportedFormat), match=message):
        opened(tmp_path / "out")


def test_another_version_is_refused(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    own_output.write_folder(tmp_path / "out", source, rounded(source, "int4:g32:sym"))
    config = tmp_path / "out" / "config.json"
    config.write_text(config.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(UnsupportedFormat, match=r"cpuinfer: version 2 is not supported; supported are 1"):
        opened(tmp_path / "out")
