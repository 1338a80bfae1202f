"""Q4_1: blocks of 32 four-bit codes with a scale and a bias (the block's minimum).

Block, 20 bytes: fp16 scale, fp16 bias, 16 bytes whose low nibbles are codes 0 to 15 and whose high nibbles are codes
16 to 31.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cpuinfer.formats.canonical import GROUP, Format, IntegerRows, blocks, halves, split_nibbles


def _decode(raw: npt.NDArray[np.uint8], k: int) -> IntegerRows:
    block = blocks(raw, k, elements=GROUP, block_bytes=20)
    return IntegerRows(split_nibbles(block, 4), halves(block, 0), bias=halves(block, 2))


FORMAT = Format(layout="int4", elements=32, block_bytes=20, has_bias=True, decode=_decode)
