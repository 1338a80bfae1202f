"""Q8_0: blocks of 32 signed bytes with a scale.  Block, 34 bytes: fp16 scale, int8 codes [32]."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cpuinfer.formats.canonical import GROUP, Format, IntegerRows, blocks, halves

ZERO = 128


def _decode(raw: npt.NDArray[np.uint8], k: int) -> IntegerRows:
    block = blocks(raw, k, elements=GROUP, block_bytes=34)
    codes = block[:, :, 2:] ^ np.uint8(ZERO)  # a signed byte plus 128 is that byte with its top bit turned
    return IntegerRows(codes.reshape(len(raw), k), halves(block, 0), zero=ZERO)


FORMAT = Format(layout="int8", elements=32, block_bytes=34, zero=ZERO, decode=_decode)
