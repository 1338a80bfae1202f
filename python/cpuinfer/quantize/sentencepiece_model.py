"""The pieces of a SentencePiece model file, with their types, which its library does not all tell.

The file is a ModelProto in protocol buffers' wire format (https://github.com/google/sentencepiece,
sentencepiece_model.proto): field 1, repeated, is a piece, of text (1), score (2) and type (3).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from cpuinfer.errors import CheckpointError
from cpuinfer.tokenizer.keys import NORMAL


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of the vocabulary."""

    text: str
    score: float
    type: int
    """As `tokenizer.ggml.token_type` has them."""


def piece_list(proto: bytes) -> list[Piece]:
    """All pieces, in order.  Raises CheckpointError for what is not such a file."""
    try:
        return [_piece(value) for field, value in _fields(proto) if field == 1 and isinstance(value, bytes)]
    except (IndexError, struct.error, UnicodeDecodeError, ValueError, TypeError) as error:
        raise CheckpointError(f"tokenizer.model: not a SentencePiece model: {error}") from None


def _piece(message: bytes) -> Piece:
    found = dict(_fields(message))
    text, score, kind = found[1], found.get(2, bytes(4)), found.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise ValueError("a piece of other fields")
    return Piece(text.decode(), struct.unpack("<f", score)[0], kind)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
                continue
            case 2:
                size, at = _varint(message, at)
            case 1:
                size = 8
            case 5:
                size = 4
            case _:
                raise ValueError(f"wire type {key & 7}")
        if at + size > len(message):
            raise ValueError("a field that is cut off")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
