"""GGUF files that are written: of a file, all but what changed stays; of a folder, they are what converters write."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import MODEL_ARCH as ARCH

import converted_classic_gguf as classic
import converted_gguf as kin
import test_architectures_classic_gguf as classic_cases
import test_architectures_gguf as kin_cases
from architectures import our_logits, read_config
from cpuinfer.checkpoint import open_checkpoint
from cpuinfer.errors import CpuInferError, OutputError, UnsupportedFormat, UnsupportedModel
from cpuinfer.gguf import stored_weights
from cpuinfer.quantize.gguf_keys import ARCHITECTURES
from cpuinfer.quantize.gguf_output import write_gguf
from cpuinfer.weights import Source
from quantised_models import assert_holds, folder_of, native, opened, round_weight, rounded, write_folder

REPLACED = ("general.file_type", "general.quantization_version")
WHERE_IT_LIES = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")


def read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, list[int], Any]]]:
    """Keys, and tensors as (type, shape, bytes), by the gguf package."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if name not in WHERE_IT_LIES}
    return keys, {each.name: (each.tensor_type.name, each.shape.tolist(), each.data) for each in reader.tensors}


def assert_same_tensors(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, (kind, shape, data) in expected.items():
        assert found[name][:2] == (kind, shape), name
        np.testing.assert_array_equal(found[name][2], data, err_msg=name)


@pytest.mark.parametrize("weights", ["none of them", "all of them"])
def test_a_file_keeps_everything_but_what_changed(weights: str, tmp_path: Path, tiny_model: Path) -> None:
    source = opened(tiny_model)
    changed = {} if weights == "none of them" else rounded(source, "Q5_1")
    write_gguf(tmp_path / "out.gguf", source, changed, file_type=9)
    (keys, tensors), (old_keys, old_tensors) = read(tmp_path / "out.gguf"), read(tiny_model)
    assert list(tensors) == list(old_tensors)
    assert {**old_keys, **dict.fromkeys(REPLACED)} == {**keys, **dict.fromkeys(REPLACED)}
    assert (keys["general.file_type"], keys["general.quantization_version"]) == (9, 2)
    if not changed:
        assert_same_tensors(tensors, old_tensors)
    assert_holds(tmp_path / "out.gguf", source, changed)


@pytest.mark.parametrize("name", ["gpt_neox", "phi3", "gpt2"])
@pytest.mark.parametrize("encoding", ["Q4_0", "Q8_0"])
def test_values_are_those_that_the_gguf_package_reads(encoding: str, name: str, tmp_path: Path) -> None:
    folder = opened(folder_of(tmp_path / "in", name))
    write_gguf(tmp_path / "in.gguf", folder, {}, file_type=0)
    source = opened(tmp_path / "in.gguf")
    weights = rounded(source, encoding)
    write_gguf(tmp_path / "out.gguf", source, weights, file_type=2, threads=2)
    assert_holds(tmp_path / "out.gguf", source, weights)
    _, tensors = read(tmp_path / "out.gguf")
    ours = stored_weights(open_checkpoint(tmp_path / "out.gguf"))
    found = {name: each for name, each in tensors.items() if each[0] == encoding}
    assert len(found) > 4
    for tensor, (kind, _, data) in found.items():
        values = gguf.dequantize(data, gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(values, ours[tensor.removesuffix(".weight")].floats(), err_msg=tensor)
    write_gguf(tmp_path / "direct.gguf", folder, rounded(folder, encoding), file_type=2)
    assert_same_tensors(read(tmp_path / "direct.gguf")[1], tensors)  # rows are rounded one by one


def test_experts_and_divisors_of_frequencies_stay_in_their_places(tmp_path: Path) -> None:
    case = kin_cases.CASES["mixtral"]
    factors = {"rope_freqs.weight": [1.0, 1.0, 2.0, 4.0, 8.0, 8.0]}
    case = replace(case, factors=factors)
    config = read_config({**kin.SETTINGS, "model_type": "mixtral"})
    before = kin.write(tmp_path / "in.gguf", case, kin.make_folder(case), config)
    source = opened(before)
    name = "model.layers.2.mlp.experts.up_proj"
    weights = {name: round_weight(name, source.weights[name], "Q4_1")}
    write_gguf(tmp_path / "out.gguf", source, weights, file_type=3)
    found = assert_holds(tmp_path / "out.gguf", source, weights)
    assert found.config == source.config
    _, old = read(before)
    _, new = read(tmp_path / "out.gguf")
    assert new["blk.2.ffn_up_exps.weight"][:2] == ("Q4_1", old["blk.2.ffn_up_exps.weight"][1])
    del old["blk.2.ffn_up_exps.weight"], new["blk.2.ffn_up_exps.weight"]
    assert_same_tensors(new, old)


def test_parts_become_one_file(tmp_path: Path, tiny_model: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "parts.gguf", "llama", split_max_tensors=5)
    reader = gguf.GGUFReader(tiny_model)
    for name, field in reader.fields.items():
        if name not in (*WHERE_IT_LIES, "general.architecture"):
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part = sorted(tmp_path.glob("parts-*.gguf"))[1]
    source = opened(part)
    assert len(source.files) > 2
    write_gguf(tmp_path / "out.gguf", source, {}, file_type=0)
    (keys, tensors), (old_keys, old_tensors) = read(tmp_path / "out.gguf"), read(tiny_model)
    assert_same_tensors(tensors, old_tensors)
    assert {**old_keys, **dict.fromkeys(REPLACED)} == {**keys, **dict.fromkeys(REPLACED)}


KIN = [name for name, case in kin_cases.CASES.items() if case.model_type in ARCHITECTURES and not case.fused]
CLASSIC = [
    name
    for name, case in classic_cases.CASES.items()
    if case.settings["model_type"] in ARCHITECTURES and "starcoder2, fused" not in name
]
WITHOUT = {"attention.key_length", "attention.value_length"}
"""Keys that our oracle writes of every folder, and converters of those whose config.json names head_dim."""


def assert_converted(found: Path, expected: Path, arch: ARCH) -> None:
    """Tensors are the converter's, and so are keys; more of them may be there."""
    (keys, tensors), (wanted, old) = read(found), read(expected)
    assert_same_tensors(tensors, old)
    prefix = f"{gguf.MODEL_ARCH_NAMES[arch]}."
    for key, value in wanted.items():
        if key.removeprefix(prefix) not in WITHOUT or key in keys:
            assert keys[key] == value, key
    assert keys["general.type"] == "model"


@pytest.mark.parametrize("name", KIN)
def test_a_folder_of_llamas_kin_becomes_what_converters_make_of_it(name: str, tmp_path: Path) -> None:
    case = kin_cases.CASES[name]
    settings = {**kin.SETTINGS, **case.settings, "model_type": case.model_type}
    tensors = kin.make_folder(case)
    source = opened(write_folder(tmp_path / "in", settings, tensors))
    write_gguf(tmp_path / "out.gguf", source, {}, file_type=0)
    expected = kin.write(tmp_path / "expected.gguf", case, tensors, source.config)
    assert_converted(tmp_path / "out.gguf", expected, case.arch)
    assert_computes_alike(tmp_path / "out.gguf", source)


@pytest.mark.parametrize("name", CLASSIC)
def test_an_older_folder_becomes_what_converters_make_of_it(name: str, tmp_path: Path) -> None:
    case = classic_cases.CASES[name]
    tensors = classic.make_folder(case)
    source = opened(write_folder(tmp_path / "in", case.settings, tensors))
    write_gguf(tmp_path / "out.gguf", source, {}, file_type=0)
    expected = classic.write(tmp_path / "expected.gguf", case, tensors)
    assert_converted(tmp_path / "out.gguf", expected, case.arch)
    assert_computes_alike(tmp_path / "out.gguf", source)


def assert_computes_alike(path: Path, source: Source) -> None:
    """Equal bits, where rotations are the same.

    Where the dimensions of a head are in another order, or factors of rotations were rounded to fp32, keys may round to
    another fp16: then the oracle is asked.
    """
    tokens = [1, 5, 36, 33, 2, 7]
    found = opened(path)
    if source.config.rope == found.config.rope:
        np.testing.assert_array_equal(native(found, {}, tokens), native(source, {}, tokens))
        return
    logits = [our_logits(each.config, floats_of(each), tokens) for each in (found, source)]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-6 * np.abs(logits[1]).max())


def floats_of(source: Source) -> dict[str, Any]:
    return {name: weight.floats() for name, weight in source.weights.items()}


def test_mistral_is_written_as_llama_and_a_window_that_is_lost_is_told(tmp_path: Path) -> None:
    settings = {**kin.SETTINGS, "model_type": "mistral", "sliding_window": 100}
    tensors = kin.make_folder(kin.Case("mistral", ARCH.LLAMA))
    source = opened(write_folder(tmp_path / "in", settings, tensors))
    with pytest.warns(UserWarning, match=r"mistral: attention windows of 100 positions, which a GGUF file cannot say"):
        write_gguf(tmp_path / "out.gguf", source, {}, file_type=0)
    assert read(tmp_path / "out.gguf")[0]["general.architecture"] == "llama"
    assert_computes_alike(tmp_path / "out.gguf", source)
    longer = opened(write_folder(tmp_path / "in", {**settings, "sliding_window": 256}, tensors))
    write_gguf(tmp_path / "longer.gguf", longer, {}, file_type=0)  # as long as the context: nothing to tell


def test_sixteen_bits_stay_sixteen_bits_and_vectors_become_fp32(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "awkward")
    from safetensors.numpy import load_file, save_file

    half = {name: values.astype(np.float16) for name, values in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors")
    write_gguf(tmp_path / "out.gguf", opened(folder), {}, file_type=1)
    _, tensors = read(tmp_path / "out.gguf")
    assert {name: kind for name, (kind, _, _) in tensors.items() if kind != "F16"} == dict.fromkeys(
        ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"), "F32"
    )
    np.testing.assert_array_equal(tensors["output_norm.weight"][2], half["model.norm.weight"].astype(np.float32))


AWAY: dict[str, tuple[dict[str, Any], str]] = {
    "an activation": ({"hidden_act": "gelu"}, "act is 'gelu', which a GGUF file cannot say"),
    "yarn without its roundings": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
        "yarn with truncate false",
    ),
    "longrope of another architecture": (
        {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0] * 6, "short_factor": [1.0] * 6}},
        "rope scaling 'longrope' is not converted",
    ),
}


@pytest.mark.parametrize("case", AWAY)
def test_what_gguf_cannot_say_is_refused(case: str, tmp_path: Path) -> None:
    settings, message = AWAY[case]
    tensors = kin.make_folder(kin.Case("llama", ARCH.LLAMA))
    source = opened(write_folder(tmp_path / "in", {**kin.SETTINGS, "model_type": "llama", **settings}, tensors))
    with pytest.raises(UnsupportedModel, match=message):
        write_gguf(tmp_path / "out.gguf", source, {}, file_type=0)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_yarn_and_linear_scaling_come_back(tmp_path: Path) -> None:
    tensors = kin.make_folder(kin.Case("qwen3", ARCH.QWEN3))
    kinds: list[dict[str, Any]] = [
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5},
    ]
    for number, scaling in enumerate(kinds):
        settings = {**kin.SETTINGS, "model_type": "qwen3", "rope_scaling": scaling}
        source = opened(write_folder(tmp_path / "in", settings, tensors))
        write_gguf(tmp_path / f"{number}.gguf", source, {}, file_type=0)
        assert_computes_alike(tmp_path / f"{number}.gguf", source)


def test_an_architecture_that_is_not_converted_is_refused(tmp_path: Path) -> None:
    case = classic_cases.CASES["bloom"]
    source = opened(write_folder(tmp_path / "in", case.settings, classic.make_folder(case)))
    with pytest.raises(UnsupportedModel, match=r"bloom: is not converted to GGUF; converted are llama, mistral"):
        write_gguf(tmp_path / "out.gguf", source, {}, file_type=0)


@pytest.mark.parametrize("name", ["int4:g32:asym", "nf4:g32"])
def test_what_gguf_has_no_type_for_is_refused(name: str, tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    with pytest.raises(UnsupportedFormat, match=rf"blk\.0\.attn_q\.weight: {name}: GGUF has no type for it"):
        write_gguf(tmp_path / "out.gguf", source, rounded(source, name), file_type=0)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_target_that_exists_is_replaced_when_asked(tmp_path: Path) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))
    (tmp_path / "out.gguf").write_text("something of value")
    with pytest.raises(OutputError, match=r"out\.gguf: exists"):
        write_gguf(tmp_path / "out.gguf", source, {}, file_type=0)
    assert (tmp_path / "out.gguf").read_text() == "something of value"
    write_gguf(tmp_path / "out.gguf", source, {}, file_type=0, overwrite=True)
    assert_computes_alike(tmp_path / "out.gguf", source)


def test_a_file_can_replace_its_own_source(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model.read_bytes())
    source = opened(path)
    weights = rounded(source, "Q8_0")
    write_gguf(path, source, weights, file_type=7, overwrite=True)
    assert_holds(path, opened(tiny_model), weights)


def test_a_full_disk_is_one_clear_error_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(folder_of(tmp_path / "in", "awkward"))

    def write(file: int, data: Any, real: Any = os.write) -> int:
        if len(data) > 10_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(real(file, data))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(CpuInferError, match=r"out\.gguf: cannot be written: No space left on device"):
        write_gguf(tmp_path / "out.gguf", source, {}, file_type=0)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_progress_counts_all_bytes(tmp_path: Path, tiny_model: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_gguf(tmp_path / "out.gguf", opened(tiny_model), {}, file_type=0, progress=lambda *counts: seen.append(counts))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(each.n_bytes for each in gguf.GGUFReader(tiny_model).tensors)
