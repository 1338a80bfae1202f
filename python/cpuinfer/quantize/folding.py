"""Where a model absorbs factors of a weight's inputs exactly: in a norm, or in the rows of the weight before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest
from cpuinfer.graph import Graph
from cpuinfer.ops import Attention, Embed, Experts, Gated, Glu, Linears, Norm, Normalize, Op, Value

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Folding:
    """Weights that read one input, and what can divide that input by a factor for each channel.

    With s [width]: each of `weights` has its columns multiplied by s, `source` is divided by it (a norm's weight
    together with its `offset`; else the rows of a weight), and so is `bias`.
    """

    weights: tuple[str, ...]
    source: str
    bias: str | None
    width: int
    is_norm: bool
    offset: float = 0.0
    """What the norm adds to its stored weight."""
    tied: tuple[int, ...] = ()
    """[width] the row of `source` that makes each channel, where several share one (values read by grouped heads)."""

    def tying(self) -> npt.NDArray[np.intp] | None:
        """`tied` as an array: channels of the same number need the same factor; None where all are free."""
        return np.asarray(self.tied, np.intp) if self.tied else None


def foldings(graph: Graph) -> list[Folding]:
    """Every place of a graph where factors can be folded, in the order of its ops.

    A place is left out where anything but linear maps would see the factors: a value that is also a residual, an
    attention's query or key; a norm, weight or bias used elsewhere too (an output head tied to the embeddings); an
    activation between, but for max(z, 0), which factors above 0 pass through.
    """
    readers = _readers(graph)
    uses = Counter(name for op in graph.ops for name in _tensors(op))
    found = [*_norms(graph, readers), *_rows(graph, readers)]
    once = [f for f, times in found if uses[f.source] == times and all(uses[name] == 1 for name in f.weights)]
    order = list(uses)
    return sorted(once, key=lambda folding: order.index(folding.weights[0]))


def fold(folding: Folding, scale: Array, weight: Callable[[str], Array]) -> dict[str, Array]:
    """The tensors changed, in the precision of `weight(name)`, for factors [width] above 0."""
    s = np.asarray(scale)
    if s.shape != (folding.width,) or not np.isfinite(s).all() or not (s > 0).all():
        raise InvalidRequest(f"{folding.source}: factors of shape {s.shape}, expected {folding.width} above 0")
    changed: dict[str, Array] = {name: weight(name) * s for name in folding.weights}
    divisor = s
    if folding.tied:
        rows = np.asarray(folding.tied)
        divisor = np.ones(int(rows.max()) + 1, s.dtype)
        divisor[rows] = s
        if (divisor[rows] != s).any():
            raise InvalidRequest(f"{folding.source}: channels of one row have different factors")
    source = weight(folding.source)
    if folding.is_norm:
        changed[folding.source] = (source + folding.offset) / divisor - folding.offset
    else:
        changed[folding.source] = source / divisor[:, None]
    if folding.bias is not None:
        changed[folding.bias] = weight(folding.bias) / divisor
    return changed


def _tensors(op: Op) -> list[str]:
    """The tensors an op reads, each as often as it reads it."""
    norm = [] if isinstance(op, (Embed, Gated, Attention)) or op.norm is None else [op.norm.weight]
    match op:
        case Embed():
            return [op.table]
        case Linears():
            return [*norm, *op.weights]
        case Glu():
            return [*norm, op.gate, op.up]
        case Experts():
            return [*norm, op.router, op.gate, op.up, op.down]
        case _:
            return norm


def _norm_of(op: Op) -> Norm | None:
    return op.norm if isinstance(op, (Linears, Glu, Experts)) else None


def _read_by(op: Op) -> tuple[str, ...]:
    """The weights whose columns meet the op's input."""
    match op:
        case Linears():
            return op.weights
        case Glu():
            return (op.gate, op.up)
        case Experts():
            return (op.router, op.gate, op.up)
        case _:
            return ()


_Readers = dict[Value, list[tuple[Op, str]]]


def _readers(graph: Graph) -> _Readers:
    """Who reads a value, and as what: "input", "normed" or "other"."""
    found: _Readers = {value: [] for value in graph.values}
    for op in graph.ops:
        match op:
            case Linears() | Glu() | Experts():
                found[op.x].append((op, "input" if op.norm is None else "normed"))
            case Normalize():
                found[op.x].append((op, "other"))
            case Gated():
                found[op.x].append((op, "other"))
                found[op.gate].append((op, "other"))
            case Attention():
                found[op.q].append((op, "other"))
                found[op.k].append((op, "other"))
                found[op.v].append((op, "value"))
            case Embed():
                pass
        residual = getattr(op, "residual", None)
        if residual is not None:
            found[residual].append((op, "other"))
    return found


def _linear_readers(readers: list[tuple[Op, str]]) -> tuple[str, ...]:
    """The weights that read a value as it is, if nothing else does; else none."""
    if not readers or any(kind != "input" for _, kind in readers):
        return ()
    return tuple(name for op, _ in readers for name in _read_by(op))


def _norms(graph: Graph, readers: _Readers) -> Iterator[tuple[Folding, int]]:
    """Foldings into norms, and how often each norm's weight is used for what they mean."""
    done: set[str] = set()
    for op in graph.ops:
        if isinstance(op, Normalize):
            weights = _linear_readers(readers[op.out])
            if op.groups == 1 and op.residual is None and weights:
                yield Folding(weights, op.norm.weight, op.norm.bias, op.out.width, True, op.norm.offset), 1
            continue
        norm = _norm_of(op)
        if norm is None or norm.weight in done or not isinstance(op, (Linears, Glu, Experts)):
            continue
        done.add(norm.weight)
        same = [reader for reader, kind in readers[op.x] if kind == "normed" and _norm_of(reader) == norm]
        weights = tuple(name for reader in same for name in _read_by(reader))
        yield Folding(weights, norm.weight, norm.bias, op.x.width, True, norm.offset), len(same)


def _rows(graph: Graph, readers: _Readers) -> Iterator[tuple[Folding, int]]:
    """Foldings into the rows of a weight, each used once."""
    values = {op.v: op for op in graph.ops if isinstance(op, Attention)}
    for op in graph.ops:
        if isinstance(op, Glu):
            weights = _linear_readers(readers[op.out])
            if weights:
                yield Folding(weights, op.up, op.biases[1], op.out.width, False), 1
        if not isinstance(op, Linears) or op.softcap or op.act not in (None, "relu"):
            continue
        for i, (name, bias, out) in enumerate(zip(op.weights, op.biases, op.outs, strict=True)):
            if i == 0 and op.residual is not None:
                continue
            weights, width = _linear_readers(readers[out]), out.width
            tied: tuple[int, ...] = ()
            attention = values.get(out)
            if attention is not None and op.act is None and [kind for _, kind in readers[out]] == ["value"]:
                weights, width = _linear_readers(readers[attention.out]), attention.out.width
                tied = _value_rows(attention)
            if weights:
                yield Folding(weights, name, bias, width, False, 0.0, tied), 1


def _value_rows(op: Attention) -> tuple[int, ...]:
    """[heads * head_dim]: the row of the values that each channel of the output is a mean of; () where they are one."""
    if op.heads == op.kv_heads:
        return ()
    group = op.heads // op.kv_heads
    return tuple(h // group * op.head_dim + d for h in range(op.heads) for d in range(op.head_dim))
