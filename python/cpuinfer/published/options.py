"""Options of a quantization_config, read with their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from cpuinfer.errors import CheckpointError, UnsupportedFormat

Kind = TypeVar("Kind", int, str, bool)

_KIND_NAMES = {int: "an integer", str: "a string", bool: "true or false"}


def optional(quantization: Mapping[str, Any], key: str, kind: type[Kind], default: Kind) -> Kind:
    """The value of a key, or `default` where it is missing or null; CheckpointError if it is of another kind."""
    value = quantization.get(key)
    if value is None:
        return default
    if type(value) is not kind:
        raise CheckpointError(f"quantization_config: {key} is {value!r}, expected {_KIND_NAMES[kind]}")
    return value


def require(quantization: Mapping[str, Any], key: str, kind: type[Kind]) -> Kind:
    """The value of a key; CheckpointError if it is missing or of another kind."""
    if quantization.get(key) is None:
        raise CheckpointError(f"quantization_config: {key} is missing, expected {_KIND_NAMES[kind]}")
    return optional(quantization, key, kind, kind())


def mapping(quantization: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The value of a key that is an object, empty where it is missing or null."""
    value = quantization.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"quantization_config: {key} is {type(value).__name__}, expected an object")
    return value


def one_of(method: str, key: str, value: object, known: tuple[object, ...]) -> None:
    """UnsupportedFormat unless the value is a known one."""
    if value not in known:
        listed = ", ".join(map(str, known))
        raise UnsupportedFormat(f"{method}: {key} {value} is not supported; supported are {listed}")


def absent(method: str, quantization: Mapping[str, Any], *keys: str) -> None:
    """UnsupportedFormat if one of the options asks for anything: each changes what the weights mean."""
    for key in keys:
        if quantization.get(key):
            raise UnsupportedFormat(f"{method}: {key} is not supported")


def group_size(method: str, group: int) -> int:
    """A group size: -1 (a scale for each row) or a multiple of 32; UnsupportedFormat otherwise."""
    if group != -1 and (group < 32 or group % 32):
        raise UnsupportedFormat(f"{method}: group_size {group} is not supported; supported are -1 and multiples of 32")
    return group


def label(method: str, bits: int, group: int, *, ordered: bool = False) -> str:
    """ "GPTQ int4 g128", "GPTQ int4 per row", "GPTQ int4 g128 act-order"."""
    size = "per row" if group == -1 else f"g{group}"
    return f"{method} int{bits} {size}{' act-order' if ordered else ''}"
