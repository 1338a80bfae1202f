"""Two rows of logits compared, in float64 and in a fixed order, so that no cut of the rows changes a bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import NumericalError

Row = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class RowDivergence:
    """Two distributions of one token.

    Attributes:
        divergence: KL(reference || model), nats.
        same_top: whether both have the same likeliest token; of equals, the lowest id.
        reference_logprob, logprob: of the text's token.
    """

    divergence: float
    same_top: bool
    reference_logprob: float
    logprob: float


class RowComparer:
    """Compares rows of one length: softmax of each, whose logits may have any constant added."""

    def __init__(self, vocabulary: int) -> None:
        self._x, self._y, self._p = (np.empty(vocabulary) for _ in range(3))

    def compare(self, reference: Row, row: Row, target: int) -> RowDivergence:
        """Raises NumericalError for NaN or infinity."""
        x, y, p = self._x, self._y, self._p
        first, other = int(reference.argmax()), int(row.argmax())
        np.subtract(reference, reference[first], out=x, dtype=np.float64)
        np.subtract(row, row[other], out=y, dtype=np.float64)
        at_x, at_y = float(x[target]), float(y[target])
        np.exp(x, out=p)
        sum_x = float(np.add.reduce(p))
        # KL = sum p (log p - log q), of which the logarithms of both sums are constants.
        np.subtract(x, y, out=x)
        np.multiply(p, x, out=x)
        mean = float(np.add.reduce(x)) / sum_x
        np.exp(y, out=y)
        sum_y = float(np.add.reduce(y))
        value = mean - math.log(sum_x) + math.log(sum_y) if sum_x > 0 and sum_y > 0 else math.nan
        if not math.isfinite(value):
            raise NumericalError("the logits hold NaN or infinity")
        # Never negative but for rounding: equal rows give 0 or some 1e-16.
        return RowDivergence(max(0.0, value), first == other, at_x - math.log(sum_x), at_y - math.log(sum_y))


def logprob(row: Row, target: int) -> float:
    """The natural log-probability of a token.  Raises NumericalError for NaN or infinity."""
    x = np.subtract(row, row.max(), dtype=np.float64)
    found = float(x[target]) - math.log(float(np.add.reduce(np.exp(x))))
    if not math.isfinite(found):
        raise NumericalError("the logits hold NaN or infinity")
    return found


class RowCoder:
    """A row of log-probabilities as 16-bit codes: log p = largest - step * code, the least likely token having 65535.

    A row that spans 40 nats has steps of 0.0006, which moves KL by some 1e-8 nats; half precision, whose steps are
    0.008 from 8 nats on, would move it by 1e-6.
    """

    MOST_CODE = 65535

    def __init__(self, vocabulary: int) -> None:
        self._x, self._p = np.empty(vocabulary), np.empty(vocabulary)

    def encode(self, row: Row, target: int, codes: npt.NDArray[np.uint16]) -> tuple[float, float, float]:
        """Fill `codes`; returns (largest, step, log-probability of the target).  Raises NumericalError."""
        x, p = self._x, self._p
        np.subtract(row.max(), row, out=x, dtype=np.float64)
        np.exp(np.negative(x, out=p), out=p)
        total = float(np.add.reduce(p))
        spread = float(x.max())
        if not (math.isfinite(spread) and total > 0):
            raise NumericalError("the logits hold NaN or infinity")
        step = float(np.float32(spread / self.MOST_CODE))
        target_logprob = -float(x[target]) - math.log(total)
        if step > 0:
            np.rint(np.divide(x, step, out=x), out=x)
            np.minimum(x, self.MOST_CODE, out=x)
        codes[:] = x
        return -math.log(total), step, target_logprob


def decode(codes: npt.NDArray[np.uint16], largest: float, step: float) -> Row:
    """Log-probabilities, float64; their exponentials add up to 1 but for the codes' rounding."""
    values: Row = largest - step * codes.astype(np.float64)
    return values
