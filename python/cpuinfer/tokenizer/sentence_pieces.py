"""SentencePiece, by its own library: BPE and unigram vocabularies with byte fallback.

A vocabulary from a GGUF file is written down in memory as the model file the library reads
(https://github.com/google/sentencepiece, sentencepiece_model.proto).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from cpuinfer.errors import CheckpointError
from cpuinfer.tokenizer.base import Special, Tokenizer
from cpuinfer.tokenizer.guard import guarded
from cpuinfer.tokenizer.keys import BYTE

SPACE = "\u2581"
"""How a vocabulary spells a space."""


class SentencePieces(Tokenizer):
    """A text loses what the vocabulary's normaliser takes away, and gains a leading space where it adds one.

    Each stretch of text between special tokens is encoded by itself.
    """

    def __init__(
        self, tokens: Sequence[str], types: Sequence[int], special: Special, proto: bytes, source: str
    ) -> None:
        """Raises CheckpointError naming `source` for a model that the library refuses."""
        import sentencepiece

        super().__init__(tokens, special)

        def refuse(fault: str) -> NoReturn:
            raise CheckpointError(f"{source}: not a sound SentencePiece vocabulary: {fault}")

        with guarded(refuse):
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
            if self._processor.get_piece_size() > len(tokens):
                refuse(f"{self._processor.get_piece_size()} pieces for {len(tokens)} tokens")
        self._types = types

    def _encode_piece(self, piece: str) -> Sequence[int]:
        ids: list[int] = self._processor.encode(piece)
        return ids

    def _piece_bytes(self, token: str, token_id: int, /) -> bytes:
        if self._types[token_id] == BYTE:
            return bytes([int(token[3:-1], 16)])
        return token.replace(SPACE, " ").encode()


def model_proto(
    pieces: list[str],
    scores: list[float],
    types: list[int],
    *,
    model: str,
    unknown: int,
    add_prefix: bool,
    remove_extra: bool,
    charsmap: bytes = b"",
) -> bytes:
    """A ModelProto of pieces with a score and a type each, in protocol buffers' wire format."""
    from cpuinfer import _core

    trainer = (
        _varint(3, 1 if model == "unigram" else 2)
        + _varint(4, len(pieces))
        + _varint(35, int(BYTE in types))
        + _varint(40, unknown)
        + b"".join(_varint(field, -1) for field in (41, 42, 43))  # no other piece has a role
    )
    normalizer = (
        _bytes(1, b"identity")
        + (_bytes(2, charsmap) if charsmap else b"")
        + _varint(3, int(add_prefix))
        + _varint(4, int(remove_extra))
        + _varint(5, 1)
    )
    return _core.write_pieces(pieces, scores, types) + _bytes(2, trainer) + _bytes(3, normalizer)


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value & (1 << 64) - 1)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
