"""F16: IEEE half precision, as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpuinfer.formats.canonical import FloatRows, Format, blocks

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def _decode(raw: npt.NDArray[np.uint8], k: int) -> FloatRows:
    return FloatRows(blocks(raw, k, elements=1, block_bytes=2).view("<f2")[:, :, 0], layout="f16")


FORMAT = Format(layout="f16", elements=1, block_bytes=2, decode=_decode)
