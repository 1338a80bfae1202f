"""IQ4_XS: blocks of 256 four-bit codes into IQ4_NL's table, each 32 with a 6-bit scale that one fp16 number multiplies.

Block, 136 bytes: fp16 factor; 2 bytes with the scales' high two bits, scale 0's the lowest; 4 bytes with their low
nibbles, scale 0's the lowest; 128 bytes of codes, 16 bytes for 32: low nibbles codes 0 to 15, high nibbles codes 16 to
31.  A scale of 32 is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import codebook, factored, scaled, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 136]."""
    import numpy as np

    scale = unpack(block[:, :, 4:8], bits=4, run=1) | unpack(block[:, :, 2:4], bits=2, run=1) << 4
    codes = unpack(block[:, :, 8:], bits=4, run=16)
    return scaled(factored(halves(block, 0), scale.astype(np.int8) - 32), codebook("iq4_nl")[codes])


FORMAT = BlockFormat(layout="iq4_xs", elements=256, block_bytes=136, values=values)
