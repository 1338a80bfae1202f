"""The scaling study's report: tables of perplexity, what holds of the paper's findings, a plot for each family."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

import kbit_findings
import machine_limits
import peers
import plots
import tables
from blockwise import WHOLE, Variant
from kbit_findings import PLAIN, Claim, Record

FINDINGS = {
    1: "For a fixed number of bits of the model, 4-bit weights are best",
    2: "Small blocks: 64 for 1024 are worth almost what a fifth bit is, and cost 0.24 bit",
    3: "Types of 4 bits: quantile at least as good as float, float better than int, int about as good as dynamic; at 5 "
    "bits int better than float; from 6 bits on all alike",
    4: "Outliers in 16 bits mend 3 bits, which are no match for 4 bits even so, and bring 4 bits nothing",
}
EXPLANATION = """\
Rounded are the matrices of the layers, flattened, block by block: a block's constant is its largest magnitude in fp16,
a weight becomes the nearest number of the type. Embeddings, the head, norms and biases stay, and count 16 bits a
number. The rounded weights are written as fp32 and the model is run by cpuinfer's own kernels on fp32 activations
(`quantize="none"`, `deterministic`), so nothing but the weights differs. Every variant reads the same windows of a
text that no model here was trained on. `float` has 3 bits of exponent (of 3 bits, 2), as in the study;
`half-exponent` has 2 of 4 bits and 4 of 8, and is `float` or without numbers of its own at other widths. `quantile`
and `k-means` are fitted to each tensor's weights over their blocks' constants, and their tables counted. Perplexity
is of the model's own tokens; KL is the divergence from the model as it is, in nats a token. A GGUF file is taken as
what it decodes to: SmolLM2 (Q4_1) and Gemma 3 (Q4_K) have been rounded to 4 bits once before, so "as it is" is no
16-bit model, and types with a grid like the file's get more back than they would of trained weights."""
INTERVALS = """\
Differences are taken window by window; in brackets, the middle 95 % of the means of windows drawn with replacement, so
they say what other text of this kind would change, not what another model would. `holds` and `does not hold`: the
interval lies on one side of what is claimed; else `undecided`. Nothing is corrected for the number of claims. The
paper's claims are of the loss, the logarithm of perplexity; by KL, which chance moves less, they are computed too.
Finding 1 compares the curves of a family, loss by the logarithm of bits, joined linearly, at blocks of 64, over the
bits that both have."""
SHOWN_BLOCK, SHOWN_KIND, SHOWN_BITS = 64, "float", 4


def write(folder: Path, records: Sequence[Record], *, command: str, length: int) -> Path:
    """`report.md` and its pictures; returns the report's path."""
    families = list(dict.fromkeys(record.family for record in records))
    parts = [_heading(command, length), EXPLANATION, _models(records)]
    claims = kbit_findings.find(records)
    if claims:
        parts += ["## The paper's findings", INTERVALS, *_findings(claims)]
    for family in families:
        own = [record for record in records if record.family == family]
        picture = folder / f"{family}.png"
        plot(picture, own)
        parts += [f"## {family}", f"![{family}]({picture.name})"]
        parts += [_perplexities(name, variants) for name, variants in by_model(own).items()]
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def by_model(records: Iterable[Record]) -> dict[str, dict[Variant, Record]]:
    """In the order in which they were measured."""
    found: dict[str, dict[Variant, Record]] = {}
    for record in records:
        found.setdefault(record.model, {})[record.variant] = record
    return found


def _heading(command: str, length: int) -> str:
    brand, _ = machine_limits.processor()
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return (
        f"# k-bit inference scaling on small models, {day}\n\n{brand}; Python {platform.python_version()}, NumPy "
        f"{np.__version__}. Commit {peers.version()}. Windows of {length} tokens. The last command of those that made "
        f"this:\n\n    {command}"
    )


def _models(records: Iterable[Record]) -> str:
    rows = []
    for name, variants in by_model(records).items():
        first = next(iter(variants.values()))
        exact = variants.get(PLAIN)
        cells = [f"{first.layer_weights:,}", f"{first.other_bits / 16:,.0f}", str(len(first.losses))]
        rows.append([name, first.family, *cells, f"{np.exp(exact.loss):.3f}" if exact else tables.UNKNOWN])
    return tables.table(["model", "family", "weights rounded", "other numbers", "windows", "perplexity as it is"], rows)


def _findings(claims: Sequence[Claim]) -> Iterable[str]:
    """Of each finding how often each statement holds, then every number."""
    for number, text in FINDINGS.items():
        own = [claim for claim in claims if claim.finding == number]
        if not own:
            continue
        rows = []
        for statement in dict.fromkeys(claim.statement for claim in own):
            verdicts = [claim.verdict for claim in own if claim.statement == statement]
            counts = [str(verdicts.count(each)) for each in ("holds", "undecided", "does not hold")]
            rows.append([statement, *counts])
        yield f"### {number}. {text}"
        yield tables.table(["statement", "holds", "undecided", "does not hold"], rows, words=1)
        numbers = [[claim.about, claim.statement, claim.measured, claim.verdict] for claim in own]
        detail = tables.table(["of", "statement", "measured", "verdict"], numbers, words=4)
        yield f"<details><summary>every model</summary>\n\n{detail}\n\n</details>"


def _perplexities(name: str, variants: Mapping[Variant, Record]) -> str:
    """A row for each width and type, a column for each block; perplexity and KL."""
    plain = [variant for variant in variants if not variant.outliers and variant != PLAIN]
    blocks = sorted({variant.block for variant in plain}, key=lambda block: block or np.inf)
    rows = []
    for bits, kind in dict.fromkeys((v.bits, v.kind) for v in sorted(plain)):
        found = [variants.get(Variant(bits, kind, block)) for block in blocks]
        rows.append([str(bits), kind, *(_cell(record) for record in found)])
    names = ["none" if block == WHOLE else str(block) for block in blocks]
    text = f"### {name}\n\n{tables.table(['bits', 'type', *(f'block {each}' for each in names)], rows)}"
    kept = sorted(variant for variant in variants if variant.outliers)
    if kept:
        outliers = [[variant.name, _bits(variants[variant]), _cell(variants[variant])] for variant in kept]
        text += (
            f"\n\n{tables.table(['with outliers in 16 bits', 'bits a weight', 'perplexity (KL)'], outliers, words=1)}"
        )
    return text


def _cell(record: Record | None) -> str:
    return tables.UNKNOWN if record is None else f"{np.exp(record.loss):.2f} ({np.mean(record.divergences):.4f})"


def _bits(record: Record) -> str:
    return f"{record.layer_bits / record.layer_weights:.3f}"


Line = list[tuple[float, float]]


def plot(path: Path, records: Sequence[Record]) -> None:
    """As in the paper: of a family, perplexity by the model's bits; of a single model, KL by bits a weight."""
    models = by_model(records)
    if len(models) > 1:
        panels = {
            "float, block 64: bits of all": _by_width(models, total=True),
            "float, block 64: bits of the layers": _by_width(models, total=False),
            "4-bit float by block": _along(models, _blocks_of(records)),
            "4 bits, block 64, by type": _along(models, _kinds_of(records)),
        }
        plots.scaling(path, panels, x="bits", y="perplexity")
    else:
        plots.scaling(path, _of_one(records), x="bits a weight", y="KL from the model as it is, nats a token")


def _by_width(models: Mapping[str, Mapping[Variant, Record]], *, total: bool) -> dict[str, Line]:
    lines = {}
    for bits in sorted({variant.bits for variants in models.values() for variant in variants}):
        variant = PLAIN if bits == PLAIN.bits else Variant(bits, SHOWN_KIND, SHOWN_BLOCK)
        if points := _points(kbit_findings.curve(models, variant, total=total), total=total):
            lines[f"{bits}-bit"] = points
    return lines


def _points(records: Iterable[Record], *, total: bool) -> Line:
    return [(record.total_bits if total else record.layer_bits, float(np.exp(record.loss))) for record in records]


def _along(models: Mapping[str, Mapping[Variant, Record]], variants: Mapping[str, Variant]) -> dict[str, Line]:
    found = {
        name: _points(kbit_findings.curve(models, each, total=False), total=False) for name, each in variants.items()
    }
    return {name: line for name, line in found.items() if line}


def _blocks_of(records: Iterable[Record]) -> dict[str, Variant]:
    blocks = sorted({record.variant.block for record in records if record.variant != PLAIN}, key=lambda b: b or np.inf)
    named = {("none" if block == WHOLE else str(block)): block for block in blocks}
    return {name: Variant(SHOWN_BITS, SHOWN_KIND, block) for name, block in named.items()}


def _kinds_of(records: Iterable[Record]) -> dict[str, Variant]:
    kinds = dict.fromkeys(record.variant.kind for record in records if record.variant.bits == SHOWN_BITS)
    return {kind: Variant(SHOWN_BITS, kind, SHOWN_BLOCK) for kind in kinds}


def _of_one(records: Sequence[Record]) -> dict[str, dict[str, Line]]:
    plain = [record for record in records if record.variant != PLAIN and not record.variant.outliers]
    by_kind: dict[str, Line] = {}
    by_block: dict[str, Line] = {}
    for record in sorted(plain, key=lambda each: each.layer_bits):
        point = record.layer_bits / record.layer_weights, float(np.mean(record.divergences))
        if record.variant.block == SHOWN_BLOCK:
            by_kind.setdefault(record.variant.kind, []).append(point)
        if record.variant.kind == SHOWN_KIND:
            block = "none" if record.variant.block == WHOLE else str(record.variant.block)
            by_block.setdefault(block, []).append(point)
    return {"block 64, by type": by_kind, "float, by block": by_block}
