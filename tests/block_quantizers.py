"""Writes matrices in the GGUF block types that the gguf package reads but does not write: K-quants, code-books, grids.

Plain, not the best there are: a scale for each group from a short search, rounded to what the type can hold, then the
nearest codes.  The bytes are laid out as `cpuinfer.formats` and the gguf package read them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from block_numbers import Codes, Floats, Numbers, divide, halves, pack, rounded
from cpuinfer.formats import packed
from grid_quantizers import iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs

SHRINKS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64)
"""Of the scale that holds a group's extremes: clipping them may make the rest finer."""


def quantize(values: npt.NDArray[np.floating], encoding: str, importance: Floats | None = None) -> Codes:
    """[rows, k] -> the bytes of the rows, as the gguf package's `quantize` gives them.

    importance [k] weighs the squares of errors: the mean square of what each column is multiplied by.
    """
    elements = 32 if encoding == "IQ4_NL" else 256
    weights = np.broadcast_to(np.float32(1) if importance is None else importance, values.shape)
    arrays = (np.ascontiguousarray(array, np.float32).reshape(-1, elements) for array in (values, weights))
    return ENCODINGS[encoding](Numbers(*arrays)).reshape(len(values), -1)


def shrunk(groups: Numbers, whole: Floats, codes_for: Callable[[Floats], Floats]) -> Floats:
    """The scale among `whole` and smaller ones that has the least error; codes_for(scale) gives the numbers."""
    best, least = whole, np.full_like(whole, np.inf)
    for share in SHRINKS:
        scale = whole * np.float32(share)
        found = groups.error(scale * codes_for(scale))
        best = np.where(found < least, scale, best)
        least = np.minimum(least, found)
    return best


def two_levels(scale: Floats, most: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """A factor [blocks] that fp16 holds, and numbers [blocks, groups] of at most `most` in magnitude."""
    factor = rounded(np.abs(scale).max(axis=1) / most)
    return factor, np.clip(np.rint(divide(scale, factor[:, None])), -most, most).astype(np.int64)


def with_minima(blocks: Numbers, group: int, last: int, most: int) -> tuple[Codes, Codes, Codes, Floats, Floats]:
    """Codes, scales and minima [blocks, groups], and the factors of both [blocks]: x = d s q - m t."""
    groups, weights = blocks.groups(group)
    low = np.minimum(groups.min(axis=2, keepdims=True), 0)
    whole = (np.maximum(groups.max(axis=2, keepdims=True), 0) - low) / last
    raised = groups - low
    scale = shrunk(Numbers(raised, weights), whole, lambda s: np.clip(np.rint(divide(raised, s)), 0, last))
    d, s = two_levels(scale[:, :, 0], most)
    m, t = two_levels(-low[:, :, 0], most)
    raised = groups + (m[:, None] * t)[:, :, None]
    codes = np.clip(np.rint(divide(raised, (d[:, None] * s)[:, :, None].astype(np.float32))), 0, last)
    return codes.reshape(blocks.values.shape).astype(np.uint8), s.astype(np.uint8), t.astype(np.uint8), d, m


def symmetric(blocks: Numbers, group: int, numbers: Floats, most: int) -> tuple[Codes, npt.NDArray[np.int64], Floats]:
    """Places in `numbers` (ascending), scales [blocks, groups] and their factor: x = d s numbers[q]."""
    groups = blocks.groups(group)
    values = groups.values
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=2, keepdims=True), axis=2)
    middles = (numbers[1:] + numbers[:-1]) / 2

    def places(scale: Floats) -> npt.NDArray[np.int64]:
        return np.searchsorted(middles, divide(values, scale))

    scale = shrunk(groups, largest / numbers[0], lambda s: numbers[places(s)])
    d, s = two_levels(scale[:, :, 0], most)
    return places((d[:, None] * s)[:, :, None].astype(np.float32)).reshape(blocks.values.shape).astype(np.uint8), s, d


def six_bits(scales: Codes, minima: Codes) -> Codes:
    """Eight scales and eight minima in twelve bytes, as Q4_K and Q5_K have them."""
    a = scales[:, :4] | scales[:, 4:] >> 4 << 6
    b = minima[:, :4] | minima[:, 4:] >> 4 << 6
    return np.concatenate([a, b, scales[:, 4:] & 15 | minima[:, 4:] << 4], axis=1)


def q2_k(blocks: Numbers) -> Codes:
    codes, s, t, d, m = with_minima(blocks, 16, 3, 15)
    return np.concatenate([s | t << 4, pack(codes, bits=2, run=32), halves(d), halves(m)], axis=1)


def q3_k(blocks: Numbers) -> Codes:
    codes, s, d = symmetric(blocks, 16, np.arange(-4, 4, dtype=np.float32), 31)
    scales = (s + 32).astype(np.uint8)
    packed_scales = [pack(scales & 15, bits=4, run=8), pack(scales >> 4, bits=2, run=4)]
    third, low = pack(codes >> 2, bits=1, run=32), pack(codes & 3, bits=2, run=32)
    return np.concatenate([third, low, *packed_scales, halves(d)], axis=1)


def q4_k(blocks: Numbers) -> Codes:
    codes, s, t, d, m = with_minima(blocks, 32, 15, 63)
    return np.concatenate([halves(d), halves(m), six_bits(s, t), pack(codes, bits=4, run=32)], axis=1)


def q5_k(blocks: Numbers) -> Codes:
    codes, s, t, d, m = with_minima(blocks, 32, 31, 63)
    fifth, low = pack(codes >> 4, bits=1, run=32), pack(codes & 15, bits=4, run=32)
    return np.concatenate([halves(d), halves(m), six_bits(s, t), fifth, low], axis=1)


def q6_k(blocks: Numbers) -> Codes:
    codes, s, d = symmetric(blocks, 16, np.arange(-32, 32, dtype=np.float32), 127)
    low, high = pack(codes & 15, bits=4, run=64), pack(codes >> 4, bits=2, run=32)
    return np.concatenate([low, high, s.astype(np.int8).view(np.uint8), halves(d)], axis=1)


def iq4_nl(blocks: Numbers) -> Codes:
    """Of one scale the factor is all there is."""
    codes, s, d = symmetric(blocks, 32, packed.codebook("iq4_nl").astype(np.float32), 1)
    return np.concatenate([halves(d * s[:, 0]), pack(codes, bits=4, run=16)], axis=1)


def iq4_xs(blocks: Numbers) -> Codes:
    codes, s, d = symmetric(blocks, 32, packed.codebook("iq4_nl").astype(np.float32), 31)
    scales = (s + 32).astype(np.uint8)
    high, low = pack(scales >> 4, bits=2, run=1), pack(scales & 15, bits=4, run=1)
    return np.concatenate([halves(d), high, low, pack(codes, bits=4, run=16)], axis=1)


ENCODINGS: dict[str, Callable[[Numbers], Codes]] = {
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
    "IQ2_XXS": iq2_xxs,
    "IQ2_XS": iq2_xs,
    "IQ2_S": iq2_s,
    "IQ3_XXS": iq3_xxs,
    "IQ3_S": iq3_s,
    "IQ1_S": iq1_s,
    "IQ1_M": iq1_m,
}
