"""What the block quantizers share: numbers with the weights of their errors, and what becomes of them in bytes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]


class Numbers(NamedTuple):
    """What is to be written and how much the square of each number's error weighs, in the same shape."""

    values: Floats
    weights: Floats

    def groups(self, size: int) -> Numbers:
        """[blocks, elements] -> [blocks, groups, size]."""
        return Numbers(*(array.reshape(len(array), -1, size) for array in self))

    def error(self, approximation: Floats) -> Floats:
        """The weighted sum of squares of each group."""
        return (self.weights * (self.values - approximation) ** 2).sum(axis=-1, keepdims=True)


def pack(codes: Codes, *, bits: int, run: int) -> Codes:
    """What `cpuinfer.formats.packed.unpack` takes apart; codes [blocks, elements]."""
    parts = codes.reshape(len(codes), -1, 8 // bits, run)
    packed_codes = np.zeros((len(codes), parts.shape[1], run), np.uint8)
    for i in range(8 // bits):
        packed_codes |= parts[:, :, i] << np.uint8(i * bits)
    return packed_codes.reshape(len(codes), -1)


def halves(values: Floats) -> Codes:
    """fp16 [blocks] as bytes."""
    return values.astype("<f2")[:, None].view(np.uint8)


def rounded(values: Floats) -> Floats:
    """As fp16 holds them."""
    return values.astype(np.float16).astype(np.float32)


def divide(values: Floats, by: Floats) -> Floats:
    """Zero where there is nothing to divide by."""
    return np.divide(values, by, out=np.zeros(np.broadcast_shapes(values.shape, by.shape), np.float32), where=by != 0)
