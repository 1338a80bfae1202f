"""IQ3_S: blocks of 256 signed numbers from a code-book of fours, each 32 with a 4-bit scale that an fp16 multiplies.

Block, 110 bytes: fp16 factor; 64 bytes with the entries' low 8 bits; 8 bytes with their ninth bits, the first's lowest;
32 bytes of signs, one for each eight numbers; 4 bytes of scales, low nibble first.
value = factor (2 scale + 1) number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import factored, scaled, signed_entries, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 110]."""
    import numpy as np

    entries = block[:, :, 2:66] | unpack(block[:, :, 66:74], bits=1, run=1).astype(np.uint16) << 8
    scale = factored(halves(block, 0), 2 * unpack(block[:, :, 106:], bits=4, run=1) + 1)
    return scaled(scale, signed_entries("iq3_s", entries, block[:, :, 74:106]))


FORMAT = BlockFormat(layout="iq3_s", elements=256, block_bytes=110, values=values)
