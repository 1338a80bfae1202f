"""What a model is: its shapes and options, the same whatever file they came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cpuinfer.errors import UnsupportedModel

MOST_SIZE = 1 << 20
"""No size in a real model's configuration comes near this; beyond it a file is damaged or hostile."""
MOST_CONTEXT = 1 << 30
"""The same of positions."""

RopeLayout = Literal["interleaved", "halves"]
"""Pairs of a head that turn together: (2 i, 2 i + 1), or (i, i + pairs)."""

Activation = Literal["relu", "silu", "gelu", "gelu_tanh"]
"""max(z, 0); z / (1 + exp(-z)); z (1 + erf(z / sqrt 2)) / 2; its approximation by tanh (arXiv 1606.08415)."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions (Su et al., arXiv 2104.09864): pair i turns by position / (base ** (2 i / dims) * factor i)."""

    dims: int
    """Dimensions of a head that are rotated, from the first."""
    base: float
    layout: RopeLayout
    factors: tuple[float, ...] = ()
    """Divisors of the frequencies, one a pair: Llama 3's long-context scaling, or linear scaling; empty for none."""
    magnitude: float = 1.0
    """Factor of cosines and sines: the attention factor of YaRN (arXiv 2309.00071) and LongRoPE (arXiv 2402.13753)."""

    def inverse_frequencies(self) -> list[float]:
        """One angle per position step for each pair, in radians."""
        pairs = self.dims // 2
        factors = self.factors or (1.0,) * pairs
        return [self.base ** (-2 * i / self.dims) / factors[i] for i in range(pairs)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Shapes and options of a decoder."""

    model_type: str
    """Names the file in cpuinfer.models that describes the architecture."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    context: int
    """Positions the model was trained for."""
    norm_eps: float
    tied: bool
    """The output head is the embedding table."""
    rope: Rope | None
    """None where positions are learned or left to the scores."""
    name: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    """What else the file says about the architecture, by the names in its file's OPTIONS."""

    def expect(self, **wanted: object) -> None:
        """Refuse a model whose file states another value for an option than the architecture's description assumes."""
        for key, value in wanted.items():
            found = self.options.get(key, value)
            if found != value:
                raise UnsupportedModel(f"{self.model_type}: {key} is {found!r}, only {value!r} is supported")

    def integer(self, option: str) -> int:
        """An option that is a whole number."""
        return int(self._number(option))

    def number(self, option: str) -> float:
        """An option that is a number."""
        return float(self._number(option))

    def flag(self, option: str) -> bool:
        """An option that is true or false."""
        value = self.options[option]
        if not isinstance(value, bool):
            raise UnsupportedModel(f"{self.model_type}: {option} is {value!r}, expected true or false")
        return value

    def items(self, option: str) -> list[object]:
        """An option that is a list; an empty one where the file has none."""
        value = self.options[option]
        if not isinstance(value, (list, tuple)):
            raise UnsupportedModel(f"{self.model_type}: {option} is {value!r}, expected a list")
        return list(value)

    def activation(self, option: str = "act") -> Activation:
        """An activation function, by the name the graph has for what Hugging Face calls it."""
        value = self.options[option]
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise UnsupportedModel(f"{self.model_type}: activation {value!r}, supported: {known}")
        return _ACTIVATIONS[value]

    def _number(self, option: str) -> float:
        value = self.options[option]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UnsupportedModel(f"{self.model_type}: {option} is {value!r}, expected a number")
        return value


_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
