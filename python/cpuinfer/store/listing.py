"""What a listing of stored models says of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on this machine."""

    name: str
    """The spec that resolves to it."""
    path: Path
    """Its file or folder; of a split model, the first file."""
    size_bytes: int
    """Of all its files."""
    source: Literal["built-in", "hub", "packed"]
    """Packed: a copy of the weights for a quicker start, which `resolve` does not take."""
