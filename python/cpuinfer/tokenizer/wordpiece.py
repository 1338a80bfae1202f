"""WordPiece, as BERT and embedding models have it: words cut greedily into the longest pieces of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from cpuinfer.errors import CheckpointError
from cpuinfer.tokenizer.base import Special, Tokenizer
from cpuinfer.tokenizer.guard import guarded

CONTINUES = "##"


class WordPiece(Tokenizer):
    """Decoding puts a space before every word: what a text had between words is not kept."""

    def __init__(self, tokens: Sequence[str], special: Special, *, lowercase: bool, source: str) -> None:
        from tokenizers import Tokenizer as Fast
        from tokenizers import models, normalizers, pre_tokenizers

        super().__init__(tokens, special)

        def refuse(fault: str) -> NoReturn:
            raise CheckpointError(f"{source}: not a sound WordPiece vocabulary: {fault}")

        vocabulary = {token: i for i, token in enumerate(tokens)}
        unknown = next((token for token in ("[UNK]", "<unk>") if token in vocabulary), None)
        if unknown is None:
            refuse("it has no [UNK]")
        with guarded(refuse):
            self._fast = Fast(models.WordPiece(vocab=vocabulary, unk_token=unknown))
        self._fast.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        self._fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def _encode_piece(self, piece: str) -> Sequence[int]:
        return self._fast.encode(piece, add_special_tokens=False).ids

    def _piece_bytes(self, token: str, _: int, /) -> bytes:
        return (token[len(CONTINUES) :] if token.startswith(CONTINUES) else f" {token}").encode()
