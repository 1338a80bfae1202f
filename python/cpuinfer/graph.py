"""Records a model's forward pass as a flat list of ops over numbered values, checking every shape as it goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cpuinfer.config import Rope
from cpuinfer.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class Value:
    """The result of an op: one vector of `width` numbers for each row of a step."""

    index: int
    width: int


@dataclass(frozen=True, slots=True)
class Norm:
    """How an op reads its input: x / sqrt(mean(x ** 2) + eps) * weight (RMSNorm, arXiv 1910.07467)."""

    weight: str
    eps: float


@dataclass(frozen=True, slots=True)
class Normed:
    """A value as seen through a norm; it takes no op of its own."""

    value: Value
    norm: Norm


@dataclass(frozen=True, slots=True)
class Embed:
    """out = table[token]."""

    name: str
    table: str
    out: Value


@dataclass(frozen=True, slots=True)
class Linears:
    """out_i = W_i norm(x), for weights that share an input; the one out of a single weight may add a residual."""

    name: str
    x: Value
    norm: Norm | None
    weights: tuple[str, ...]
    outs: tuple[Value, ...]
    residual: Value | None = None


@dataclass(frozen=True, slots=True)
class Glu:
    """out = act(W_gate norm(x)) * (W_up norm(x)), act(z) = z / (1 + exp(-z)) (SwiGLU, arXiv 2002.05202)."""

    name: str
    x: Value
    norm: Norm | None
    gate: str
    up: str
    out: Value


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention over the sequence's cache; query head h reads key-value head h // (heads // kv_heads)."""

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


Op = Embed | Linears | Glu | Attention


@dataclass(slots=True)
class Graph:
    """The recorder.  `shapes` gives every tensor of the checkpoint by its name without `.weight`."""

    shapes: Mapping[str, tuple[int, ...]]
    ops: list[Op] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    used: dict[str, None] = field(default_factory=dict)
    """The tensors read, in the order of their first use."""
    _scope: list[str] = field(default_factory=list)

    @contextmanager
    def scope(self, prefix: str) -> Iterator[None]:
        """Prefix the names of ops and weights recorded inside."""
        self._scope.append(prefix)
        try:
            yield
        finally:
            self._scope.pop()

    def embed(self, table: str) -> Value:
        """Look up the rows' tokens in an embedding table [vocabulary, hidden]."""
        name = self._full(table)
        out = self._value(self._shape(name, dims=2)[1])
        self.ops.append(Embed(name, name, out))
        return out

    def norm(self, x: Value, weight: str, eps: float) -> Normed:
        """Let the next op read x through an RMSNorm with this weight [width of x]."""
        name = self._full(weight)
        shape = self._shape(name, dims=1)
        if shape != (x.width,):
            raise UnsupportedModel(f"{name}: shape {shape}, expected ({x.width},)")
        return Normed(x, Norm(name, eps))

    def linear(self, x: Value | Normed, weight: str, *, residual: Value | None = None) -> Value:
        """W x (+ residual), for a weight [out, in]."""
        return self._linears(x, (weight,), residual)[0]

    def linears(self, x: Value | Normed, *weights: str) -> tuple[Value, ...]:
        """Several weights that share one input, computed in one op."""
        return self._linears(x, weights, None)

    def glu(self, x: Value | Normed, gate: str, up: str, *, act: str) -> Value:
        """act(W_gate x) * (W_up x)."""
        if act != "silu":
            raise UnsupportedModel(f"{self._full(gate)}: activation {act!r}, only 'silu' is supported")
        value, norm = _unwrap(x)
        gate, up = self._full(gate), self._full(up)
        width = self._rows(gate, value)
        if self._rows(up, value) != width:
            raise UnsupportedModel(f"{up}: shape {self.shapes[up]}, expected ({width}, {value.width})")
        out = self._value(width)
        self.ops.append(Glu(gate, value, norm, gate, up, out))
        return out

    def attention(
        self, q: Value, k: Value, v: Value, *, layer: int, heads: int, kv_heads: int, head_dim: int, rope: Rope | None
    ) -> Value:
        """Causal attention with grouped heads (arXiv 2305.13245), scores scaled by 1 / sqrt(head_dim)."""
        name = self._full("self_attn.attention")
        if q.width != heads * head_dim or k.width != kv_heads * head_dim or v.width != k.width or heads % kv_heads:
            raise UnsupportedModel(
                f"{name}: widths {q.width}, {k.width}, {v.width} do not fit {heads} heads, {kv_heads} key-value heads "
                f"of {head_dim}"
            )
        out = self._value(q.width)
        self.ops.append(Attention(name, q, k, v, out, layer, heads, kv_heads, head_dim, head_dim**-0.5, rope))
        return out

    def _linears(self, x: Value | Normed, weights: Sequence[str], residual: Value | None) -> tuple[Value, ...]:
        value, norm = _unwrap(x)
        names = tuple(self._full(weight) for weight in weights)
        outs = tuple(self._value(self._rows(name, value)) for name in names)
        if residual is not None and residual.width != outs[0].width:
            raise UnsupportedModel(f"{names[0]}: {outs[0].width} rows, but its residual has width {residual.width}")
        self.ops.append(Linears(names[0], value, norm, names, outs, residual))
        return outs

    def _full(self, name: str) -> str:
        return ".".join([*self._scope, name])

    def _value(self, width: int) -> Value:
        self.values.append(Value(len(self.values), width))
        return self.values[-1]

    def _shape(self, name: str, *, dims: int) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None:
            raise UnsupportedModel(f"{name}: no such tensor in the checkpoint")
        if len(shape) != dims:
            raise UnsupportedModel(f"{name}: {len(shape)} dimensions, expected {dims}")
        self.used[name] = None
        return shape

    def _rows(self, name: str, x: Value) -> int:
        rows, columns = self._shape(name, dims=2)
        if columns != x.width:
            raise UnsupportedModel(f"{name}: shape ({rows}, {columns}), expected ('*', {x.width})")
        return rows


def _unwrap(x: Value | Normed) -> tuple[Value, Norm | None]:
    return (x.value, x.norm) if isinstance(x, Normed) else (x, None)
