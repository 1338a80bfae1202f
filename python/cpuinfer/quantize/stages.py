"""A recorded graph cut into stages that are quantised one after another: the embedding, each layer, the head."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from cpuinfer.graph import Graph
from cpuinfer.ops import Attention, Embed, Experts, Glu, Linears, Norm, Normalize, Op, Value, inputs, outputs

_LAYER = re.compile(r"(model\.layers\.\d+)\.")


@dataclass(frozen=True, slots=True)
class Stage:
    """Ops that follow one another."""

    name: str
    """"model.layers.3", or the name of the first op outside the layers."""
    ops: tuple[Op, ...]
    kept: frozenset[Value]
    """The values that later stages read, of this one or of those before."""

    @property
    def is_layer(self) -> bool:
        """Whether it is one of the layers between embedding and head."""
        return _LAYER.fullmatch(f"{self.name}.") is not None

    def shared_inputs(self) -> Iterator[tuple[str, ...]]:
        """Matrices that read the same input, as they come: queries, keys and values; gate and up; those of experts."""
        for op in self.ops:
            yield from op_inputs(op)

    def weights(self) -> list[str]:
        """All it reads, each once."""
        return list(dict.fromkeys(name for op in self.ops for name in tensors(op)))


def op_inputs(op: Op) -> Iterator[tuple[str, ...]]:
    """The matrices of an op, those that read the same together."""
    match op:
        case Linears():
            yield op.weights
        case Glu():
            yield (op.gate, op.up)
        case Experts():
            yield (op.router,)
            yield (op.gate, op.up)
            yield (op.down,)


def cut(graph: Graph) -> list[Stage]:
    """The stages of a graph, which together are its ops in their order."""
    runs = [(name, tuple(run)) for name, run in groupby(graph.ops, _stage)]
    last = {value: i for i, (_, ops) in enumerate(runs) for op in ops for value in inputs(op)}
    made: set[Value] = set()
    stages = []
    for i, (name, ops) in enumerate(runs):
        made |= {value for op in ops for value in outputs(op)}
        stages.append(Stage(name or ops[0].name, ops, frozenset(v for v in made if last.get(v, -1) > i)))
    return stages


def _stage(op: Op) -> str:
    found = _LAYER.match(op.name)
    return found[1] if found else ""


def tensors(op: Op) -> Iterator[str]:
    """All tensors that an op reads: its norm's, its matrices or tables, their biases."""
    norm: Norm | None = None
    names: Sequence[str | None] = ()
    match op:
        case Embed():
            names = (op.table, op.positions)
        case Normalize():
            norm = op.norm
        case Linears():
            norm, names = op.norm, (*op.weights, *op.biases)
        case Glu():
            norm, names = op.norm, (op.gate, op.up, *op.biases)
        case Experts():
            norm, names = op.norm, (op.router, op.gate, op.up, op.down)
        case Attention():
            pass
    if norm is not None:
        names = (norm.weight, norm.bias, *names)
    yield from (name for name in names if name is not None)
