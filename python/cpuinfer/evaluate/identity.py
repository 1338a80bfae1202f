"""What was measured, so that results can be told apart: the model, the text, and how the one reads the other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpuinfer.errors import InvalidRequest

if TYPE_CHECKING:
    from cpuinfer.evaluate.scoring import Model
    from cpuinfer.llm import LLM
    from cpuinfer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as it was open.

    Attributes:
        name: of its file or folder.
        file_bytes: of its files.
        vocabulary: logits a token.
        tokenizer: SHA-256 of the tokens' bytes.
        isa, kv_cache, deterministic: see LLM.  Threads are left out: they change no result.
    """

    name: str
    file_bytes: int
    vocabulary: int
    tokenizer: str
    isa: str
    kv_cache: str
    deterministic: bool


@dataclass(frozen=True, slots=True)
class Text:
    """A text and its tokens' number."""

    name: str
    sha256: str
    bytes: int
    tokens: int


def subject(llm: LLM | Model) -> Subject:
    """Of a model."""
    files = [path for path in llm.path.rglob("*") if path.is_file()] if llm.path.is_dir() else [llm.path]
    return Subject(
        name=llm.path.name,
        file_bytes=sum(path.stat().st_size for path in files),
        vocabulary=llm.vocabulary,
        tokenizer=tokenizer_hash(llm.tokenizer),
        isa=llm.isa,
        kv_cache=llm.kv_cache,
        deterministic=llm.deterministic,
    )


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of every token's length (4 bytes, little-endian) and bytes, by id.

    Converters to GGUF fill ids that a model has no token for with `[PAD` and the id: those at the end are left out, so
    that a file and the folder it was made from agree.
    """
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocabulary)]
    while tokens and tokens[-1] == b"[PAD%d]" % (len(tokens) - 1):
        tokens.pop()
    digest = hashlib.sha256()
    for token in tokens:
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()


def read_text(text: str | Path) -> tuple[str, str]:
    """(name, text) of a text, or of a UTF-8 file.  Raises InvalidRequest where it is none or empty, or OSError."""
    name = "text"
    if isinstance(text, Path):
        name = str(text)
        try:
            text = text.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{name}: byte {error.start} is not UTF-8 text") from None
    if not isinstance(text, str):
        raise InvalidRequest(f"a text is {type(text).__name__}, expected str or Path")
    if not text:
        raise InvalidRequest(f"{name}: is empty, expected text")
    return name, text


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text by itself, without BOS; what spells a control token is text."""
    return tokenizer.encode(text, add_bos=False, parse_special=False)


def bos_of(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before a text, if it does."""
    return next(iter(tokenizer.encode("")), None)


def identify(name: str, text: str, tokens: int) -> Text:
    """Of a text."""
    data = text.encode()
    return Text(name, hashlib.sha256(data).hexdigest(), len(data), tokens)
