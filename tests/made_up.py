"""Models that exist only in memory: a graph recorded over random weights, and the native session that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpuinfer import _core
from cpuinfer.formats.canonical import FloatRows, IntegerRows
from cpuinfer.graph import Graph
from cpuinfer.ops import Value
from cpuinfer.program import write_program

Array = npt.NDArray[np.float64]
Build = Callable[[Graph], Value]


@dataclass(frozen=True)
class MadeUp:
    """A graph and its weights: fp32 values exactly, or with `quantised` 8-bit codes wherever rows are long enough."""

    graph: Graph
    logits: Value
    rows: Mapping[str, FloatRows | IntegerRows]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], build: Build, *, quantised: bool = False) -> MadeUp:
        """Random weights of these shapes; norms are near 1 and biases small."""
        graph = Graph(shapes)
        logits = build(graph)
        rng = np.random.default_rng(len(shapes))
        rows: dict[str, FloatRows | IntegerRows] = {}
        for name, shape in shapes.items():
            values = rng.normal(size=shape if len(shape) > 1 else (1, *shape)).astype(np.float32)
            if len(shape) == 1:
                values = 0.2 * values + (0 if name.endswith(".bias") else 1)
            else:
                values /= np.float32(np.sqrt(shape[1]))
            rows[name] = FloatRows(values.astype(np.float32), "f32")
            if quantised and len(shape) > 1 and shape[1] % 32 == 0:
                codes = rng.integers(0, 256, shape, dtype=np.uint8)
                scale = np.full((shape[0], shape[1] // 32), 1 / 74 / np.sqrt(shape[1]), np.float16)
                rows[name] = IntegerRows(codes, scale, zero=128)
        return cls(graph, logits, rows)

    def weight(self, name: str) -> Array:
        """A tensor in the shape the graph knows, exactly."""
        return self.rows[name].to_float(np.float64).reshape(self.graph.shapes[name])

    def session(self, *, isa: str = "", threads: int = 2, keep_values: bool = False) -> _core.Session:
        """A new native session."""
        matrices, vectors = {}, {}
        for name, rows in self.rows.items():
            shape = self.graph.shapes[name]
            if len(shape) == 1:
                vectors[name] = rows.to_float(np.float32).reshape(shape)
                continue
            zero = 128 if isinstance(rows, IntegerRows) else 0
            matrices[name] = _core.PackedMatrix("int8" if zero else "f32", *shape, zero=zero)
            rows.pack(matrices[name], 0)
        return _core.Session(
            write_program(self.graph.ops, matrices, vectors),
            isa=isa,
            threads=threads,
            batch=64,
            context=128,
            cache_pages=64,
            keep_values=keep_values,
        )


def logits(session: _core.Session, tokens: list[int], *, chunk: int = 64) -> npt.NDArray[np.float32]:
    """Logits after each token, fed in chunks."""
    sequence = session.open()
    rows = [
        session.step([(sequence, tokens[begin : begin + chunk], "logits", None)])[0]
        for begin in range(0, len(tokens), chunk)
    ]
    session.close(sequence)
    return np.concatenate(rows)
