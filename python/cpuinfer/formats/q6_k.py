"""Q6_K: blocks of 256 six-bit codes, each 16 with an 8-bit scale that one fp16 number multiplies; a code of 32 is zero.

Block, 210 bytes: 128 bytes with the codes' low nibbles, 64 bytes for 128 codes (low nibbles codes 0 to 63, high nibbles
codes 64 to 127); 64 bytes with their high two bits, 32 bytes for 128 codes (lowest two bits codes 0 to 31, next codes
32 to 63, ...); 16 signed bytes of scales; fp16 factor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import factored, scaled, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 210]."""
    import numpy as np

    low, high = unpack(block[:, :, :128], bits=4, run=64), unpack(block[:, :, 128:192], bits=2, run=32)
    scale = factored(halves(block, 208), block[:, :, 192:208].astype(np.int8))
    return scaled(scale, (low | high << 4).astype(np.int8) - 32)


FORMAT = BlockFormat(layout="q6_k", elements=256, block_bytes=210, values=values)
