"""The level nearest to a number, in NumPy, for arrays of any shape."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def nearest(x: Floats, levels: Floats, scale: Floats) -> npt.NDArray[np.uint8]:
    """The codes of the levels that, times a scale, are nearest to x; those nearest to 0 where the scale is 0."""
    quotient = np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)
    if levels[-1] - levels[0] == len(levels) - 1 and levels[0] == np.rint(levels[0]):  # integers
        codes = np.clip(np.rint(quotient) - levels[0], 0, len(levels) - 1)
    else:
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, quotient)
    found: npt.NDArray[np.uint8] = codes.astype(np.uint8)
    return found
