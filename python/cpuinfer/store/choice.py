"""Which GGUF files of a repository make one model, and which model a file name or a quant means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cpuinfer.errors import ModelNotFound

PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")
"""How the parts of a split model are numbered, from 1."""

LISTED = 30
"""Candidates an error names at most."""


@dataclass(frozen=True, slots=True)
class Model:
    """The files of one model, first part first."""

    name: str
    """Its file name, without the number of a part."""
    parts: int
    files: tuple[str, ...]

    def __str__(self) -> str:
        return self.name if self.parts == 1 else f"{self.name} ({self.parts} parts)"

    @property
    def is_complete(self) -> bool:
        return len(self.files) == self.parts


def models(names: Iterable[str]) -> list[Model]:
    """The models among the files of a repository. `mmproj` files are image encoders, no models of their own."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in sorted(names):
        if name.endswith(".gguf") and not name.rpartition("/")[2].startswith("mmproj"):
            part = PART.search(name)
            groups.setdefault((PART.sub("", name), int(part[2]) if part else 1), []).append(name)
    return [Model(name, parts, tuple(files)) for (name, parts), files in groups.items()]


def choose(candidates: list[Model], wanted: str, spec: str) -> Model:
    """The one model meant by `wanted`: a file's name or path, a quant, or (empty) the only one there is.

    Raises ModelNotFound, listing the candidates, when none or several are meant.
    """
    fitting = [model for model in candidates if _fits(model, wanted)]
    if len(fitting) == 1:
        return fitting[0]
    if not candidates:
        raise ModelNotFound(f"{spec}: no GGUF model there")
    said = f"fits {len(fitting)} models, name one of them:" if fitting else "fits none of"
    listed = fitting or candidates
    lines = [f"  {model}" for model in listed[:LISTED]]
    if len(listed) > LISTED:
        lines.append(f"  and {len(listed) - LISTED} more")
    raise ModelNotFound("\n".join([f"{spec}: {said}", *lines]))


def _fits(model: Model, wanted: str) -> bool:
    if wanted.endswith(".gguf"):
        names = {model.name, *model.files}
        return wanted in names or wanted in {name.rpartition("/")[2] for name in names}
    # A quant is a word of the path, in any case: Q4_K is not part of Q4_K_M, nor F16 of BF16.
    word = rf"(?<![A-Za-z0-9]){re.escape(wanted)}(?![A-Za-z0-9_])"
    return not wanted or re.search(word, model.name, re.IGNORECASE) is not None
