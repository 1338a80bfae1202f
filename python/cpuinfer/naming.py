"""From a file's tensors to the weights an architecture reads: renamed, split, stacked or turned as its names say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cpuinfer.config import Config
from cpuinfer.errors import UnsupportedModel
from cpuinfer.models import OneRow, Split, Target, Transposed
from cpuinfer.weight import Weight
from cpuinfer.weights import joined, one_row, stacked, transposed


def arrange(stored: Mapping[str, Weight], names: Mapping[str, Target], config: Config) -> dict[str, Weight]:
    """Our name -> weight, for all tensors of a file.

    `stored` has them by the file's name without `.weight`, or with `.bias`.
    Raises UnsupportedModel for a tensor the architecture does not know: ignoring one would give wrong text.
    """
    ours: dict[str, Weight] = {}
    experts: dict[str, dict[int, Weight]] = {}
    for name, weight in stored.items():
        stem, bias = (name.removesuffix(".bias"), ".bias") if name.endswith(".bias") else (name, "")
        target, layer, expert = find(stem, names, weight.name)
        for part, piece in _parts(target, weight, config):
            full = part.replace("{i}", str(layer)) + bias
            twin = ours.get(full) if expert is None else experts.get(full, {}).get(expert)
            if twin is not None:
                raise UnsupportedModel(f"tensors {twin.name} and {weight.name} are the same weight of the model")
            if expert is None:
                ours[full] = piece
            else:
                experts.setdefault(full, {})[expert] = piece
    for name, by_number in experts.items():
        if sorted(by_number) != list(range(len(by_number))):
            raise UnsupportedModel(f"{name}: experts {sorted(by_number)}, expected 0 to {len(by_number) - 1}")
        ours[name] = stacked([by_number[e] for e in sorted(by_number)])
    return ours


def find(stem: str, names: Mapping[str, Target], name: str) -> tuple[Target, int, int | None]:
    """What a stored tensor is of ours, its layer, and its expert if it has one; UnsupportedModel if it is not known."""
    numbers = [int(number) for number in re.findall(r"(?<=\.)\d+(?=\.|$)", stem)]
    pattern = stem
    for placeholder in ("{i}", "{e}"):
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", placeholder, pattern, count=1)
    if pattern not in names:
        raise UnsupportedModel(f"tensor {name} is not part of the architecture as supported")
    return names[pattern], numbers[0] if numbers else 0, numbers[1] if len(numbers) > 1 else None


def _parts(target: Target, weight: Weight, config: Config) -> Iterator[tuple[str, Weight]]:
    match target:
        case None:
            return
        case str():
            yield target, weight
        case OneRow():
            yield target.name, one_row(weight)
        case Transposed():
            yield from _parts(target.target, transposed(weight), config)
        case Split():
            ranges = _ranges(target, weight, config)
            for part, pieces in zip(target.names, ranges, strict=True):
                yield part, joined([(weight, begin, end) for begin, end in pieces])


def _ranges(split: Split, weight: Weight, config: Config) -> list[list[tuple[int, int]]]:
    """The rows of each part."""
    rows = weight.shape[0]
    if split.sizes == "equal":
        sizes = [rows // len(split.names)] * len(split.names)
        repeats = 1
    else:
        repeats = config.kv_heads if split.interleaved else 1
        sizes = [n // repeats * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)]
    if sum(sizes) * repeats != rows:
        raise UnsupportedModel(f"{weight.name}: {rows} rows, expected {sum(sizes) * repeats}")
    ranges: list[list[tuple[int, int]]] = [[] for _ in sizes]
    at = 0
    for _ in range(repeats):
        for part, size in zip(ranges, sizes, strict=True):
            part.append((at, at + size))
            at += size
    return ranges
