"""Q2_K: blocks of 256 two-bit codes, each 16 with a 4-bit scale and a 4-bit minimum that two fp16 numbers multiply.

Block, 84 bytes: 16 bytes, scales in the low and minima in the high nibbles; 64 bytes of codes, 32 bytes for 128 codes:
the lowest two bits are codes 0 to 31, the next codes 32 to 63, and so on; fp16 factor of the scales, fp16 factor of the
minima.  value = factor scale code - factor minimum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import factored, scaled, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 84]."""
    scale = factored(halves(block, 80), block[:, :, :16] & 15)
    minimum = factored(halves(block, 82), block[:, :, :16] >> 4)
    return scaled(scale, unpack(block[:, :, 16:80], bits=2, run=32), minimum)


FORMAT = BlockFormat(layout="q2_k", elements=256, block_bytes=84, values=values)
