"""Q3_K: blocks of 256 three-bit codes, each 16 with a 6-bit scale that one fp16 number multiplies; a code of 4 is zero.

Block, 110 bytes: 32 bytes with the codes' third bits (bit 0 codes 0 to 31, bit 1 codes 32 to 63, ...); 64 bytes with
the low two bits, 32 bytes for 128 codes (lowest two bits codes 0 to 31, next codes 32 to 63, ...); 8 bytes with the
scales' low nibbles (scales 0 to 7 low, 8 to 15 high); 4 bytes with their high two bits (lowest bits scales 0 to 3,
...); fp16 factor.  A scale of 32 is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import factored, scaled, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 110]."""
    import numpy as np

    low, third = unpack(block[:, :, 32:96], bits=2, run=32), unpack(block[:, :, :32], bits=1, run=32)
    scale = unpack(block[:, :, 96:104], bits=4, run=8) | unpack(block[:, :, 104:108], bits=2, run=4) << 4
    return scaled(factored(halves(block, 108), scale.astype(np.int8) - 32), (low | third << 2).astype(np.int8) - 4)


FORMAT = BlockFormat(layout="q3_k", elements=256, block_bytes=110, values=values)
