"""Tokenizers other than GGUF's byte-level BPE, against the libraries that define them, and damaged files of each."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from cpuinfer.checkpoint import open_checkpoint
from cpuinfer.errors import CheckpointError, CpuInferError, UnsupportedModel
from cpuinfer.streaming import Detokenizer
from cpuinfer.tokenizer import Tokenizer, TokenizerWarning
from cpuinfer.tokenizer.base import byte_alphabet
from cpuinfer.tokenizer.folder import chat_template

WORDS = [
    "the",
    "sky",
    "is",
    "blue",
    "straße",
    "naïve",
    "数据",
    "日本語",
    "مرحبا",
    "שלום",
    "🙂🚀",
    "x_1 = f(2)",
    "1234567",
]
SPACES = [" ", "  ", "\n", "\t", " \n  "]


def texts(count: int) -> list[str]:
    """Mixed text: code, several scripts, emoji, digits, runs of white space."""
    rng = random.Random(5)
    return [
        "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 12)))[: rng.randint(1, 60)]
        for _ in range(count)
    ]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request: pytest.FixtureRequest) -> bytes:
    """A small SentencePiece model with byte fallback."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts(400)),
        model_writer=written,
        model_type=request.param,
        vocab_size=380,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<sep>"],
        minloglevel=2,
    )
    return written.getvalue()


def metadata_of(proto: bytes) -> dict[str, object]:
    """What a converter writes of a SentencePiece model."""
    model = sentencepiece.SentencePieceProcessor(model_proto=proto)
    size = model.get_piece_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in range(size)
    ]
    kinds[model.piece_to_id("<sep>")] = 4
    return {
        "tokenizer.ggml.model": "llama" if _is_bpe(model) else "t5",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": np.array([model.get_score(i) for i in range(size)], np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.add_space_prefix": True,
    }


def _is_bpe(model: Any) -> bool:
    """Scores of BPE are the negative ranks of its merges."""
    scores = [model.get_score(i) for i in range(model.get_piece_size())]
    return all(score == int(score) for score in scores)


def test_a_vocabulary_from_gguf_gives_the_ids_of_sentencepiece(trained: bytes) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=trained)
    ours = Tokenizer.from_metadata(metadata_of(trained), "x.gguf")
    for text in texts(2000):
        ids = ours.encode(text, add_bos=False)
        assert ids == reference.encode(text), repr(text)
        assert ours.decode(ids) == text


def test_a_tokenizer_model_gives_the_ids_of_sentencepiece(trained: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "chat_template": "{{ messages }}"}')
    reference = sentencepiece.SentencePieceProcessor(model_proto=trained)
    ours = Tokenizer.from_folder(tmp_path)
    for text in texts(200):
        assert ours.encode(text, add_bos=False) == reference.encode(text)
        assert ours.encode(text) == [reference.bos_id(), *reference.encode(text)]
        assert ours.decode(ours.encode(text), skip_special=True) == text
    assert ours.eos_ids == {reference.eos_id()}
    assert chat_template(tmp_path) == "{{ messages }}"


def test_streamed_pieces_are_the_bytes_of_the_tokens(trained: bytes) -> None:
    ours = Tokenizer.from_metadata(metadata_of(trained), "x.gguf")
    for text in texts(50):
        ids = ours.encode(text, add_bos=False)
        detokenizer = Detokenizer(ours)
        streamed = "".join(map(detokenizer.add, ids)) + detokenizer.finish()
        assert streamed == " " + text  # a continuation keeps the space that a text's beginning loses


def test_control_tokens_in_a_text_are_tokens_only_when_asked(trained: bytes) -> None:
    ours = Tokenizer.from_metadata(metadata_of(trained), "x.gguf")
    assert ours.encode("<s>the<sep>sky", add_bos=False)[0] == ours.bos_id
    plain = ours.encode("<s>the", add_bos=False, parse_special=False)
    assert ours.bos_id not in plain
    assert ours.decode(plain) == "<s>the"


def byte_level(path: Path) -> tokenizers.Tokenizer:
    """A small tokenizer.json with special and added tokens, and a post-processor that adds BOS."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts(400), trainer)
    made.add_tokens(["<tool>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')
    (path / "generation_config.json").write_text('{"eos_token_id": [1]}')
    return made


def test_a_tokenizer_json_gives_its_own_ids_with_bos_once(tmp_path: Path) -> None:
    reference = byte_level(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    for text in texts(2000):
        ids = ours.encode(text)
        assert ids == reference.encode(text).ids, repr(text)
        assert ours.encode("<s>" + text) == ids
        assert ours.decode(ids, skip_special=True) == text
        assert b"".join(map(ours.token_bytes, ids[1:])).decode() == text
    assert (ours.bos_id, ours.eos_id, ours.eos_ids, ours.control_ids) == (0, 1, {1}, {0, 1})
    assert 0 not in ours.encode("<s>x", add_bos=False, parse_special=False)
    assert ours.encode("<tool>", add_bos=False, parse_special=False) == [reference.token_to_id("<tool>")]


NEW = {"content": "<|im_end|>", "special": True}


@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json"])
def test_tokens_that_tokenizer_json_lacks_are_added_under_their_ids(tmp_path: Path, file: str) -> None:
    size = byte_level(tmp_path).get_vocab_size()
    said = {"added_tokens_decoder": {str(size): NEW}} if file == "tokenizer_config.json" else {"<|im_end|>": size}
    (tmp_path / file).write_text(json.dumps(said))
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.encode("a<|im_end|>b", add_bos=False) == [
        *ours.encode("a", add_bos=False),
        size,
        *ours.encode("b", add_bos=False),
    ]
    assert (size in ours.eos_ids) == (file == "tokenizer_config.json")
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": size}))
    assert Tokenizer.from_folder(tmp_path).vocabulary == size  # the model has no row for it


def test_a_token_named_under_an_id_that_is_not_the_next_one_is_not_added(tmp_path: Path) -> None:
    size = byte_level(tmp_path).get_vocab_size()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {str(size + 5): NEW}}))
    assert Tokenizer.from_folder(tmp_path).vocabulary == size


@pytest.mark.parametrize(("settings", "bos"), [({}, 0), ({"bos_token": None}, 0), ({"bos_token": "</s>"}, 1)])
def test_bos_is_what_the_tokenizer_puts_before_a_text_where_its_settings_name_none(
    tmp_path: Path, settings: dict[str, object], bos: int
) -> None:
    reference = byte_level(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.bos_id == bos
    assert ours.encode("sky")[0] == (0 if bos == 0 else reference.encode("sky").ids[1])


@pytest.mark.parametrize(("settings", "bos"), [({}, 1), ({"bos_token": None}, None), ({"bos_token": "<s>"}, 0)])
def test_a_tokenizer_that_says_it_has_no_bos_has_none_whatever_the_model_names(
    tmp_path: Path, settings: dict[str, object], bos: int | None
) -> None:
    made = byte_level(tmp_path)
    made.post_processor = tokenizers.processors.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": 1}')
    assert Tokenizer.from_folder(tmp_path).bos_id == bos


def test_vocab_json_and_merges_give_the_ids_of_tokenizer_json(tmp_path: Path) -> None:
    reference = byte_level(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(merge) for merge in model["merges"]]
    (plain / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    ours = Tokenizer.from_folder(plain)
    for text in texts(200):
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("file", "content"),
    [("tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"}), ("config.json", {"model_type": "qwen3"})],
)
def test_vocab_json_and_merges_of_qwen_are_cut_as_qwen_does(
    tmp_path: Path, file: str, content: dict[str, object]
) -> None:
    letters = sorted(byte_alphabet())
    merges = ["1 2", "\u0120 1", "\u0120 \u0120"]
    tokens = [*letters, *(merge.replace(" ", "") for merge in merges)]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("\n".join(merges))
    plain = Tokenizer.from_folder(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    qwen = Tokenizer.from_folder(tmp_path)
    cut = {text: [tokens[i] for i in qwen.encode(text)] for text in ("12", " 1", "e\u0301")}
    assert cut == {"12": ["1", "2"], " 1": ["\u0120", "1"], "e\u0301": ["\u00c3", "\u00a9"]}
    assert [tokens[i] for i in plain.encode("12")] == ["12"]


def test_vocab_json_and_merges_have_the_tokens_added_to_them(tmp_path: Path) -> None:
    letters = sorted(byte_alphabet())
    (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"256": NEW}}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": 257}))
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.encode("a<|im_end|><tool>") == [letters.index("a"), 256, 257]
    assert (ours.control_ids, ours.eos_ids) == ({256}, {256})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": 7}))
    with pytest.raises(CheckpointError, match=r"vocab\.json: id 7 is that of '<tool>' too"):
        Tokenizer.from_folder(tmp_path)


def test_a_vocab_txt_gives_the_ids_of_wordpiece(tmp_path: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "sky", "is", "bl", "##ue", "##s", ",", "!"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    reference = tokenizers.BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=True)
    ours = Tokenizer.from_folder(tmp_path)
    for text in ("The sky is blue!", "blues, the", "  sky", "zzz the"):
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode("the blues")) == "the blues"


def test_a_folder_without_a_tokenizer_is_told_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no tokenizer: expected tokenizer\.json, tokenizer\.model"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer.json", b'{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}'),
        ("tokenizer.json", b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":4000000000},"merges":[]}}'),
        ("tokenizer.json", b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}'),
        ("tokenizer.model", b""),
        ("tokenizer.model", b"\xff" * 100),
        ("vocab.txt", b""),
        ("vocab.txt", b"a\na"),
        ("vocab.txt", b"a\nb"),
    ],
)
def test_a_damaged_tokenizer_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Tokenizer.from_folder(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_byte_of_a_tokenizer_file_gives_a_tokenizer_or_one_of_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    byte_level(folder) if not SAVED else (folder / "tokenizer.json").write_bytes(SAVED[0])
    SAVED[:] = SAVED or [(folder / "tokenizer.json").read_bytes()]
    content = bytearray(SAVED[0])
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "tokenizer.json").write_bytes(content)
    with contextlib.suppress(CpuInferError):
        Tokenizer.from_folder(folder).encode("the sky")


SAVED: list[bytes] = []


@pytest.mark.parametrize("changes", [{"scores": None}, {"scores": np.array([np.nan] * 380)}, {"token_type": None}])
def test_an_unsound_sentencepiece_vocabulary_names_its_key(trained: bytes, changes: dict[str, object]) -> None:
    metadata = metadata_of(trained) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(CheckpointError, match=rf"x\.gguf: tokenizer\.ggml\.{next(iter(changes))} has"):
        Tokenizer.from_metadata(metadata, "x.gguf")


GOLDEN = ("bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "mpt")


@pytest.mark.parametrize("name", [*GOLDEN, "phi-3", "qwen2", "qwen35", "refact", "starcoder"])
@pytest.mark.filterwarnings(f"ignore::{TokenizerWarning.__module__}.{TokenizerWarning.__name__}")
def test_ids_equal_the_golden_files_of_other_vocabularies(name: str) -> None:
    file = Path(os.environ.get("CPUINFER_GOLDEN_VOCABULARIES", "")) / f"ggml-vocab-{name}.gguf"
    if not file.is_file():
        pytest.skip("CPUINFER_GOLDEN_VOCABULARIES does not name a folder of ggml-vocab-*.gguf with .inp and .out")
    tokenizer = Tokenizer.from_metadata(open_checkpoint(file).metadata, file.name)
    with Path(f"{file}.inp").open(newline="", encoding="utf-8") as inputs:
        given_texts = inputs.read().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{file}.out").read_text().split("\n")
    for text, line in zip(given_texts, lines[: len(given_texts)], strict=True):
        ids = tokenizer.encode(text, add_bos=False, parse_special=False)
        assert ids == [int(i) for i in line.split()], repr(text)
        assert name == "bert-bge" or tokenizer.decode(ids) == text
