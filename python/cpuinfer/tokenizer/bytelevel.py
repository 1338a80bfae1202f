"""Byte-level BPE: words of bytes, spelled in letters, merged by a list of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cpuinfer.tokenizer.base import Special, Tokenizer, byte_alphabet
from cpuinfer.tokenizer.guard import guarded
from cpuinfer.tokenizer.splits import Split

if TYPE_CHECKING:
    import tokenizers


class ByteLevel(Tokenizer):
    """Every text has ids and every list of ids has a text."""

    def __init__(self, tokens: Sequence[str], special: Special, bpe: tokenizers.Tokenizer) -> None:
        super().__init__(tokens, special)
        self._bpe = bpe
        self._byte_of = byte_alphabet()

    def _encode_piece(self, piece: str) -> Sequence[int]:
        return self._bpe.encode(piece, add_special_tokens=False).ids

    def _piece_bytes(self, token: str, _: int, /) -> bytes:
        try:
            return bytes([self._byte_of[letter] for letter in token])
        except KeyError:  # not spelled in the byte alphabet: filler such as an unused token
            return token.encode()


def build_bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    split: Split,
    refuse: Callable[[str], object],
) -> tokenizers.Tokenizer:
    """The merging of words; `refuse` raises for a vocabulary and merges that do not fit each other."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    with guarded(refuse):
        bpe = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges), ignore_merges=split.whole_words))
    if split.nfc:
        bpe.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return bpe
