"""IQ3_XXS: blocks of 256 signed numbers from a code-book of fours, each 32 with a 4-bit scale that an fp16 multiplies.

Block, 98 bytes: fp16 factor; 64 bytes of entries; a 32-bit word for each 32 numbers: 7 bits of signs for each eight,
the first's lowest (``even_signs``), and the scale in the highest 4.  value = factor (2 scale + 1) / 4 number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import even_signs, factored, scaled, signed_entries

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 98]."""
    words = block[:, :, 66:].copy().view("<u4")
    scale = factored(halves(block, 0), 2 * (words >> 28) + 1) / 4
    return scaled(scale, signed_entries("iq3_xxs", block[:, :, 2:66], even_signs(words)))


FORMAT = BlockFormat(layout="iq3_xxs", elements=256, block_bytes=98, values=values)
