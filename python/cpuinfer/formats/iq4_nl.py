"""IQ4_NL: blocks of 32 four-bit codes into a table of 16 integers, with a scale.

Block, 18 bytes: fp16 scale, 16 bytes whose low nibbles are codes 0 to 15 and whose high nibbles are codes 16 to 31.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import codebook, scaled, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 32], of blocks [rows, blocks, 18]."""
    codes = unpack(block[:, :, 2:], bits=4, run=16)
    return scaled(halves(block, 0)[:, :, None], codebook("iq4_nl")[codes])


FORMAT = BlockFormat(layout="iq4_nl", elements=32, block_bytes=18, values=values)
