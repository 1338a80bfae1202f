"""IQ1_S: blocks of 256 numbers from a code-book of eights of -1, 0 and 1, each 32 with a 3-bit scale and a shift.

Block, 50 bytes: fp16 factor; 32 bytes with the entries' low 8 bits; a 16-bit word for each 32 numbers: the high three
bits of four entries, the first's lowest, the scale in 3 bits, and whether the shift is -1/8 instead of 1/8.
value = factor (2 scale + 1) (number + shift).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import factored, scaled, shifted_entries

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 50]."""
    import numpy as np

    words = block[:, :, 34:].copy().view("<u2")
    high = words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    entries = block[:, :, 2:34] | high.reshape(*block.shape[:2], 32) << 8
    scale = factored(halves(block, 0), 2 * (words >> 12 & 7) + 1)
    return scaled(scale, shifted_entries(entries, np.repeat(words >> 15, 4, axis=2)))


FORMAT = BlockFormat(layout="iq1_s", elements=256, block_bytes=50, values=values)
