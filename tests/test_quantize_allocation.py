"""Bits given to tensors against every choice there is; double quantisation and outlier columns against their rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cpuinfer.errors import InvalidRequest, NumericalError
from cpuinfer.quantize.allocation import allocate, sensitivity
from cpuinfer.quantize.double import DoubleScheme
from cpuinfer.quantize.outliers import outlier_columns, proxies
from cpuinfer.quantize.rtn import opt_rtn
from cpuinfer.quantize.scheme import find
from cpuinfer.quantize.statistics import Statistics
from random_models import RandomModel

EVERY = np.array(list(itertools.product(range(4), repeat=6)))


def problem(rng: np.random.Generator, tensors: int, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """Tensors of different sizes, each a few bits a weight, with errors that fall about as 4 ** -bits."""
    bits = np.sort(rng.uniform(2, 8, candidates))[None] + rng.uniform(0, 0.2, (tensors, candidates))
    errors = 4.0**-bits * np.exp(rng.normal(size=(tensors, 1)) + 0.6 * rng.normal(size=(tensors, candidates)))
    return errors, bits * rng.integers(1, 20, (tensors, 1))


def test_choices_are_the_best_of_all_there_are() -> None:
    rng, same = np.random.default_rng(0), 0
    for _ in range(60):
        errors, bits = problem(rng, 6, 4)
        budget = rng.uniform(bits.min(axis=1).sum(), bits.max(axis=1).sum())
        rows = np.arange(6)
        total = errors[rows, EVERY].sum(axis=1)
        least = total[bits[rows, EVERY].sum(axis=1) <= budget].min()
        found = allocate(errors, bits, budget)
        assert found.bits == pytest.approx(bits[rows, found.choices].sum())
        assert found.bits <= budget
        assert found.error == pytest.approx(errors[rows, found.choices].sum())
        assert found.bound <= least * (1 + 1e-9)
        assert found.error <= 1.01 * least
        same += found.error <= least * (1 + 1e-9)
    assert same >= 58  # one that fits to the last bit may be missed


def test_many_tensors_come_within_a_thousandth_of_the_bound() -> None:
    errors, bits = problem(np.random.default_rng(1), 200, 8)
    found = allocate(errors, bits, 0.6 * bits.max(axis=1).sum())
    assert found.bound <= found.error < 1.001 * found.bound


def test_room_for_all_takes_the_least_errors_and_none_is_refused() -> None:
    errors, bits = problem(np.random.default_rng(2), 5, 3)
    assert allocate(errors, bits, bits.sum()).error == pytest.approx(errors.min(axis=1).sum())
    least = bits.min(axis=1).sum()
    assert allocate(errors, bits, least).bits == pytest.approx(least)
    with pytest.raises(InvalidRequest, match="but the smallest candidates take"):
        allocate(errors, bits, 0.99 * least)


def test_candidates_that_cannot_be_are_never_taken() -> None:
    errors = np.array([[1.0, np.inf, 0.1], [1.0, 0.0, 0.1]])
    bits = np.array([[4.0, 5.0, 8.0], [4.0, np.inf, 8.0]])
    assert allocate(errors, bits, 100).choices == (2, 2)
    with pytest.raises(InvalidRequest, match="tensor 1 has no candidate"):
        allocate(np.array([[1.0], [np.inf]]), np.ones((2, 1)), 9)
    with pytest.raises(NumericalError, match="NaN or numbers below 0"):
        allocate(np.array([[np.nan]]), np.ones((1, 1)), 9)
    with pytest.raises(InvalidRequest, match=r"expected \[tensors, candidates\]"):
        allocate(np.ones((2, 2)), np.ones((2, 3)), 9)


def test_sensitivity_falls_fourfold_a_bit() -> None:
    rng = np.random.default_rng(0)
    w, statistics = rng.normal(size=(32, 128)).astype(np.float32), Statistics.empty(128)
    statistics.add(rng.normal(size=(500, 128)))
    found = sensitivity(w, statistics, [find(f"int{bits}:g32") for bits in (3, 4, 5, 6)])
    assert ((found[:-1] / found[1:] > 3) & (found[:-1] / found[1:] < 6)).all()
    assert 0.001 < found[1] < 0.02


@pytest.mark.parametrize("name", ["int4:g64", "int4:g64:asym", "nf4:g64", "int4:g-1"])
def test_scales_of_scales_are_within_half_a_step(name: str) -> None:
    w = np.random.default_rng(0).normal(size=(40, 512)).astype(np.float32)
    inner = find(name)
    scheme = DoubleScheme(inner=inner, group_of_scales=50)
    plain, fit = inner.fit(w, search=False), scheme.fit(w, search=False)
    flat, rounded = plain.scale.reshape(-1).astype(np.float64), fit.scale.reshape(-1)
    for begin in range(0, len(flat), 50):
        part, found = flat[begin : begin + 50], rounded[begin : begin + 50]
        half = np.ptp(part) / 255 / 2
        assert (np.abs(found - part) <= half * 1.001 + np.abs(part) * 2.0**-11).all()
    stored = fit.stored
    again = np.repeat(stored.low, 50)[: len(flat)] + np.repeat(stored.step, 50)[: len(flat)] * stored.codes.reshape(-1)
    assert (again.astype(np.float32).astype(np.float16) == rounded.astype(np.float16)).all()
    quantised = opt_rtn(w, scheme)
    values = quantised.values(scheme)
    assert (scheme.rows(quantised.codes, quantised.fit).to_float(np.float32) == values).all()
    limit = 1.02 * np.square(w - opt_rtn(w, inner).values(inner)).sum()
    assert np.square(w - values).sum() < limit


def test_double_quantisation_takes_qlora_s_bits() -> None:
    scheme = DoubleScheme(inner=find("nf4:g64"))
    assert scheme.bits_per_weight == pytest.approx(4 + 8 / 64 + 64 / (64 * 256))
    with pytest.raises(InvalidRequest, match="2 to 8 bits"):
        DoubleScheme(inner=find("nf4:g64"), bits=9)


def test_proxies_are_the_weights_whose_units_are_read() -> None:
    found = proxies(RandomModel.of("llama").graph)
    first, second = "model.layers.0.", "model.layers.1."
    assert (found[first + "self_attn.q_proj"].weight, found[first + "self_attn.q_proj"].axis) == (
        "model.embed_tokens",
        "columns",
    )
    values = found[first + "self_attn.o_proj"]
    assert (values.weight, values.rows[:17]) == (first + "self_attn.v_proj", (*range(8), *range(8), 8))
    assert found[first + "mlp.gate_proj"].weight == found[first + "mlp.up_proj"].weight == first + "self_attn.o_proj"
    assert found[first + "mlp.down_proj"].weight == first + "mlp.up_proj"
    assert found[second + "self_attn.k_proj"].weight == first + "mlp.down_proj"
    assert found["lm_head"].weight == second + "mlp.down_proj"


def test_outlier_columns_are_those_of_largest_deviation() -> None:
    model = RandomModel.of("llama")
    up = model.tensors["model.layers.0.mlp.up_proj"]
    up[[7, 30]] *= 5
    model.tensors["model.layers.0.self_attn.v_proj"][9] *= 5
    found = outlier_columns(model.graph, model.tensors.__getitem__, share=2 / 48)
    assert found["model.layers.0.mlp.down_proj"].tolist() == [7, 30]
    found = outlier_columns(model.graph, model.tensors.__getitem__, share=2 / 32)
    assert found["model.layers.0.self_attn.o_proj"].tolist() == [17, 25]  # two heads read the second head of values
    table = np.argsort(-model.tensors["model.embed_tokens"].std(axis=0))[:2]
    assert found["model.layers.0.self_attn.q_proj"].tolist() == sorted(table)
    assert not len(outlier_columns(model.graph, model.tensors.__getitem__, share=0)["lm_head"])
    with pytest.raises(InvalidRequest, match="a share of 2, expected 0 to 1"):
        outlier_columns(model.graph, model.tensors.__getitem__, share=2)
