"""Q4_0: blocks of 32 four-bit codes around 8, with a scale.

Block, 18 bytes: fp16 scale, 16 bytes whose low nibbles are codes 0 to 15 and whose high nibbles are codes 16 to 31.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves, split_nibbles
from cpuinfer.formats.packed import scaled

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ZERO = 8


def _values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    import numpy as np

    return scaled(halves(block, 0)[..., None], split_nibbles(block, 2).astype(np.int64) - ZERO)


FORMAT = BlockFormat(layout="int4", elements=32, block_bytes=18, zero=ZERO, values=_values)
