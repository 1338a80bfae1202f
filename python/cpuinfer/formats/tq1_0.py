"""TQ1_0: blocks of 256 codes of -1, 0 or 1, five to a byte, with a scale.

Block, 54 bytes: 32 bytes for codes 0 to 159, 16 for codes 160 to 239, 4 for codes 240 to 255; fp16 scale.  A byte is
256 / 243 times a number of five digits in base 3, rounded up; the highest digits of a run of bytes are its first codes,
the next digits the next; the last run uses four.  A digit of 1 means zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat, halves
from cpuinfer.formats.packed import scaled

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def _digits(run: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    """The first `count` digits in base 3 of each byte of a run: all first digits, all second ones, ..."""
    import numpy as np

    rest = run[:, :, None, :] * np.array([1, 3, 9, 27, 81], np.uint8)[:count, None]
    digits: npt.NDArray[np.uint8] = (rest.astype(np.uint16) * 3 >> 8).astype(np.uint8)
    return digits.reshape(*run.shape[:2], count * run.shape[2])


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 256], of blocks [rows, blocks, 54]."""
    import numpy as np

    parts = (_digits(block[:, :, :32], 5), _digits(block[:, :, 32:48], 5), _digits(block[:, :, 48:52], 4))
    return scaled(halves(block, 52)[:, :, None], np.concatenate(parts, axis=2).astype(np.int8) - 1)


FORMAT = BlockFormat(layout="tq1_0", elements=256, block_bytes=54, values=values)
