"""Byte-level BPE: words of bytes, spelled in letters, merged by a list of pairs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn

from cpuinfer.tokenizer.base import Special, Tokenizer, byte_alphabet
from cpuinfer.tokenizer.splits import Split

if TYPE_CHECKING:
    from tokenizers import normalizers, pre_tokenizers


class Words:
    """A text cut into words, and their tokens."""

    def __init__(
        self,
        tokens: Sequence[str],
        left_out: Collection[int],
        merges: Sequence[str],
        split: Split,
        refuse: Callable[[int], NoReturn],
    ) -> None:
        """`left_out`: tokens that no text becomes.  `refuse`: called with the first of the merges that is unsound."""
        from cpuinfer import _core

        self._split = split
        self._pairs = _core.BytePairs(list(tokens), list(left_out), whole_words=split.whole_words)
        unsound = self._pairs.add_merges(list(merges))
        if unsound >= 0:
            refuse(unsound)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        if self._split.nfc:
            text = self._normalizer.normalize_str(text)
        return self._pairs.encode([word for word, _ in self._cutter.pre_tokenize_str(text)])

    @cached_property
    def _normalizer(self) -> normalizers.Normalizer:
        from tokenizers import normalizers

        return normalizers.NFC()

    @cached_property
    def _cutter(self) -> pre_tokenizers.PreTokenizer:
        from tokenizers import Regex, pre_tokenizers

        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self._split.patterns
        ]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(steps)


class ByteLevel(Tokenizer):
    """Every text has ids and every list of ids has a text."""

    def __init__(self, tokens: Sequence[str], special: Special, words: Words) -> None:
        super().__init__(tokens, special)
        self._words = words
        self._byte_of = byte_alphabet()

    def _encode_piece(self, piece: str) -> Sequence[int]:
        return self._words.encode(piece)

    def _piece_bytes(self, token: str, _: int, /) -> bytes:
        try:
            return bytes([self._byte_of[letter] for letter in token])
        except KeyError:  # not spelled in the byte alphabet: filler such as an unused token
            return token.encode()
