"""Which rows of which weights of ours make each tensor of a file: what naming.arrange does, inverted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cpuinfer import naming
from cpuinfer.config import Config
from cpuinfer.errors import UnsupportedModel
from cpuinfer.formats.canonical import BlockRows, FloatRows, IntegerRows, Rows, TableRows
from cpuinfer.models import Target, Transposed
from cpuinfer.weight import Weight
from cpuinfer.weights import concatenated, same

CHUNK_BYTES = 4 << 20
"""Of a tensor in fp32, taken at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A tensor of a file."""

    name: str
    """As the file calls it."""
    shape: tuple[int, ...]
    """As the file has it, row-major."""
    parts: tuple[str, ...]
    """Our weights that it is made of."""
    part: npt.NDArray[np.int16]
    """[rows]: which of them each row comes from; of a vector, each element."""
    row: npt.NDArray[np.int32]
    """[rows]: and which row of it that is."""
    transposed: bool = False
    """The file has (inputs, outputs); rows are outputs."""

    def rows(self, weights: Mapping[str, Weight], begin: int, end: int) -> Rows:
        """Rows [begin, end) in canonical form; of a vector all, as one row."""
        if len(self.shape) == 1:
            return self._vector(weights)
        owners = self.part[begin:end]
        pieces: list[Rows] = []
        places = []
        for number in np.unique(owners):
            (here,) = np.nonzero(owners == number)
            wanted = self.row[begin:end][here]
            low = int(wanted.min())
            found = weights[self.parts[number]].rows(low, int(wanted.max()) + 1)
            pieces.append(taken(found, wanted - low))
            places.append(here)
        return taken(concatenated(pieces), np.argsort(np.concatenate(places)))

    def chunks(self, weights: Mapping[str, Weight]) -> list[tuple[int, int]]:
        """[begin, end) of rows that are taken at once: some MiB of them, or all of what is read whole anyway."""
        count = len(self.row)
        k = weights[self.parts[0]].shape[-1]
        step = max(32, CHUNK_BYTES // (4 * k) // 32 * 32)
        if len(self.shape) == 1 or any(weights[name].whole for name in self.parts):
            step = count
        return [(begin, min(begin + step, count)) for begin in range(0, count, step)]

    def _vector(self, weights: Mapping[str, Weight]) -> FloatRows:
        """By `floats`, since files differ in what they call a vector's rows."""
        pieces = [weights[name].floats().reshape(-1) for name in self.parts]
        starts = np.cumsum([0, *(piece.size for piece in pieces)])
        values = np.concatenate(pieces)[starts[self.part] + self.row].astype(np.float32)[None]
        layouts = {weights[name].layout for name in self.parts}
        if layouts == {"f16"}:
            return FloatRows(values.astype(np.float16), "f16")
        if layouts == {"bf16"}:
            return FloatRows(as_bf16(values), "bf16")
        return FloatRows(values, "f32")


def as_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bf16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def find(stored: Mapping[str, Weight], names: Mapping[str, Target], config: Config) -> dict[str, Placed]:
    """By the file's name without `.weight`, every tensor that holds weights of ours; others are not in it.

    `stored` are the file's tensors as `naming.arrange` takes them.  Found by arranging made-up weights whose rows hold
    their own numbers.
    """
    starts, at = {}, 0
    for stem, weight in stored.items():
        starts[stem] = at
        at += _count(weight, is_transposed(stem, weight, names))
    made_up = {
        stem: _numbered(weight, starts[stem], is_transposed(stem, weight, names)) for stem, weight in stored.items()
    }
    owner, row = np.full(at, -1, np.int32), np.zeros(at, np.int32)
    ours = naming.arrange(made_up, names, config)
    for number, weight in enumerate(ours.values()):
        numbers = weight.floats().reshape(-1).astype(np.int64)
        owner[numbers], row[numbers] = number, np.arange(len(numbers))
    found, our_names = {}, list(ours)
    for stem, weight in stored.items():
        turned = is_transposed(stem, weight, names)
        span = slice(starts[stem], starts[stem] + _count(weight, turned))
        if (owner[span] < 0).any():
            continue
        numbers, part = np.unique(owner[span], return_inverse=True)
        parts = tuple(our_names[number] for number in numbers)
        found[stem] = Placed(weight.name, weight.shape, parts, part.astype(np.int16), row[span].copy(), turned)
    return found


def is_transposed(stem: str, weight: Weight, names: Mapping[str, Target]) -> bool:
    """Whether the file has a matrix as (inputs, outputs)."""
    target, _, _ = naming.find(stem.removesuffix(".bias"), names, weight.name)
    return isinstance(target, Transposed) and len(weight.shape) == 2


def _count(weight: Weight, turned: bool) -> int:
    return weight.shape[1] if turned else weight.shape[0]


def _numbered(weight: Weight, start: int, turned: bool) -> Weight:
    """A weight of one column, or of one row if it is to be turned, that holds numbers from `start` on."""
    count = _count(weight, turned)
    shape = (count,) if len(weight.shape) == 1 else (1, count) if turned else (count, 1)
    values = np.arange(start, start + count, dtype=np.float64).reshape(shape)

    def rows(begin: int, end: int) -> FloatRows:
        return FloatRows(values.reshape(shape[0], -1)[begin:end], "f32")

    return Weight(
        name=weight.name, shape=shape, encoding="F64", layout="f32", file_bytes=8, rows=rows, floats=lambda: values
    )


def taken(rows: Rows, index: npt.NDArray[Any]) -> Rows:
    """Some of the rows, in the order asked for."""
    if np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        index = slice(int(index[0]), int(index[0]) + len(index))  # type: ignore[assignment]

    def of(array: npt.NDArray[Any] | None) -> Any:
        return None if array is None else array[index]

    match rows:
        case IntegerRows():
            return replace(rows, codes=of(rows.codes), scale=of(rows.scale), bias=of(rows.bias), zeros=of(rows.zeros))
        case TableRows():
            return replace(rows, codes=of(rows.codes), scale=of(rows.scale))
        case BlockRows():
            return replace(rows, raw=of(rows.raw))
        case FloatRows():
            return replace(rows, values=of(rows.values))


def alike(placed: Placed, weights: Mapping[str, Weight]) -> Weight:
    """One of the weights of a tensor, which must all be stored alike; UnsupportedModel naming two that are not."""
    first = weights[placed.parts[0]]
    for name in placed.parts[1:]:
        other = weights[name]
        agree = (other.encoding, other.group, other.has_zeros, other.has_bias) == (
            first.encoding,
            first.group,
            first.has_zeros,
            first.has_bias,
        )
        if not agree or not same(other.table, first.table) or not same(other.input_order, first.input_order):
            raise UnsupportedModel(
                f"{placed.name}: is one tensor of {placed.parts[0]} ({first.encoding}) and {name} ({other.encoding}), "
                "expected them stored alike"
            )
    return first


def in_order(tasks: Sequence[Callable[[], Any]], threads: int) -> Iterator[Any]:
    """The results of tasks in their order, some worked out ahead by threads."""
    if threads <= 1 or len(tasks) <= 1:
        yield from (task() for task in tasks)
        return
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as executor:
        ahead: deque[Future[Any]] = deque()
        try:
            for task in tasks:
                ahead.append(executor.submit(task))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
