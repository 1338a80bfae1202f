"""What the loader sees of a model's files, `Source`; and weights made of others: joined, transposed, rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpuinfer import formats
from cpuinfer.config import Config
from cpuinfer.errors import NumericalError, UnsupportedFormat, UnsupportedModel
from cpuinfer.formats.canonical import BlockRows, FloatRows, IntegerRows, Rows, TableRows
from cpuinfer.weight import StoredRows, Weight

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cpuinfer.chat import ChatTemplate
    from cpuinfer.checkpoint import Checkpoint, TensorInfo
    from cpuinfer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An opened model, of any kind of files."""

    path: Path
    kind: str
    """"GGUF" or "safetensors"."""
    files: tuple[Path, ...]
    """All that decides the weights."""
    size_bytes: int
    config: Config
    weights: Mapping[str, Weight]
    """By our name; a bias is its weight's name plus ".bias"."""
    tokenizer_name: str
    tokenizer: Callable[[], Tokenizer]
    chat_template: Callable[[Tokenizer], ChatTemplate] | None
    """Compiles the template, if the files have one."""
    left_out: tuple[str, ...] = ()
    """Parts of the model that are not read, as the files call them: "vision_tower"."""


def from_checkpoint(checkpoint: Checkpoint, info: TensorInfo) -> Weight:
    """A tensor of a GGUF file; those of more than two dimensions have their first ones together."""
    try:
        form = formats.find(info.encoding)
    except UnsupportedFormat as error:
        raise UnsupportedFormat(f"tensor {info.name}: {error}") from None
    k = info.shape[-1]
    shape = info.shape if len(info.shape) == 1 else (info.rows, k)

    def floats() -> npt.NDArray[np.float64]:
        import numpy as np

        return rows(0, info.rows).to_float(np.float64).reshape(shape)

    rows = StoredRows(checkpoint, info.name, lambda raw: form.decode(raw, k))
    return Weight(
        name=info.name,
        shape=shape,
        encoding=info.encoding,
        layout=form.layout,
        file_bytes=info.bytes,
        rows=rows,
        floats=floats,
        zero=form.zero,
        has_bias=form.has_bias,
    )


def joined(pieces: Sequence[tuple[Weight, int, int]]) -> Weight:
    """Rows [begin, end) of several weights, one after another; of vectors, elements."""
    import numpy as np

    first = pieces[0][0]
    for weight, _, _ in pieces:
        if not _alike(weight, first):
            raise UnsupportedModel(f"{weight.name} and {first.name} are stored differently, expected the same")
    if len(first.shape) == 1:
        return _joined_vectors(pieces)
    count = sum(end - begin for _, begin, end in pieces)

    def rows(begin: int, end: int) -> Rows:
        parts, at = [], 0
        for weight, low, high in pieces:
            start, stop = max(begin, at), min(end, at + high - low)
            if start < stop:
                parts.append(weight.rows(low + start - at, low + stop - at))
            at += high - low
        return concatenated(parts)

    return replace(
        first,
        shape=(count, first.shape[1]),
        tensor_names=tuple(dict.fromkeys(name for w, _, _ in pieces for name in w.tensor_names)),
        file_bytes=sum(w.file_bytes * (end - begin) // w.shape[0] for w, begin, end in pieces),
        rows=rows,
        floats=lambda: np.concatenate([w.floats()[begin:end] for w, begin, end in pieces]),
    )


def _alike(a: Weight, b: Weight) -> bool:
    fields = ("layout", "zero", "has_zeros", "has_bias", "group")
    return (
        all(getattr(a, field) == getattr(b, field) for field in fields)
        and a.shape[1:] == b.shape[1:]
        and same(a.table, b.table)
        and same(a.input_order, b.input_order)
    )


def same(a: npt.NDArray[Any] | None, b: npt.NDArray[Any] | None) -> bool:
    """Whether two arrays, or their absence, are equal."""
    if a is None or b is None:
        return a is b
    import numpy as np

    return np.array_equal(a, b)


def stacked(experts: Sequence[Weight]) -> Weight:
    """The same weight of each expert, one under another; each may take its inputs in an order of its own."""
    import numpy as np

    whole = joined([(replace(weight, input_order=None), 0, weight.shape[0]) for weight in experts])
    if all(weight.input_order is None for weight in experts):
        return whole
    plain = np.arange(whole.shape[1], dtype=np.int32)
    orders = [plain if weight.input_order is None else weight.input_order for weight in experts]
    return replace(whole, input_order=np.stack(orders))


def _joined_vectors(pieces: Sequence[tuple[Weight, int, int]]) -> Weight:
    import numpy as np

    first = pieces[0][0]
    count = sum(end - begin for _, begin, end in pieces)

    def floats() -> npt.NDArray[np.float64]:
        return np.concatenate([w.floats()[begin:end] for w, begin, end in pieces])

    return replace(
        first,
        shape=(count,),
        file_bytes=first.file_bytes * count // first.shape[0],
        rows=lambda _begin, _end: FloatRows(floats().astype(np.float32)[None], "f32"),
        floats=floats,
    )


def concatenated(parts: Sequence[Rows]) -> Rows:
    """Rows of one kind, one after another."""
    import numpy as np

    first = parts[0]
    if len(parts) == 1:
        return first

    def together(get: Callable[[Any], npt.NDArray[Any] | None]) -> Any:
        return None if get(first) is None else np.concatenate([get(part) for part in parts])

    match first:
        case IntegerRows():
            return IntegerRows(
                together(lambda p: p.codes),
                together(lambda p: p.scale),
                together(lambda p: p.bias),
                first.zero,
                together(lambda p: p.zeros),
                first.group,
            )
        case TableRows():
            return replace(first, codes=together(lambda p: p.codes), scale=together(lambda p: p.scale))
        case BlockRows():
            return replace(first, raw=together(lambda p: p.raw))
        case FloatRows():
            return replace(first, values=together(lambda p: p.values))


def transposed(weight: Weight) -> Weight:
    """A weight whose file has (inputs, outputs)."""
    import numpy as np

    if len(weight.shape) == 1:
        return weight
    if not weight.is_float:
        raise UnsupportedFormat(f"{weight.name}: {weight.encoding} stored as (inputs, outputs), expected floats")
    inputs, outputs = weight.shape

    def rows(begin: int, end: int) -> Rows:
        stored = weight.rows(0, inputs)
        if not isinstance(stored, FloatRows):
            raise UnsupportedFormat(f"{weight.name}: not floats")
        return FloatRows(np.ascontiguousarray(stored.values.T[begin:end]), stored.layout)

    return replace(weight, shape=(outputs, inputs), rows=rows, floats=lambda: weight.floats().T, whole=True)


def one_row(weight: Weight) -> Weight:
    """A vector as a matrix of one row."""
    import numpy as np

    if len(weight.shape) != 1:
        return weight
    width = weight.shape[0]
    return replace(
        weight,
        shape=(1, width),
        layout="f32",
        rows=lambda begin, end: FloatRows(weight.floats().astype(np.float32)[None][begin:end], "f32"),
        floats=lambda: weight.floats()[None],
    )


def quantised(weight: Weight, how: str) -> Weight:
    """A float weight rounded as it is loaded: int4 as Q4_0 is, int8 as Q8_0, nf4 in groups of 64.

    A weight whose rows do not divide into groups stays as it is.
    """
    import numpy as np

    group = 64 if how == "nf4" else 32
    if not weight.is_float or len(weight.shape) != 2 or weight.shape[1] % group:
        return weight
    round_rows = _ROUNDINGS[how]

    def rows(begin: int, end: int) -> IntegerRows | TableRows:
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of these is looked for
            rounded = round_rows(weight.rows(begin, end).to_float(np.float32))
        if not np.isfinite(rounded.scale).all():
            raise NumericalError(f"{weight.name}: holds NaN, infinity or a number too large for fp16 scales")
        return rounded

    sample = round_rows(np.zeros((1, group), np.float32))
    return replace(
        weight,
        encoding=f"{weight.encoding} as {how}",
        layout="table4" if how == "nf4" else how,  # type: ignore[arg-type]
        rows=rows,
        floats=lambda: rows(0, weight.shape[0]).to_float(np.float64),
        zero=sample.zero if isinstance(sample, IntegerRows) else 0,
        group=group,
        table=sample.table if isinstance(sample, TableRows) else None,
    )


def _to_int4(x: npt.NDArray[np.float32]) -> IntegerRows:
    """The number of largest magnitude becomes -8, with its sign in the scale, so that all sixteen codes are used."""
    import numpy as np

    groups = x.reshape(len(x), -1, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2, keepdims=True), axis=2)
    return _to_codes(groups, (largest[:, :, 0] / -8).astype(np.float16), zero=8, last=15)


def _to_int8(x: npt.NDArray[np.float32]) -> IntegerRows:
    import numpy as np

    groups = x.reshape(len(x), -1, 32)
    return _to_codes(groups, (np.abs(groups).max(axis=2) / 127).astype(np.float16), zero=128, last=255)


def _to_codes(groups: npt.NDArray[np.float32], scale: npt.NDArray[np.float16], *, zero: int, last: int) -> IntegerRows:
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        steps = groups / scale.astype(np.float32)[:, :, None]
    codes = np.clip(np.rint(np.where(np.isfinite(steps), steps, 0)) + zero, 0, last).astype(np.uint8)
    return IntegerRows(codes.reshape(len(groups), -1), scale, zero=zero)


NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
"""NormalFloat4 (QLoRA, arXiv 2305.14314, appendix E): the means of sixteen equal shares of a normal distribution."""


def _to_nf4(x: npt.NDArray[np.float32]) -> TableRows:
    import numpy as np

    groups = x.reshape(len(x), -1, 64)
    scale = np.abs(groups).max(axis=2).astype(np.float16)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = groups / scale.astype(np.float32)[:, :, None]
    table = np.array(NF4, np.float32)
    middles = (table[1:] + table[:-1]) / 2
    codes = np.searchsorted(middles, np.where(np.isfinite(unit), unit, 0)).astype(np.uint8)
    return TableRows(codes.reshape(len(x), -1), scale, table, 64)


_ROUNDINGS: dict[str, Callable[[npt.NDArray[np.float32]], IntegerRows | TableRows]] = {
    "int4": _to_int4,
    "int8": _to_int8,
    "nf4": _to_nf4,
}
QUANTIZE = (*_ROUNDINGS, "none")
