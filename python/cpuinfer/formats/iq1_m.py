"""IQ1_M: blocks of 256 numbers from IQ1_S's code-book, each 16 with a 3-bit scale, each eight with a shift.

Block, 56 bytes: 32 bytes with the entries' low 8 bits; 16 bytes, a nibble for each entry, low first: its high three
bits and whether its shift is -1/8 instead of 1/8; four 16-bit words: four scales in the low 12 bits, and in the highest
4 a nibble of the fp16 factor, the lowest first.  value = factor (2 scale + 1) (number + shift).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat
from cpuinfer.formats.packed import factored, scaled, shifted_entries, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 56]."""
    import numpy as np

    words, high = block[:, :, 48:].copy().view("<u2"), unpack(block[:, :, 32:48], bits=4, run=1)
    nibbles = words >> 12 << np.array([0, 4, 8, 12], np.uint16)
    factor = np.bitwise_or.reduce(nibbles, axis=2, dtype=np.uint16).view(np.float16)
    scale = (words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(*block.shape[:2], 16)
    entries = block[:, :, :32] | (high & 7).astype(np.uint16) << 8
    return scaled(factored(factor, 2 * scale + 1), shifted_entries(entries, high >> 3))


FORMAT = BlockFormat(layout="iq1_m", elements=256, block_bytes=56, values=values)
