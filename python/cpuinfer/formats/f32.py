"""F32: IEEE single precision, as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import FloatRows, Format, blocks

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def _decode(raw: npt.NDArray[np.uint8], k: int) -> FloatRows:
    return FloatRows(blocks(raw, k, elements=1, block_bytes=4).view("<f4")[:, :, 0], layout="f32")


FORMAT = Format(layout="f32", elements=1, block_bytes=4, decode=_decode)
