"""MXFP4: blocks of 32 four-bit floats, E2M1, with a power of two (OCP Microscaling 1.0).

Block, 17 bytes: the power's exponent plus 127; 16 bytes whose low nibbles are codes 0 to 15 and whose high nibbles are
codes 16 to 31.  The table holds doubled values, so the exponent is lowered by one.  An exponent of 255, NaN to the
standard, is a power like others, as ggml has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import BlockFormat
from cpuinfer.formats.packed import codebook, scaled, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def values(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The values, [rows, blocks, 32], of blocks [rows, blocks, 17]."""
    import numpy as np

    scale = np.ldexp(1.0, block[:, :, :1].astype(np.int32) - 128)
    return scaled(scale, codebook("mxfp4")[unpack(block[:, :, 1:], bits=4, run=16)])


FORMAT = BlockFormat(layout="mxfp4", elements=32, block_bytes=17, values=values)
