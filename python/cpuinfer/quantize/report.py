"""What a run of `cpuinfer quantize` tried, kept and measured: as data, for JSON, tables and pages."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpuinfer import __version__
from cpuinfer.evaluate import Estimate
from cpuinfer.loader import Blueprint
from cpuinfer.ops import Embed
from cpuinfer.quantize.auto import Candidate, Search
from cpuinfer.weight import Weight


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate.

    Attributes:
        label, method: its recipe.
        bits: a weight, over all matrices.
        bytes: of the weights in the file.
        divergence: KL(source || candidate), nats a token.
        perplexity_ratio: by the source's.
        same_top: share of tokens with the same likeliest one.
        accuracy: of multiple choice, where there are questions.
        loss: what the goal is about: the larger of the rise of perplexity and the fall of accuracy, as a share.
        meets: the goal; None where there is none.
        kept: whether it is what was written.
    """

    label: str
    method: str
    bits: float
    bytes: int
    divergence: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate
    same_top: Estimate
    accuracy: float | None
    loss: float
    meets: bool | None
    kept: bool


@dataclass(frozen=True, slots=True)
class Report:
    """All of a run.

    Attributes:
        source, out: paths' last parts.
        facts: what the source's files and the calibration text are, the release, the machine.
        source_perplexity: of the held-out text.
        encodings: of every matrix that was written, by our name.
        errors: of matrices rounded by what they read: the squared error, weighted by the mean square of the inputs,
            by the weighted square of the weights.
        tokens_per_second: that this machine can decode at most: its read bandwidth by the bytes a token reads.
        recipe: sixteen letters that stand for the recipe and the facts.
    """

    source: str
    out: str
    goal: float | None
    facts: Mapping[str, str]
    source_perplexity: Estimate | None
    source_accuracy: float | None
    rows: tuple[Row, ...]
    encodings: Mapping[str, str]
    errors: Mapping[str, float]
    tokens_per_second: float
    recipe: str


def facts_of(blueprint: Blueprint, text: str, name: str) -> dict[str, str]:
    """What a result depends on beside its recipe; of the source's files size and time, not contents."""
    files = [f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in blueprint.source.files]
    return {
        "source files": hashlib.sha256("\n".join(files).encode()).hexdigest(),
        "text": f"{name}, sha256 {hashlib.sha256(text.encode()).hexdigest()}",
        "release": __version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def row_of(candidate: Candidate, *, goal: float | None, kept: bool) -> Row:
    """Of a candidate."""
    found = candidate.verdict.divergence
    return Row(
        label=candidate.recipe.label,
        method=candidate.recipe.method,
        bits=candidate.bits,
        bytes=candidate.bytes,
        divergence=found.divergence,
        perplexity=found.perplexity,
        perplexity_ratio=found.perplexity_ratio,
        same_top=found.same_top,
        accuracy=candidate.verdict.accuracy,
        loss=candidate.verdict.loss,
        meets=None if goal is None else candidate.verdict.loss <= goal,
        kept=kept,
    )


def report_of(blueprint: Blueprint, out: Path, search: Search, *, goal: float | None, threads: int) -> Report:
    """Of a search, or of the one recipe that was asked for."""
    shown = search.kept or search.tried[-1]
    first = search.tried[0].verdict
    return Report(
        source=blueprint.source.path.name,
        out=out.name,
        goal=goal,
        facts=shown.recipe.facts,
        source_perplexity=first.divergence.reference_perplexity,
        source_accuracy=first.source_accuracy,
        rows=tuple(row_of(each, goal=goal, kept=each is search.kept) for each in search.tried),
        encodings={name: weight.encoding for name, weight in shown.weights.items() if len(weight.shape) == 2},
        errors=shown.made[0].errors,
        tokens_per_second=roof(blueprint, shown.weights, threads),
        recipe=shown.recipe.key(),
    )


def roof(blueprint: Blueprint, weights: Mapping[str, Weight], threads: int) -> float:
    """Tokens a second, if decoding read its weights as fast as this machine reads memory."""
    from cpuinfer import _core

    tables = {op.table for op in blueprint.graph.ops if isinstance(op, Embed)}
    multiplied = _multiplied(blueprint)
    read = sum(weight.packed_bytes for name, weight in weights.items() if name not in tables or name in multiplied)
    return _core.read_bandwidth(min(read, 1 << 30), threads) / read


def _multiplied(blueprint: Blueprint) -> set[str]:
    from cpuinfer.quantize.stages import cut

    return {name for stage in cut(blueprint.graph) for names in stage.shared_inputs() for name in names}


def by_kind(encodings: Mapping[str, str]) -> Sequence[tuple[str, int]]:
    """How many matrices have each encoding, the most first."""
    counts: dict[str, int] = {}
    for encoding in encodings.values():
        counts[encoding] = counts.get(encoding, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])
