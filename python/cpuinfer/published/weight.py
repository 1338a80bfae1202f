"""A weight of a published checkpoint: what it is, and its rows in canonical form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest
from cpuinfer.formats.canonical import BlockRows, IntegerRows, TableRows

Rows = IntegerRows | TableRows | BlockRows


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeight:
    """One linear layer's weight, stored packed and read as it is."""

    name: str
    """As the file calls the layer."""
    encoding: str
    """For people: "GPTQ int4 g128"."""
    shape: tuple[int, int]
    """(n, k): outputs, inputs."""
    layout: Literal["int4", "int8", "table4", "mxfp4"]
    group: int
    """Neighbours that share a scale, in `input_order`: a multiple of 32 that divides k."""
    zero: int = 0
    """Subtracted from every code, where there is no zero point for each group."""
    has_zeros: bool = False
    """Whether there is a zero point for each group."""
    has_bias: bool = False
    """Whether there is a bias for each group."""
    table: npt.NDArray[np.float32] | None = None
    """[16]: the values of the codes, for "table4"."""
    input_order: npt.NDArray[np.int32] | None = None
    """[k]: column i of `rows` is column input_order[i] of the weight; None where they are the same."""
    tensor_names: tuple[str, ...]
    """All that the files hold of this weight."""
    file_bytes: int
    """Of those tensors."""
    decode: Callable[[int, int], Rows]
    """What `rows` calls once the range is checked."""
    floats: Callable[[], npt.NDArray[np.float64]]
    """() -> [n, k], columns in the weight's own order: the values that the file means, without the rounding of scales
    to fp16 that `rows` does, and not by way of `rows`."""

    def rows(self, begin: int, end: int) -> Rows:
        """Rows [begin, end), columns in `input_order`.  Several threads may ask at once."""
        if not 0 <= begin <= end <= self.shape[0]:
            raise InvalidRequest(f"{self.name}: rows [{begin}, {end}), expected a range in [0, {self.shape[0]})")
        return self.decode(begin, end)


def label(method: str, bits: int, group: int, *, ordered: bool = False) -> str:
    """ "GPTQ int4 g128", "GPTQ int4 per row", "GPTQ int4 g128 act-order"."""
    size = "per row" if group == -1 else f"g{group}"
    return f"{method} int{bits} {size}{' act-order' if ordered else ''}"
