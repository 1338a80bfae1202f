"""Q5_K: blocks of 256 five-bit codes, each 32 with a 6-bit scale and a 6-bit minimum that two fp16 numbers multiply.

Block, 176 bytes: fp16 factor of the scales, fp16 factor of the minima; 12 bytes of scales and minima (``packed``); 32
bytes with the codes' fifth bits (bit 0 codes 0 to 31, bit 1 codes 32 to 63, ...); 128 bytes with the rest, 32 bytes for
64 codes: low nibbles codes 0 to 31, high nibbles codes 32 to 63.  value = factor scale code - factor minimum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat
from cpuinfer.formats.packed import scaled, scales_and_minima, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 176]."""
    scale, minimum = scales_and_minima(block)
    low, fifth = unpack(block[:, :, 48:], bits=4, run=32), unpack(block[:, :, 16:48], bits=1, run=32)
    return scaled(scale, low | fifth << 4, minimum)


FORMAT = BlockFormat(layout="q5_k", elements=256, block_bytes=176, values=values)
