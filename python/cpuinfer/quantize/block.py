"""Transformer blocks of a graph: the ops between one value of the residual stream and the next."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cpuinfer.errors import UnsupportedModel
from cpuinfer.graph import Graph
from cpuinfer.ops import Embed, Experts, Glu, Linears, Op, Value, inputs, outputs
from cpuinfer.quantize.stages import tensors

_LAYER = re.compile(r"^(?:.*\.)?layers\.\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Block:
    """Ops that read one value from outside and make one that is read after them."""

    name: str
    ops: tuple[Op, ...]
    input: Value
    output: Value

    def weights(self) -> tuple[str, ...]:
        """The matrices of its linears, in order."""
        return tuple(name for op in self.ops for name in matrices(op))

    def tensors(self) -> tuple[str, ...]:
        """Everything its ops read but their inputs."""
        return tuple(dict.fromkeys(name for op in self.ops for name in tensors(op)))


def matrices(op: Op) -> tuple[str, ...]:
    """The matrices that an op multiplies by."""
    match op:
        case Linears():
            return op.weights
        case Glu():
            return (op.gate, op.up)
        case Experts():
            return (op.router, op.gate, op.up, op.down)
        case _:
            return ()


def blocks(graph: Graph) -> list[Block]:
    """The blocks of a graph, by the scope `layers.<number>` its ops are named in, in order.

    Raises UnsupportedModel where a block reads or makes more than one value that others make or read.
    """
    parts: dict[str, list[Op]] = {}
    for op in graph.ops:
        found = _LAYER.match(op.name)
        if found:
            parts.setdefault(found.group(), []).append(op)
    return [_block(name, tuple(ops), graph) for name, ops in parts.items()]


def _block(name: str, ops: tuple[Op, ...], graph: Graph) -> Block:
    made = {value for op in ops for value in outputs(op)}
    read = {value for op in ops for value in inputs(op)}
    own = {id(op) for op in ops}
    later = {value for op in graph.ops if id(op) not in own for value in inputs(op)}
    entering, leaving = read - made, made & later or made - read
    if len(entering) != 1 or len(leaving) != 1 or any(isinstance(op, Embed) for op in ops):
        raise UnsupportedModel(
            f"{name}: reads {len(entering)} values of other blocks and makes {len(leaving)}, expected 1 and 1"
        )
    return Block(name, ops, entering.pop(), leaving.pop())
