"""Q4_0: blocks of 32 four-bit codes around 8, with a scale.

Block, 18 bytes: fp16 scale, 16 bytes whose low nibbles are codes 0 to 15 and whose high nibbles are codes 16 to 31.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cpuinfer.formats.canonical import GROUP, Format, IntegerRows, blocks, halves, split_nibbles

ZERO = 8


def _decode(raw: npt.NDArray[np.uint8], k: int) -> IntegerRows:
    block = blocks(raw, k, elements=GROUP, block_bytes=18)
    return IntegerRows(split_nibbles(block, 2), halves(block, 0), zero=ZERO)


FORMAT = Format(layout="int4", elements=32, block_bytes=18, zero=ZERO, decode=_decode)
