"""Q4_1: blocks of 32 four-bit codes with a scale and a bias (the block's minimum).

Block, 20 bytes: fp16 scale, fp16 bias, 16 bytes whose low nibbles are codes 0 to 15 and whose high nibbles are codes
16 to 31.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves, split_nibbles
from cpuinfer.formats.packed import scaled

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def _values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    import numpy as np

    bias = halves(block, 2).astype(np.float64)[..., None]
    return scaled(halves(block, 0)[..., None], split_nibbles(block, 4), -bias)


FORMAT = BlockFormat(layout="int4", elements=32, block_bytes=20, has_bias=True, values=_values)
