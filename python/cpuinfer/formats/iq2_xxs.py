"""IQ2_XXS: blocks of 256 signed numbers from a code-book of eights, each 32 with a 4-bit scale that an fp16 multiplies.

Block, 66 bytes: fp16 factor; for each 32 numbers 4 bytes of entries, then a 32-bit word: 7 bits of signs for each
entry, the first's lowest (``even_signs``), and the scale in the highest 4.  value = factor (2 scale + 1) / 8 number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import even_signs, factored, scaled, signed_entries

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 66]."""
    group = block[:, :, 2:].reshape(*block.shape[:2], 8, 8)
    entries, words = group[..., :4].reshape(*block.shape[:2], 32), group[..., 4:].copy().view("<u4")[..., 0]
    scale = factored(halves(block, 0), 2 * (words >> 28) + 1) / 8
    return scaled(scale, signed_entries("iq2_xxs", entries, even_signs(words)))


FORMAT = BlockFormat(layout="iq2_xxs", elements=256, block_bytes=66, values=values)
