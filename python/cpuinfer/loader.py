"""From a model's files to a program ready to run: records the graph, packs the weights, writes the program down."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpuinfer import gguf, models
from cpuinfer.config import Config
from cpuinfer.errors import (
    CheckpointError,
    CpuInferError,
    InvalidRequest,
    NumericalError,
    UnsupportedFormat,
    UnsupportedModel,
)
from cpuinfer.graph import Graph
from cpuinfer.ops import Embed, Experts, Glu, Linears, Op, Value
from cpuinfer.program import write_program
from cpuinfer.weight import PANEL, StoredRows, Weight
from cpuinfer.weights import QUANTIZE, Source, same

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cpuinfer import _core
    from cpuinfer.program import Vector
    from cpuinfer.store.packed import PackedCopy

CHUNK_BYTES = 1 << 20
"""Of a tensor, read and packed at once by a thread."""
OF_FOLDERS = {"config.json", "model.safetensors", "model.safetensors.index.json"}
"""Files that stand for the folder they are in."""
CACHE_LINE = 64
"""Bytes; a packed matrix begins with one."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model as recorded, before any weight is read."""

    source: Source
    graph: Graph
    logits: Value
    opened: int
    """When, in nanoseconds, before any of the files was looked at."""

    @property
    def config(self) -> Config:
        """Shapes and options."""
        return self.source.config

    def tensor(self, name: str) -> Weight:
        """A weight by our name."""
        return self.source.weights[name]

    def weight(self, name: str) -> npt.NDArray[np.float64]:
        """A weight's values as the file means them, for the reference interpreter."""
        return self.source.weights[name].floats()


def open_model(path: str | Path, *, context: int | None = None, quantize: str | None = None) -> Blueprint:
    """Open a GGUF file or a Hugging Face folder and record its graph.  Reads no weights.

    `context`: positions it is opened for, which some rope scalings depend on; None: those it was trained for.
    `quantize`: what float weights of a folder become: int4 (None), int8, nf4, or none to stay as they are.
    Raises CheckpointError for a damaged file, UnsupportedModel or UnsupportedFormat, all naming the file.
    """
    path, opened = Path(path), time.time_ns()
    if quantize is not None and quantize not in QUANTIZE:
        raise InvalidRequest(f"quantize: {quantize!r}, expected one of {', '.join(QUANTIZE)}")
    try:
        source = _open_source(path, context, quantize)
        graph = Graph({name: weight.shape for name, weight in source.weights.items()})
        logits = models.find(source.config.model_type).build(graph, source.config)
        unused = sorted(source.weights.keys() - graph.used.keys())
        if unused:
            name = source.weights[unused[0]].name
            raise UnsupportedModel(f"tensor {name} has no place in the model ({len(unused)} such)")
    except (CheckpointError, UnsupportedModel, UnsupportedFormat) as error:
        raise _of(path, error) from None
    return Blueprint(source, graph, logits, opened)


def _open_source(path: Path, context: int | None, quantize: str | None) -> Source:
    if path.name in OF_FOLDERS:
        path = path.parent
    if path.is_dir():
        from cpuinfer import huggingface

        if not huggingface.is_model_folder(path):
            raise UnsupportedModel("a folder without config.json and model.safetensors, or its index of shards")
        return huggingface.open_source(path, context=context, quantize=quantize)
    if quantize is not None and path.exists():
        raise UnsupportedFormat("a GGUF file is quantised as it is: leave out quantize (--quantize)")
    return gguf.open_source(path, context=context)


def load_program(blueprint: Blueprint, *, threads: int, cache_packed: bool = False) -> _core.Program:
    """Read and pack every weight with `threads` threads, and write the program down.

    `cache_packed`: keep the packed weights in the cache folder, and take them from there the next time.
    """
    with Loading(blueprint, threads=threads, cache_packed=cache_packed) as loading:
        return loading.program()


class Loading:
    """Weights on their way into packed matrices.

    The core's own threads pack what it can read by itself, and leave Python to do other things until `program`.
    """

    def __init__(self, blueprint: Blueprint, *, threads: int, cache_packed: bool = False) -> None:
        """Begin; for the arguments see ``load_program``."""
        self._blueprint = blueprint
        self._threads = threads
        self._used = {name: blueprint.tensor(name) for name in blueprint.graph.used}
        self._pool, self._matrices = _new_matrices(blueprint, self._used)
        self._packing: _core.Packing | None = None
        self._tasks: list[Callable[[], None]] = []
        self._copy = _packed_copy(blueprint, self._used) if cache_packed else None
        self._packs = self._copy is None or not self._copy.read(memoryview(self._pool), threads)
        if self._packs:
            self._packing, self._tasks = _pack(blueprint.source, self._used, self._matrices, threads)

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, *_: object) -> None:
        if self._packing is not None:
            self._packing.stop()

    def program(self) -> _core.Program:
        """The program, once every weight is packed."""
        blueprint = self._blueprint
        vectors = {name: _finite(blueprint, each) for name, each in self._used.items() if len(each.shape) == 1}
        for op in blueprint.graph.ops:
            _check_orders(blueprint, op)
        orders = {name: weight.input_order for name, weight in self._used.items()}
        program = write_program(blueprint.graph.ops, self._matrices, vectors, orders)
        try:
            if self._tasks:
                _run(self._tasks, self._threads)
            if self._packing is not None:
                self._packing.wait()
        except (CheckpointError, NumericalError, UnsupportedFormat) as error:
            raise _of(blueprint.source.path, error) from None
        if self._packs and self._copy is not None:
            _keep(self._copy, memoryview(self._pool))
        return program


def _new_matrices(
    blueprint: Blueprint, used: Mapping[str, Weight]
) -> tuple[_core.BufferPool, dict[str, _core.PackedMatrix]]:
    """Empty matrices, and the memory they lie in."""
    from cpuinfer import _core

    matrices: dict[str, _core.PackedMatrix] = {}
    pool = _core.BufferPool(sum(weight.packed_bytes + CACHE_LINE for weight in used.values()))
    partners = {op.gate: op.up for op in blueprint.graph.ops if isinstance(op, Glu)}  # read panel by panel in turn
    beside = {up: gate for gate, up in partners.items()}
    for name, weight in used.items():
        if len(weight.shape) == 2:
            room = used[partners[name]].panel_bytes if name in partners else 0
            matrices[name] = weight.new_matrix(pool, room=room, beside=matrices.get(beside.get(name, "")))
    return pool, matrices


def _pack(
    source: Source, used: Mapping[str, Weight], matrices: Mapping[str, _core.PackedMatrix], threads: int
) -> tuple[_core.Packing, list[Callable[[], None]]]:
    """Begin to pack what the core reads by itself; the rest is tasks for threads of ours."""
    from cpuinfer import _core

    jobs = []
    tasks: list[Callable[[], None]] = []
    for name, matrix in matrices.items():
        weight = used[name]
        if isinstance(weight.rows, StoredRows):
            jobs.append((weight.rows.checkpoint.reader, weight.rows.name, matrix))
        else:
            tasks.extend(_packing_tasks(weight, matrix))
    try:
        return _core.Packing(jobs, threads), tasks
    except CpuInferError as error:
        raise _of(source.path, error) from None


def _run(tasks: Iterable[Callable[[], None]], threads: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as executor:
        for _ in executor.map(lambda task: task(), tasks):
            pass


def _of(path: Path, error: CpuInferError) -> CpuInferError:
    """The error, beginning with the path of the model, or of another of its files."""
    begins = (f"{path}:", f"{path}/", f"{path.parent}/")
    return error if str(error).startswith(begins) else type(error)(f"{path}: {error}")


def _packed_copy(blueprint: Blueprint, used: Mapping[str, Weight]) -> PackedCopy | None:
    """None if the files changed since they were opened: what is read then may not be what their names stand for."""
    from cpuinfer.store.packed import PackedCopy

    choice = [[name, weight.encoding, weight.layout, *weight.shape] for name, weight in used.items()]
    with suppress(OSError):  # a file that is gone
        copy = PackedCopy(blueprint.source.path, blueprint.source.files, choice)
        return copy if copy.changed <= blueprint.opened else None
    return None


def _keep(copy: PackedCopy, memory: memoryview) -> None:
    try:
        copy.write(memory)
    except OSError as error:
        warnings.warn(f"{copy.path}: the packed weights are not kept: {error.strerror}", RuntimeWarning, stacklevel=2)


def _finite(blueprint: Blueprint, weight: Weight) -> Vector:
    rows = weight.rows
    values: Vector
    if isinstance(rows, StoredRows) and weight.encoding == "F32":
        values = rows.checkpoint.reader.floats(rows.name)
        finite = math.isfinite(sum(values))  # in double: numbers of fp32 do not add up to infinity
    else:
        import numpy as np

        values = weight.floats().astype(np.float32)
        finite = bool(np.isfinite(values).all())
    if not finite:
        raise NumericalError(f"{blueprint.source.path}: {weight.name}: holds NaN or infinity")
    return values


def _packing_tasks(weight: Weight, matrix: _core.PackedMatrix) -> list[Callable[[], None]]:
    rows = weight.shape[0]
    chunk = max(PANEL, CHUNK_BYTES * rows // max(weight.file_bytes, 1) // PANEL * PANEL)
    if weight.whole:
        chunk = rows

    def pack(begin: int) -> None:
        weight.rows(begin, min(begin + chunk, rows)).pack(matrix, begin)

    return [lambda begin=begin: pack(begin) for begin in range(0, rows, chunk)]  # type: ignore[misc]


def _check_orders(blueprint: Blueprint, op: Op) -> None:
    """Weights that share an input must take it in one order; tables and routers take theirs as it comes."""
    shared: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    match op:
        case Linears():
            shared = op.weights
        case Glu():
            shared = (op.gate, op.up)
        case Experts():
            shared, plain = (op.gate, op.up), (op.router,)
        case Embed():
            plain = (op.table,) if op.positions is None else (op.table, op.positions)
    orders = [blueprint.tensor(name).input_order for name in shared]
    if any(not same(order, orders[0]) for order in orders):
        raise UnsupportedModel(
            f"{blueprint.source.path}: {op.name}: weights that share an input take it in different orders"
        )
    for name in plain:
        if blueprint.tensor(name).input_order is not None:
            raise UnsupportedModel(f"{blueprint.source.path}: {name}: its columns are in another order, expected as is")
