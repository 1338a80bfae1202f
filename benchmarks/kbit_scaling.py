"""The k-bit scaling study (arXiv 2212.09720) on small models: bits, types and block sizes against perplexity.

    PYTHONPATH=tests python tests/train_tiny.py                 (once, and long; the models)
    python benchmarks/kbit_scaling.py --out FOLDER [--quick] [MODEL ...]      (needs the extras `bench` and `test`)

MODEL: a folder or GGUF file; by default the trained ones in the cache folder.  What is measured is kept in
FOLDER/records.jsonl and not measured again; FOLDER/report.md and a plot for each family are written after each model.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

import blockwise
import code_books
import kbit_models
import kbit_report
from blockwise import WHOLE, Variant
from cpuinfer.store.cache import cache_folder
from kbit_findings import PLAIN, Record

BITS = (3, 4, 5, 6, 8)
KINDS = (*code_books.FIXED, *code_books.FITTED)
BLOCKS = (64, 1024, 128, 256, 32, WHOLE)
"""In the order in which they are measured: a study that is cut short can say something."""
QUICK_BITS, QUICK_KINDS, QUICK_BLOCKS = (3, 4, 5, 8), ("int", "float", "quantile", "nf4"), (64, 1024)
OUTLIERS = 0.02
FLOAT_BITS = 16
"""Of a number that is not rounded."""


def grid(*, quick: bool) -> list[Variant]:
    """All variants, the model as it is first."""
    widths, kinds, blocks = (QUICK_BITS, QUICK_KINDS, QUICK_BLOCKS) if quick else (BITS, KINDS, BLOCKS)
    plain = [Variant(b, k, block) for block in blocks for b in widths for k in kinds if code_books.applies(k, b)]
    kept = [Variant(b, k, block, OUTLIERS) for b in (3, 4) for k in ("int", "float") for block in (64, 1024)]
    return sorted([PLAIN, *plain, *kept], key=lambda variant: variant != PLAIN and blocks.index(variant.block))


def trained(folder: Path) -> list[Path]:
    """The models of tests/train_tiny.py, smallest first."""
    found = [path.parent for path in folder.glob("*/training.json")]
    return sorted(found, key=lambda path: (path / "model.safetensors").stat().st_size)


def rounded(model: kbit_models.Model, variant: Variant) -> tuple[dict[str, kbit_models.Floats], float]:
    """The model's matrices, and the bits they take."""
    matrices, bits = {}, 0.0
    for name, values in model.matrices.items():
        if variant == PLAIN:
            matrices[name], bits = values, bits + FLOAT_BITS * values.size
            continue
        writer = kbit_models.writer(model, name) if variant.outliers else None
        kept = None if writer is None else blockwise.outlying(writer, variant.outliers)
        matrices[name] = blockwise.rounded(values, variant, kept)
        bits += blockwise.bits_of(values.shape, variant, 0 if kept is None else int(kept.sum()))
    return matrices, bits


class Study:
    """Measures variants, and keeps what was measured."""

    def __init__(self, out: Path, text: Path, *, count: int, length: int, threads: int | None) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._file = out / "records.jsonl"
        self._text, self._count, self._length, self._threads = text, count, length, threads
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self.records = [_parsed(line) for line in lines]

    def run(self, path: Path, variants: Iterable[Variant]) -> None:
        """One model; its predictions as it is are made first, if anything is missing."""
        done = {record.variant for record in self.records if record.model == path.stem}
        missing = [variant for variant in variants if variant not in done]
        if not path.is_dir():  # names there do not say which matrix writes what another reads
            missing = [variant for variant in missing if not variant.outliers]
        if not missing:
            return
        model = kbit_models.read(path)
        texts = kbit_models.windows(path, self._text, count=self._count, length=self._length)
        exact, _ = self._measure(model, PLAIN, texts)
        before = next((each for each in self.records if (each.model, each.variant) == (model.name, PLAIN)), None)
        if before is not None and not _alike(before.losses, exact.losses):
            raise SystemExit(f"{self._file}: {model.name} was another model or read other windows; give another --out")
        for number, variant in enumerate(missing):
            found, bits = self._measure(model, variant, texts)
            losses, divergences = tuple(found.losses.tolist()), tuple(exact.divergence(found).tolist())
            record = Record(
                model=model.name,
                family=model.family,
                variant=variant,
                layer_bits=bits,
                other_bits=FLOAT_BITS * model.others,
                layer_weights=model.layer_weights,
                losses=losses,
                divergences=divergences,
            )
            self.records.append(record)
            with self._file.open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")
            print(f"{model.name} {number + 1}/{len(missing)} {variant.name}: {np.exp(record.loss):.3f}", flush=True)

    def _measure(
        self, model: kbit_models.Model, variant: Variant, texts: list[list[int]]
    ) -> tuple[kbit_models.Predicted, float]:
        """What it predicts, and the bits of its layers."""
        matrices, bits = rounded(model, variant)
        with tempfile.TemporaryDirectory() as folder:
            path = kbit_models.write(model, matrices, Path(folder))
            return kbit_models.predict(path, texts, threads=self._threads), bits


def _alike(a: Sequence[float], b: npt.NDArray[np.float64]) -> bool:
    """Whether the same windows were read by the same model; kernel sets may differ in their last bits."""
    return len(a) == len(b) and np.allclose(a, b, rtol=1e-4)


def _parsed(line: str) -> Record:
    values = json.loads(line)
    variant = Variant(**values.pop("variant"))
    losses, divergences = (tuple(values.pop(name)) for name in ("losses", "divergences"))
    return Record(variant=variant, losses=losses, divergences=divergences, **values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a part of the grid: some types, blocks of 64 and 1024")
    parser.add_argument("--trained", type=Path, default=cache_folder() / "trained")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=256, help="tokens of a window; what the models were trained on")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    text = options.trained / "text" / "heldout.txt"
    settings = {"count": options.windows, "length": options.length, "threads": options.threads}
    study = Study(options.out, text, **settings)
    for path in options.models or trained(options.trained):
        study.run(path, grid(quick=options.quick))
        kbit_report.write(options.out, study.records, command=shlex.join(["python", *sys.argv]), length=options.length)


if __name__ == "__main__":
    main()
