"""Which input columns of each weight to keep in 16 bits, from the weights alone: proxy quantisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest
from cpuinfer.graph import Graph
from cpuinfer.ops import Attention, Embed, Experts, Gated, Glu, Linears, Normalize, Op, Value
from cpuinfer.quantize.block import matrices

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Proxy:
    """The weight whose output units are another's inputs."""

    weight: str
    axis: Literal["rows", "columns"]
    """How its units lie: a linear's are rows, an embedding's columns."""
    rows: tuple[int, ...] = ()
    """The unit of each input, where grouped heads read some more than once; empty where they are one to one."""


def proxies(graph: Graph) -> dict[str, Proxy]:
    """For each weight of a graph the one whose units it reads, as far as there is one.

    Through norms, gates and attention units stay what they are; what reads the residual stream has for its proxy the
    weight that was last added to it, as the attention's output before a feed-forward layer in the paper.  Of a gated
    layer it is `up`, of experts their `down` of the first expert: left out, as units are sums over experts.
    """
    made: dict[Value, Proxy] = {}
    found: dict[str, Proxy] = {}
    for op in graph.ops:
        read = None if isinstance(op, (Embed, Attention)) else made.get(op.x)
        if read is not None:
            found.update((name, read) for name in matrices(op)[: 3 if isinstance(op, Experts) else None])
        made.update(_made(op, made))
    return found


def _made(op: Op, made: dict[Value, Proxy]) -> dict[Value, Proxy]:
    match op:
        case Embed():
            return {op.out: Proxy(op.table, "columns")}
        case Linears():
            return {out: Proxy(name, "rows") for name, out in zip(op.weights, op.outs, strict=True)}
        case Glu():
            return {op.out: Proxy(op.up, "rows")}
        case Normalize() | Gated():
            before = made.get(op.x)
            return {} if before is None else {op.out: before}
        case Attention():
            before, group = made.get(op.v), op.heads // op.kv_heads
            if before is None or before.axis != "rows" or before.rows:
                return {}
            rows = tuple(h // group * op.head_dim + d for h in range(op.heads) for d in range(op.head_dim))
            return {op.out: Proxy(before.weight, "rows", rows if group > 1 else ())}
        case Experts():
            return {}


def outlier_columns(
    graph: Graph, weight: Callable[[str], Array], *, share: float = 0.02
) -> dict[str, npt.NDArray[np.int64]]:
    """Dettmers and Zettlemoyer, arXiv 2212.09720, proxy quantisation: for each weight with a proxy, the `share`
    of its columns whose units have the largest standard deviation of incoming weights, ascending.

    At k bits a weight they cost share * (16 - k) bits a weight more.
    """
    if not 0 <= share <= 1:
        raise InvalidRequest(f"outliers: a share of {share:g}, expected 0 to 1")
    deviations: dict[Proxy, npt.NDArray[np.float64]] = {}
    columns = {}
    for name, proxy in proxies(graph).items():
        if proxy not in deviations:
            deviations[proxy] = _deviations(weight(proxy.weight), proxy)
        deviation = deviations[proxy]
        count = int(share * len(deviation) + 0.5)
        columns[name] = np.sort(np.argsort(-deviation, kind="stable")[:count])
    return columns


def _deviations(w: Array, proxy: Proxy) -> npt.NDArray[np.float64]:
    """[units]."""
    deviation: npt.NDArray[np.float64] = np.std(np.asarray(w, np.float64), axis=1 if proxy.axis == "rows" else 0)
    return deviation[np.asarray(proxy.rows)] if proxy.rows else deviation
