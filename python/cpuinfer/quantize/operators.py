"""The reference's ops in float32, with what NumPy does in one thread shared out among several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cpuinfer.graph import Graph
from cpuinfer.ops import Attention, Glu, Linears, Op, Value
from cpuinfer.reference import Reference, activate, attend

Floats = npt.NDArray[np.float32]
State = dict[Value, Floats]
"""Values of one sequence: [tokens, width] each."""
Observe = Callable[[str, Floats], None]
"""Sees what a matrix reads, [tokens, k]; of experts, the tokens that each was given."""
ROWS = 32
"""Of a gated layer's inner values, made at once: with what is in between they stay in the second cache."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Forward(Reference):
    """Runs ops on one sequence at a time.  The bits are the reference's, whatever the threads."""

    def __init__(
        self,
        graph: Graph,
        values: Mapping[str, Any],
        *,
        observe: Observe | None = None,
        executor: Executor | None = None,
    ) -> None:
        """`values`: the weights, by name; looked up whenever they are used."""

        def see(x: Any, name: str) -> Any:
            if observe is not None:
                observe(name, x)
            return x

        super().__init__(graph, lambda name: values[name], activation=see, dtype=np.float32)
        self._observe = observe
        self._executor = executor

    def reads(self, op: Linears | Glu, state: State) -> Floats:
        """What an op's matrices multiply, [tokens, k]."""
        return self._read(state[op.x], op.norm)  # type: ignore[arg-type, return-value]

    def look(self, op: Op, state: State, tokens: Sequence[int]) -> None:
        """Let what an op's matrices read be observed, without its result if that can be spared."""
        if isinstance(op, (Linears, Glu)) and self._observe is not None:
            x = self.reads(op, state)
            for name in op.weights if isinstance(op, Linears) else (op.gate, op.up):
                self._observe(name, x)
            return
        self.apply(op, state, tokens)

    def apply(self, op: Op, values: Any, tokens: Sequence[int]) -> Any:
        """One op on given inputs."""
        match op:
            case Attention():
                return {op.out: self._attend(op, values[op.q], values[op.k], values[op.v])}
            case Glu():
                x = self._read(values[op.x], op.norm)
                return {op.out: self._gated(op, self._affine(x, op.gate, op.biases[0]), x)}
        return super().apply(op, values, tokens)

    def _gated(self, op: Glu, gate: Any, x: Any) -> Any:
        up = self._affine(x, op.up, op.biases[1])

        def part(begin: int) -> None:
            rows = slice(begin, begin + ROWS)
            up[rows] = activate(gate[rows], op.act) * up[rows]

        self._each(part, range(0, len(up), ROWS))
        return up

    def _attend(self, op: Attention, q: Any, k: Any, v: Any) -> Any:
        """By key-value head and the queries that read it."""
        shared = op.heads // op.kv_heads
        one = replace(op, heads=shared, kv_heads=1)

        def part(head: int) -> Any:
            slopes = op.slopes[head * shared : (head + 1) * shared]
            own = slice(head * op.head_dim, (head + 1) * op.head_dim)
            queries = slice(own.start * shared, own.stop * shared)
            return attend(replace(one, slopes=slopes), q[:, queries], k[:, own], v[:, own])

        return np.concatenate(self._each(part, range(op.kv_heads)), axis=1)

    def _each(self, task: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        return list(map(task, items) if self._executor is None else self._executor.map(task, items))
