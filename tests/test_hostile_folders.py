"""Hostile JSON around a sound model: settings of other types, ids far away, text that is none; refused or read past."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models

from cpuinfer import loader
from cpuinfer.errors import CheckpointError, CpuInferError, UnsupportedModel
from cpuinfer.tokenizer import Tokenizer
from cpuinfer.tokenizer.folder import chat_template
from cpuinfer.tokenizer.keys import BYTE, CONTROL, NORMAL, UNKNOWN
from cpuinfer.tokenizer.sentence_pieces import model_proto
from tiny_folder import tensors_of, write_folder
from tiny_gguf import write_tiny_llama

OTHERS: tuple[Any, ...] = ([], [[]], {}, {"a": []}, "", "x", True, -1, 0, 1 << 64, -(1 << 63), 0.5, 1e308, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile")
    whole = write_tiny_llama(path / "whole.gguf", encoding="F32", embedding="F32", layers=1)
    return write_folder(path / "model", tensors_of(whole), shards=2, num_hidden_layers=1)


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    sound = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("a", -1.0, NORMAL)]
    sound += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    texts, scores, types = map(list, zip(*sound, strict=True))
    proto = model_proto(texts, scores, types, model="bpe", unknown=0, add_prefix=False, remove_extra=False)
    (tmp_path / "tokenizer.model").write_bytes(proto)
    assert Tokenizer.from_folder(tmp_path).encode("a", add_bos=False) == [2]
    return tmp_path


def test_any_setting_of_a_configuration_may_be_of_any_type(folder: Path) -> None:
    path = folder / "config.json"
    sound = path.read_text()
    keys = [*json.loads(sound), "rope_scaling", "rope_parameters", "layer_types", "head_dim", "quantization_config"]
    try:
        for key in keys:
            for value in OTHERS:
                path.write_text(json.dumps({**json.loads(sound), key: value}))
                try:
                    loader.open_model(folder)
                except CpuInferError as error:
                    assert str(folder) in str(error) or key in str(error), (key, value)
    finally:
        path.write_text(sound)


@pytest.mark.parametrize("key", ["hidden_act", "tie_word_embeddings"])
def test_a_list_where_a_configuration_has_a_name_or_truth_is_not_a_crash(folder: Path, key: str) -> None:
    path = folder / "config.json"
    sound = path.read_text()
    path.write_text(json.dumps({**json.loads(sound), key: [[]]}))
    try:
        with pytest.raises((UnsupportedModel, CheckpointError), match=r"supported|lm_head"):
            loader.open_model(folder)
    finally:
        path.write_text(sound)


@pytest.mark.parametrize("name", ["a\0b.safetensors", "a\ud800.safetensors", "a\x1b[2J.safetensors"])
def test_an_index_that_names_what_no_file_can_be_called_is_refused(folder: Path, name: str) -> None:
    path = folder / "model.safetensors.index.json"
    sound = path.read_text()
    path.write_text(json.dumps({"weight_map": {"a.weight": name}}))
    try:
        with pytest.raises(CheckpointError, match="is not the name of a file in this folder"):
            loader.open_model(folder)
    finally:
        path.write_text(sound)


def test_templates_by_name_may_have_names_of_any_type(tmp_path: Path) -> None:
    entries = [{"name": {}, "template": "a"}, {"name": [1]}, 5, {"name": "default", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
    assert chat_template(tmp_path) == "b"


@pytest.mark.parametrize("key", ["16000000", "999999999"])
def test_an_added_token_far_from_the_others_takes_no_memory(pieces: Path, key: str) -> None:
    settings = {"added_tokens_decoder": {key: {"content": "<far>", "special": True}}}
    (pieces / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"tokens with ids up to {key}"):
        Tokenizer.from_folder(pieces)


def test_a_key_of_added_tokens_that_is_no_id_is_passed_over(pieces: Path) -> None:
    settings = {"added_tokens_decoder": {"9" * 5000: {"content": "<x>"}, "-1": {"content": "<y>"}}}
    (pieces / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Tokenizer.from_folder(pieces).vocabulary == 259


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"bos_token": "\\ud800"}', '{"a": ' + "9" * 5000 + "}"])
def test_tokenizer_settings_that_are_not_json_or_not_text_are_refused(pieces: Path, text: str) -> None:
    (pieces / "tokenizer_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: not "):
        Tokenizer.from_folder(pieces)


def test_a_tokenizer_whose_unknown_token_is_missing_is_refused_when_used(tmp_path: Path) -> None:
    Library(models.BPE(vocab={"a": 0}, merges=[], unk_token="b")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a sound tokenizer: .*b"):
        Tokenizer.from_folder(tmp_path).encode("xyz")
