"""The tokenizer against a byte-level BPE written by hand, golden files, and its own inverse."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byte_level_bpe import BOS, END, EOT, LETTERS, LONGER, SMALL, build, by_hand, small
from cpuinfer.errors import CheckpointError, InvalidRequest, UnsupportedModel
from cpuinfer.tokenizer import Tokenizer, TokenizerWarning

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "I'll say it's what they've said, 'twasn't? DON'T",
    "  leading, trailing  and   runs    of     space   ",
    "tabs\tand\t\tlines\n\n\nand\r\nreturns\r \n x",
    "def f(x: int) -> int:\n    return x**2 + 1  # 100% of 3.14159e-10\n",
    "12345678901234567890 007 ½ Ⅷ ٣٤٥",
    "你好、世界。日本語のテキスト 한국어",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200d",
    "שלום עולם مرحبا بالعالم",
    "Ünïcödé ßtraße ﬁ naïve\u00a0nbsp\u3000ideographic",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a" * 300,
]


@functools.cache
def read(path: Path) -> dict[str, object]:
    """The tokenizer keys of a file, by the gguf package."""
    from gguf import GGUFReader

    return {k: f.contents() for k, f in GGUFReader(path).fields.items() if k.startswith("tokenizer.")}


@pytest.fixture(scope="session")
def smollm2(real_model: Path) -> dict[str, object]:
    return read(real_model)


# -------------------------------------------------------------------------------------------------------- encoding


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_ids_of_smollm2_are_those_merged_by_hand(smollm2: dict[str, object], text: str) -> None:
    tokenizer = Tokenizer.from_metadata(smollm2, "smollm2")
    ids = tokenizer.encode(text, parse_special=False)
    assert ids == by_hand(text, smollm2)
    assert tokenizer.decode(ids) == text


def test_smollm2_knows_its_chat_tokens(smollm2: dict[str, object]) -> None:
    tokenizer = Tokenizer.from_metadata(smollm2, "smollm2")
    assert tokenizer.vocabulary == 49152
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n") == [1, 4093, 198, 26843, 2, 198]
    assert tokenizer.token_text(2) == "<|im_end|>"


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_has_ids_merged_by_hand_and_comes_back(text: str) -> None:
    ids = SMALL.encode(text, parse_special=False)
    if "  tab  " not in text:
        assert ids == by_hand(text, small())
    assert SMALL.decode(ids) == text
    assert SMALL.decode(SMALL.encode(text, add_bos=False)) == text


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["'", "s", "ll", " ", "\n", "\t", "1", "22", "a", "é", "!", "\u3000", "²"])).map("".join)
)
def test_text_dense_in_word_boundaries_has_ids_merged_by_hand(text: str) -> None:
    for pre in ("smollm", "gpt-2"):
        metadata = small(pre=pre)
        assert cached(pre).encode(text) == by_hand(text, metadata)


@functools.cache
def cached(pre: str) -> Tokenizer:
    return build(pre=pre)


def test_words_that_are_tokens_stay_whole_only_where_the_vocabulary_says_so() -> None:
    tokens = [*LETTERS, "xyz"]
    plain = {"tokens": tokens, "merges": [], "token_type": None, "bos_token_id": None, "eos_token_id": None}
    assert build(pre="llama-bpe", **plain, add_bos_token=False).encode("xyz") == [256]
    assert len(build(pre="gpt-2", **plain).encode("xyz")) == 3


def test_llama_3_takes_three_digits_at_a_time_and_qwen_one_after_normalising() -> None:
    merges = ["1 2", "12 3", "4 5"]
    tokens = LETTERS + [m.replace(" ", "") for m in merges]
    plain = {"tokens": tokens, "merges": merges, "token_type": None, "bos_token_id": None, "eos_token_id": None}
    llama = build(pre="llama-bpe", **plain, add_bos_token=False)
    assert [llama.token_text(i) for i in llama.encode("12345")] == ["123", "45"]
    qwen = build(pre="qwen2", **plain)
    assert [qwen.token_text(i) for i in qwen.encode("12345")] == ["1", "2", "3", "4", "5"]
    assert qwen.encode("e\u0301") == qwen.encode("é")


def test_control_tokens_are_read_from_text_only_when_asked() -> None:
    text = "<|im_start|>hello<|im_end|>"
    hello = SMALL.encode("hello")
    assert SMALL.encode(text) == [BOS, *hello, END]
    as_text = SMALL.encode(text, parse_special=False)
    assert not {BOS, END} & set(as_text)
    assert SMALL.decode(as_text) == text


def test_no_text_spells_a_control_token_unasked() -> None:
    assert END not in SMALL.encode("<|im_end|>", parse_special=False)
    tokens = [*LETTERS, "xyz"]
    types = [1] * 256 + [3]
    plain = {"tokens": tokens, "merges": [], "token_type": types, "bos_token_id": None, "eos_token_id": None}
    whole_words = build(pre="llama-bpe", **plain, add_bos_token=False)
    assert whole_words.encode("xyz") == [256]
    assert len(whole_words.encode("xyz", parse_special=False)) == 3


def test_the_longest_control_token_wins() -> None:
    assert SMALL.encode("<|im_end|>><|im_end|>") == [LONGER, END]


def test_user_defined_tokens_are_read_from_any_text() -> None:
    user_defined = SMALL.vocabulary - 1
    assert SMALL.encode("1  tab  2", parse_special=False)[1] == user_defined
    assert SMALL.decode([user_defined], skip_special=True) == "  tab  "


def test_bos_is_added_once_as_the_file_or_the_caller_says() -> None:
    assert SMALL.encode("hello")[0] != BOS
    assert SMALL.encode("hello", add_bos=True)[0] == BOS
    said = build(add_bos_token=True)
    assert said.encode("hello")[:2] == [BOS, *said.encode("hello", add_bos=False)][:2]
    assert said.encode("<|im_start|>hello").count(BOS) == 1
    assert said.encode("") == [BOS]
    assert build(pre="llama-bpe", add_bos_token=None).encode("") == [BOS]
    with pytest.raises(InvalidRequest, match="no beginning-of-sequence token"):
        build(bos_token_id=None).encode("hello", add_bos=True)


def test_end_tokens_are_those_the_file_names_and_the_known_control_tokens() -> None:
    assert SMALL.eos_ids == {EOT, END}
    assert build(eot_token_id=LONGER, eom_token_id=np.uint32(5)).eos_ids == {EOT, END, LONGER, 5}
    as_text = build(token_type=None).eos_ids  # not control tokens: mere text
    assert as_text == {EOT}


def test_a_byte_without_a_token_is_left_out() -> None:
    tokens = [letter for byte, letter in enumerate(LETTERS) if byte != 0x14]
    plain = {"tokens": tokens, "merges": [], "token_type": None, "bos_token_id": None, "eos_token_id": None}
    tokenizer = build(**plain)
    assert tokenizer.decode(tokenizer.encode("a\x14b")) == "ab"


def test_what_is_not_text_and_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="a text to encode is bytes, expected str"):
        SMALL.encode(b"abc")
    with pytest.raises(InvalidRequest, match="character 1 of the text is half of a surrogate pair"):
        SMALL.encode("a\ud800")
    for bad in (-1, SMALL.vocabulary):
        with pytest.raises(InvalidRequest, match=f"token id {bad} is not in the vocabulary of 0 to"):
            SMALL.decode([bad])


# ----------------------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "tokens is missing or not a list of strings"),
        ({"tokens": []}, "tokens is empty"),
        ({"tokens": ["a", b"b"]}, "tokens is missing or not a list of strings"),
        ({"tokens": ["a", "b", "a"]}, "tokens [2] is 'a', expected a text that no other token has"),
        ({"tokens": ["a", ""]}, "tokens [1] is '', expected a text that no other token has"),
        ({"tokens": ["a", "\udc80"]}, "tokens has strings that are not UTF-8"),
        ({"merges": None}, "merges is missing or not a list of strings"),
        ({"merges": ["h e", "h zz"]}, "merges [1] is 'h zz', expected two tokens that join to a third"),
        ({"merges": ["h e", "q q"]}, "merges [1] is 'q q', expected two tokens that join to a third"),
        ({"merges": ["he"]}, "merges [0] is 'he', expected two tokens"),
        ({"merges": ["h e l"]}, "merges [0] is 'h e l', expected two tokens"),
        ({"token_type": [1, 3]}, "token_type has shape (2,) of int64, expected 271 integers"),
        ({"token_type": ["a"] * 271}, "token_type has shape (271,) of <U1, expected 271 integers"),
        ({"token_type": 3}, "token_type has shape () of int64, expected 271 integers"),
        ({"bos_token_id": 271}, "bos_token_id is 271, expected a token id from 0 to 270"),
        ({"eos_token_id": -1}, "eos_token_id is -1, expected a token id from 0 to 270"),
        ({"eot_token_id": "2"}, "eot_token_id is '2', expected a token id from 0 to 270"),
        ({"add_bos_token": 1}, "add_bos_token is 1, expected true or false"),
        ({"add_bos_token": True, "bos_token_id": None}, "add_bos_token is true, but there is no"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_an_unsound_description_names_file_and_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        build(**changes)
    assert str(caught.value).startswith(f"small.gguf: tokenizer.ggml.{message}")


@pytest.mark.parametrize("model", ["rwkv", "plamo2", None, 3])
def test_other_kinds_of_tokenizer_are_unsupported(model: object) -> None:
    with pytest.raises(UnsupportedModel, match=r"small\.gguf: tokenizer\.ggml\.model is .*, expected 'gpt2', 'llama'"):
        build(model=model)


def test_an_unknown_pre_tokenizer_gets_the_default_and_a_warning() -> None:
    with pytest.warns(TokenizerWarning, match=r"pre is 'tekkenn', which is not known; 'gpt-2' is taken"):
        tokenizer = build(pre="tekkenn")
    assert tokenizer.encode("12") == cached("gpt-2").encode("12") != SMALL.encode("12")


@pytest.mark.parametrize("pre", [None, "default"])
def test_a_file_that_names_no_pre_tokenizer_gets_the_default_and_a_warning(pre: str | None) -> None:
    with pytest.warns(TokenizerWarning, match=r"small\.gguf: .*does not name a pre-tokenizer; 'gpt-2' is taken"):
        tokenizer = build(pre=pre)
    assert tokenizer.encode("12") == cached("gpt-2").encode("12") != SMALL.encode("12")
