"""Two results side by side: pairs of the same items, or two samples of different ones, and whether they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpuinfer.errors import InvalidRequest
from cpuinfer.evaluate.records import read_record, to_record

if TYPE_CHECKING:
    from cpuinfer.evaluate.resampling import Sample

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of both results.

    Attributes:
        measure: its name and unit; of choices, the normalisation whose accuracy it is.
        a, b: what each result has.
        difference: b - a.
        low, high: its 95 % interval, by the percentiles of the bootstrap over items.
        p_value: two-sided, of a permutation test: signs of the pairs' differences, or items shared out anew.
        mcnemar_p: for accuracies of the same questions, McNemar's exact test; else None.
        only_a, only_b: of those, the questions that only one gets right.
    """

    measure: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float
    mcnemar_p: float | None = None
    only_a: int | None = None
    only_b: int | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two results of one kind.

    Attributes:
        of: perplexity, kld or choice.
        a, b: model and data of each.
        paired: whether the items are the same, and so compared one by one.
        items_a, items_b: how many windows or questions.
        resamples, seed: of the bootstrap and of permutations, where there are too many to try all.
        differences: one for each measure.
    """

    of: str
    a: str
    b: str
    paired: bool
    items_a: int
    items_b: int
    resamples: int
    seed: int
    differences: tuple[Difference, ...]


def compare(a: object, b: object, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Whether two results differ by more than chance.

    The same items (windows of one text, or questions) are compared in pairs: two models.  Different items are compared
    as two samples: one model on two sets, such as a public one and its private twin; that the model does better on one
    is then the question.

    Args:
        a, b: results of this package, or files of them.
        resamples: drawn for intervals, and for p-values where there are more arrangements than that.

    Raises InvalidRequest where they are of different kinds, or share some items but not all.
    """
    for name, value, least in (("resamples", resamples, 100), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidRequest(f"{name}: {value!r}, expected an integer of at least {least}")
    sides = [_Side(each) for each in (a, b)]
    first, second = sides
    if first.kind != second.kind:
        raise InvalidRequest(f"{first.name} is a result of {first.kind}, {second.name} of {second.kind}")
    paired = _pair(first, second)
    differences = tuple(
        _difference(measure, sample, second.samples[measure], paired=paired, resamples=resamples, seed=seed)
        for measure, sample in first.samples.items()
        if measure in second.samples
    )
    if paired and first.kind == "choice":
        differences = tuple(
            _with_mcnemar(found, first.samples[found.measure], second.samples[found.measure]) for found in differences
        )
    return Comparison(
        of=first.kind,
        a=first.title,
        b=second.title,
        paired=paired,
        items_a=len(first.keys),
        items_b=len(second.keys),
        resamples=resamples,
        seed=seed,
        differences=differences,
    )


class _Side:
    """One result, as samples by measure.  Raises InvalidRequest for a record that lacks what its kind has."""

    def __init__(self, result: object) -> None:
        stored = isinstance(result, (str, Path))
        self.name = str(result) if stored else type(result).__name__
        record = read_record(Path(str(result))) if stored else to_record(result)
        self.kind: str = record["kind"]
        if self.kind not in _SAMPLES:
            raise InvalidRequest(f"{self.name}: is a comparison, expected a result of {', '.join(_SAMPLES)}")
        try:
            source = record["source"] if self.kind == "choice" else record["text"]["name"]
            self.title = f"{record['model']['name']} on {source}"
            self.keys = _keys(record)
            self.samples = _SAMPLES[self.kind](record)
            self.tokenizer = record["model"]["tokenizer"]
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise InvalidRequest(f"{self.name}: is damaged: it lacks {error}") from None

    def sort(self) -> None:
        """Bring the items to the order of their keys, in which two of the same can be paired."""
        import numpy as np

        from cpuinfer.evaluate.resampling import Sample

        order = np.argsort(np.array(self.keys), kind="stable")
        self.samples = {name: Sample(s.sums[order], s.counts[order]) for name, s in self.samples.items()}


def _keys(record: Mapping[str, Any]) -> list[str]:
    """Of equal items equal."""
    if record["kind"] == "choice":
        return [item["key"] for item in record["items"]]
    reading = f"{record['text']['sha256']} {record['model']['tokenizer']}"
    return [f"{reading} {item['start']} {item['tokens']}" for item in record["items"]]


def _pair(a: _Side, b: _Side) -> bool:
    """Whether the items are the same, which are then put in one order."""
    if a.keys == b.keys:
        return True
    if sorted(a.keys) == sorted(b.keys):
        a.sort()
        b.sort()
        return True
    if shared := len(set(a.keys) & set(b.keys)):
        raise InvalidRequest(
            f"{a.name} and {b.name} share {shared} of {len(a.keys)} and {len(b.keys)} items: "
            "expected all, to compare in pairs, or none, to compare two samples"
        )
    if a.kind != "choice":
        if a.tokenizer != b.tokenizer:
            raise InvalidRequest(
                f"{a.name} and {b.name} are of different tokenizers, whose tokens can't be compared: "
                "compare their bits per byte"
            )
        if a.keys[0].split()[0] == b.keys[0].split()[0]:
            raise InvalidRequest(f"{a.name} and {b.name} cut the same text otherwise: expected one window and stride")
    return False


def _difference(measure: str, a: Sample, b: Sample, *, paired: bool, resamples: int, seed: int) -> Difference:
    from cpuinfer.evaluate import resampling

    if not paired:
        low, high = resampling.two_sample_bootstrap(a, b, resamples=resamples, seed=seed)
        p_value = resampling.permutation_p(a, b, resamples=resamples, seed=seed)
        return Difference(measure, a.mean, b.mean, b.mean - a.mean, low, high, p_value)
    low, high = resampling.paired_bootstrap(a, b, resamples=resamples, seed=seed)
    p_value = resampling.sign_flip_p(b.sums - a.sums, resamples=resamples, seed=seed)
    return Difference(measure, a.mean, b.mean, b.mean - a.mean, low, high, p_value)


def _with_mcnemar(found: Difference, a: Sample, b: Sample) -> Difference:
    from cpuinfer.evaluate import resampling

    only_a, only_b = (int((x.sums > y.sums).sum()) for x, y in ((a, b), (b, a)))
    return replace(found, mcnemar_p=resampling.mcnemar_p(only_a, only_b), only_a=only_a, only_b=only_b)


def _window_samples(record: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Sample]:
    import numpy as np

    from cpuinfer.evaluate.resampling import Sample

    counts = np.array([item["tokens"] for item in record["items"]], np.float64)
    return {
        measure: Sample(np.array([item[field] for item in record["items"]], np.float64), counts)
        for measure, field in fields.items()
    }


def _perplexity_samples(record: Mapping[str, Any]) -> dict[str, Sample]:
    return _window_samples(record, {"nats a token": "loss"})


def _divergence_samples(record: Mapping[str, Any]) -> dict[str, Sample]:
    fields = {"KL, nats a token": "divergence", "same top": "same_top", "nats a token": "loss"}
    return _window_samples(record, fields)


def _choice_samples(record: Mapping[str, Any]) -> dict[str, Sample]:
    import numpy as np

    from cpuinfer.evaluate.resampling import Sample

    items = record["items"]
    names = [found["normalisation"] for found in record["accuracies"]]
    return {
        name: Sample(np.array([item["picked"][i] == item["answer"] for item in items], np.float64), np.ones(len(items)))
        for i, name in enumerate(names)
    }


_SAMPLES = {"perplexity": _perplexity_samples, "kld": _divergence_samples, "choice": _choice_samples}
