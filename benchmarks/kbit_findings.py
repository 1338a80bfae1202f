"""Which findings of the scaling study hold for what was measured, computed with intervals.

Every model reads the same windows in every variant, so differences are taken window by window; an interval is the
middle 95 % of means over windows drawn with replacement, the same draws everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from blockwise import WHOLE, Variant

Doubles = npt.NDArray[np.float64]

DRAWS = 2000
PLAIN = Variant(16, "none", WHOLE)
"""The model as it is."""
STUDIED_BLOCK = 64
NEGLIGIBLE = 0.01
"""Nats a token, 1 % of perplexity: what differs by less counts as alike."""

Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True, slots=True)
class Record:
    """One variant of one model, measured."""

    model: str
    family: str
    variant: Variant
    layer_bits: float
    """Of the matrices that are rounded."""
    other_bits: float
    """Of all else."""
    layer_weights: int
    losses: tuple[float, ...]
    """Nats a token by window."""
    divergences: tuple[float, ...]
    """From the model as it is, by window."""

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))

    def by(self, measure: str) -> Doubles:
        """Windows of "loss" or of "KL"."""
        return np.array(self.losses if measure == "loss" else self.divergences)

    @property
    def total_bits(self) -> float:
        return self.layer_bits + self.other_bits


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def positive(self) -> Verdict:
        """Whether the number is greater than 0."""
        return "holds" if self.low > 0 else "does not hold" if self.high < 0 else "undecided"


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of the study about one model or family."""

    finding: int
    about: str
    statement: str
    measured: str
    verdict: Verdict


def estimate(values: Sequence[Doubles], combine: Callable[..., Doubles | float] | None = None) -> Estimate:
    """Of the mean of one series of windows; or of what `combine` makes of the means of several, all drawn alike."""
    arrays = [np.asarray(each, np.float64) for each in values]
    generator = np.random.default_rng(0)
    drawn = generator.integers(arrays[0].size, size=(DRAWS, arrays[0].size))
    means = [each[drawn].mean(axis=1) for each in arrays]
    whole = [each.mean() for each in arrays]
    results = np.asarray(means[0] if combine is None else combine(*means))
    low, high = np.quantile(results, (0.025, 0.975))
    return Estimate(float(whole[0] if combine is None else combine(*whole)), float(low), float(high))


def find(records: Iterable[Record]) -> list[Claim]:
    """All claims that can be computed of these."""
    by_model: dict[str, dict[Variant, Record]] = {}
    for record in records:
        by_model.setdefault(record.model, {})[record.variant] = record
    families: dict[str, dict[str, dict[Variant, Record]]] = {}
    for model, found in by_model.items():
        families.setdefault(next(iter(found.values())).family, {})[model] = found
    claims = [claim for family, models in families.items() for claim in _fixed_bits(family, models)]
    for model, found in by_model.items():
        for measure in ("loss", "KL"):
            parts = _blocks(found, measure), _types(found, measure), _stability(found, measure)
            claims += [replace(claim, about=model) for part in parts for claim in part]
    return sorted(claims, key=lambda claim: claim.finding)


def curve(models: Mapping[str, Mapping[Variant, Record]], variant: Variant, *, total: bool) -> list[Record]:
    """A variant of every model of a family that has it, by bits."""
    found = [variants[variant] for variants in models.values() if variant in variants]
    return sorted(found, key=lambda record: record.total_bits if total else record.layer_bits)


def advantage(ours: Sequence[Record], theirs: Sequence[Record], *, total: bool) -> Estimate | None:
    """Mean loss of the second curve less the first's, where both are, at the same bits: linear in their logarithm."""

    def points(records: Sequence[Record]) -> tuple[Doubles, Doubles]:
        bits = [record.total_bits if total else record.layer_bits for record in records]
        return np.log2(bits), np.array([record.losses for record in records])

    (x, y), (other_x, other_y) = points(ours), points(theirs)
    low, high = max(x[0], other_x[0]), min(x[-1], other_x[-1])
    if len(x) < 2 or len(other_x) < 2 or low >= high:
        return None
    places = np.linspace(low, high, 33)

    def along(at: Doubles, losses: Doubles) -> Doubles:
        return np.mean([np.interp(places, at, window) for window in losses.T], axis=1)

    return estimate([along(other_x, other_y) - along(x, y)])


def _fixed_bits(family: str, models: Mapping[str, Mapping[Variant, Record]]) -> Iterable[Claim]:
    """Finding 1: of all models of so many bits, the one of 4-bit weights is best."""
    for kind in ("float", "int", "quantile"):
        for total in (False, True):
            ours = curve(models, Variant(4, kind, STUDIED_BLOCK), total=total)
            for bits in (3, 5, 6, 8):
                theirs = curve(models, Variant(bits, kind, STUDIED_BLOCK), total=total)
                if (gain := advantage(ours, theirs, total=total) if ours and theirs else None) is None:
                    continue
                counted = "all bits" if total else "bits of the layers"
                statement = f"{kind}, at the same {counted}: 4 bits lose less than {bits}"
                yield Claim(1, family, statement, f"{gain} nats less", gain.positive)


def _blocks(found: Mapping[Variant, Record], measure: str) -> Iterable[Claim]:
    """Finding 2: blocks of 64 for 1024 are worth almost as much as 5 bits for 4; 64 to 128 is best for the bits."""
    for kind in ("float", "int", "quantile"):
        large, small = found.get(Variant(4, kind, 1024)), found.get(Variant(4, kind, STUDIED_BLOCK))
        five = found.get(Variant(5, kind, 1024))
        if large is None or small is None or five is None:
            continue
        series = [record.by(measure) for record in (large, small, five)]
        gain = estimate([series[0] - series[1]])
        yield Claim(
            2, "", f"{measure}, {kind}: blocks of 64 lose less than of 1024", f"{gain} nats less", gain.positive
        )
        share = estimate(series, lambda a, b, c: (a - b) / np.maximum(a - c, 1e-9))
        verdict: Verdict = "holds" if share.low > 0.5 else "does not hold" if share.high < 0.5 else "undecided"
        measured = f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"
        yield Claim(2, "", f"{measure}, {kind}: that is worth more than half of a fifth bit", measured, verdict)


def _types(found: Mapping[Variant, Record], measure: str) -> Iterable[Claim]:
    """Finding 3: of 4 bits quantile is at least float, float beats int, int is about dynamic; from 6 bits on alike."""
    for bits, better, worse in (
        *((4, "quantile", "float"), (4, "float", "int"), (4, "quantile", "int"), (4, "float", "dynamic")),
        *((4, "nf4", "float"), (4, "nf4", "int"), (4, "af4", "nf4"), (4, "k-means", "nf4")),
        (5, "int", "float"),
    ):
        first, second = (found.get(Variant(bits, kind, STUDIED_BLOCK)) for kind in (better, worse))
        if first is None or second is None:
            continue
        gain = estimate([second.by(measure) - first.by(measure)])
        statement = f"{measure}, {bits} bits, block 64: {better} loses less than {worse}"
        yield Claim(3, "", statement, f"{gain} nats less", gain.positive)
    for bits in (6, 8):
        own = [r for v, r in found.items() if v.bits == bits and v.block == STUDIED_BLOCK and not v.outliers]
        if len(own) > 1:
            ends = sorted(own, key=lambda record: float(record.by(measure).mean()))
            gap = estimate([ends[-1].by(measure) - ends[0].by(measure)])
            verdict: Verdict = (
                "holds" if gap.high < NEGLIGIBLE else "does not hold" if gap.low > NEGLIGIBLE else "undecided"
            )
            kinds = f"{ends[0].variant.kind} to {ends[-1].variant.kind}"
            statement = f"{measure}, {bits} bits, block 64: types differ by less than {NEGLIGIBLE} nats"
            yield Claim(3, "", statement, f"{gap} nats, {kinds}", verdict)


def _stability(found: Mapping[Variant, Record], measure: str) -> Iterable[Claim]:
    """Finding 4: outliers in 16 bits mend 3 bits, which still are no match for 4 bits; 4 bits gain nothing."""
    for kind in ("float", "int"):
        for block in (STUDIED_BLOCK, 1024):
            plain = {bits: found.get(Variant(bits, kind, block)) for bits in (3, 4)}
            kept = {
                bits: next((r for v, r in found.items() if (v.bits, v.kind, v.block) == key and v.outliers), None)
                for bits, key in ((bits, (bits, kind, block)) for bits in (3, 4))
            }
            if (three := kept[3]) is None or (four := kept[4]) is None or plain[3] is None or plain[4] is None:
                continue
            where = f"{measure}, {kind}, {three.variant.name.split(', ')[1]}"
            gain = estimate([plain[3].by(measure) - three.by(measure)])
            yield Claim(4, "", f"{where}: 2 % in 16 bits make 3 bits lose less", f"{gain} nats less", gain.positive)
            lead = estimate([three.by(measure) - plain[4].by(measure)])
            yield Claim(4, "", f"{where}: plain 4 bits lose less still", f"{lead} nats less", lead.positive)
            left = estimate([plain[4].by(measure) - four.by(measure)])
            verdict: Verdict = (
                "holds" if left.high < NEGLIGIBLE else "does not hold" if left.low > NEGLIGIBLE else "undecided"
            )
            statement = f"{where}: at 4 bits they gain less than {NEGLIGIBLE} nats"
            yield Claim(4, "", statement, f"{left} nats less", verdict)
