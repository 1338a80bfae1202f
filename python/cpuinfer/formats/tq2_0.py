"""TQ2_0: blocks of 256 two-bit codes of -1, 0, 1 or 2, with a scale; a code of 1 means zero.

Block, 66 bytes: 64 bytes of codes, 32 bytes for 128: the lowest two bits are codes 0 to 31, the next codes 32 to 63,
and so on; fp16 scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import scaled, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 66]."""
    import numpy as np

    codes = unpack(block[:, :, :64], bits=2, run=32)
    return scaled(halves(block, 64)[:, :, None], codes.astype(np.int8) - 1)


FORMAT = BlockFormat(layout="tq2_0", elements=256, block_bytes=66, values=values)
