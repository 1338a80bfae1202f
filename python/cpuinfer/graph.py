"""Records a model's forward pass as a flat list of ops over numbered values, checking every shape as it goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cpuinfer.config import Activation, Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.ops import (
    ACTIVATIONS,
    Attention,
    Embed,
    Experts,
    Gated,
    Glu,
    Linears,
    Norm,
    Normalize,
    Normed,
    Op,
    Value,
)


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Slopes of ALiBi: 2 ** (-8 i / n) for n a power of two; others take every second slope of the next one too.

    Source: arXiv 2108.12409 section 3, and its authors' rule for other numbers of heads.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    return tuple(slopes + [2.0 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)])


@dataclass(slots=True)
class Graph:
    """The recorder.

    `shapes` gives every tensor of the checkpoint by its name without `.weight`; a bias is its weight's name plus
    `.bias`, and is added wherever there is one.
    """

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

    def embed(self, table: str, *, scale: float = 1.0, positions: str | None = None, position_offset: int = 0) -> Value:
        """Look up the rows' tokens in a table [vocabulary, hidden], and learned positions [positions, hidden]."""
        name = self._full(table)
        width = self._shape(name, dims=2)[1]
        if positions is not None:
            positions = self._full(positions)
            rows, columns = self._shape(positions, dims=2)
            if columns != width:
                raise UnsupportedModel(f"{positions}: shape ({rows}, {columns}), expected ('*', {width})")
        out = self._value(width)
        self.ops.append(Embed(name, name, out, scale, positions, position_offset))
        return out

    def norm(self, x: Value, weight: str, eps: float, *, offset: float = 0.0) -> Normed:
        """Let the next op read x through an RMSNorm with this weight [width of x]."""
        return Normed(x, Norm("rms", self._vector(weight, x.width), eps, None, offset))

    def layer_norm(self, x: Value, weight: str, eps: float) -> Normed:
        """Let the next op read x through a LayerNorm with this weight [width of x], and its bias if there is one."""
        name = self._vector(weight, x.width)
        return Normed(x, Norm("layer", name, eps, self._bias(name, x.width)))

    def normalize(self, x: Normed, *, residual: Value | None = None) -> Value:
        """What is seen through a norm as a value of its own (+ residual)."""
        return self._normalize(x.value, x.norm, 1, residual)

    def head_norm(self, x: Value, weight: str, eps: float, *, heads: int, offset: float = 0.0) -> Value:
        """Each head of x through an RMSNorm with the same weight [width / heads]."""
        norm = Norm("rms", self._vector(weight, x.width // heads), eps, None, offset)
        return self._normalize(x, norm, heads, None)

    def linear(
        self,
        x: Value | Normed,
        weight: str,
        *,
        act: Activation | None = None,
        softcap: float = 0.0,
        residual: Value | None = None,
    ) -> Value:
        """softcap(act(W x + b)) (+ residual), for a weight [out, in]."""
        return self._linears(x, (weight,), act, softcap, residual)[0]

    def linears(self, x: Value | Normed, *weights: str) -> tuple[Value, ...]:
        """Several weights that share one input, computed in one op."""
        return self._linears(x, weights, None, 0.0, None)

    def glu(self, x: Value | Normed, gate: str, up: str, *, act: Activation) -> Value:
        """act(W_gate x) * (W_up x)."""
        value, norm = _unwrap(x)
        gate, up = self._full(gate), self._full(up)
        self._check_activation(gate, act)
        width = self._rows(gate, value)
        if self._rows(up, value) != width:
            raise UnsupportedModel(f"{up}: shape {self.shapes[up]}, expected ({width}, {value.width})")
        out = self._value(width)
        biases = (self._bias(gate, width), self._bias(up, width))
        self.ops.append(Glu(gate, value, norm, gate, up, biases, act, out))
        return out

    def experts(
        self,
        x: Value | Normed,
        *,
        router: str,
        gate: str,
        up: str,
        down: str,
        experts: int,
        used: int,
        renormalise: bool,
        act: Activation,
        residual: Value | None = None,
    ) -> Value:
        """The `used` best of `experts` gated feed-forward layers, weighted by the router (+ residual)."""
        value, norm = _unwrap(x)
        router, gate, up, down = (self._full(name) for name in (router, gate, up, down))
        self._check_activation(gate, act)
        rows = self._rows(gate, value)
        if not 1 <= used <= experts or rows % experts:
            raise UnsupportedModel(f"{gate}: {rows} rows for {used} of {experts} experts")
        self._expect(router, (experts, value.width))
        self._expect(up, (rows, value.width))
        self._expect(down, (experts * value.width, rows // experts))
        out = self._value(value.width)
        self._check_residual(down, out, residual)
        self.ops.append(
            Experts(router, value, norm, router, gate, up, down, experts, used, renormalise, act, out, residual)
        )
        return out

    def gated(self, x: Value, gate: Value, *, residual: Value | None = None) -> Value:
        """Sigmoid(gate) * x (+ residual), for a gate of width 1."""
        name = self._full("gate")
        if gate.width != 1:
            raise UnsupportedModel(f"{name}: a gate of width {gate.width}, expected 1")
        out = self._value(x.width)
        self._check_residual(name, out, residual)
        self.ops.append(Gated(name, x, gate, out, residual))
        return out

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        *,
        layer: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope: Rope | None,
        scale: float | None = None,
        window: int = 0,
        softcap: float = 0.0,
        slopes: Sequence[float] = (),
    ) -> Value:
        """Causal attention with grouped heads (arXiv 2305.13245), scores scaled by 1 / sqrt(head_dim) unless given."""
        name = self._full("self_attn.attention")
        if q.width != heads * head_dim or k.width != kv_heads * head_dim or v.width != k.width or heads % kv_heads:
            raise UnsupportedModel(
                f"{name}: widths {q.width}, {k.width}, {v.width} do not fit {heads} heads, {kv_heads} key-value heads "
                f"of {head_dim}"
            )
        if len(slopes) not in {0, heads} or window < 0 or softcap < 0:
            raise UnsupportedModel(f"{name}: {len(slopes)} slopes, window {window}, softcap {softcap}")
        out = self._value(q.width)
        scale = head_dim**-0.5 if scale is None else scale
        self.ops.append(
            Attention(name, q, k, v, out, layer, heads, kv_heads, head_dim, scale, rope, window, softcap, tuple(slopes))
        )
        return out

    def _linears(
        self,
        x: Value | Normed,
        weights: Sequence[str],
        act: Activation | None,
        softcap: float,
        residual: Value | None,
    ) -> tuple[Value, ...]:
        value, norm = _unwrap(x)
        names = tuple(self._full(weight) for weight in weights)
        if act is not None:
            self._check_activation(names[0], act)
        outs = tuple(self._value(self._rows(name, value)) for name in names)
        biases = tuple(self._bias(name, out.width) for name, out in zip(names, outs, strict=True))
        self._check_residual(names[0], outs[0], residual)
        self.ops.append(Linears(names[0], value, norm, names, biases, outs, act, softcap, residual))
        return outs

    def _normalize(self, x: Value, norm: Norm, groups: int, residual: Value | None) -> Value:
        out = self._value(x.width)
        self._check_residual(norm.weight, out, residual)
        self.ops.append(Normalize(norm.weight, x, norm, groups, out, residual))
        return out

    def _check_residual(self, name: str, out: Value, residual: Value | None) -> None:
        if residual is not None and residual.width != out.width:
            raise UnsupportedModel(f"{name}: {out.width} rows, but its residual has width {residual.width}")

    def _check_activation(self, name: str, act: str) -> None:
        if act not in ACTIVATIONS:
            raise UnsupportedModel(f"{name}: activation {act!r}, supported: {', '.join(ACTIVATIONS)}")

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

    def _vector(self, weight: str, width: int) -> str:
        name = self._full(weight)
        shape = self._shape(name, dims=1)
        if shape != (width,):
            raise UnsupportedModel(f"{name}: shape {shape}, expected ({width},)")
        return name

    def _bias(self, name: str, width: int) -> str | None:
        bias = f"{name}.bias"
        if bias not in self.shapes:
            return None
        if self._shape(bias, dims=1) != (width,):
            raise UnsupportedModel(f"{bias}: shape {self.shapes[bias]}, expected ({width},)")
        return bias

    def _rows(self, name: str, x: Value) -> int:
        rows, columns = self._shape(name, dims=2)
        if columns != x.width:
            raise UnsupportedModel(f"{name}: shape ({rows}, {columns}), expected ('*', {x.width})")
        return rows

    def _expect(self, name: str, shape: tuple[int, int]) -> None:
        if self._shape(name, dims=2) != shape:
            raise UnsupportedModel(f"{name}: shape {self.shapes[name]}, expected {shape}")


def _unwrap(x: Value | Normed) -> tuple[Value, Norm | None]:
    return (x.value, x.norm) if isinstance(x, Normed) else (x, None)
