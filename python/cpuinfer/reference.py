"""The oracle: interprets a recorded graph in NumPy float64, with no cache, no packing and no tricks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cpuinfer.config import Activation, Rope
from cpuinfer.graph import Graph
from cpuinfer.ops import Attention, Embed, Experts, Gated, Glu, Linears, Norm, Normalize, Op, Value, inputs

Array = npt.NDArray[np.float64]
GROUP = 32
"""Neighbouring inputs that share a scale when activations are quantised."""


def quantisation_step(x: Array) -> Array:
    """The int8 step of each element of x [..., k]: the largest magnitude of its group of 32, over 127."""
    groups = np.abs(x).reshape(*x.shape[:-1], -1, GROUP).max(axis=-1, keepdims=True) / 127
    return np.broadcast_to(groups, (*groups.shape[:-1], GROUP)).reshape(x.shape)


def quantise(x: Array) -> Array:
    """x [..., k] rounded to int8 per group of 32, as the integer kernels see it."""
    step = quantisation_step(x)
    return np.where(step > 0, np.rint(x / np.where(step > 0, step, 1)), 0) * step


class Reference:
    """Runs a graph on one sequence, all positions at once.

    `weight(name)` gives a tensor as floats, in the shape the graph knows.  `activation(x, weight name)` alters what a
    linear reads, to model the quantisation of activations; the default leaves it exact.  `dtype` float32 halves
    the time where rough numbers will do.
    """

    def __init__(
        self,
        graph: Graph,
        weight: Callable[[str], Array],
        *,
        activation: Callable[[Array, str], Array] = lambda x, _: x,
        dtype: type[np.float64] | type[np.float32] = np.float64,
    ) -> None:
        self.graph = graph
        self._dtype = dtype
        self._weight = weight
        self._activation = activation

    def run(self, tokens: Sequence[int]) -> dict[Value, Array]:
        """Every value of the graph, [len(tokens), width] each."""
        values: dict[Value, Array] = {}
        for op in self.graph.ops:
            values.update(self.apply(op, values, tokens))
        return values

    def logits(self, tokens: Sequence[int]) -> Array:
        """Logits after each token, [len(tokens), vocabulary]; keeps only the values still needed."""
        last_use = {value: i for i, op in enumerate(self.graph.ops) for value in inputs(op)}
        values: dict[Value, Array] = {}
        out: dict[Value, Array] = {}
        for i, op in enumerate(self.graph.ops):
            out = self.apply(op, values, tokens)
            values.update(out)
            values = {value: x for value, x in values.items() if last_use.get(value, -1) > i}
        return next(iter(out.values()))

    def apply(self, op: Op, values: dict[Value, Array], tokens: Sequence[int]) -> dict[Value, Array]:
        """One op on given inputs."""
        match op:
            case Embed():
                return {op.out: self._embed(op, tokens)}
            case Normalize():
                x = values[op.x].reshape(len(tokens), op.groups, -1)
                return {op.out: _plus(self._norm(x, op.norm).reshape(len(tokens), -1), op.residual, values)}
            case Linears():
                x = self._read(values[op.x], op.norm)
                outs = {
                    out: _capped(activate(self._affine(x, name, bias), op.act), op.softcap)
                    for name, bias, out in zip(op.weights, op.biases, op.outs, strict=True)
                }
                outs[op.outs[0]] = _plus(outs[op.outs[0]], op.residual, values)
                return outs
            case Glu():
                x = self._read(values[op.x], op.norm)
                return {
                    op.out: activate(self._affine(x, op.gate, op.biases[0]), op.act)
                    * self._affine(x, op.up, op.biases[1])
                }
            case Experts():
                return {op.out: _plus(self._experts(op, self._read(values[op.x], op.norm)), op.residual, values)}
            case Gated():
                return {op.out: _plus(values[op.x] * _sigmoid(values[op.gate]), op.residual, values)}
            case Attention():
                return {op.out: attend(op, values[op.q], values[op.k], values[op.v])}

    def _array(self, name: str) -> Array:
        return np.asarray(self._weight(name), dtype=self._dtype)

    def _embed(self, op: Embed, tokens: Sequence[int]) -> Array:
        x: Array = np.asarray(self._weight(op.table)[np.asarray(tokens)], dtype=self._dtype)
        x = op.scale * x
        if op.positions is not None:
            x = x + self._array(op.positions)[op.position_offset : op.position_offset + len(tokens)]
        return x

    def _read(self, x: Array, norm: Norm | None) -> Array:
        return x if norm is None else self._norm(x, norm)

    def _norm(self, x: Array, norm: Norm) -> Array:
        if norm.kind == "layer":
            x = x - np.mean(x, axis=-1, keepdims=True)
        deviation = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + norm.eps)
        normed: Array = x / deviation * (self._array(norm.weight) + norm.offset)
        return normed if norm.bias is None else normed + self._array(norm.bias)

    def _affine(self, x: Array, name: str, bias: str | None = None) -> Array:
        product = self._multiply(x, name, self._array(name))
        return product if bias is None else product + self._array(bias)

    def _multiply(self, x: Array, name: str, weight: Array) -> Array:
        product: Array = self._activation(x, name).astype(self._dtype, copy=False) @ weight.T
        return product

    def _experts(self, op: Experts, x: Array) -> Array:
        chosen, share = route(self._affine(x, op.router), op.used, renormalise=op.renormalise)
        stacked = (self._array(name) for name in (op.gate, op.up, op.down))
        gate, up, down = (w.reshape(op.experts, len(w) // op.experts, -1) for w in stacked)
        out = np.zeros_like(x)
        for expert in range(op.experts):
            rows, slot = np.nonzero(chosen == expert)
            if len(rows):
                inner = activate(self._multiply(x[rows], op.gate, gate[expert]), op.act)
                inner *= self._multiply(x[rows], op.up, up[expert])
                out[rows] += share[rows, slot][:, None] * self._multiply(inner, op.down, down[expert])
        return out


def route(logits: Array, used: int, *, renormalise: bool) -> tuple[npt.NDArray[np.int64], Array]:
    """(experts, shares), [rows, used] each: the largest of softmax(logits [rows, experts]), lower indices first."""
    share = _softmax(logits)
    chosen = np.argsort(-share, axis=-1, kind="stable")[:, :used]
    kept = np.take_along_axis(share, chosen, axis=-1)
    return chosen, kept / kept.sum(axis=-1, keepdims=True) if renormalise else kept


def activate(z: Array, act: Activation | None) -> Array:
    """An activation function, by element."""
    match act:
        case None:
            share = np.ones_like(z)
        case "relu":
            share = np.heaviside(z, 0)
        case "silu":
            share = _sigmoid(z)
        case "gelu":
            share = (1 + erf(z / math.sqrt(2))) / 2
        case "gelu_tanh":
            share = (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2
    return z * share


def erf(z: Array) -> Array:
    """The error function, by element; in float32 within 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    exact: Array
    if z.dtype != np.float32:
        exact = np.vectorize(math.erf, otypes=[z.dtype])(z)
        return exact
    x = np.abs(z)
    t = 1 / (1 + 0.3275911 * x)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    rough: Array = np.copysign(1 - tail * np.exp(-x * x), z)
    return rough


def _sigmoid(z: Array) -> Array:
    positive: Array = 1 / (1 + np.exp(-np.abs(z)))
    return np.where(z >= 0, positive, 1 - positive)


def _softmax(z: Array) -> Array:
    weights: Array = np.exp(z - z.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _capped(z: Array, softcap: float) -> Array:
    capped: Array = softcap * np.tanh(z / softcap) if softcap else z
    return capped


def _plus(x: Array, residual: Value | None, values: dict[Value, Array]) -> Array:
    return x if residual is None else x + values[residual]


def rotate(x: Array, rope: Rope) -> Array:
    """Rotary positions on x [positions, heads, head_dim]."""
    pairs = rope.dims // 2
    angle = np.arange(len(x))[:, None] * np.asarray(rope.inverse_frequencies())
    cosine, sine = (
        (rope.magnitude * turned)[:, None].astype(x.dtype, copy=False) for turned in (np.cos(angle), np.sin(angle))
    )
    first = slice(0, rope.dims, 2) if rope.layout == "interleaved" else slice(0, pairs)
    second = slice(1, rope.dims, 2) if rope.layout == "interleaved" else slice(pairs, rope.dims)
    a, b = x[..., first], x[..., second]
    out: Array = x.copy()
    out[..., first], out[..., second] = a * cosine - b * sine, a * sine + b * cosine
    return out


def attend(op: Attention, q: Array, k: Array, v: Array) -> Array:
    """Causal softmax attention; q [n, heads * head_dim], k and v [n, kv_heads * head_dim]."""
    n = len(q)
    q = q.reshape(n, op.heads, op.head_dim)
    k = k.reshape(n, op.kv_heads, op.head_dim)
    v = v.reshape(n, op.kv_heads, op.head_dim)
    if op.rope is not None:
        q, k = rotate(q, op.rope), rotate(k, op.rope)
    q, k, v = (np.moveaxis(x, 1, 0) for x in (q, np.repeat(k, op.heads // op.kv_heads, axis=1), v))
    scores = _capped(q @ k.swapaxes(1, 2) * op.scale, op.softcap)
    distance = np.arange(n)[:, None] - np.arange(n)
    if op.slopes:
        scores = scores - np.asarray(op.slopes, dtype=q.dtype)[:, None, None] * distance.astype(q.dtype)
    seen = (distance >= 0) & (distance < (op.window or n))
    weights = _softmax(np.where(seen, scores, -np.inf))
    mixed: Array = weights @ np.repeat(v, op.heads // op.kv_heads, axis=0)  # [heads, n, head_dim]
    return np.moveaxis(mixed, 0, 1).reshape(n, -1)
