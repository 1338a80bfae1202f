"""A model run on calibration text stage by stage in fp32, with the weights of one stage in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import NumericalError
from cpuinfer.graph import Graph
from cpuinfer.ops import Embed
from cpuinfer.quantize.operators import Floats, Forward, Observe, State
from cpuinfer.quantize.stages import Stage
from cpuinfer.weight import Weight

__all__ = ["CHUNK", "Floats", "Observe", "State", "Table", "batches", "read_matrix", "read_stage", "run_stage"]
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


def read_stage(stage: Stage, weights: Mapping[str, Weight]) -> dict[str, Floats | Table]:
    """All weights of a stage, embedding tables to be read by row.

    Raises NumericalError, naming it, for one that holds NaN or infinity.
    """
    tables = {op.table for op in stage.ops if isinstance(op, Embed)}
    found: dict[str, Floats | Table] = {}
    for name in stage.weights():
        if name in tables:
            found[name] = Table(weights[name])
        elif np.isfinite(values := read_matrix(weights[name])).all():
            found[name] = values
        else:
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
    executor: Executor | None = None,
    only_observe: bool = False,
) -> list[State]:
    """A stage on all sequences, one after another; the states after it.

    only_observe: these are not wanted, so that the stage's last products are spared.
    """
    forward = Forward(graph, values, observe=observe, executor=executor)
    after = []
    for state, tokens in zip(states, texts, strict=True):
        known = dict(state)
        for op in stage.ops[:-1] if only_observe else stage.ops:
            known.update(forward.apply(op, known, tokens))
        if only_observe:
            forward.look(stage.ops[-1], known, tokens)
        else:
            after.append({value: known[value].astype(np.float32, copy=False) for value in stage.kept})
    return after


def batches(states: Sequence[State], rows: int) -> Iterator[slice]:
    """Stretches of sequences that have about so many tokens together."""
    begin, held = 0, 0
    for i, state in enumerate(states):
        held += len(next(iter(state.values())))
        if held >= rows or i + 1 == len(states):
            yield slice(begin, i + 1)
            begin, held = i + 1, 0
