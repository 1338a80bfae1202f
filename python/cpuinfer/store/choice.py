"""Which files of a repository make one model, and which model a file name or a quant means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cpuinfer.errors import ModelNotFound

PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")
"""How the parts of a split model are numbered, from 1."""

SAFETENSORS = re.compile(r"model(?:-\d{5}-of-(\d{5}))?\.safetensors")
"""Weights of a Hugging Face folder: one file, or shards numbered from 1."""
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
BESIDE = frozenset(
    {
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "generation_config.json"),
        "additional_chat_templates/tool_use.jinja",
    }
)
"""What else of a folder is read."""

LISTED = 30
"""Candidates an error names at most."""


@dataclass(frozen=True, slots=True)
class Model:
    """The files of one model, first part first."""

    name: str
    """Its file name, without the number of a part; of a folder, that of its weights."""
    parts: int
    files: tuple[str, ...]
    is_folder: bool = False
    """A Hugging Face folder, config.json first."""

    def __str__(self) -> str:
        return self.name if self.parts == 1 or self.is_folder else f"{self.name} ({self.parts} parts)"

    @property
    def is_complete(self) -> bool:
        return len(self.files) == self.parts


def models(names: Iterable[str]) -> list[Model]:
    """The models among the files of a repository, a folder last. `mmproj` files are image encoders, no models."""
    present = frozenset(names)
    groups: dict[tuple[str, int], list[str]] = {}
    for name in sorted(present):
        if name.endswith(".gguf") and not name.rpartition("/")[2].startswith("mmproj"):
            part = PART.search(name)
            groups.setdefault((PART.sub("", name), int(part[2]) if part else 1), []).append(name)
    return [Model(name, parts, tuple(files)) for (name, parts), files in groups.items()] + _folder(present)


def belongs(name: str) -> bool:
    """Whether a file of a repository can be part of a model."""
    return name.endswith(".gguf") or name in {CONFIG, INDEX} or name in BESIDE or bool(SAFETENSORS.fullmatch(name))


def _folder(names: frozenset[str]) -> list[Model]:
    """The repository itself, where it has a configuration and weights in safetensors files."""
    shards = sorted(name for name in names if SAFETENSORS.fullmatch(name))
    if INDEX in names:
        shards = [name for name in shards if "-of-" in name]
    elif "model.safetensors" in shards:
        shards = ["model.safetensors"]
    if CONFIG not in names or not shards:
        return []
    number = SAFETENSORS.fullmatch(shards[0])
    count = int(number[1]) if number and number[1] else 1
    index = [INDEX] if count > 1 else []
    beside = sorted(names & {*BESIDE, *index})
    missing = len(index) - (INDEX in beside)
    parts = 1 + count + len(beside) + missing
    return [Model("model.safetensors", parts, (CONFIG, *shards, *beside), is_folder=True)]


def choose(candidates: list[Model], wanted: str, spec: str) -> Model:
    """The one model meant by `wanted`: a file's name or path, a quant, "safetensors", or (empty) the only one there is.

    Beside GGUF files a folder is meant by "safetensors" alone.
    Raises ModelNotFound, listing the candidates, when none or several are meant.
    """
    fitting = [model for model in candidates if _fits(model, wanted)]
    if not wanted and len(fitting) > 1:
        fitting = [model for model in fitting if not model.is_folder]
    if len(fitting) == 1:
        return fitting[0]
    if not candidates:
        raise ModelNotFound(f"{spec}: no GGUF file there, nor config.json with safetensors files")
    said = f"fits {len(fitting)} models, name one of them:" if fitting else "fits none of"
    listed = fitting or candidates
    lines = [f"  {model}" for model in listed[:LISTED]]
    if len(listed) > LISTED:
        lines.append(f"  and {len(listed) - LISTED} more")
    raise ModelNotFound("\n".join([f"{spec}: {said}", *lines]))


def _fits(model: Model, wanted: str) -> bool:
    if model.is_folder:
        return wanted in {"", "safetensors", model.name}
    if wanted.endswith(".gguf"):
        names = {model.name, *model.files}
        return wanted in names or wanted in {name.rpartition("/")[2] for name in names}
    # A quant is a word of the path, in any case: Q4_K is not part of Q4_K_M, nor F16 of BF16.
    word = rf"(?<![A-Za-z0-9]){re.escape(wanted)}(?![A-Za-z0-9_])"
    return not wanted or re.search(word, model.name, re.IGNORECASE) is not None
