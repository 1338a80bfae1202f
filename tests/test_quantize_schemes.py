"""Schemes of levels: what they store is what they say, plainly and by a search, whatever the shape."""

from __future__ import annotations

import threading

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from cpuinfer.errors import InvalidRequest, NumericalError, UnsupportedFormat
from cpuinfer.quantize.blocks import BlockScheme
from cpuinfer.quantize.scheme import BLOCK_NAMES, WHOLE_ROW, Scheme, find
from cpuinfer.quantize.tables import TableScheme

LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
INTEGERS = ("int2:g32:sym", "int3:g128:asym", "int4:g32:sym", "int4:g64:asym", "int5:g-1:asym", "int8:g256:sym")
TABLES = ("nf4:g64", "fp4:g32", "af4:g128", "iq4_nl:g32", "dynamic4:g-1")
ALL = (*BLOCK_NAMES, *INTEGERS, *TABLES)

Floats = npt.NDArray[np.float32]


def weights(rows: int = 6, k: int = 512, *, seed: int = 0) -> Floats:
    """Normal, with some rows of other sizes and signs, zeros, and a few large numbers."""
    random = np.random.default_rng(seed)
    w = random.standard_normal((rows, k)) * 0.02
    w[0] *= 1e-3
    w[1] = np.abs(w[1])
    w[2, : k // 2] = 0
    w[3, ::97] *= 30
    return w.astype(np.float32)


def importance(k: int = 512, *, seed: int = 1) -> Floats:
    return np.exp(1.5 * np.random.default_rng(seed).standard_normal(k)).astype(np.float32)


def error(w: Floats, scheme: Scheme, counts: Floats | float = 1.0, *, use: Floats | None = None, search: bool) -> float:
    """The weighted squared error that the search is to make small."""
    fit = scheme.fit(w, use, search=search)
    values = scheme.values(scheme.codes(w, fit), fit).astype(np.float64)
    return float((counts * (values - w) ** 2).sum())


@pytest.mark.parametrize("name", ALL)
def test_a_name_finds_its_scheme(name: str) -> None:
    scheme = find(name)
    assert scheme.name == name
    assert (np.diff(scheme.levels) >= 0).all()
    assert scheme.block % scheme.group == 0


def test_bits_per_weight_count_the_scales() -> None:
    wanted = {"Q4_K": 4.5, "Q6_K": 6.5625, "int4:g128:asym": 4 + 20 / 128, "nf4:g64": 4.25, "int5:g-1:asym": 5}
    assert {name: find(name).bits_per_weight for name in wanted} == wanted


@pytest.mark.parametrize("name", ["Q4_2", "int9", "int4:g48", "nf4:sym", ""])
def test_an_unknown_name_is_told_what_there_is(name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=r"Q4_K.*int2.*nf4"):
        find(name)


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_the_rows_are_the_values(name: str, search: bool) -> None:
    scheme, w = find(name), weights()
    fit = scheme.fit(w, importance(), search=search)
    codes = scheme.codes(w, fit)
    values = scheme.values(codes, fit)
    assert np.array_equal(scheme.rows(codes, fit).to_float(np.float32), values)
    if name in BLOCK_NAMES:
        raw = scheme.rows(codes, fit).raw  # type: ignore[union-attr]
        assert np.array_equal(gguf.quants.dequantize(raw, Encoding[name]), values)


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_any_codes_are_written_and_read_back(name: str) -> None:
    scheme, w = find(name), weights()
    fit = scheme.fit(w, search=False)
    codes = np.random.default_rng(2).integers(0, len(scheme.levels), w.shape, dtype=np.uint8)
    raw = scheme.rows(codes, fit).raw  # type: ignore[union-attr]
    assert np.array_equal(gguf.quants.dequantize(raw, Encoding[name]), scheme.values(codes, fit))


@pytest.mark.parametrize("name", ALL)
def test_no_level_is_nearer_than_that_of_the_code(name: str) -> None:
    scheme, w = find(name), weights(5, 256)
    fit = scheme.fit(w)
    group = w.shape[1] if scheme.group == WHOLE_ROW else scheme.group
    scale, offset = (
        np.repeat(array.astype(np.float64), group, axis=1) if array is not None else 0.0
        for array in (fit.scale, fit.offset)
    )
    away = np.abs(scheme.values(scheme.codes(w, fit), fit).astype(np.float64) - w)
    least = np.abs(scale * scheme.levels.astype(np.float64)[:, None, None] + offset - w).min(axis=0)
    assert (away <= least + 1e-6 * np.abs(w).max()).all()


@pytest.mark.parametrize("name", LEGACY)
@pytest.mark.parametrize("rows", [1, 7])
def test_plain_blocks_are_the_gguf_packages(name: str, rows: int) -> None:
    w = weights(8, 320, seed=rows)[:rows]
    w[0, :32] = np.tile([-0.5, 0.5], 16)  # which of two largest is first decides
    w[0, 32:64] = np.arange(32) / 254  # halves
    w[0, 64:96] = -0.0
    w[0, 96:128] = 0.25
    assert np.array_equal(BlockScheme.of(name).encode(w, search=False), gguf.quants.quantize(w, Encoding[name]))


@pytest.mark.parametrize("name", LEGACY)
@given(st.lists(st.floats(-65504, 65504, width=16), min_size=32, max_size=32))
@settings(max_examples=60, deadline=None)
def test_any_plain_block_is_the_gguf_packages(name: str, block: list[float]) -> None:
    w = np.array([block], np.float32)
    scheme = BlockScheme.of(name)
    assert np.array_equal(scheme.encode(w, search=False), gguf.quants.quantize(w, Encoding[name]))
    assert np.array_equal(scheme.encode(w.astype(np.float16), search=False), gguf.quants.quantize(w, Encoding[name]))


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_weights_straight_to_bytes_are_the_same_from_any_source(name: str, search: bool) -> None:
    scheme, w = BlockScheme.of(name), weights()
    bf16 = (w.view(np.uint32) >> 16).astype(np.uint16)
    for source, exact in ((w.astype(np.float16), w.astype(np.float16).astype(np.float32)), (bf16, None)):
        same = (bf16.astype(np.uint32) << 16).view(np.float32) if exact is None else exact
        assert np.array_equal(scheme.encode(source, search=search), scheme.encode(same, search=search))
    if search or name not in LEGACY:
        fit = scheme.fit(w, search=search)
        assert np.array_equal(scheme.encode(w, search=search), scheme.rows(scheme.codes(w, fit), fit).raw)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_search_is_never_worse_than_plain(name: str, weighted: bool) -> None:
    scheme, w, counts = find(name), weights(), importance()
    use = counts if weighted else None
    for row in range(len(w)):
        one = w[row : row + 1]
        searched, plain = (error(one, scheme, counts if weighted else 1.0, use=use, search=s) for s in (True, False))
        assert searched <= plain * (1 + 1e-4)


@pytest.mark.parametrize("name", BLOCK_NAMES)
@given(st.integers(0, 2**32 - 1), st.floats(-6, 3), st.floats(0.3, 6))
@settings(max_examples=10, deadline=None)
def test_a_search_is_never_worse_than_plain_for_any_weights(name: str, seed: int, size: float, spread: float) -> None:
    random = np.random.default_rng(seed)
    w = (random.standard_t(spread, (2, 256)) * 10.0**size).clip(-1e4, 1e4).astype(np.float32)
    counts = (random.random(256) ** 4).astype(np.float32)
    scheme = find(name)
    searched, plain = (error(w, scheme, counts, use=counts, search=s) for s in (True, False))
    floor = 2e-6 * counts.mean() * float((w.astype(np.float64) ** 2).sum())  # what does not count counts a little
    assert searched <= plain * (1 + 1e-4) + floor


# Mean squared errors of standard normal weights, as parts of those of the plain fit: measured, rounded upwards.
GAINS = {
    "Q4_0": 0.90,
    "Q4_1": 0.80,
    "Q5_0": 0.90,
    "Q5_1": 0.80,
    "Q8_0": 0.84,
    "Q2_K": 0.65,
    "Q3_K": 0.88,
    "Q4_K": 0.81,
    "Q5_K": 0.83,
    "Q6_K": 0.82,
    "IQ4_NL": 0.86,
    "IQ4_XS": 0.87,
    "int4:g32:sym": 0.90,
    "int4:g64:asym": 0.92,
    "nf4:g64": 0.83,
}


@pytest.mark.parametrize("name", GAINS)
def test_a_search_gains_on_normal_weights(name: str) -> None:
    w = np.random.default_rng(3).standard_normal((32, 512)).astype(np.float32)
    scheme = find(name)
    assert error(w, scheme, search=True) < GAINS[name] * error(w, scheme, search=False)


@pytest.mark.parametrize("name", ALL)
def test_importance_lowers_the_error_that_counts(name: str) -> None:
    w = np.random.default_rng(4).standard_normal((32, 512)).astype(np.float32)
    scheme, counts = find(name), importance()
    with_it, without = (error(w, scheme, counts, use=use, search=True) for use in (counts, None))
    assert with_it < (1.0 if scheme.group == WHOLE_ROW else 0.97) * without


def test_importance_by_row_is_that_of_each_row() -> None:
    w, counts = weights(6, 256)[:3], np.stack([importance(256, seed=seed) for seed in range(3)])
    for name in ("Q4_K", "Q3_K", "int4:g64:asym", "nf4:g64"):
        together = find(name).fit(w, counts)
        for row in range(3):
            assert np.array_equal(find(name).fit(w[row : row + 1], counts[row]).scale[0], together.scale[row])


@pytest.mark.parametrize("name", ALL)
def test_zeros_stay_zeros(name: str) -> None:
    scheme, w = find(name), np.zeros((2, 256), np.float32)
    for search in (False, True):
        fit = scheme.fit(w, np.zeros(256, np.float32), search=search)
        assert not scheme.values(scheme.codes(w, fit), fit).any()


@pytest.mark.parametrize("name", ALL)
def test_what_was_stored_is_represented_by_itself(name: str) -> None:
    scheme = find(name)
    fit = scheme.fit(weights()[3:])
    again = scheme.represent(fit.scale, fit.offset)
    assert np.allclose(again.scale, fit.scale, rtol=1e-2, atol=1e-2 * np.abs(fit.scale).max())
    if fit.offset is not None and again.offset is not None:
        assert np.allclose(again.offset, fit.offset, rtol=1e-2, atol=2e-2 * np.abs(fit.offset).max())


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_a_row_that_is_not_of_numbers_is_named(name: str, search: bool, wrong: float) -> None:
    w = weights()
    w[4, 300] = wrong
    with pytest.raises(NumericalError, match="row 4: "):
        find(name).fit(w, search=search)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("Q6_K", "Q8_0", "iq4_nl:g32")])
def test_weights_too_large_for_fp16_are_refused(name: str) -> None:
    w = weights()
    w[5, 0] = 3e38
    with pytest.raises(NumericalError, match=r"row 5: .*fp16"):
        find(name).fit(w)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "int4:g64:sym", "nf4:g64"])
def test_awkward_shapes_are_refused(name: str) -> None:
    scheme = find(name)
    for shape in ((2, scheme.block + 4), (2, 0), (256,)):
        with pytest.raises(InvalidRequest, match="weights"):
            scheme.fit(np.zeros(shape, np.float32))
    with pytest.raises(InvalidRequest, match="importance"):
        scheme.fit(np.zeros((2, 256), np.float32), np.ones(32, np.float32))
    with pytest.raises(InvalidRequest, match="importance"):
        scheme.fit(np.zeros((2, 256), np.float32), np.full(256, -1, np.float32))
    assert scheme.fit(np.zeros((0, 256), np.float32)).scale.shape == (0, 256 // scheme.group)


def test_rows_that_are_not_contiguous_are_taken() -> None:
    w = weights(6, 1024)[::2, ::2]
    for name in ALL:
        assert np.array_equal(find(name).fit(w).scale, find(name).fit(w.copy()).scale)


def test_a_table_of_any_numbers_is_a_scheme() -> None:
    scheme, w = TableScheme((-3.0, -1.0, 0.5, 2.0), group=32), weights()
    fit = scheme.fit(w)
    codes = scheme.codes(w, fit)
    assert np.array_equal(scheme.rows(codes, fit).to_float(np.float32), scheme.values(codes, fit))
    with pytest.raises(InvalidRequest, match="ascending"):
        TableScheme((1.0, 0.0), group=32)
    many = TableScheme(tuple(np.linspace(-1, 1, 40) ** 3), group=64)
    codes = many.codes(w, many.fit(w))
    assert codes.max() > 30
    with pytest.raises(UnsupportedFormat, match="40 levels"):
        many.rows(codes, many.fit(w))


def test_threads_share_a_matrix() -> None:
    w, scheme = weights(16, 1024), BlockScheme.of("Q4_K")
    whole, parts = scheme.encode(w), [np.empty(0)] * 4

    def run(part: int) -> None:
        parts[part] = scheme.encode(w[part * 4 : part * 4 + 4])

    threads = [threading.Thread(target=run, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(np.concatenate(parts), whole)
