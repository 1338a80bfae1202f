"""Ways of storing weights: ``q4_1.py`` decodes "Q4_1", and the file names are the registry; and GGUF's block types.

A block type is unpacked by the kernels (csrc/kernels/unpack.inl.h and grids.inl.h) from the bytes of the file.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import cast, get_args

from cpuinfer.errors import UnsupportedFormat
from cpuinfer.formats.canonical import BlockLayout, BlockRows, Format, blocks

_SHARED = "canonical"


@functools.cache
def supported() -> tuple[str, ...]:
    """The encodings that ``find`` knows, sorted."""
    files = {module.name for module in pkgutil.iter_modules(__path__) if module.name != _SHARED}
    return tuple(sorted(name.upper() for name in files | set(get_args(BlockLayout))))


@functools.cache
def find(encoding: str) -> Format:
    """The format of an encoding as a checkpoint names it ("Q4_1"); UnsupportedFormat lists those there are."""
    known = supported()
    if encoding not in known:
        raise UnsupportedFormat(f"type {encoding} is not supported; supported are {', '.join(known)}")
    if encoding.lower() in get_args(BlockLayout):
        return _block_format(encoding)
    module = importlib.import_module(f"{__name__}.{encoding.lower()}")
    found: Format = module.FORMAT
    return found


def _block_format(name: str) -> Format:
    from cpuinfer import _core

    layout = cast("BlockLayout", name.lower())
    inputs, size = _core.block_size(layout)
    return Format(
        name=name,
        layout=layout,
        inputs=inputs,
        bytes=size,
        decode=lambda raw, k: BlockRows(
            blocks(raw, k, elements=inputs, block_bytes=size).reshape(raw.shape), layout, k
        ),
    )
