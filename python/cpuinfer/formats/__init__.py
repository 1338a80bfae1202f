"""Ways of storing weights, one file each: ``q4_1.py`` decodes "Q4_1".  The file name is the registry."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from cpuinfer.errors import UnsupportedFormat
from cpuinfer.formats.canonical import Format

_SHARED = "canonical"


@functools.cache
def supported() -> tuple[str, ...]:
    """The encodings that ``find`` knows, sorted."""
    return tuple(sorted(module.name.upper() for module in pkgutil.iter_modules(__path__) if module.name != _SHARED))


def find(encoding: str) -> Format:
    """The format of an encoding as a checkpoint names it ("Q4_1"); UnsupportedFormat lists those there are."""
    known = supported()
    if encoding not in known:
        raise UnsupportedFormat(f"type {encoding} is not supported; supported are {', '.join(known)}")
    module = importlib.import_module(f"{__name__}.{encoding.lower()}")
    found: Format = module.FORMAT
    return found
