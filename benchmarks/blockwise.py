"""Block-wise rounding of flattened weights, as in the scaling study, and the bits that it takes.

arXiv 2212.09720, section 2: a block's constant is its largest magnitude, in 16 bits, and a weight becomes the nearest
number of the type times that.  Some inputs may stay in 16 bits: those that "proxy quantisation" takes for outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import code_books

Floats = npt.NDArray[np.float32]

CONSTANT_BITS = 16
WHOLE = 0
"""As a block: all of a tensor."""


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """One way of rounding a model."""

    bits: int
    kind: str
    """Of `code_books`; "none" leaves the model as it is."""
    block: int
    """Weights that share a constant, or WHOLE."""
    outliers: float = 0.0
    """Share of inputs that stay in 16 bits."""

    @property
    def name(self) -> str:
        """Such as "4-bit float, block 64"."""
        block = "no blocks" if self.block == WHOLE else f"block {self.block}"
        kept = f", {self.outliers:.0%} in 16 bits" if self.outliers else ""
        return f"{self.bits}-bit {self.kind}, {block}{kept}"


def rounded(weights: Floats, variant: Variant, kept: npt.NDArray[np.bool_] | None = None) -> Floats:
    """The values a matrix [outputs, inputs] is stored as; inputs that are `kept` stay."""
    flat = np.ascontiguousarray(weights, np.float32).ravel()
    block = variant.block or flat.size
    rows = np.pad(flat, (0, -flat.size % block)).reshape(-1, block)
    constant = np.abs(rows).max(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
    unit = np.divide(rows, constant, out=np.zeros_like(rows), where=constant > 0)
    if variant.kind in code_books.FITTED:
        sizes = np.broadcast_to(constant, rows.shape).ravel()[: flat.size]
        levels = code_books.fitted(variant.kind, variant.bits, unit.ravel()[: flat.size], sizes)
    else:
        levels = code_books.fixed(variant.kind, variant.bits)
    values = (levels[nearest(unit, levels)] * constant).ravel()[: flat.size].reshape(weights.shape)
    return values if kept is None else np.where(kept, weights, values)


def nearest(unit: Floats, levels: Floats) -> npt.NDArray[np.intp]:
    """Index of the nearest level, which are ascending; of two as near, the lower."""
    middles = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    return np.searchsorted(middles.astype(np.float32), unit)


def bits_of(shape: tuple[int, ...], variant: Variant, kept: int = 0) -> float:
    """Bits of a matrix of this shape: codes, a constant for each block, a fitted table; `kept` inputs have 16 bits."""
    count = int(np.prod(shape))
    blocks = 1 if variant.block == WHOLE else -(-count // variant.block)
    table = CONSTANT_BITS * 2**variant.bits if variant.kind in code_books.FITTED else 0
    exact = kept * (count // shape[-1])
    return count * variant.bits + blocks * CONSTANT_BITS + table + exact * (16 - variant.bits)


def outlying(writer: Floats, share: float) -> npt.NDArray[np.bool_]:
    """Inputs of the next matrix whose unit, a row of `writer`, has weights of the largest deviation; at least one."""
    deviation = writer.std(axis=1)
    count = max(1, round(share * deviation.size))
    chosen = np.zeros(deviation.size, np.bool_)
    chosen[np.argsort(-deviation, kind="stable")[:count]] = True
    return chosen
