"""Writes a recorded graph and its packed weights down as the native program that a session runs."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from cpuinfer.config import Rope
from cpuinfer.ops import Attention, Embed, Experts, Gated, Glu, Linears, Norm, Normalize, Op, Value

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cpuinfer import _core

    Vector = memoryview | npt.NDArray[np.float32]


def write_program(
    ops: Sequence[Op],
    matrices: Mapping[str, _core.PackedMatrix],
    vectors: Mapping[str, Vector],
    orders: Mapping[str, npt.NDArray[np.int32] | None] = MappingProxyType({}),
) -> _core.Program:
    """The ops in their order; `matrices` and `vectors` give every weight they name.

    `orders`: by a weight's name, the order in which it takes its inputs, where that is not as they come.
    """
    from cpuinfer import _core

    ropes = list(dict.fromkeys(op.rope for op in ops if isinstance(op, Attention) and op.rope is not None))
    program = _core.Program(
        [(rope.inverse_frequencies(), rope.layout == "interleaved", rope.magnitude) for rope in ropes]
    )
    writer = _Writer(program, ropes, matrices, vectors, orders)
    for op in ops:
        writer.write(op)
    return program


class _Writer:
    def __init__(
        self,
        program: _core.Program,
        ropes: Sequence[Rope],
        matrices: Mapping[str, _core.PackedMatrix],
        vectors: Mapping[str, Vector],
        orders: Mapping[str, npt.NDArray[np.int32] | None],
    ) -> None:
        self._program = program
        self._ropes = ropes
        self._matrices = matrices
        self._vectors = vectors
        self._orders = orders
        self._ids: dict[Value, int] = {}

    def write(self, op: Op) -> None:
        match op:
            case Linears():
                outs = self._program.linears(
                    op.name,
                    self._ids[op.x],
                    self._norm(op.norm),
                    [self._matrices[name] for name in op.weights],
                    biases=[None if name is None else self._vectors[name] for name in op.biases],
                    act=op.act,
                    softcap=op.softcap,
                    residual=self._residual(op.residual),
                    input_order=self._order(op.weights[0]),
                )
                self._ids.update(zip(op.outs, outs, strict=True))
            case _:
                self._ids[op.out] = self._write_one(op)

    def _write_one(self, op: Embed | Normalize | Glu | Experts | Gated | Attention) -> int:
        program, ids, matrices = self._program, self._ids, self._matrices
        match op:
            case Embed():
                positions = None if op.positions is None else matrices[op.positions]
                return program.embed(
                    op.name,
                    matrices[op.table],
                    scale=op.scale,
                    positions=positions,
                    position_offset=op.position_offset,
                )
            case Normalize():
                return program.normalize(
                    op.name, ids[op.x], self._norm(op.norm), groups=op.groups, residual=self._residual(op.residual)
                )
            case Glu():
                return program.glu(
                    op.name,
                    ids[op.x],
                    self._norm(op.norm),
                    matrices[op.gate],
                    matrices[op.up],
                    biases=[None if name is None else self._vectors[name] for name in op.biases],
                    act=op.act,
                    input_order=self._order(op.gate),
                )
            case Experts():
                return program.experts(
                    op.name,
                    ids[op.x],
                    self._norm(op.norm),
                    [matrices[name] for name in (op.router, op.gate, op.up, op.down)],
                    count=op.experts,
                    used=op.used,
                    renormalise=op.renormalise,
                    act=op.act,
                    residual=self._residual(op.residual),
                    input_order=self._order(op.gate),
                    inner_order=self._order(op.down),
                )
            case Gated():
                return program.gated(op.name, ids[op.x], ids[op.gate], residual=self._residual(op.residual))
            case Attention():
                return program.attention(
                    op.name,
                    ids[op.q],
                    ids[op.k],
                    ids[op.v],
                    layer=op.layer,
                    heads=op.heads,
                    kv_heads=op.kv_heads,
                    head_dim=op.head_dim,
                    scale=op.scale,
                    rope=-1 if op.rope is None else self._ropes.index(op.rope),
                    window=op.window,
                    softcap=op.softcap,
                    slopes=op.slopes,
                )

    def _norm(self, norm: Norm | None) -> tuple[str, Vector, Vector | None, float] | None:
        if norm is None:
            return None
        weight = self._vectors[norm.weight]
        if norm.offset:
            # In double and rounded to fp32 once more, which gives what fp32 would: 53 bits are more than 2 * 24 + 2.
            weight = memoryview(array("f", (value + norm.offset for value in weight.tolist())))
        return norm.kind, weight, None if norm.bias is None else self._vectors[norm.bias], norm.eps

    def _order(self, name: str) -> list[int]:
        order = self._orders.get(name)
        return [] if order is None else order.reshape(-1).tolist()

    def _residual(self, value: Value | None) -> int | None:
        return None if value is None else self._ids[value]
