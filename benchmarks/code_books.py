"""The numbers a k-bit weight may be, for every type that the scaling study compares: ascending, at most 1 in magnitude.

Dettmers and Zettlemoyer, "The case for 4-bit precision" (arXiv 2212.09720), section 2; NF4: QLoRA (arXiv 2305.14314);
AF4: Yoshida, "NF4 isn't information theoretically optimal" (arXiv 2306.06965).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cpuinfer.weights import NF4

Floats = npt.NDArray[np.float32]

FIXED = ("int", "float", "dynamic", "half-exponent", "nf4", "af4")
"""The same for all tensors."""
FITTED = ("quantile", "k-means")
"""A table for each tensor, 16 bits an entry."""
SAMPLE = 1 << 18
"""Weights of a tensor, at most, that its table is fitted to, evenly spaced."""
LLOYD_STEPS = 60

# The published numbers for blocks of 64.
AF4 = (
    *(-1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0),
    *(0.04273164, 0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0),
)


def applies(kind: str, bits: int) -> bool:
    """Whether the type has so many bits."""
    if kind == "half-exponent":  # elsewhere it is `float`, or has no numbers of its own
        return bits in (4, 8)
    return bits == 4 if kind in ("nf4", "af4", "k-means") else 3 <= bits <= 8


def fixed(kind: str, bits: int) -> Floats:
    """Of one of FIXED."""
    match kind:
        case "int":
            most = 2 ** (bits - 1) - 1
            levels = np.arange(-most, most + 1) / most
        case "float":  # the study's split: 3 bits of exponent, of 3-bit numbers 2
            levels = _float(min(3, bits - 1), bits)
        case "half-exponent":  # the better split that the study names afterwards: half of the bits, rounded up
            levels = _float(-(-bits // 2), bits)
        case "dynamic":
            levels = _dynamic(bits)
        case "nf4" | "af4":
            levels = np.array(NF4 if kind == "nf4" else AF4)
        case _:
            raise KeyError(kind)
    return levels.astype(np.float32)


def _float(exponent_bits: int, bits: int) -> npt.NDArray[np.float64]:
    """Equation 5, scaled to 1: 2**-(e - 1 - bias) (1 + fraction), where e = 0 2**-bias fraction.

    The bias is 2**(exponent_bits - 1).  So the exponents count downwards, and what is below the least of them is not
    where IEEE 754 has it.
    """
    fraction_bits = bits - 1 - exponent_bits
    fractions = np.arange(2**fraction_bits) / 2**fraction_bits
    bias = 2 ** (exponent_bits - 1)
    normal = [2.0 ** (bias + 1 - e) * (1 + fractions) for e in range(1, 2**exponent_bits)]
    magnitudes = np.concatenate([2.0**-bias * fractions, *normal])
    return np.unique(np.concatenate([-magnitudes, magnitudes])) / magnitudes.max()


def _dynamic(bits: int) -> npt.NDArray[np.float64]:
    """A run of zeros is the decimal exponent, then a one, then a linear fraction.

    Which of n bits means the middle of one of 2**n equal parts of 0.1 to 1.
    0 and 1 are there besides, as in bitsandbytes.
    """
    magnitudes: list[float] = []
    for fraction_bits in range(bits - 1):
        edges = np.linspace(0.1, 1, 2**fraction_bits + 1)
        magnitudes += list(10.0 ** (fraction_bits - (bits - 2)) * (edges[:-1] + edges[1:]) / 2)
    return np.array(sorted([*(-m for m in magnitudes), *magnitudes, 0.0, 1.0]))


def fitted(kind: str, bits: int, unit: Floats, size: npt.NDArray[np.float32] | None = None) -> Floats:
    """Of one of FITTED, for weights divided by their block's largest magnitude, which is `size` for k-means."""
    step = max(1, unit.size // SAMPLE)
    values = unit[::step].astype(np.float64)
    if kind == "quantile":
        return _quantile(values, bits)
    if kind == "k-means":
        return _k_means(values, np.ones_like(values) if size is None else size[::step].astype(np.float64), bits)
    raise KeyError(kind)


def _quantile(values: npt.NDArray[np.float64], bits: int) -> Floats:
    """Middles between neighbours of 2**bits quantiles, and 0; scaled to 1."""
    quantiles = np.quantile(values, np.linspace(0, 1, 2**bits))
    levels = np.sort(np.append((quantiles[:-1] + quantiles[1:]) / 2, 0.0))
    return (levels / max(np.abs(levels).max(), np.finfo(np.float32).tiny)).astype(np.float32)


def _k_means(values: npt.NDArray[np.float64], size: npt.NDArray[np.float64], bits: int) -> Floats:
    """Lloyd's steps from quantiles on.  The error is that of the weights: each counts as its block's size squared."""
    order = np.argsort(values)
    values, weight = values[order], (size[order] / max(size.max(), np.finfo(np.float32).tiny)) ** 2
    total = np.concatenate([[0.0], np.cumsum(weight)])
    moment = np.concatenate([[0.0], np.cumsum(weight * values)])
    shares = total[1:] / max(total[-1], np.finfo(np.float32).tiny)
    levels = np.interp((np.arange(2**bits) + 0.5) / 2**bits, shares, values)
    for _ in range(LLOYD_STEPS):
        edges = np.concatenate([[0], np.searchsorted(values, (levels[1:] + levels[:-1]) / 2), [values.size]])
        mass = total[edges[1:]] - total[edges[:-1]]
        middles = (moment[edges[1:]] - moment[edges[:-1]]) / np.where(mass > 0, mass, 1)
        levels = np.where(mass > 0, middles, levels)
    return np.sort(levels).astype(np.float32)
