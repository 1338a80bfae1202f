"""Writes matrices in the GGUF block types that take eight or four numbers at once from a grid: IQ1, IQ2 and IQ3."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from block_numbers import Codes, Floats, Numbers, divide, halves, pack, rounded
from cpuinfer.formats import packed
from cpuinfer.formats.packed import Codebook

PRODUCTS = 1 << 15
"""Of vectors with a grid's entries at once: few enough for the BLAS to stay on one core, which is faster here."""

SHARES = (0.85, 1.15, 1.4, 1.8)
"""Of the scale at which a group spreads as the grid does: the groups that lose most try these too."""


def nearest(groups: Numbers, scale: Floats, grid: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """The entries times scale [groups] nearest to groups [groups, elements], and the weighted squares of the distances.

    Both [groups, vectors], a vector being as long as an entry.
    """
    length = grid.shape[1]
    values, weights = (array.reshape(-1, length) for array in groups)
    each = scale.repeat(len(values) // len(scale))
    entries, most = np.empty(len(values), np.int64), np.empty(len(values), np.float32)
    # w (x - s g)^2 = w x^2 - s (2 w x g - s w g^2), summed; the bracket is one product, of vectors twice as long
    longer = np.concatenate([2 * weights * values, -each[:, None] * weights], axis=1)
    columns = np.concatenate([grid, grid**2], axis=1).T.copy()
    chunk = PRODUCTS // len(grid)
    for begin in range(0, len(values), chunk):
        part = slice(begin, begin + chunk)
        nearness = longer[part] @ columns
        entries[part], most[part] = nearness.argmax(axis=1), nearness.max(axis=1)
    squares = (weights * values**2).sum(axis=1) - each * most
    return entries.reshape(len(scale), -1), squares.reshape(len(scale), -1)


def best_scales(groups: Numbers, grid: Floats) -> Floats:
    """[groups]: that at which a group [groups, elements] spreads as the grid does, or for the tenth that loses most
    there the best of a few, up to the one that holds the largest number."""
    usual = np.sqrt((groups.values**2).mean(axis=1) / (grid**2).mean())
    widest = np.abs(groups.values).max(axis=1) / np.abs(grid).max()
    loss = nearest(groups, usual, grid)[1].sum(axis=1)
    worst = np.argsort(loss)[-len(loss) // 10 :]
    those = Numbers(*(array[worst] for array in groups))
    candidates = np.stack([usual[worst] * np.float32(share) for share in (1, *SHARES)] + [widest[worst]])
    losses = [nearest(those, scale, grid)[1].sum(axis=1) for scale in candidates]
    scales = usual.copy()
    scales[worst] = np.take_along_axis(candidates, np.argmin(losses, axis=0)[None], axis=0)[0]
    return scales


def two_levels(groups: Numbers, grid: Floats, levels: int, unit: float) -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    """Of groups [blocks, groups, elements]: a factor d [blocks], numbers s < levels [blocks, groups], and the scales
    [blocks * groups] they make: d (2 s + 1) unit."""
    blocks, _, size = groups.values.shape
    best = best_scales(Numbers(*(array.reshape(-1, size) for array in groups)), grid).reshape(blocks, -1)
    d = rounded(best.max(axis=1) / ((2 * levels - 1) * unit))
    s = np.clip(np.rint((divide(best, d[:, None] * np.float32(unit)) - 1) / 2), 0, levels - 1).astype(np.int64)
    return d, s, (d[:, None] * (2 * s + 1) * unit).astype(np.float32).ravel()


def signed_grid(
    blocks: Numbers, name: Codebook, group: int, levels: int, unit: float, *, even: bool
) -> tuple[npt.NDArray[np.int64], Codes, npt.NDArray[np.int64], Floats]:
    """Entries, signs [blocks, 32] as bits, scales and their factor; `even`: an even number of signs in eight."""
    grid = packed.codebook(name).astype(np.float32)
    eights, weights = blocks.groups(8)
    negative, sizes = eights < 0, np.abs(eights)
    if even:  # the cheapest of an odd number changes its sign, so it is to be matched as far below zero
        cheapest = (weights * sizes**2).argmin(axis=2)[:, :, None]
        odd = negative.sum(axis=2, keepdims=True) % 2 == 1
        np.put_along_axis(negative, cheapest, np.take_along_axis(negative, cheapest, 2) ^ odd, 2)
        np.put_along_axis(sizes, cheapest, np.where(odd, -1, 1) * np.take_along_axis(sizes, cheapest, 2), 2)
    groups = Numbers(sizes.reshape(len(sizes), -1), blocks.weights).groups(group)
    d, s, scale = two_levels(groups, grid, levels, unit)
    entries, _ = nearest(groups, scale, grid)
    signs = np.packbits(negative, axis=2, bitorder="little")[:, :, 0]
    return entries.reshape(len(sizes), -1), signs, s, d


def words_of_signs(signs: Codes, s: npt.NDArray[np.int64]) -> Codes:
    """Seven signs of each of four eights, and the scale's number in the top four bits: bytes [blocks, 8, 4]."""
    seven = (signs & 127).reshape(len(signs), 8, 4).astype(np.uint32) << np.array([0, 7, 14, 21], np.uint32)
    words = np.bitwise_or.reduce(seven, axis=2) | s.astype(np.uint32) << 28
    return words.astype("<u4")[:, :, None].view(np.uint8)


def iq2_xxs(blocks: Numbers) -> Codes:
    entries, signs, s, d = signed_grid(blocks, "iq2_xxs", 32, 16, 1 / 8, even=True)
    group = np.concatenate([entries.astype(np.uint8).reshape(-1, 8, 4), words_of_signs(signs, s)], axis=2)
    return np.concatenate([halves(d), group.reshape(len(blocks.values), -1)], axis=1)


def iq2_xs(blocks: Numbers) -> Codes:
    entries, signs, s, d = signed_grid(blocks, "iq2_xs", 16, 16, 1 / 8, even=True)
    words = entries.astype("<u2") | (signs & 127).astype("<u2") << np.uint16(9)
    return np.concatenate([halves(d), words.view(np.uint8), pack(s.astype(np.uint8), bits=4, run=1)], axis=1)


def iq2_s(blocks: Numbers) -> Codes:
    entries, signs, s, d = signed_grid(blocks, "iq2_s", 16, 16, 1 / 8, even=False)
    low, high = entries.astype(np.uint8), pack((entries >> 8).astype(np.uint8), bits=2, run=1)
    return np.concatenate([halves(d), low, signs, high, pack(s.astype(np.uint8), bits=4, run=1)], axis=1)


def iq3_xxs(blocks: Numbers) -> Codes:
    entries, signs, s, d = signed_grid(blocks, "iq3_xxs", 32, 16, 1 / 4, even=True)
    words = words_of_signs(signs, s).reshape(len(blocks.values), -1)
    return np.concatenate([halves(d), entries.astype(np.uint8), words], axis=1)


def iq3_s(blocks: Numbers) -> Codes:
    entries, signs, s, d = signed_grid(blocks, "iq3_s", 32, 16, 1, even=False)
    low, ninth = entries.astype(np.uint8), pack((entries >> 8).astype(np.uint8), bits=1, run=1)
    return np.concatenate([halves(d), low, ninth, signs, pack(s.astype(np.uint8), bits=4, run=1)], axis=1)


SHIFT = np.float32(0.125)


def shifted_grid(
    blocks: Numbers, group: int, eights: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64], Floats]:
    """Entries [blocks, 32], whether they are lowered [blocks, 32 / eights], numbers of scales and the factor."""
    grid = packed.codebook("iq1_s").astype(np.float32)
    groups = blocks.groups(group)
    d, s, scale = two_levels(groups, grid + SHIFT, 8, 1)
    raised, lowered = (nearest(groups, scale, grid + shift) for shift in (SHIFT, -SHIFT))
    shared = [squares.reshape(-1, eights).sum(axis=1) for _, squares in (raised, lowered)]
    negative = (shared[1] < shared[0]).reshape(len(d), -1)
    entries = np.where(negative.repeat(eights, axis=1), *(found.reshape(len(d), -1) for found, _ in (lowered, raised)))
    return entries, negative, s, d


def iq1_s(blocks: Numbers) -> Codes:
    entries, negative, s, d = shifted_grid(blocks, 32, 4)
    high = (entries >> 8).reshape(-1, 8, 4) << np.array([0, 3, 6, 9])
    words = np.bitwise_or.reduce(high, axis=2) | s << 12 | negative.astype(np.int64) << 15
    return np.concatenate([halves(d), entries.astype(np.uint8), words.astype("<u2").view(np.uint8)], axis=1)


def iq1_m(blocks: Numbers) -> Codes:
    entries, negative, s, d = shifted_grid(blocks, 16, 1)
    high = pack((entries >> 8 | negative.astype(np.int64) << 3).astype(np.uint8), bits=4, run=1)
    scales = np.bitwise_or.reduce(s.reshape(-1, 4, 4) << np.array([0, 3, 6, 9]), axis=2)
    nibbles = d.astype(np.float16).view(np.uint16).astype(np.int64)[:, None] >> np.array([0, 4, 8, 12]) & 15
    words = (scales | nibbles << 12).astype("<u2")
    return np.concatenate([entries.astype(np.uint8), high, words.view(np.uint8)], axis=1)
