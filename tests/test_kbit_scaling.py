"""The scaling study rounds as the paper says, counts bits, and finds what was put into made-up measurements."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import tiny_folder
from tiny_gguf import write_tiny_llama

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import blockwise
import code_books
import kbit_findings
import kbit_models
import kbit_report
import kbit_scaling
from blockwise import WHOLE, Variant
from kbit_findings import PLAIN, Record

E2M1 = (0, 1 / 48, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1)
E3M0 = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
DYNAMIC = (0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875)
AF4 = (
    *(-1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0),
    *(0.04273164, 0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0),
)
NF4 = (
    *(-1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0),
)


def both_signs(magnitudes: tuple[float, ...]) -> list[float]:
    return sorted({sign * m for m in magnitudes for sign in (-1, 1)})


@pytest.mark.parametrize(
    ("kind", "bits", "published"),
    [
        ("int", 4, [i / 7 for i in range(-7, 8)]),
        ("int", 3, [-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1]),
        ("float", 4, both_signs(E3M0)),
        ("float", 3, both_signs((0, 0.25, 0.5, 1))),
        ("half-exponent", 4, both_signs(E2M1)),
        ("dynamic", 4, [*both_signs(DYNAMIC)[:7], 0, *DYNAMIC, 1]),
        ("nf4", 4, NF4),
        ("af4", 4, AF4),
    ],
)
def test_a_code_book_holds_the_published_numbers(kind: str, bits: int, published: list[float]) -> None:
    assert code_books.fixed(kind, bits) == pytest.approx(published, abs=1e-7)


@pytest.mark.parametrize("bits", range(3, 9))
def test_a_code_book_has_no_more_numbers_than_its_bits_can_name(bits: int) -> None:
    sample = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    for kind in (*code_books.FIXED, *code_books.FITTED):
        if code_books.applies(kind, bits):
            fitted = kind in code_books.FITTED
            levels = code_books.fitted(kind, bits, sample) if fitted else code_books.fixed(kind, bits)
            unused = {"int": 1, "float": 1, "half-exponent": 1}.get(kind, 0)  # -2**(bits - 1) and -0
            assert len(levels) == 2**bits - unused
            assert (np.diff(levels) > 0).all()
            assert kind == "k-means" or np.abs(levels).max() == 1


def test_quantiles_of_an_even_spread_are_even() -> None:
    levels = code_books.fitted("quantile", 4, np.linspace(-1, 1, 4801, dtype=np.float32))
    assert np.diff(np.delete(levels, np.argmin(np.abs(levels)))) == pytest.approx(2 / 14, abs=1e-3)


def test_nearest_is_what_trying_every_level_finds() -> None:
    unit = np.random.default_rng(0).uniform(-1.01, 1.01, 3000).astype(np.float32)
    for kind in code_books.FIXED:
        levels = code_books.fixed(kind, 4)
        distance = np.abs(unit[:, None].astype(np.float64) - levels)
        chosen = distance[np.arange(unit.size), blockwise.nearest(unit, levels)]
        assert chosen == pytest.approx(distance.min(axis=1), abs=1e-7)  # which of two as near is left open


@pytest.mark.parametrize("block", [32, 100, WHOLE])
def test_rounding_goes_block_by_block_over_the_flattened_matrix(block: int) -> None:
    weights = np.random.default_rng(1).normal(size=(7, 50)).astype(np.float32)
    weights[2] = 0
    variant = Variant(4, "int", block)
    found = blockwise.rounded(weights, variant).ravel()
    flat = weights.ravel()
    for begin in range(0, flat.size, block or flat.size):
        piece = flat[begin : begin + (block or flat.size)]
        constant = np.float32(np.float16(np.abs(piece).max()))
        for value, got in zip(piece, found[begin:], strict=False):
            candidates = [constant * np.float32(level / 7) for level in range(-7, 8)]
            best = min(abs(float(value) - float(each)) for each in candidates)
            assert abs(float(value) - float(got)) == pytest.approx(best, abs=1e-6)


def test_k_means_has_less_error_than_any_table_that_knows_nothing_of_the_weights() -> None:
    weights = np.random.default_rng(2).standard_t(4, size=(64, 256)).astype(np.float32)
    error = {
        kind: np.square(blockwise.rounded(weights, Variant(4, kind, 64)) - weights).sum()
        for kind in ("int", "float", "dynamic", "nf4", "af4", "quantile", "k-means")
    }
    assert min(error, key=lambda kind: error[kind]) == "k-means"


def test_k_means_minds_the_errors_of_weights_in_large_blocks_more() -> None:
    generator = np.random.default_rng(8)
    unit = np.concatenate([generator.uniform(0.4, 0.6, 5000), generator.uniform(-0.6, -0.4, 5000)]).astype(np.float32)
    size = np.repeat(np.float32([100, 1]), 5000)
    levels = code_books.fitted("k-means", 4, unit, size)
    assert (levels > 0).sum() > (levels < 0).sum()


def test_inputs_kept_in_16_bits_are_those_of_the_most_varied_rows_before() -> None:
    writer = np.random.default_rng(3).normal(size=(100, 64)).astype(np.float32)
    writer[[7, 31]] *= 3
    kept = blockwise.outlying(writer, 0.02)
    assert np.flatnonzero(kept).tolist() == [7, 31]
    weights = np.random.default_rng(4).normal(size=(8, 100)).astype(np.float32)
    found = blockwise.rounded(weights, Variant(3, "float", 64, 0.02), kept)
    assert (found[:, kept] == weights[:, kept]).all()
    assert (found[:, ~kept] != weights[:, ~kept]).any()


def test_bits_are_codes_constants_tables_and_what_stays() -> None:
    shape = (256, 1000)
    count = 256_000
    assert blockwise.bits_of(shape, Variant(4, "int", 64)) == count * 4.25
    assert blockwise.bits_of(shape, Variant(4, "int", 1024)) == count * (4 + 16 / 1024)
    assert blockwise.bits_of(shape, Variant(4, "int", WHOLE)) == count * 4 + 16
    assert blockwise.bits_of(shape, Variant(4, "quantile", WHOLE)) == count * 4 + 16 + 16 * 16
    outliers = blockwise.bits_of(shape, Variant(4, "int", WHOLE, 0.02), kept=20)
    assert outliers == pytest.approx(count * (4 + 0.24), rel=1e-4)  # the paper's p (16 - k)


def record(model: str, variant: Variant, weights: int, loss: Callable[[], np.ndarray], family: str = "f") -> Record:
    bits = weights * (16 if variant == PLAIN else blockwise.bits_of((weights // 64, 64), variant) / weights)
    return Record(model, family, variant, bits, 0.0, weights, tuple(loss().tolist()), (0.0,) * 32)


def made_up(best: int, noise: float = 1e-4) -> list[Record]:
    """Three sizes; the loss falls by 0.3 with each doubling of bits and is least, at the same bits, for `best`."""
    generator = np.random.default_rng(5)
    found = []
    for size in (1, 2, 4, 8):
        for bits in (3, 4, 5, 6, 8):
            variant = Variant(bits, "float", 64)
            weights = size * 2**16
            level = 5 - 0.3 * np.log2(blockwise.bits_of((weights // 64, 64), variant)) + 0.1 * abs(bits - best)
            found.append(record(f"m{size}", variant, weights, lambda x=level: x + noise * generator.normal(size=32)))
    return found


def verdicts(records: list[Record], finding: int) -> dict[str, str]:
    claims = [c for c in kbit_findings.find(records) if c.finding == finding and not c.statement.startswith("KL")]
    return {f"{claim.about}: {claim.statement}": claim.verdict for claim in claims}


def test_the_best_width_at_the_same_bits_is_found() -> None:
    held = verdicts(made_up(best=4), 1)
    assert len(held) == 8  # three other widths and 8 bits, by two ways of counting
    assert set(held.values()) == {"holds"}
    other = {name.split()[-1]: verdict for name, verdict in verdicts(made_up(best=5), 1).items()}
    assert (other["3"], other["5"], other["8"]) == ("holds", "does not hold", "holds")
    assert set(verdicts(made_up(best=4, noise=5.0), 1).values()) == {"undecided"}


def test_the_advantage_between_parallel_lines_is_their_distance() -> None:
    def line(width: int, lift: float) -> list[Record]:
        sizes = [2**16, 2**18, 2**20]
        variants = [Variant(width, "float", WHOLE)] * 3
        levels = [9 - 0.25 * np.log2(size * width) + lift for size in sizes]
        return [
            Record("m", "f", v, size * width, 0.0, size, (level,) * 32, (0.0,) * 32)
            for v, size, level in zip(variants, sizes, levels, strict=True)
        ]

    found = kbit_findings.advantage(line(4, 0.0), line(3, 0.125), total=True)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.125, 0.125, 0.125))
    assert kbit_findings.advantage(line(4, 0.0), line(3, 0.1)[:1], total=True) is None


def test_an_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(6).normal(1.0, 0.5, size=400)
    found = kbit_findings.estimate([values])
    error = values.std(ddof=1) / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.low) == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_blocks_types_and_outliers_are_judged_by_their_losses() -> None:
    losses = {
        Variant(4, "float", 1024): 0.5,
        Variant(4, "float", 64): 0.1,
        Variant(5, "float", 1024): 0.05,
        Variant(4, "int", 64): 0.2,
        Variant(4, "dynamic", 64): 0.05,
        Variant(3, "float", 64): 1.0,
        Variant(3, "float", 64, 0.02): 0.4,
        Variant(4, "float", 64, 0.02): 0.099,
        Variant(6, "float", 64): 0.004,
        Variant(6, "int", 64): 0.002,
        Variant(8, "float", 64): 0.1,
        Variant(8, "int", 64): 0.0,
    }
    generator = np.random.default_rng(7)
    records = [
        record("m", variant, 2**16, lambda x=level: 3 + x + 1e-4 * generator.normal(size=32))
        for variant, level in losses.items()
    ]
    assert verdicts(records, 2) == {
        "m: loss, float: blocks of 64 lose less than of 1024": "holds",
        "m: loss, float: that is worth more than half of a fifth bit": "holds",
    }
    assert verdicts(records, 3) == {
        "m: loss, 4 bits, block 64: float loses less than int": "holds",
        "m: loss, 4 bits, block 64: float loses less than dynamic": "does not hold",
        "m: loss, 6 bits, block 64: types differ by less than 0.01 nats": "holds",
        "m: loss, 8 bits, block 64: types differ by less than 0.01 nats": "does not hold",
    }
    assert list(verdicts(records, 4).values()) == ["holds", "holds", "holds"]
    swapped = [replace(each, losses=each.divergences, divergences=each.losses) for each in records]
    by_kl = [c for c in kbit_findings.find(swapped) if c.statement.startswith("KL")]
    by_loss = [c for c in kbit_findings.find(records) if c.statement.startswith("loss")]
    assert [c.measured for c in by_kl] == [c.measured for c in by_loss]
    useful = replace(records[0], variant=Variant(4, "float", 64, 0.02), losses=(3.0,) * 32)
    assert list(verdicts([*records, useful], 4).values()) == ["holds", "holds", "does not hold"]


def test_a_study_measures_once_and_writes_its_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    whole = write_tiny_llama(tmp_path / "tiny.gguf", encoding="F32", embedding="F32")
    folder = tiny_folder.write_folder(tmp_path / "tiny", tiny_folder.tensors_of(whole))
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog ran to the hill " * 40)
    variants = [PLAIN, Variant(3, "int", 64), Variant(8, "int", 64), Variant(3, "int", 64, 0.02)]
    study = kbit_scaling.Study(tmp_path / "out", text, count=3, length=24, threads=1)
    study.run(folder, variants)
    study.run(folder, variants)
    again = kbit_scaling.Study(tmp_path / "out", text, count=3, length=24, threads=1)
    again.run(folder, variants)
    assert again.records == study.records
    assert [each.variant for each in study.records] == variants
    exact, three, eight, kept = study.records
    assert exact.divergences == (0.0, 0.0, 0.0)
    assert np.mean(three.divergences) > 10 * np.mean(eight.divergences) > 0
    assert kept.layer_bits > three.layer_bits > 3.25 * three.layer_weights - 1
    other = kbit_scaling.Study(tmp_path / "out", text, count=2, length=20, threads=1)
    with pytest.raises(SystemExit, match="read other windows"):
        other.run(folder, [*variants, Variant(4, "int", 64)])
    report = kbit_report.write(tmp_path / "out", study.records, command="c", length=24)
    assert "| tiny | llama |" in report.read_text()
    assert (tmp_path / "out" / "llama.png").read_bytes().startswith(b"\x89PNG")


def test_divergence_is_the_mean_over_tokens_of_their_distributions_divergence() -> None:
    raw = np.random.default_rng(9).normal(size=(2, 2, 3, 5))
    logprobs = (raw - np.log(np.exp(raw).sum(axis=-1, keepdims=True))).astype(np.float32)
    ours, theirs = (kbit_models.Predicted(each, np.zeros(2)) for each in logprobs)
    expected = [
        sum(np.exp(p) * (p - q) for p, q in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)) / 3
        for a, b in zip(*logprobs, strict=True)
    ]
    assert ours.divergence(theirs) == pytest.approx(expected, abs=1e-6)


def test_matrices_take_the_place_of_a_gguf_file_s(tiny_model: Path, tmp_path: Path) -> None:
    model = kbit_models.read(tiny_model)
    changed = {name: values + 1 for name, values in model.matrices.items()}
    found = gguf.GGUFReader(kbit_models.write(model, changed, tmp_path)).tensors
    before = gguf.GGUFReader(tiny_model).tensors
    assert len(changed) > 10
    assert not any("embd" in name or name.startswith("output") for name in changed)
    for old, new in zip(before, found, strict=True):
        expected = changed.get(old.name, old.data)
        assert (new.name, new.data.tobytes()) == (old.name, np.ascontiguousarray(expected).tobytes())


def test_records_survive_being_written(tmp_path: Path) -> None:
    line = json.dumps({"variant": {"bits": 4, "kind": "int", "block": 64, "outliers": 0.0}} | {
        "model": "m", "family": "f", "layer_bits": 1.0, "other_bits": 2.0, "layer_weights": 3,
        "losses": [1.0], "divergences": [0.5],
    })  # fmt: skip
    (tmp_path / "records.jsonl").write_text(line + "\n")
    study = kbit_scaling.Study(tmp_path, tmp_path / "text", count=1, length=8, threads=1)
    assert study.records == [Record("m", "f", Variant(4, "int", 64), 1.0, 2.0, 3, (1.0,), (0.5,))]
