"""Whether a kind of file holds the encodings that were chosen: asked before any work is done on them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cpuinfer.errors import InvalidRequest, UnsupportedFormat
from cpuinfer.quantize.recipe import FLOATS
from cpuinfer.quantize.scheme import BLOCK_NAMES
from cpuinfer.weight import Weight

PACKED = re.compile(r"int([48])(:.*)?")
"""What GPTQ's and compressed-tensors' folders hold beside floats."""
WORD_BITS = 32
"""GPTQ packs the zero points of neighbouring rows into words."""


def check(
    kind: str, chosen: Mapping[str, str], weights: Mapping[str, Weight], tensors: Mapping[str, tuple[str, ...]]
) -> None:
    """Raise InvalidRequest or UnsupportedFormat naming a matrix whose encoding does not go into such files.

    tensors: those of the file that may be encoded, by name, as our weights that each is made of.
    """
    encoded = {name: encoding for name, encoding in chosen.items() if encoding not in FLOATS}
    for name, encoding in encoded.items():
        if kind == "gguf" and encoding not in BLOCK_NAMES:
            raise InvalidRequest(f"{name}: {encoding}: GGUF has no such type, expected {', '.join(BLOCK_NAMES)}")
        if kind in ("gptq", "compressed-tensors") and not PACKED.fullmatch(encoding):
            raise InvalidRequest(f"{name}: {encoding}: {kind} folders hold int4 and int8")
    if kind == "gptq" and len(set(encoded.values())) > 1:
        found = " and ".join(sorted(set(encoded.values())))
        raise InvalidRequest(f"{found}: GPTQ folders have one type for all matrices but floats")
    if kind != "gguf":
        linears = {part for parts in tensors.values() for part in parts}
        for name in encoded:
            if name not in linears:
                raise InvalidRequest(f"{name}: stays floats in a folder: it is no linear layer of its own")
    for tensor, parts in tensors.items():
        here = {part: chosen.get(part, weights[part].encoding) for part in parts}
        if len(set(here.values())) > 1:
            one, a = parts[0], here[parts[0]]
            other, b = next(item for item in here.items() if item[1] != a)
            raise UnsupportedFormat(f"{tensor}: is one tensor of {one} and {other}: not {a} beside {b}")


def refused_shapes(
    kind: str, label: str, weights: Mapping[str, Weight], tensors: Mapping[str, tuple[str, ...]]
) -> set[str]:
    """Matrices that such a folder has no place for in this type: their rows do not fill whole words."""
    packed = PACKED.fullmatch(label)
    if kind != "gptq" or packed is None:
        return set()
    word = WORD_BITS // int(packed[1])
    rows = {tensor: sum(weights[part].shape[0] for part in parts) for tensor, parts in tensors.items()}
    return {part for tensor, parts in tensors.items() if rows[tensor] % word for part in parts}
