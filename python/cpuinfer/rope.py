"""Rotary positions as configurations describe them: scaling beyond the trained context.

Every scaling comes down to a divisor for each pair's frequency, and one factor of cosines and sines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cpuinfer.config import Rope
from cpuinfer.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class Positions:
    """What a scaling may depend on."""

    trained: int
    """Positions the configuration names as the most."""
    used: int
    """Positions the model is opened for.  Dynamic NTK and LongRoPE are resolved once, for these."""


def scaled(rope: Rope, scaling: Mapping[str, Any], positions: Positions) -> Rope:
    """A rope with the scaling of a configuration's `rope_scaling` or `rope_parameters`.

    Raises UnsupportedModel for a type not known and for numbers that cannot be.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    found = _SCALINGS.get(str(kind))
    if found is None:
        raise UnsupportedModel(f"rope scaling {kind!r}, supported: {', '.join(_SCALINGS)}")
    return found(rope, scaling, positions)


def _number(scaling: Mapping[str, Any], key: str, default: float | None = None, *, least: float = 1e-6) -> float:
    value = scaling.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= 1e12:
        raise UnsupportedModel(f"rope scaling: {key} is {value!r}, expected a number of at least {least:g}")
    return float(value)


def _default(rope: Rope, _: Mapping[str, Any], __: Positions) -> Rope:
    return rope


def _linear(rope: Rope, scaling: Mapping[str, Any], _: Positions) -> Rope:
    return replace(rope, factors=(_number(scaling, "factor"),) * (rope.dims // 2))


def _dynamic(rope: Rope, scaling: Mapping[str, Any], positions: Positions) -> Rope:
    """NTK-aware scaling: a larger base as the context grows (transformers' definition)."""
    factor = _number(scaling, "factor")
    trained = positions.trained  # whatever original_max_position_embeddings says
    length = max(positions.used, trained)
    if rope.dims < 4:
        raise UnsupportedModel(f"rope scaling 'dynamic' with {rope.dims} rotated dimensions, expected at least 4")
    growth = factor * length / trained - (factor - 1)
    return replace(rope, base=rope.base * growth ** (rope.dims / (rope.dims - 2)))


def _yarn(rope: Rope, scaling: Mapping[str, Any], positions: Positions) -> Rope:
    """YaRN (arXiv 2309.00071): fast pairs as they are, slow ones divided, a ramp between."""
    factor = _number(scaling, "factor")
    trained = _number(scaling, "original_max_position_embeddings", positions.trained)
    fast, slow = _number(scaling, "beta_fast", 32), _number(scaling, "beta_slow", 1)

    def dimension(rotations: float) -> float:
        """The pair that turns as often over the trained context."""
        return rope.dims * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = dimension(fast), dimension(slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dims - 1)
    high = high + 0.001 if low == high else high
    ramps = [min(max((i - low) / (high - low), 0), 1) for i in range(rope.dims // 2)]
    factors = tuple(1 / (ramp / factor + 1 - ramp) for ramp in ramps)
    return replace(rope, factors=factors, magnitude=_yarn_magnitude(scaling, factor))


def _yarn_magnitude(scaling: Mapping[str, Any], factor: float) -> float:
    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    if scaling.get("attention_factor") is not None:
        return _number(scaling, "attention_factor")
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(_number(scaling, "mscale")) / magnitude(_number(scaling, "mscale_all_dim"))
    return magnitude(1)


def _llama3(rope: Rope, scaling: Mapping[str, Any], _: Positions) -> Rope:
    """Llama 3.1's: wavelengths far beyond the trained context divided, short ones as they are, a ramp between."""
    factor, trained = _number(scaling, "factor"), _number(scaling, "original_max_position_embeddings")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    if high <= low:
        raise UnsupportedModel(f"rope scaling: high_freq_factor {high:g} is not above low_freq_factor {low:g}")

    def divisor(frequency: float) -> float:
        turns = trained * frequency / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0), 1)
        return 1 / ((1 - smooth) / factor + smooth)

    plain = replace(rope, factors=())
    return replace(rope, factors=tuple(divisor(frequency) for frequency in plain.inverse_frequencies()))


def _longrope(rope: Rope, scaling: Mapping[str, Any], positions: Positions) -> Rope:
    """LongRoPE (arXiv 2402.13753): measured divisors, one set up to the trained context and one beyond."""
    trained = _number(scaling, "original_max_position_embeddings", positions.trained)
    key = "long_factor" if positions.used > trained else "short_factor"
    given = scaling.get(key)
    if not isinstance(given, Sequence) or len(given) != rope.dims // 2:
        raise UnsupportedModel(f"rope scaling: {key} is not a list of {rope.dims // 2} numbers")
    factors = tuple(_number({key: value}, key) for value in given)
    factor = _number(scaling, "factor", positions.trained / trained)
    if scaling.get("attention_factor") is not None:
        magnitude = _number(scaling, "attention_factor")
    else:
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return replace(rope, factors=factors, magnitude=magnitude)


_SCALINGS = {
    "default": _default,
    "none": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,
}
