"""The keys ``tokenizer.ggml.*`` of a GGUF file, each checked as it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

from cpuinfer.errors import CheckpointError

if TYPE_CHECKING:
    import numpy.typing as npt

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Values of token_type, those of SentencePiece's pieces."""


class Keys:
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

    def types(self, vocabulary: int) -> list[int]:
        """The kind of every token; all normal where the file does not say."""
        value = self.get("token_type")
        if value is None:
            return [NORMAL] * vocabulary
        if _is_plain(value, vocabulary, "bBhHiIqQ"):
            return value.tolist()
        types = _as_array(value)
        if types.shape != (vocabulary,) or types.dtype.kind not in "iu":
            self.refuse("token_type", f"has shape {types.shape} of {types.dtype}, expected {vocabulary} integers")
        kinds: list[int] = types.tolist()
        return kinds

    def scores(self, vocabulary: int) -> list[float]:
        """The score of every token."""
        value = self.get("scores")
        if _is_plain(value, vocabulary, "fd") and math.isfinite(sum(value)):
            return [float(score) for score in value]
        scores = _as_array(value)
        values: list[float] = scores.tolist()
        if scores.shape != (vocabulary,) or scores.dtype.kind != "f" or not all(map(math.isfinite, values)):
            self.refuse("scores", f"has shape {scores.shape} of {scores.dtype}, expected {vocabulary} finite numbers")
        return values

    def raw_bytes(self, key: str) -> bytes:
        """An array of bytes; none where the key is missing."""
        value = self.get(key)
        if value is None:
            return b""
        if isinstance(value, memoryview) and value.ndim == 1 and value.itemsize == 1:
            return value.tobytes()
        array = _as_array(value)
        if array.ndim != 1 or array.dtype.itemsize != 1:
            self.refuse(key, f"has shape {array.shape} of {array.dtype}, expected bytes")
        return array.tobytes()

    def ids_of_type(self, kind: int, vocabulary: int) -> frozenset[int]:
        """The tokens of a kind."""
        return frozenset(i for i, each in enumerate(self.types(vocabulary)) if each == kind)

    def token_id(self, key: str, vocabulary: int) -> int | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= int(value) < vocabulary:
            self.refuse(key, f"is {value!r}, expected a token id from 0 to {vocabulary - 1}")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, f"is {value!r}, expected true or false")
        return value


def _is_plain(value: Any, count: int, formats: str) -> TypeGuard[memoryview]:
    """Whether a value is as our reader gives arrays, of so many numbers of one of these formats."""
    return isinstance(value, memoryview) and value.format in formats and value.shape == (count,)


def _as_array(value: object) -> npt.NDArray[Any]:
    """What somebody else read, or what does not fit: NumPy is imported for these alone."""
    import numpy as np

    return np.asarray(value)
