"""Q5_1: blocks of 32 five-bit codes with a scale and a bias (the block's minimum).

Block, 24 bytes: fp16 scale, fp16 bias; 4 bytes with the codes' fifth bits, code 0's the lowest; 16 bytes whose low
nibbles are the rest of codes 0 to 15 and whose high nibbles are that of codes 16 to 31.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import scaled, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 32], of blocks [rows, blocks, 24]."""
    import numpy as np

    low, fifth = unpack(block[:, :, 8:], bits=4, run=16), unpack(block[:, :, 4:8], bits=1, run=1)
    return scaled(halves(block, 0)[:, :, None], low | fifth << 4) + halves(block, 2)[:, :, None].astype(np.float64)


FORMAT = BlockFormat(layout="q5_1", elements=32, block_bytes=24, values=values)
