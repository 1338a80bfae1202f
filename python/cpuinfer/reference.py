"""The oracle: interprets a recorded graph in NumPy float64, with no cache, no packing and no tricks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cpuinfer.config import Rope
from cpuinfer.graph import Attention, Embed, Glu, Graph, Linears, Norm, Op, Value

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
        last_use = {value: i for i, op in enumerate(self.graph.ops) for value in _inputs(op)}
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
                return {op.out: np.asarray(self._weight(op.table)[np.asarray(tokens)], dtype=self._dtype)}
            case Linears():
                x = self._read(values[op.x], op.norm)
                outs = {out: self._multiply(x, name) for name, out in zip(op.weights, op.outs, strict=True)}
                if op.residual is not None:
                    outs[op.outs[0]] += values[op.residual]
                return outs
            case Glu():
                x = self._read(values[op.x], op.norm)
                gate = self._multiply(x, op.gate)
                return {op.out: gate / (1 + np.exp(-gate)) * self._multiply(x, op.up)}
            case Attention():
                return {op.out: attend(op, values[op.q], values[op.k], values[op.v])}

    def _read(self, x: Array, norm: Norm | None) -> Array:
        if norm is None:
            return x
        rms = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + norm.eps)
        normed: Array = x / rms * np.asarray(self._weight(norm.weight), dtype=self._dtype)
        return normed

    def _multiply(self, x: Array, name: str) -> Array:
        weight = np.asarray(self._weight(name), dtype=self._dtype)
        product: Array = self._activation(x, name).astype(self._dtype, copy=False) @ weight.T
        return product


def rotate(x: Array, rope: Rope) -> Array:
    """Rotary positions on x [positions, heads, head_dim]."""
    pairs = rope.dims // 2
    angle = np.arange(len(x))[:, None] * np.asarray(rope.inverse_frequencies())
    cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
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
    group = op.heads // op.kv_heads
    scores = np.einsum("qhd,khd->hqk", q, np.repeat(k, group, axis=1)) * op.scale
    scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: Array = np.einsum("hqk,khd->qhd", weights, np.repeat(v, group, axis=1))
    return mixed.reshape(n, -1)


def _inputs(op: Op) -> list[Value]:
    match op:
        case Embed():
            return []
        case Linears():
            return [op.x] if op.residual is None else [op.x, op.residual]
        case Glu():
            return [op.x]
        case Attention():
            return [op.q, op.k, op.v]
