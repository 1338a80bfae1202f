"""The ops a forward pass is made of, as data: what `graph` records, `reference` defines and the native core runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cpuinfer.config import Activation, Rope

ACTIVATIONS: tuple[Activation, ...] = ("relu", "silu", "gelu", "gelu_tanh")


@dataclass(frozen=True, slots=True)
class Value:
    """The result of an op: one vector of `width` numbers for each row of a step."""

    index: int
    width: int


@dataclass(frozen=True, slots=True)
class Norm:
    """How an op reads its input.

    rms: x / sqrt(mean(x ** 2) + eps) * (weight + offset) (arXiv 1910.07467).
    layer: (x - mean(x)) / sqrt(var(x) + eps) * (weight + offset) + bias (arXiv 1607.06450).
    """

    kind: Literal["rms", "layer"]
    weight: str
    eps: float
    bias: str | None = None
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Normed:
    """A value as seen through a norm; it takes no op of its own."""

    value: Value
    norm: Norm


@dataclass(frozen=True, slots=True)
class Embed:
    """out = scale * table[token] + positions[position + position_offset]."""

    name: str
    table: str
    out: Value
    scale: float = 1.0
    positions: str | None = None
    position_offset: int = 0


@dataclass(frozen=True, slots=True)
class Normalize:
    """out = norm(x) + residual; each of `groups` equal parts of x is normalised by itself, with the same weight."""

    name: str
    x: Value
    norm: Norm
    groups: int
    out: Value
    residual: Value | None = None


@dataclass(frozen=True, slots=True)
class Linears:
    """out_i = softcap(act(W_i norm(x) + b_i)), for weights that share an input; a single one may add a residual."""

    name: str
    x: Value
    norm: Norm | None
    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    outs: tuple[Value, ...]
    act: Activation | None = None
    softcap: float = 0.0
    """cap * tanh(z / cap); 0 for none."""
    residual: Value | None = None


@dataclass(frozen=True, slots=True)
class Glu:
    """out = act(W_gate norm(x) + b_gate) * (W_up norm(x) + b_up) (arXiv 2002.05202)."""

    name: str
    x: Value
    norm: Norm | None
    gate: str
    up: str
    biases: tuple[str | None, str | None]
    act: Activation
    out: Value


@dataclass(frozen=True, slots=True)
class Experts:
    """A sparse mixture of gated experts: out = sum_e p_e W_down,e (act(W_gate,e x) * (W_up,e x)) + residual.

    p = softmax(W_router x); the `used` largest (the lower index on a tie) are kept and, with `renormalise`, divided by
    their sum (Mixtral, arXiv 2401.04088).  Expert e has rows [e * n, (e + 1) * n) of the stacked weights.
    """

    name: str
    x: Value
    norm: Norm | None
    router: str
    gate: str
    up: str
    down: str
    experts: int
    used: int
    renormalise: bool
    act: Activation
    out: Value
    residual: Value | None = None


@dataclass(frozen=True, slots=True)
class Gated:
    """out = x / (1 + exp(-gate)) + residual, for a gate of width 1."""

    name: str
    x: Value
    gate: Value
    out: Value
    residual: Value | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention over the sequence's cache; query head h reads key-value head h // (heads // kv_heads).

    score(i, j) = softcap(scale * q_i k_j) - slope_h * (i - j), for j <= i and, with a window, i - j < window.
    """

    name: str
    q: Value
    k: Value
    v: Value
    out: Value
    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    window: int = 0
    """0 for none."""
    softcap: float = 0.0
    slopes: tuple[float, ...] = ()
    """One a head (ALiBi, arXiv 2108.12409); empty for none."""


Op = Embed | Normalize | Linears | Glu | Experts | Gated | Attention


def inputs(op: Op) -> list[Value]:
    """The values an op reads."""
    match op:
        case Embed():
            return []
        case Attention():
            return [op.q, op.k, op.v]
        case Glu():
            return [op.x]
        case Gated():
            read = [op.x, op.gate]
        case Normalize() | Linears() | Experts():
            read = [op.x]
    return read if op.residual is None else [*read, op.residual]


def outputs(op: Op) -> tuple[Value, ...]:
    """The values an op makes."""
    return op.outs if isinstance(op, Linears) else (op.out,)
