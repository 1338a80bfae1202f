"""Codes out of words, and which group of a row each of its columns belongs to."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import CheckpointError, UnsupportedFormat


def unpack(words: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Codes of 4 or 8 bits from int32 words or bytes, lowest bits first: [rows, words] -> [rows, codes]."""
    packed = np.ascontiguousarray(words, words.dtype.newbyteorder("<")).view(np.uint8)
    if bits == 8:
        return packed
    codes = np.empty((*packed.shape, 2), np.uint8)
    np.bitwise_and(packed, 15, out=codes[..., 0])
    np.right_shift(packed, 4, out=codes[..., 1])
    return codes.reshape(packed.shape[0], packed.shape[1] * 2)


def unpack_columns(words: npt.NDArray[Any], begin: int, end: int, bits: int) -> npt.NDArray[np.uint8]:
    """Columns [begin, end) of codes packed along rows of int32 words: [rows, end - begin]."""
    per_word = 32 // bits
    first = begin // per_word
    codes = unpack(words[:, first : -(-end // per_word)], bits)
    return codes[:, begin - first * per_word : end - first * per_word]


def pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    """The inverse of `unpack`: [rows, codes] -> int32 words [rows, words], the last filled up with zeros."""
    missing = -codes.shape[1] % (32 // bits)
    whole = np.pad(codes, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(codes)
    words: npt.NDArray[np.int32] = pack_bits(whole, bits).view("<i4")
    return words


def pack_bits(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Codes of 1 to 8 bits one after another, lowest bits first, each row from a new byte on: [rows, bytes]."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    if bits == 4 and codes.shape[1] % 2 == 0:
        return np.asarray(codes[:, ::2] | codes[:, 1::2] << np.uint8(4), np.uint8)
    each = codes[:, :, None] >> np.arange(bits, dtype=np.uint8) & np.uint8(1)
    return np.packbits(each.reshape(len(codes), -1), axis=1, bitorder="little")


def unpack_bits(packed: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.uint8]:
    """The inverse of `pack_bits`: [rows, bytes] -> [rows, count]."""
    if bits == 8 or (bits == 4 and count % 2 == 0):
        return unpack(packed, bits)
    each = np.unpackbits(packed, axis=1, count=count * bits, bitorder="little").reshape(len(packed), count, bits)
    codes: npt.NDArray[np.uint8] = (each << np.arange(bits, dtype=np.uint8)).sum(axis=2, dtype=np.uint8)
    return codes


@dataclass(frozen=True, slots=True)
class Groups:
    """How the columns of a row share scales."""

    index: npt.NDArray[np.intp]
    """[k]: the file's group of each column, in the file's order of columns."""
    order: npt.NDArray[np.int32] | None
    """[k]: the columns in an order that makes groups contiguous, or None where they are."""
    size: int
    """Neighbours, in that order, that surely share a scale: a multiple of 32."""
    source: npt.NDArray[np.intp]
    """[k / size]: the file's group of each such run."""

    def arrange(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Codes [rows, k] in the file's order -> in the order of groups."""
        return np.ascontiguousarray(codes if self.order is None else codes[:, self.order])


def count_groups(k: int, group: int) -> int:
    """Groups of a row; -1 is one group."""
    return 1 if group == -1 else -(-k // group)


@functools.lru_cache(maxsize=64)
def contiguous(k: int, group: int) -> Groups:
    """Groups of `group` neighbours, the last of which may be shorter; -1 is one group."""
    return _grouped(np.arange(k) // (k if group == -1 else min(group, k)), "group_size")


def listed(index: npt.NDArray[Any], groups: int, name: str) -> Groups:
    """Groups as a tensor (g_idx) lists them for each column, checked."""
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= groups:
        raise CheckpointError(f"{name}: group {low if low < 0 else high}, expected 0 to {groups - 1}")
    return _grouped(index.astype(np.intp), name)


def _grouped(index: npt.NDArray[np.intp], name: str) -> Groups:
    counts = np.bincount(index)
    size = int(np.gcd.reduce(counts))
    if size % 32:
        odd = int(counts[counts % 32 != 0][0])
        raise UnsupportedFormat(f"{name}: a group of {odd} columns, expected multiples of 32")
    order = np.argsort(index, kind="stable").astype(np.int32)
    in_order = bool((np.diff(index) >= 0).all())
    return Groups(index, None if in_order else order, size, index[order][::size])
