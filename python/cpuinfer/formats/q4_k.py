"""Q4_K: blocks of 256 four-bit codes, each 32 with a 6-bit scale and a 6-bit minimum that two fp16 numbers multiply.

Block, 144 bytes: fp16 factor of the scales, fp16 factor of the minima; 12 bytes of scales and minima (``packed``); 128
bytes of codes, 32 bytes for 64 codes: low nibbles codes 0 to 31, high nibbles codes 32 to 63.
value = factor scale code - factor minimum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat
from cpuinfer.formats.packed import scaled, scales_and_minima, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 144]."""
    scale, minimum = scales_and_minima(block)
    return scaled(scale, unpack(block[:, :, 16:], bits=4, run=32), minimum)


FORMAT = BlockFormat(layout="q4_k", elements=256, block_bytes=144, values=values)
