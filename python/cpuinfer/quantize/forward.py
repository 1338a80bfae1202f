"""A model run on calibration text stage by stage in fp32, with the weights of one stage in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import NumericalError
from cpuinfer.graph import Graph
from cpuinfer.ops import Value
from cpuinfer.quantize.stages import Stage
from cpuinfer.reference import Reference
from cpuinfer.weight import Weight

Floats = npt.NDArray[np.float32]
State = dict[Value, Floats]
"""What stages yet to come read of those done, for one sequence: [tokens, width] each."""
Observe = Callable[[str, Floats], None]
"""Sees what a matrix reads, [tokens, k]; of experts, the tokens that each was given."""
CHUNK = 1 << 22
"""Numbers read at once."""


def read_matrix(weight: Weight) -> Floats:
    """A weight's values, in its own order of columns: [n, k], or [n] of a vector."""
    if len(weight.shape) == 1 or weight.input_order is not None:
        values: Floats = weight.floats().astype(np.float32)
        return values
    n, k = weight.shape
    out = np.empty((n, k), np.float32)
    step = n if weight.whole else max(1, CHUNK // k)
    for begin in range(0, n, step):
        end = min(begin + step, n)
        out[begin:end] = weight.rows(begin, end).to_float(np.float32)
    return out


class Table:
    """An embedding table of which only the rows asked for are read."""

    def __init__(self, weight: Weight) -> None:
        self._weight = weight

    def __len__(self) -> int:
        """Rows."""
        return self._weight.shape[0]

    def __getitem__(self, tokens: npt.NDArray[np.int64]) -> Floats:
        """[len(tokens), width]."""
        rows, where = np.unique(tokens, return_inverse=True)
        return np.concatenate([self._weight.rows(int(i), int(i) + 1).to_float(np.float32) for i in rows])[where]


def read_stage(stage: Stage, weights: Mapping[str, Weight], tables: frozenset[str]) -> dict[str, Floats]:
    """All weights of a stage but tables.  NumericalError, naming it, for one that holds NaN or infinity."""
    found = {name: read_matrix(weights[name]) for name in stage.weights() if name not in tables}
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise NumericalError(f"{weights[name].name}: holds NaN or infinity")
    return found


def run_stage(
    graph: Graph,
    stage: Stage,
    values: Mapping[str, Floats | Table],
    states: Sequence[State],
    texts: Sequence[Sequence[int]],
    *,
    observe: Observe | None = None,
) -> list[State]:
    """A stage on all sequences, one after another; the states after it."""

    def see(x: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        if observe is not None:
            observe(name, x)  # type: ignore[arg-type]
        return x

    reference = Reference(graph, lambda name: values[name], activation=see, dtype=np.float32)  # type: ignore[arg-type, return-value]
    after = []
    for state, tokens in zip(states, texts, strict=True):
        known = dict(state)
        for op in stage.ops:
            known.update(reference.apply(op, known, tokens))  # type: ignore[arg-type]
        after.append({value: known[value].astype(np.float32, copy=False) for value in stage.kept})
    return after
