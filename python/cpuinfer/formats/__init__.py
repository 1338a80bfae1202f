"""Ways of storing weights: ``q4_1.py`` decodes "Q4_1", and the file names are the registry.

A format decodes to codes and scales, to floats, or, as a `BlockFormat`, leaves the bytes of the file to the kernels
(csrc/kernels/unpack.inl.h and grids.inl.h) and says in NumPy what their values are.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from cpuinfer.errors import UnsupportedFormat
from cpuinfer.formats.canonical import BlockFormat, Format

_SHARED = {"canonical", "packed"}


@functools.cache
def supported() -> tuple[str, ...]:
    """The encodings that ``find`` knows, sorted."""
    files = {module.name for module in pkgutil.iter_modules(__path__)}
    return tuple(sorted(name.upper() for name in files - _SHARED))


@functools.cache
def find(encoding: str) -> Format | BlockFormat:
    """The format of an encoding as a checkpoint names it ("Q4_1"); UnsupportedFormat lists those there are."""
    known = supported()
    if encoding not in known:
        raise UnsupportedFormat(f"type {encoding} is not supported; supported are {', '.join(known)}")
    found: Format | BlockFormat = importlib.import_module(f"{__name__}.{encoding.lower()}").FORMAT
    return found
