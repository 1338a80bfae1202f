"""How far native attention may be from the oracle's, for every way of keeping keys and values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cpuinfer.ops import Attention, Value
from cpuinfer.reference import rotate

Array = npt.NDArray[np.float64]
UNIT, HALF = 2.0**-24, 2.0**-11  # half the spacing of fp32 and of fp16 at 1
GROUP, PAGE = 32, 32
MOST = {"int8": 127, "int4": 8}


def spread(x: Array) -> Array:
    """Blocks of the last axis, as large as powers of two divide it, times the orthonormal Hadamard matrix."""
    block = x.shape[-1] & -x.shape[-1]
    index = np.arange(block)
    odd = np.array([[bin(i & j).count("1") % 2 for j in index] for i in index])
    return ((x.reshape(*x.shape[:-1], -1, block)) @ ((1 - 2 * odd) / np.sqrt(block))).reshape(x.shape)


def group_steps(x: Array, most: int) -> Array:
    """The step of each element's group of 32 head dimensions: its largest magnitude / most."""
    dims = x.shape[-1]
    padded = np.zeros((*x.shape[:-1], -(-dims // GROUP) * GROUP))
    padded[..., :dims] = np.abs(x)
    largest = padded.reshape(*x.shape[:-1], -1, GROUP).max(axis=-1) / most
    return np.repeat(largest, GROUP, axis=-1)[..., :dims]


def kept_off(x: Array, cache: str) -> Array:
    """How far keys or values are off: half a step of the group, and the fp16 of its scale; or fp16 itself.

    The largest code of int4 is 7: what is 7.5 to 8 steps to the other side of the largest is off by what exceeds 7.
    """
    if cache == "f16":
        return HALF * np.abs(x) + 2.0**-25
    step = group_steps(x, MOST[cache])
    beyond = np.maximum(np.abs(x) - 7.5 * step, 0) if cache == "int4" else 0.0
    return beyond + step / 2 * (1 + 8 * UNIT) + HALF * (np.abs(x) + step) + 2.0**-25 * MOST[cache]


def attention_bound(op: Attention, values: dict[Value, Array], cache: str = "f16", *, rounded: float = 0.0) -> Array:
    """Scores are sums of head_dim products in fp32; a change d of all scores changes each softmax weight by a factor
    within exp(2 d).  With codes the query is off by half a step of its group, and weights times the values' scales by
    half a step of those of a page.  `rounded`: how far, relatively, queries, keys, values and weights are rounded
    besides, as tile units do."""
    n = len(values[op.q])
    q = values[op.q].reshape(n, op.heads, -1)
    k = np.repeat(values[op.k].reshape(n, op.kv_heads, -1), op.heads // op.kv_heads, axis=1)
    v = np.repeat(values[op.v].reshape(n, op.kv_heads, -1), op.heads // op.kv_heads, axis=1)
    if op.rope is not None:
        q, k = rotate(q, op.rope), rotate(k, op.rope)
    if cache == "int4":
        q, k = spread(q), spread(k)
    # Rotation: table and two products rounded, in both; spreading a query or key: a rounding for each doubling of the
    # block, of at most sqrt(block) times the largest.
    relative = (op.head_dim + 16) * UNIT * 2
    fine = UNIT * 8 * np.sqrt(op.head_dim) if cache == "int4" else 0.0
    k_off = kept_off(k, cache) + fine * np.abs(k).max(axis=-1, keepdims=True)
    q_off = np.zeros_like(q) if cache == "f16" else group_steps(q, 127) / 2 * (1 + 8 * UNIT)
    q_off += fine * np.abs(q).max(axis=-1, keepdims=True)
    q_off += rounded * (np.abs(q) + q_off)
    k_off += rounded * (np.abs(k) + k_off)
    size = np.einsum("qhd,khd->hqk", np.abs(q) + q_off, np.abs(k) + k_off)
    off = np.einsum("qhd,khd->hqk", np.abs(q) + q_off, k_off) + np.einsum("qhd,khd->hqk", q_off, np.abs(k))
    seen = np.tri(n, dtype=bool)
    score_off = np.where(seen, (off + size * relative * 2) * op.scale, 0).max(axis=-1)  # [heads, queries]
    factor = np.expm1(np.minimum(2 * score_off + (n + 16) * UNIT * 2, 700)).T[:, :, None]
    largest = np.maximum.accumulate(np.abs(v), axis=0)
    bound = factor * largest + np.maximum.accumulate(kept_off(v, cache), axis=0) * (1 + factor)
    bound += ((n + 4) * UNIT + 2.01 * rounded * (1 + factor)) * largest
    if cache != "f16":
        scores = np.where(seen, np.einsum("qhd,khd->hqk", q, k) * op.scale, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        bound += weights_off(weights, v, group_steps(v, MOST[cache])) * (1 + factor) * (1 + 2 * HALF)
    return bound.reshape(n, -1)


def weights_off(weights: Array, v: Array, step: Array) -> Array:
    """[queries, heads, dims] from weights [heads, queries, keys]: for each page, half of 1 / 127 of the largest weight
    times scale, for each code."""
    n = len(v)
    off = np.zeros_like(v)
    codes = np.where(step > 0, np.abs(v) / np.maximum(step, 1e-300) + 0.5, 0)
    for page in range(0, n, PAGE):
        keys = slice(page, page + PAGE)
        scaled = (weights[:, :, keys, None] * step[keys].transpose(1, 0, 2)[:, None]).max(axis=2)  # [heads, queries, d]
        off += scaled.transpose(1, 0, 2) / 254 * codes[keys].sum(axis=0)
    return off
