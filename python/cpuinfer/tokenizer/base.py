"""What every tokenizer offers, and the rules they share: special tokens in a text, BOS once, bytes to text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cpuinfer.errors import InvalidRequest
from cpuinfer.tokenizer.literals import Literals

END_TEXTS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>")
"""Control tokens that end a turn wherever they are control tokens: files often name only one of several."""


class TokenizerWarning(UserWarning):
    """A tokenizer described incompletely, for which a default was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Special:
    """Tokens with a meaning beyond their text."""

    control: frozenset[int]
    """Never text of their own: left out of answers."""
    user_defined: frozenset[int]
    """Text that is always this one token."""
    bos_id: int | None
    eos_ids: frozenset[int]
    eos_id: int | None = None
    """The one that templates call eos_token."""
    add_bos: bool = False
    adds_space: bool = False
    """Encoding puts a space before a text."""


class Tokenizer(ABC):
    """Text to token ids and back.  Immutable, and safe to share by threads.

    A byte for which a byte-level vocabulary has no token is left out by `encode`: some lack rare control bytes.
    """

    def __init__(self, tokens: Sequence[str], special: Special) -> None:
        self.bos_id = special.bos_id
        self.eos_id = special.eos_id
        self.eos_ids = special.eos_ids
        self.control_ids = special.control
        self._tokens = tokens
        self._add_bos = special.add_bos
        self.adds_space = special.adds_space
        self.user_defined_ids = special.user_defined
        self._literal = special.control | special.user_defined
        self._literal_ids = {tokens[i]: i for i in self._literal}

    @cached_property
    def _user_defined_literals(self) -> Literals:
        return Literals(self._tokens[i] for i in self.user_defined_ids)

    @cached_property
    def _literals(self) -> Literals:
        return Literals(self._literal_ids)

    @staticmethod
    def from_metadata(metadata: Mapping[str, object], source: str) -> Tokenizer:
        """The tokenizer that the keys ``tokenizer.ggml.*`` describe; `source` names the file in messages.

        Raises UnsupportedModel for a kind of tokenizer not known, CheckpointError for a description that is not sound.
        """
        from cpuinfer.tokenizer import gguf

        return gguf.from_metadata(metadata, source)

    @staticmethod
    def from_folder(path: Path) -> Tokenizer:
        """The tokenizer of a Hugging Face folder: tokenizer.json, tokenizer.model, or vocab.json and merges.txt.

        Raises UnsupportedModel where there is none, CheckpointError for files that are not sound.
        """
        from cpuinfer.tokenizer import folder

        return folder.from_folder(path)

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[str]:
        """As the vocabulary spells them, special ones as the text they are."""
        return self._tokens

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
        ids = self._encode_all(text, parse_special=parse_special)
        if self._add_bos if add_bos is None else add_bos:
            if self.bos_id is None:
                raise InvalidRequest("add_bos is True, but the model has no beginning-of-sequence token")
            if ids[:1] != [self.bos_id]:
                ids.insert(0, self.bos_id)
        return ids

    def _encode_all(self, text: str, *, parse_special: bool) -> list[int]:
        ids: list[int] = []
        literals = self._literals if parse_special else self._user_defined_literals
        for piece in literals.cut(text):
            literal = self._literal_ids.get(piece)
            if literal is not None and (parse_special or literal not in self.control_ids):
                ids.append(literal)
            else:
                ids.extend(self._encode_piece(piece))
        return ids

    @abstractmethod
    def _encode_piece(self, piece: str) -> Sequence[int]:
        """Ids of a text between special tokens."""

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.  `skip_special` leaves control tokens out.

        A space that `encode` puts before a text is taken away again; what continues a text keeps its own, so answers
        are made of `token_bytes`.
        """
        kept = [i for i in ids if not (skip_special and i in self.control_ids)]
        text = b"".join(map(self.token_bytes, kept)).decode("utf-8", errors="replace")
        return text[1:] if self.adds_space and text.startswith(" ") else text

    def token_text(self, token_id: int) -> str:
        """The text of one token; what is not UTF-8 by itself becomes U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which may be part of a character.  Raises InvalidRequest outside the vocabulary."""
        if not 0 <= token_id < len(self._tokens):
            raise InvalidRequest(f"token id {token_id} is not in the vocabulary of 0 to {len(self._tokens) - 1}")
        token = self._tokens[token_id]
        return token.encode() if token_id in self._literal else self._piece_bytes(token, token_id)

    @abstractmethod
    def _piece_bytes(self, token: str, token_id: int, /) -> bytes:
        """The bytes of a token that is not special."""


def ending_ids(tokens: Sequence[str], control: Collection[int], named: Iterable[int | None]) -> frozenset[int]:
    """Tokens that end an answer: those a file names, and control tokens that always do."""
    return frozenset(i for i in named if i is not None) | {i for i in control if tokens[i] in END_TEXTS}


def byte_alphabet() -> dict[str, int]:
    """The byte each letter of a byte-level vocabulary stands for.

    Printable bytes of Latin-1 stand for themselves; the others, in order, for the letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
