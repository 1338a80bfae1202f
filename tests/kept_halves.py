"""How far native logits may be from the oracle's where weights are floats: by the fp16 of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cpuinfer.graph import Graph
from cpuinfer.ops import Attention, Op, Value
from cpuinfer.reference import Array, Reference, attend, rotate

DRAWS = 8
SIGMAS = 6
"""Of a normal deviate, exceeded once in 5e8."""


class Kept(Reference):
    """The oracle, each key and value off by up to half of fp16's spacing, uniformly at random."""

    def __init__(self, graph: Graph, weight: Callable[[str], Array]) -> None:
        super().__init__(graph, weight)
        self._random = np.random.default_rng(0)

    def apply(self, op: Op, values: dict[Value, Array], tokens: Sequence[int]) -> dict[Value, Array]:
        if not isinstance(op, Attention):
            return super().apply(op, values, tokens)
        q, k, v = (values[x].reshape(len(tokens), -1, op.head_dim) for x in (op.q, op.k, op.v))
        if op.rope is not None:
            q, k = rotate(q, op.rope), rotate(k, op.rope)
        rows = (x.reshape(len(tokens), -1) for x in (q, self._rounded(k), self._rounded(v)))
        return {op.out: attend(replace(op, rope=None), *rows)}

    def _rounded(self, x: Array) -> Array:
        spacing = np.spacing(np.abs(x).astype(np.float16)).astype(np.float64)
        return x + (self._random.random(x.shape) - 0.5) * spacing


def assert_native(
    found: npt.NDArray[np.float32], graph: Graph, weight: Callable[[str], Array], tokens: Sequence[int]
) -> None:
    """Every logit is within six deviations of the one that varies most in its row.

    The deviations are those of the noise of keys and values.  Roundings of fp32 are 2**13 times finer, and a sum of k
    products has sqrt(k) of them, less than 10 here.
    """
    exact = Reference(graph, weight).logits(tokens)
    kept = Kept(graph, weight)
    noise = np.stack([kept.logits(tokens) - exact for _ in range(DRAWS)])
    deviation = np.sqrt(np.mean(noise**2, axis=0)).max(axis=1, keepdims=True)
    off = np.abs(found - exact) / deviation
    assert np.all(off <= SIGMAS), f"off by {off.max():.1f} deviations"
