"""Causal attention over whole sequences and its gradient, one sequence and key-value head at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cpuinfer.config import Rope
from cpuinfer.ops import Attention

Array = npt.NDArray[np.floating]


def attend(op: Attention, q: Array, k: Array, v: Array) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    """q [sequences, positions, heads * head_dim], k and v with kv_heads: the output, and its gradient to q, k and v.

    Probabilities are computed again on the way back, so that no more than those of a group of heads exist at once.
    """
    batch, n, _ = q.shape
    group = op.heads // op.kv_heads
    turns = None if op.rope is None else _turns(op.rope, n, q.dtype)
    # [batch, kv_heads, group, n, head_dim], and without the group.
    queries = _rotated(q.reshape(batch, n, op.kv_heads, group, op.head_dim).transpose(0, 2, 3, 1, 4), op.rope, turns)
    keys = _rotated(k.reshape(batch, n, op.kv_heads, op.head_dim).transpose(0, 2, 1, 3), op.rope, turns)
    values = np.ascontiguousarray(v.reshape(batch, n, op.kv_heads, op.head_dim).transpose(0, 2, 1, 3))
    mask = _mask(op, n, q.dtype)
    out = np.empty_like(queries)
    for b in range(batch):
        for h in range(op.kv_heads):
            share, _ = _shares(op, queries[b, h], keys[b, h], mask, h)
            out[b, h] = share @ values[b, h]

    def back(gradient: Array) -> tuple[Array, Array, Array]:
        g = gradient.reshape(batch, n, op.kv_heads, group, op.head_dim).transpose(0, 2, 3, 1, 4)
        by_q, by_k, by_v = np.empty_like(queries), np.empty_like(keys), np.empty_like(values)
        for b in range(batch):
            for h in range(op.kv_heads):
                part = np.ascontiguousarray(g[b, h])
                share, slope = _shares(op, queries[b, h], keys[b, h], mask, h)
                by_v[b, h] = _over_group(share, part)
                by_share = part @ values[b, h].T
                # softmax: p * (g - sum g p), and sum over keys of g p is the output times its own gradient
                by_score = share * (by_share - (part * out[b, h]).sum(axis=-1, keepdims=True))
                by_score *= op.scale if slope is None else op.scale * slope
                by_q[b, h] = by_score @ keys[b, h]
                by_k[b, h] = _over_group(by_score, queries[b, h])
        q_back = _rotated(by_q, op.rope, turns, back=True).transpose(0, 3, 1, 2, 4)
        k_back = _rotated(by_k, op.rope, turns, back=True).transpose(0, 2, 1, 3)
        return q_back.reshape(q.shape), k_back.reshape(k.shape), by_v.transpose(0, 2, 1, 3).reshape(v.shape)

    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape), back


def _over_group(left: Array, right: Array) -> Array:
    """Sum over the group's heads of left^T right: [group, n, n] and [group, n, head_dim] to [n, head_dim]."""
    product: Array = left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])
    return product


def _mask(op: Attention, n: int, dtype: np.dtype[np.floating]) -> Array:
    """[heads or 1, n, n]: what is added to scores; -infinity where a query does not look."""
    distance = np.arange(n)[:, None] - np.arange(n)
    seen = (distance >= 0) & (distance < (op.window or n))
    slopes = np.asarray(op.slopes or (0.0,))
    mask: Array = np.where(seen, -slopes[:, None, None] * distance, -np.inf).astype(dtype)
    return mask


def _shares(op: Attention, q: Array, k: Array, mask: Array, head: int) -> tuple[Array, Array | None]:
    """Probabilities of a group of heads, [group, n, n], and the slope of the soft cap."""
    group = len(q)
    scores = (q @ k.T) * q.dtype.type(op.scale)
    slope = None
    if op.softcap:
        tanh = np.tanh(scores / op.softcap)
        scores, slope = op.softcap * tanh, 1 - tanh * tanh
    scores = scores + (mask[head * group : (head + 1) * group] if op.slopes else mask)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores, slope


def _turns(rope: Rope, n: int, dtype: np.dtype[np.floating]) -> tuple[Array, Array]:
    """Cosines and sines, [n, pairs]."""
    angle = np.arange(n)[:, None] * np.asarray(rope.inverse_frequencies())
    return (rope.magnitude * np.cos(angle)).astype(dtype), (rope.magnitude * np.sin(angle)).astype(dtype)


def _rotated(x: Array, rope: Rope | None, turns: tuple[Array, Array] | None, *, back: bool = False) -> Array:
    """x [..., n, head_dim] turned by its positions, or a gradient turned back: the transposed rotation."""
    out = np.array(x, order="C")
    if rope is None or turns is None:
        return out
    cosine, sine = turns
    sine = -sine if back else sine
    pairs = rope.dims // 2
    first = slice(0, rope.dims, 2) if rope.layout == "interleaved" else slice(0, pairs)
    second = slice(1, rope.dims, 2) if rope.layout == "interleaved" else slice(pairs, rope.dims)
    a, b = x[..., first], x[..., second]
    out[..., first], out[..., second] = a * cosine - b * sine, a * sine + b * cosine
    return out
