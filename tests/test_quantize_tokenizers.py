"""A folder's tokenizer in a GGUF file gives the same tokens, or the folder is refused."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cpuinfer.errors import UnsupportedModel
from cpuinfer.quantize.gguf_output import write_gguf
from cpuinfer.quantize.gguf_tokenizer import metadata
from cpuinfer.quantize.pre_tokenizers import recognised
from cpuinfer.tokenizer import Tokenizer, TokenizerWarning
from cpuinfer.tokenizer.splits import SPLITS
from quantised_models import folder_of, opened
from test_tokenizer_kinds import texts, trained  # noqa: F401

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
# As the tokenizer.json of Llama 3, Qwen 2.5, Tekken and GPT-4o have them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def cut_by(*patterns: str) -> Any:
    return pre_tokenizers.Sequence([*(pre_tokenizers.Split(Regex(each), "isolated") for each in patterns), BYTES])


def byte_level(pre: Any, *, nfc: bool = False, ignore_merges: bool = False) -> tokenizers.Tokenizer:
    """A small vocabulary, trained on mixed text, with special tokens and one that is not."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer, made.decoder = pre, decoders.ByteLevel()
    if nfc:
        made.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    made.train_from_iterator(texts(300), trainer)
    made.add_special_tokens(["<|im_end|>"])
    made.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return made


def settings_of(made: tokenizers.Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.to_str())
    return found


def save(folder: Path, made: tokenizers.Tokenizer, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|im_end|>", **config}))
    return folder


def written(folder: Path, vocabulary: int = 450) -> Tokenizer:
    """What our reader makes of the keys."""
    keys = metadata(folder, vocabulary)
    values = {
        key: memoryview(np.array(entry.value, entry.type)) if entry.is_array and entry.type != "string" else entry.value
        for key, entry in keys.items()
    }
    return Tokenizer.from_metadata(values, "written.gguf")


KINDS = {
    "gpt-2": (GPT2, False, False),
    "smollm": (DIGITS, False, False),
    "llama-bpe": (cut_by(LLAMA3), False, True),
    "dbrx": (cut_by(LLAMA3), False, False),
    "qwen2": (cut_by(LLAMA3.replace("{1,3}", "")), True, False),
    "stablelm2": (cut_by(LLAMA3.replace("{1,3}", "")), False, False),
    "tekken": (cut_by(TEKKEN), False, True),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_way_of_cutting_text_is_recognised_and_tokens_are_equal(name: str, tmp_path: Path) -> None:
    pre, nfc, ignore_merges = KINDS[name]
    folder = save(tmp_path / "in", byte_level(pre, nfc=nfc, ignore_merges=ignore_merges))
    assert metadata(folder, 450)["tokenizer.ggml.pre"].value == name
    before, after = Tokenizer.from_folder(folder), written(folder)
    for text in [*texts(200), "caf\u00e9 <tool> I'LL 12345 <|im_end|>"]:
        assert after.encode(text) == before.encode(text), repr(text)
    assert (after.bos_id, after.eos_id, after.control_ids) == (before.bos_id, before.eos_id, before.control_ids)


@pytest.mark.parametrize("name", SPLITS)
def test_every_way_that_our_reader_knows_is_told_from_the_others(name: str) -> None:
    split = SPLITS[name]
    made = byte_level_plain(cut_by(*split.patterns), nfc=split.nfc, ignore_merges=split.whole_words)
    found = SPLITS[recognised(Path("tokenizer.json"), settings_of(made))]
    assert (found.patterns, found.nfc, found.whole_words) == (split.patterns, split.nfc, split.whole_words)


def byte_level_plain(pre: Any, *, nfc: bool, ignore_merges: bool) -> tokenizers.Tokenizer:
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[], ignore_merges=ignore_merges))
    made.pre_tokenizer, made.decoder = pre, decoders.ByteLevel()
    if nfc:
        made.normalizer = normalizers.NFC()
    return made


def test_normal_form_c_that_has_no_name_is_told(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", byte_level(GPT2, nfc=True))  # GPT-NeoX
    with pytest.warns(TokenizerWarning, match=r"Unicode normal form C first, which a GGUF file cannot say"):
        assert metadata(folder, 450)["tokenizer.ggml.pre"].value == "gpt-2"


def lowercased() -> tokenizers.Tokenizer:
    made = byte_level(GPT2)
    made.normalizer = normalizers.Lowercase()
    return made


def unigram() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))


def dropping_spaces() -> tokenizers.Tokenizer:
    made = byte_level(GPT2)
    made.add_tokens([AddedToken("[[", special=False, normalized=False, lstrip=True)])
    return made


ODD = {
    "a space before the text": (lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), "has no name for"),
    "words cut by white space": (lambda: byte_level(pre_tokenizers.Whitespace()), "has no name for"),
    "small letters": (lowercased, "normalises text in a way that GGUF cannot say"),
    "another model": (unigram, r"nor a tokenizer\.json of BPE"),
}


@pytest.mark.parametrize("case", ODD)
def test_a_tokenizer_that_gguf_has_no_words_for_is_refused(case: str, tmp_path: Path) -> None:
    make, message = ODD[case]
    folder = save(tmp_path / "in", make())
    with pytest.raises(UnsupportedModel, match=message):
        metadata(folder, 450)


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", byte_level(GPT2))
    with pytest.raises(UnsupportedModel, match=r"tokens, expected up to 300, a row for each"):
        metadata(folder, 300)


def test_a_file_has_the_tokenizer_and_the_templates_of_its_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "awkward")
    made = byte_level(GPT2)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    save(folder, made, chat_template="{{ messages[0]['content'] }}", pad_token="<tool>")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    settings = json.loads((folder / "config.json").read_text())
    settings["vocab_size"] = 450
    (folder / "config.json").write_text(json.dumps(settings))
    enlarge_table(folder, 450)
    source = opened(folder)
    write_gguf(tmp_path / "out.gguf", source, {}, file_type=0)
    file = opened(tmp_path / "out.gguf")
    before, after = source.tokenizer(), file.tokenizer()
    assert after.encode("a<|im_end|>") == before.encode("a<|im_end|>")
    assert after.encode("a")[0] == 0
    assert source.chat_template is not None
    assert file.chat_template is not None
    messages = [{"role": "user", "content": "hello"}]
    for tools in (None, [{"name": "x"}]):
        rendered = [each.chat_template(each.tokenizer()).render(messages, tools=tools) for each in (source, file)]
        assert rendered[0] == rendered[1]
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    kinds = fields["tokenizer.ggml.token_type"].contents()
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert [kinds[tokens.index(token)] for token in ("<s>", "<|im_end|>", "<tool>", "[PAD449]", "a")] == [3, 3, 4, 5, 1]
    assert fields["tokenizer.ggml.padding_token_id"].contents() == tokens.index("<tool>")
    assert fields["tokenizer.ggml.merges"].contents() == [
        " ".join(pair) for pair in settings_of(made)["model"]["merges"]
    ]


def enlarge_table(folder: Path, rows: int) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.resize(table, (rows, table.shape[1]))
    save_file(tensors, folder / "model.safetensors")


def test_a_sentencepiece_model_gives_the_same_tokens_or_is_refused(
    trained: bytes,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"add_bos_token": True, "added_tokens_decoder": {"380": {"content": "<turn>", "special": True}}})
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained)
    if processor.get_score(300) != int(processor.get_score(300)):  # unigram, which is not merged
        with pytest.raises(UnsupportedModel, match=r"its tokenizer does something that GGUF has no key for"):
            metadata(tmp_path, 384)
        return
    before, after = Tokenizer.from_folder(tmp_path), written(tmp_path, 384)
    for text in [*texts(300), "the sky<sep><turn>"]:
        assert after.encode(text) == before.encode(text), repr(text)
    keys = metadata(tmp_path, 384)
    assert keys["tokenizer.ggml.token_type"].value[3] == 4  # <sep>
    kinds = keys["tokenizer.ggml.token_type"].value
    assert [kinds[i] for i in (0, 1, 2, 380, 381)] == [2, 3, 3, 3, 5]
    assert keys["tokenizer.ggml.scores"].value[300] == processor.get_score(300)
    assert keys["tokenizer.ggml.add_space_prefix"].value is True


def test_bpe_that_falls_back_to_bytes_gives_the_same_tokens(tmp_path: Path) -> None:
    made = fallback()
    folder = save(tmp_path / "in", made)
    size = made.get_vocab_size()
    before, after = Tokenizer.from_folder(folder), written(folder, size + 3)
    for text in [*texts(300), "the <tool> sky<|im_end|>  x"]:
        assert after.encode(text) == before.encode(text), repr(text)
    assert metadata(folder, size)["tokenizer.ggml.model"].value == "llama"


def fallback() -> tokenizers.Tokenizer:
    """As Llama 2's tokenizer.json is: pieces of SentencePiece as merges."""
    spaced = [text.replace(" ", "\u2581") for text in texts(300)]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "<|im_end|>"], show_progress=False)
    trial = tokenizers.Tokenizer(models.BPE())
    trial.train_from_iterator(spaced, trainer)
    model = settings_of(trial)["model"]
    vocabulary = dict(model["vocab"])
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in model["merges"]]
    made = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "<|im_end|>"])
    made.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return made


def test_a_folder_without_a_tokenizer_makes_a_file_without_one(tmp_path: Path) -> None:
    assert {key: entry.value for key, entry in metadata(tmp_path, 10).items()} == {"tokenizer.ggml.model": "none"}


def test_random_text_has_the_same_tokens(tmp_path: Path) -> None:
    folder = save(tmp_path / "in", byte_level(cut_by(LLAMA3), ignore_merges=True))
    before, after = Tokenizer.from_folder(folder), written(folder)
    rng = random.Random(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(300):
            text = "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xA0, 0xD7FF)))) for _ in range(40))
            assert after.encode(text) == before.encode(text), repr(text)
