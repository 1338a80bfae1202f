"""Writes matrices in the GGUF block types that the gguf package reads but does not write: K-quants, code-books, grids.

Plain, not the best there are: a scale for each group from a short search, rounded to what the type can hold, then the
nearest codes.  The bytes are laid out as `cpuinfer.formats` and the gguf package read them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cpuinfer.formats import packed
from cpuinfer.formats.packed import Codebook

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

SHRINKS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64)
"""Of the scale that holds a group's extremes: clipping them may make the rest finer."""


def quantize(values: npt.NDArray[np.floating], encoding: str) -> Codes:
    """[rows, k] -> the bytes of the rows, as the gguf package's `quantize` gives them."""
    elements = 32 if encoding == "IQ4_NL" else 256
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, elements)
    return ENCODINGS[encoding](blocks).reshape(len(values), -1)


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


def error(values: Floats, approximation: Floats) -> Floats:
    """The sum of squares of each group."""
    return ((values - approximation) ** 2).sum(axis=-1, keepdims=True)


def shrunk(groups: Floats, whole: Floats, codes_for: Callable[[Floats], Floats]) -> Floats:
    """The scale among `whole` and smaller ones that has the least error; codes_for(scale) gives the numbers."""
    best, least = whole, np.full_like(whole, np.inf)
    for share in SHRINKS:
        scale = whole * np.float32(share)
        found = error(groups, scale * codes_for(scale))
        best = np.where(found < least, scale, best)
        least = np.minimum(least, found)
    return best


def two_levels(scale: Floats, most: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """A factor [blocks] that fp16 holds, and numbers [blocks, groups] of at most `most` in magnitude."""
    factor = rounded(np.abs(scale).max(axis=1) / most)
    return factor, np.clip(np.rint(divide(scale, factor[:, None])), -most, most).astype(np.int64)


def with_minima(blocks: Floats, group: int, last: int, most: int) -> tuple[Codes, Codes, Codes, Floats, Floats]:
    """Codes, scales and minima [blocks, groups], and the factors of both [blocks]: x = d s q - m t."""
    groups = blocks.reshape(len(blocks), -1, group)
    low = np.minimum(groups.min(axis=2, keepdims=True), 0)
    whole = (np.maximum(groups.max(axis=2, keepdims=True), 0) - low) / last
    raised = groups - low
    scale = shrunk(raised, whole, lambda s: np.clip(np.rint(divide(raised, s)), 0, last))
    d, s = two_levels(scale[:, :, 0], most)
    m, t = two_levels(-low[:, :, 0], most)
    raised = groups + (m[:, None] * t)[:, :, None]
    codes = np.clip(np.rint(divide(raised, (d[:, None] * s)[:, :, None].astype(np.float32))), 0, last)
    return codes.reshape(blocks.shape).astype(np.uint8), s.astype(np.uint8), t.astype(np.uint8), d, m


def symmetric(blocks: Floats, group: int, numbers: Floats, most: int) -> tuple[Codes, npt.NDArray[np.int64], Floats]:
    """Places in `numbers` (ascending), scales [blocks, groups] and their factor: x = d s numbers[q]."""
    groups = blocks.reshape(len(blocks), -1, group)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2, keepdims=True), axis=2)
    middles = (numbers[1:] + numbers[:-1]) / 2

    def places(scale: Floats) -> npt.NDArray[np.int64]:
        return np.searchsorted(middles, divide(groups, scale))

    scale = shrunk(groups, largest / numbers[0], lambda s: numbers[places(s)])
    d, s = two_levels(scale[:, :, 0], most)
    return places((d[:, None] * s)[:, :, None].astype(np.float32)).reshape(blocks.shape).astype(np.uint8), s, d


def six_bits(scales: Codes, minima: Codes) -> Codes:
    """Eight scales and eight minima in twelve bytes, as Q4_K and Q5_K have them."""
    a = scales[:, :4] | scales[:, 4:] >> 4 << 6
    b = minima[:, :4] | minima[:, 4:] >> 4 << 6
    return np.concatenate([a, b, scales[:, 4:] & 15 | minima[:, 4:] << 4], axis=1)


def q2_k(blocks: Floats) -> Codes:
    codes, s, t, d, m = with_minima(blocks, 16, 3, 15)
    return np.concatenate([s | t << 4, pack(codes, bits=2, run=32), halves(d), halves(m)], axis=1)


def q3_k(blocks: Floats) -> Codes:
    codes, s, d = symmetric(blocks, 16, np.arange(-4, 4, dtype=np.float32), 31)
    scales = (s + 32).astype(np.uint8)
    packed_scales = [pack(scales & 15, bits=4, run=8), pack(scales >> 4, bits=2, run=4)]
    third, low = pack(codes >> 2, bits=1, run=32), pack(codes & 3, bits=2, run=32)
    return np.concatenate([third, low, *packed_scales, halves(d)], axis=1)


def q4_k(blocks: Floats) -> Codes:
    codes, s, t, d, m = with_minima(blocks, 32, 15, 63)
    return np.concatenate([halves(d), halves(m), six_bits(s, t), pack(codes, bits=4, run=32)], axis=1)


def q5_k(blocks: Floats) -> Codes:
    codes, s, t, d, m = with_minima(blocks, 32, 31, 63)
    fifth, low = pack(codes >> 4, bits=1, run=32), pack(codes & 15, bits=4, run=32)
    return np.concatenate([halves(d), halves(m), six_bits(s, t), fifth, low], axis=1)


def q6_k(blocks: Floats) -> Codes:
    codes, s, d = symmetric(blocks, 16, np.arange(-32, 32, dtype=np.float32), 127)
    low, high = pack(codes & 15, bits=4, run=64), pack(codes >> 4, bits=2, run=32)
    return np.concatenate([low, high, s.astype(np.int8).view(np.uint8), halves(d)], axis=1)


def iq4_nl(blocks: Floats) -> Codes:
    """Of one scale the factor is all there is."""
    codes, s, d = symmetric(blocks, 32, packed.codebook("iq4_nl").astype(np.float32), 1)
    return np.concatenate([halves(d * s[:, 0]), pack(codes, bits=4, run=16)], axis=1)


def iq4_xs(blocks: Floats) -> Codes:
    codes, s, d = symmetric(blocks, 32, packed.codebook("iq4_nl").astype(np.float32), 31)
    scales = (s + 32).astype(np.uint8)
    high, low = pack(scales >> 4, bits=2, run=1), pack(scales & 15, bits=4, run=1)
    return np.concatenate([halves(d), high, low, pack(codes, bits=4, run=16)], axis=1)


CHUNK = 1 << 10
"""Vectors compared with a grid at once: with 2,048 entries, 8 MiB of products."""


def nearest(vectors: Floats, scale: Floats, grid: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """The entry times scale [vectors] nearest to each vector, and the square of its distance."""
    entries = np.empty(len(vectors), np.int64)
    most = np.empty(len(vectors), np.float32)
    # |x - s g|^2 = |x|^2 - 2 s (x g - s |g|^2 / 2); the bracket is one product, of vectors longer by s
    longer = np.concatenate([vectors, scale[:, None]], axis=1)
    columns = np.concatenate([grid, (grid**2).sum(axis=1, keepdims=True) / -2], axis=1).T.copy()
    for begin in range(0, len(vectors), CHUNK):
        part = slice(begin, begin + CHUNK)
        nearness = longer[part] @ columns
        entries[part], most[part] = nearness.argmax(axis=1), nearness.max(axis=1)
    return entries, (vectors**2).sum(axis=1) - 2 * scale * most


def grid_scales(groups: Floats, grid: Floats, levels: int, unit: float) -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    """A factor [blocks], numbers s < levels [blocks, groups], and the scales they make: d (2 s + 1) unit.

    A group's scale is its root mean square times what is best, on a sample, for all.
    """
    spread = np.sqrt((groups**2).mean(axis=2))
    sample = groups.reshape(-1, groups.shape[2])[:: max(1, groups.size // groups.shape[2] // 512)]
    vectors, of = sample.reshape(-1, grid.shape[1]), groups.shape[2] // grid.shape[1]
    sizes = np.sqrt((sample**2).mean(axis=1)).repeat(of)
    typical = 1 / np.sqrt((grid**2).mean())
    shares = [typical * np.float32(share) for share in np.linspace(0.6, 1.8, 13)]
    best = min(shares, key=lambda share: nearest(vectors, sizes * share, grid)[1].sum())
    scale = spread * best
    d = rounded(scale.max(axis=1) / ((2 * levels - 1) * unit))
    s = np.clip(np.rint((divide(scale, d[:, None] * np.float32(unit)) - 1) / 2), 0, levels - 1).astype(np.int64)
    return d, s, (d[:, None] * (2 * s + 1) * unit).astype(np.float32)


def signed_grid(
    blocks: Floats, name: Codebook, group: int, levels: int, unit: float, *, even: bool
) -> tuple[npt.NDArray[np.int64], Codes, npt.NDArray[np.int64], Floats]:
    """Entries, signs [blocks, 32] as bits, scales and their factor; `even`: an even number of signs in eight."""
    grid = packed.codebook(name).astype(np.float32)
    negative = (blocks < 0).reshape(len(blocks), 32, 8)
    sizes = np.abs(blocks).reshape(len(blocks), 32, 8)
    if even:  # the smallest of an odd number changes its sign, so it is to be matched as far below zero
        least = sizes.argmin(axis=2)[:, :, None]
        odd = negative.sum(axis=2, keepdims=True) % 2 == 1
        np.put_along_axis(negative, least, np.take_along_axis(negative, least, 2) ^ odd, 2)
        np.put_along_axis(sizes, least, np.where(odd, -1, 1) * np.take_along_axis(sizes, least, 2), 2)
    d, s, scale = grid_scales(sizes.reshape(len(blocks), -1, group), grid, levels, unit)
    vectors = sizes.reshape(-1, grid.shape[1])
    entries, _ = nearest(vectors, scale.ravel().repeat(group // grid.shape[1]), grid)
    signs = np.packbits(negative, axis=2, bitorder="little")[:, :, 0]
    return entries.reshape(len(blocks), -1), signs, s, d


def words_of_signs(signs: Codes, s: npt.NDArray[np.int64]) -> Codes:
    """Seven signs of each of four eights, and the scale's number in the top four bits: bytes [blocks, 8, 4]."""
    seven = (signs & 127).reshape(len(signs), 8, 4).astype(np.uint32) << np.array([0, 7, 14, 21], np.uint32)
    words = np.bitwise_or.reduce(seven, axis=2) | s.astype(np.uint32) << 28
    return words.astype("<u4")[:, :, None].view(np.uint8)


def iq2_xxs(blocks: Floats) -> Codes:
    entries, signs, s, d = signed_grid(blocks, "iq2_xxs", 32, 16, 1 / 8, even=True)
    group = np.concatenate([entries.astype(np.uint8).reshape(-1, 8, 4), words_of_signs(signs, s)], axis=2)
    return np.concatenate([halves(d), group.reshape(len(blocks), -1)], axis=1)


def iq2_xs(blocks: Floats) -> Codes:
    entries, signs, s, d = signed_grid(blocks, "iq2_xs", 16, 16, 1 / 8, even=True)
    words = entries.astype("<u2") | (signs & 127).astype("<u2") << np.uint16(9)
    return np.concatenate([halves(d), words.view(np.uint8), pack(s.astype(np.uint8), bits=4, run=1)], axis=1)


def iq2_s(blocks: Floats) -> Codes:
    entries, signs, s, d = signed_grid(blocks, "iq2_s", 16, 16, 1 / 8, even=False)
    low, high = entries.astype(np.uint8), pack((entries >> 8).astype(np.uint8), bits=2, run=1)
    return np.concatenate([halves(d), low, signs, high, pack(s.astype(np.uint8), bits=4, run=1)], axis=1)


def iq3_xxs(blocks: Floats) -> Codes:
    entries, signs, s, d = signed_grid(blocks, "iq3_xxs", 32, 16, 1 / 4, even=True)
    words = words_of_signs(signs, s).reshape(len(blocks), -1)
    return np.concatenate([halves(d), entries.astype(np.uint8), words], axis=1)


def iq3_s(blocks: Floats) -> Codes:
    entries, signs, s, d = signed_grid(blocks, "iq3_s", 32, 16, 1, even=False)
    low, ninth = entries.astype(np.uint8), pack((entries >> 8).astype(np.uint8), bits=1, run=1)
    return np.concatenate([halves(d), low, ninth, signs, pack(s.astype(np.uint8), bits=4, run=1)], axis=1)


SHIFT = np.float32(0.125)


def shifted_grid(
    blocks: Floats, group: int, eights: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64], Floats]:
    """Entries [blocks, 32], whether they are lowered [blocks, 32 / eights], numbers of scales and the factor."""
    grid = packed.codebook("iq1_s").astype(np.float32)
    d, s, scale = grid_scales(blocks.reshape(len(blocks), -1, group), grid + SHIFT, 8, 1)
    vectors, each = blocks.reshape(-1, 8), scale.ravel().repeat(group // 8)
    raised, lowered = (nearest(vectors, each, grid + shift) for shift in (SHIFT, -SHIFT))
    shared = [squares.reshape(-1, eights).sum(axis=1) for _, squares in (raised, lowered)]
    negative = shared[1] < shared[0]
    entries = np.where(negative.repeat(eights), lowered[0], raised[0])
    return entries.reshape(len(blocks), -1), negative.reshape(len(blocks), -1), s, d


def iq1_s(blocks: Floats) -> Codes:
    entries, negative, s, d = shifted_grid(blocks, 32, 4)
    high = (entries >> 8).reshape(-1, 8, 4) << np.array([0, 3, 6, 9])
    words = np.bitwise_or.reduce(high, axis=2) | s << 12 | negative.astype(np.int64) << 15
    return np.concatenate([halves(d), entries.astype(np.uint8), words.astype("<u2").view(np.uint8)], axis=1)


def iq1_m(blocks: Floats) -> Codes:
    entries, negative, s, d = shifted_grid(blocks, 16, 1)
    high = pack((entries >> 8 | negative.astype(np.int64) << 3).astype(np.uint8), bits=4, run=1)
    scales = np.bitwise_or.reduce(s.reshape(-1, 4, 4) << np.array([0, 3, 6, 9]), axis=2)
    nibbles = d.astype(np.float16).view(np.uint16).astype(np.int64)[:, None] >> np.array([0, 4, 8, 12]) & 15
    words = (scales | nibbles << 12).astype("<u2")
    return np.concatenate([entries.astype(np.uint8), high, words.view(np.uint8)], axis=1)


ENCODINGS: dict[str, Callable[[Floats], Codes]] = {
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
