"""IQ2_S: blocks of 256 signed numbers from a code-book of eights, each 16 with a 4-bit scale that an fp16 multiplies.

Block, 82 bytes: fp16 factor; 32 bytes with the entries' low 8 bits; 32 bytes of signs, one for each entry; 8 bytes with
the entries' high two bits, the first's lowest; 8 bytes of scales, low nibble first.
value = factor (2 scale + 1) / 8 number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import factored, scaled, signed_entries, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 82]."""
    import numpy as np

    entries = block[:, :, 2:34] | unpack(block[:, :, 66:74], bits=2, run=1).astype(np.uint16) << 8
    scale = factored(halves(block, 0), 2 * unpack(block[:, :, 74:], bits=4, run=1) + 1) / 8
    return scaled(scale, signed_entries("iq2_s", entries, block[:, :, 34:66]))


FORMAT = BlockFormat(layout="iq2_s", elements=256, block_bytes=82, values=values)
