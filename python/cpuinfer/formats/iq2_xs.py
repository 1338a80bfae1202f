"""IQ2_XS: blocks of 256 signed numbers from a code-book of eights, each 16 with a 4-bit scale that an fp16 multiplies.

Block, 74 bytes: fp16 factor; 32 words of 16 bits: the entry in the low 9, seven signs in the high (``with_eighth``); 8
bytes of scales, low nibble first.  value = factor (2 scale + 1) / 8 number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import factored, scaled, signed_entries, unpack, with_eighth

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 74]."""
    words = block[:, :, 2:66].copy().view("<u2")
    scale = factored(halves(block, 0), 2 * unpack(block[:, :, 66:], bits=4, run=1) + 1) / 8
    return scaled(scale, signed_entries("iq2_xs", words & 511, with_eighth(words >> 9)))


FORMAT = BlockFormat(layout="iq2_xs", elements=256, block_bytes=74, values=values)
