"""Text to token ids and back: byte-level BPE built from the metadata of a GGUF file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, cast

import numpy as np

from cpuinfer.errors import CheckpointError, InvalidRequest, UnsupportedModel

if TYPE_CHECKING:
    import tokenizers

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type


class TokenizerWarning(UserWarning):
    """A tokenizer described incompletely, for which a default was taken."""


@dataclass(frozen=True, slots=True)
class _Split:
    """How text is cut into words before merging, and what else goes by the same name in GGUF files."""

    words: str | None = None
    """A pattern whose matches are words; None: the one of GPT-2, which the tokenizers package holds."""
    single_digits: bool = False
    """Every digit is a word of its own."""
    nfc: bool = False
    """Text is brought to Unicode normal form C first."""
    whole_words: bool = False
    """A word that is a token is taken as it is, even where the merges would build it otherwise."""
    add_bos: bool = False
    """The rule of files that do not say."""


def _modern(digits: str) -> str:
    """The pattern of Llama 3 and Qwen 2, which differ in how many digits make a word."""
    contraction = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    letters = r"[^\r\n\p{L}\p{N}]?\p{L}+"
    symbols = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    space = r"\s*[\r\n]+|\s+(?!\S)|\s+"
    return f"{contraction}|{letters}|{digits}|{symbols}|{space}"


_DEFAULT = "gpt-2"
_GPT2 = _Split()
_DIGITS = _Split(single_digits=True)
_LLAMA3 = _Split(words=_modern(r"\p{N}{1,3}"), whole_words=True, add_bos=True)
_SPLITS = {  # by tokenizer.ggml.pre
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _Split(words=_modern(r"\p{N}"), nfc=True),
}
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_END_TEXTS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<end_of_turn>")
"""Control tokens that end a turn wherever they are control tokens: files often name only one of several."""


class Tokenizer:
    """Byte-level BPE.  Every text has ids and every list of ids has a text; immutable, and safe to share by threads.

    A byte for which the vocabulary has no token is left out by `encode`: some vocabularies lack rare control bytes.
    """

    def __init__(
        self,
        *,
        bpe: tokenizers.Tokenizer,
        tokens: Sequence[str],
        control: frozenset[int],
        user_defined: frozenset[int],
        bos_id: int | None,
        eos_ids: frozenset[int],
        add_bos: bool,
    ) -> None:
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self.control_ids = control
        self._bpe = bpe
        self._tokens = tokens
        self._add_bos = add_bos
        self._literal = control | user_defined
        self._literal_ids = {tokens[i]: i for i in self._literal}
        self._cut_user_defined = _cutter(tokens[i] for i in user_defined)
        self._cut_all = _cutter(self._literal_ids)
        self._byte_of = _byte_alphabet()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object], source: str) -> Tokenizer:
        """The tokenizer that the keys ``tokenizer.ggml.*`` describe; `source` names the file in messages.

        Raises UnsupportedModel for a kind of tokenizer not known, CheckpointError for a description that is not sound.
        """
        keys = _Keys(metadata, source)
        split = _split_named(keys)
        tokens = keys.tokens()
        control, user_defined = keys.ids_of_type(_CONTROL, len(tokens)), keys.ids_of_type(_USER_DEFINED, len(tokens))
        bpe = _build_bpe(keys, tokens, control, split)
        bos_id = keys.token_id("bos_token_id", len(tokens))
        ends = {keys.token_id(key, len(tokens)) for key in _END_KEYS} | {i for i in control if tokens[i] in _END_TEXTS}
        add_bos = keys.flag("add_bos_token", split.add_bos)
        if add_bos and bos_id is None:
            keys.refuse("add_bos_token", "is true, but there is no tokenizer.ggml.bos_token_id")
        return cls(
            bpe=bpe,
            tokens=tokens,
            control=control,
            user_defined=user_defined,
            bos_id=bos_id,
            eos_ids=frozenset(i for i in ends if i is not None),
            add_bos=add_bos,
        )

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return len(self._tokens)

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        `add_bos`: begin with the beginning-of-sequence token, unless the text itself does; None: as the file says.
        An end-of-sequence token is never added: it would end a prompt before its answer.
        `parse_special`: control tokens spelled out in the text are those tokens; otherwise they are text like any.
        Raises InvalidRequest for what is not text, or for BOS where the model has none.
        """
        if not isinstance(text, str):
            raise InvalidRequest(f"a text to encode is {type(text).__name__}, expected str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"character {error.start} of the text is half of a surrogate pair") from None
        ids: list[int] = []
        cut = self._cut_all if parse_special else self._cut_user_defined
        for piece in cut.split(text) if cut else [text]:
            literal = self._literal_ids.get(piece)
            if literal is not None and (parse_special or literal not in self.control_ids):
                ids.append(literal)
            elif piece:
                ids.extend(self._bpe.encode(piece, add_special_tokens=False).ids)
        if self._add_bos if add_bos is None else add_bos:
            if self.bos_id is None:
                raise InvalidRequest("add_bos is True, but the model has no beginning-of-sequence token")
            if ids[:1] != [self.bos_id]:
                ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.  `skip_special` leaves control tokens out."""
        pieces = (self.token_bytes(i) for i in ids if not (skip_special and i in self.control_ids))
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_text(self, token_id: int) -> str:
        """The text of one token; what is not UTF-8 by itself becomes U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which may be part of a character.  Raises InvalidRequest outside the vocabulary."""
        if not 0 <= token_id < len(self._tokens):
            raise InvalidRequest(f"token id {token_id} is not in the vocabulary of 0 to {len(self._tokens) - 1}")
        token = self._tokens[token_id]
        if token_id in self._literal:
            return token.encode()
        try:
            return bytes([self._byte_of[letter] for letter in token])
        except KeyError:  # not spelled in the byte alphabet: filler such as an unused token
            return token.encode()


class _Keys:
    """The keys of the tokenizer, each checked as it is read."""

    def __init__(self, metadata: Mapping[str, object], source: str) -> None:
        self._metadata = metadata
        self.source = source

    def get(self, key: str) -> object:
        return self._metadata.get(f"tokenizer.ggml.{key}")

    def refuse(self, key: str, fault: str) -> NoReturn:
        raise CheckpointError(f"{self.source}: tokenizer.ggml.{key} {fault}")

    def strings(self, key: str) -> list[str]:
        value = self.get(key)
        if not isinstance(value, (list, tuple)) or not set(map(type, value)) <= {str}:
            self.refuse(key, "is missing or not a list of strings")
        try:
            "".join(value).encode()
        except UnicodeEncodeError:
            self.refuse(key, "has strings that are not UTF-8")
        return list(value)

    def tokens(self) -> list[str]:
        tokens = self.strings("tokens")
        if not tokens:
            self.refuse("tokens", "is empty")
        if len(set(tokens)) < len(tokens) or "" in tokens:
            seen: set[str] = set()
            for i, token in enumerate(tokens):
                if not token or token in seen:
                    self.refuse("tokens", f"[{i}] is {token!r}, expected a text that no other token has")
                seen.add(token)
        return tokens

    def ids_of_type(self, kind: int, vocabulary: int) -> frozenset[int]:
        value = self.get("token_type")
        if value is None:
            return frozenset()
        types = np.asarray(value)
        if types.shape != (vocabulary,) or types.dtype.kind not in "iu":
            self.refuse("token_type", f"has shape {types.shape} of {types.dtype}, expected {vocabulary} integers")
        return frozenset(np.flatnonzero(types == kind).tolist())

    def token_id(self, key: str, vocabulary: int) -> int | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 0 <= value < vocabulary:
            self.refuse(key, f"is {value!r}, expected a token id from 0 to {vocabulary - 1}")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, (bool, np.bool_)):
            self.refuse(key, f"is {value!r}, expected true or false")
        return bool(value)


def _split_named(keys: _Keys) -> _Split:
    model, name = keys.get("model"), keys.get("pre")
    if model != "gpt2":
        raise UnsupportedModel(
            f"{keys.source}: tokenizer.ggml.model is {model!r}, expected 'gpt2': only byte-level BPE is supported, "
            "not SentencePiece or WordPiece"
        )
    if name is None or name == "default":
        warnings.warn(
            f"{keys.source}: tokenizer.ggml.pre does not name a pre-tokenizer, {_DEFAULT!r} is taken: "
            "token ids may differ from those the model was trained on",
            TokenizerWarning,
            stacklevel=3,
        )
        name = _DEFAULT
    if not isinstance(name, str) or name not in _SPLITS:
        raise UnsupportedModel(f"{keys.source}: tokenizer.ggml.pre is {name!r}, expected one of {', '.join(_SPLITS)}")
    return _SPLITS[name]


def _build_bpe(keys: _Keys, tokens: list[str], control: frozenset[int], split: _Split) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    # Without the control tokens: no spelling of a text can merge into one.
    vocabulary = {token: i for i, token in enumerate(tokens) if i not in control}
    merges = [tuple(merge.split(" ")) for merge in keys.strings("merges")]
    try:
        model = models.BPE(
            vocab=vocabulary, merges=cast("list[tuple[str, str]]", merges), ignore_merges=split.whole_words
        )
    except Exception as error:
        for i, merge in enumerate(merges):
            if len(merge) != 2 or any(part not in vocabulary for part in (*merge, "".join(merge))):
                keys.refuse("merges", f"[{i}] is {' '.join(merge)!r}, expected two tokens that join to a third")
        keys.refuse("merges", f"is not sound: {error}")
    bpe = Tokenizer(model)
    if split.nfc:
        bpe.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if split.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if split.words is not None:
        steps.append(pre_tokenizers.Split(Regex(split.words), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.words is None))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return bpe


def _cutter(literals: Iterable[str]) -> re.Pattern[str] | None:
    """Splits a text at the longest of these strings, keeping them; None if there are none."""
    ordered = sorted(literals, key=lambda literal: (-len(literal), literal))
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None


def _byte_alphabet() -> dict[str, int]:
    """The byte each letter of a byte-level vocabulary stands for.

    Printable bytes of Latin-1 stand for themselves; the others, in order, for the letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
