"""Q8_0: blocks of 32 signed bytes with a scale.  Block, 34 bytes: fp16 scale, int8 codes [32]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import scaled

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ZERO = 128
"""Of the codes as packed, which have no signs."""


def _values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    import numpy as np

    return scaled(halves(block, 0)[..., None], block[:, :, 2:].view(np.int8))


FORMAT = BlockFormat(layout="int8", elements=32, block_bytes=34, zero=ZERO, values=_values)
