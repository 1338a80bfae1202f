"""What is to be done with a model's weights: a method, its options, and a scheme for every matrix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase

from cpuinfer.errors import InvalidRequest
from cpuinfer.quantize import scheme as schemes
from cpuinfer.quantize.mixes import NARROW
from cpuinfer.weight import Weight

Method = str
DATA_FREE: tuple[Method, ...] = ("rtn", "opt-rtn", "hqq")
CALIBRATED: tuple[Method, ...] = ("importance", "awq", "gptq", "autoround")
METHODS = (*DATA_FREE, *CALIBRATED)
"""Cheapest first."""
FLOATS = ("F32", "F16", "BF16")
"""What a matrix may be kept as."""
LEAST_GROUP = 32
"""Weights that kernels take together: rows that are no multiple stay floats."""
SENSITIVE = ("model.embed_tokens", "model.embed_positions", "lm_head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the matrices are rounded, and as what."""

    method: Method
    encodings: Mapping[str, str]
    """By our name, of every matrix: a scheme, or one of FLOATS."""
    label: str
    """What the encodings are called together: "Q4_K_M", "int4:g128:sym"."""
    damping: float = 0.01
    """GPTQ: share of the Hessian's mean diagonal added to it."""
    order: str = "static"
    """GPTQ: "none", "static" or "dynamic"."""
    iterations: int = 200
    """AutoRound: steps for each layer."""
    seed: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)
    """What else the result depends on: the source's files, the calibration text, the release."""

    @property
    def calibrated(self) -> bool:
        """Whether the method looks at what layers read."""
        return self.method in CALIBRATED

    def key(self) -> str:
        """Sixteen letters that stand for all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def assign(
    weights: Mapping[str, Weight],
    scheme: str,
    packed: AbstractSet[str],
    *,
    one_type: bool = False,
    keep: Sequence[tuple[str, str]] = (),
) -> dict[str, str]:
    """The encoding of every matrix of a folder: `scheme` of those that may be `packed`, but for what `keep` says.

    Embeddings, head and routers stay floats.  one_type: and so do matrices that the scheme itself does not divide,
    where else a smaller group is taken.
    """
    matrices = {name: weight for name, weight in weights.items() if len(weight.shape) == 2}
    chosen = {}
    for name, weight in matrices.items():
        encoding = fitting_encoding(scheme, weight.shape[1])
        plain = name in SENSITIVE or name not in packed or (one_type and encoding != scheme)
        chosen[name] = _as_float(weight) if plain or encoding in FLOATS else encoding
    chosen |= {name: "F32" for name in matrices if _is_router(name, matrices)}
    return asked_for(chosen, weights, keep)


def _as_float(weight: Weight) -> str:
    """Half of fp32, and what has 16 bits as it is."""
    return "BF16" if weight.encoding == "BF16" else "F16"


def asked_for(
    chosen: Mapping[str, str], weights: Mapping[str, Weight], keep: Sequence[tuple[str, str]]
) -> dict[str, str]:
    """Encodings, by our name, but those that `keep` says.

    keep: (pattern, encoding), of which the last that fits a name counts; patterns as a shell's, over our names or
    their last part ("lm_head", "*.v_proj", "model.layers.0.*").  A matrix whose rows do not divide by the blocks of
    what is asked for takes the nearest of ``fallbacks`` that fits.
    Raises InvalidRequest for a pattern that fits none.
    """
    found = dict(chosen)
    for pattern, encoding in keep:
        fits = [name for name in chosen if _fits(pattern, name)]
        if not fits:
            raise InvalidRequest(f"keep: {pattern!r} fits no matrix, such as {next(iter(chosen))!r}")
        found |= {name: fitting_encoding(encoding, weights[name].shape[1]) for name in fits}
    return found


def named(names: Iterable[str], keep: Sequence[tuple[str, str]]) -> set[str]:
    """Those of the names that some pattern of `keep` fits."""
    return {name for name in names for pattern, _ in keep if _fits(pattern, name)}


def fitting_encoding(encoding: str, k: int) -> str:
    """The encoding, or the nearest of no fewer bits whose blocks divide rows of k."""
    for candidate in (encoding, *fallbacks(encoding)):
        if candidate in FLOATS or k % max(schemes.find(candidate).block, LEAST_GROUP) == 0:
            return candidate
    return "F16"


def fallbacks(encoding: str) -> tuple[str, ...]:
    """Smaller groups of integers and tables; of types of blocks of 256, those of 32 that llama.cpp takes instead."""
    kind, mark, rest = encoding.partition(":g")
    if mark:
        group, colon, way = rest.partition(":")
        return tuple(f"{kind}:g{each}{colon}{way}" for each in (128, 64, 32) if each < int(group))
    return (NARROW[encoding],) if encoding in NARROW else ()


def _fits(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)


def _is_router(name: str, matrices: Mapping[str, Weight]) -> bool:
    """A mixture's choice of experts is made of few numbers, and an error in it changes which are used."""
    return name.endswith((".gate", ".router", ".shared_expert_gate")) and matrices[name].shape[0] < 1024
