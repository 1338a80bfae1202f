"""The block quantizers by themselves, read back by the gguf package: errors on Gaussian data have derived bounds."""

from __future__ import annotations

import functools
import itertools

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as Type

import block_quantizers
import grid_quantizers
from block_numbers import Numbers
from cpuinfer.formats import packed
from cpuinfer.formats.packed import Codebook
from reencoded_gguf import bits, quantize

GAUSSIAN = np.random.default_rng(5).standard_normal((32, 1536), dtype=np.float32)
FAMILIES = (
    ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL"),
)


@functools.cache
def relative_error(encoding: str) -> float:
    """Root mean square, of numbers whose own is one."""
    raw = quantize(GAUSSIAN, encoding)
    assert raw.shape == (len(GAUSSIAN), GAUSSIAN.shape[1] * bits(encoding) / 8)
    difference = gguf.quants.dequantize(raw, Type[encoding]) - GAUSSIAN
    return float(np.sqrt(np.mean(difference**2) / np.mean(GAUSSIAN**2)))


@pytest.mark.parametrize("encoding", block_quantizers.ENCODINGS)
def test_a_block_quantizer_beats_every_code_a_bit_shorter(encoding: str) -> None:
    """No code of b bits a number has a root mean square error below 2 ** -b on Gaussian data (Shannon 1959)."""
    assert 2 ** -bits(encoding) < relative_error(encoding) < 2 ** (1 - bits(encoding))


@pytest.mark.parametrize(
    ("encoding", "group", "steps", "minima"),
    [
        ("Q2_K", 16, 3, True),
        ("Q3_K", 16, 8, False),
        ("Q4_K", 32, 15, True),
        ("Q5_K", 32, 31, True),
        ("Q6_K", 16, 64, False),
        ("IQ4_XS", 32, 16, False),
        ("IQ4_NL", 32, 16, False),
    ],
)
def test_codes_of_single_numbers_beat_even_steps_over_the_whole_group(
    encoding: str, group: int, steps: int, minima: bool
) -> None:
    """Steps over a group's range, or twice its largest magnitude, hold every number, so that errors spread evenly
    over a step: step ** 2 / 12.  The search tries that scale too, and a code-book is denser where numbers are."""
    groups = GAUSSIAN.reshape(-1, group)
    span = np.ptp(groups, axis=1) if minima else 2 * np.abs(groups).max(axis=1)
    assert relative_error(encoding) < np.sqrt(np.mean((span / steps) ** 2) / 12 / np.mean(GAUSSIAN**2))


@pytest.mark.parametrize("family", FAMILIES)
def test_within_a_family_every_bit_more_takes_error_away(family: tuple[str, ...]) -> None:
    assert list(family) == sorted(family, key=bits)
    for fewer, more in itertools.pairwise(family):
        assert relative_error(more) < relative_error(fewer), (fewer, more)


def test_the_families_are_all_that_is_written() -> None:
    assert set(itertools.chain(*FAMILIES)) == set(block_quantizers.ENCODINGS)


@pytest.mark.parametrize("name", ["iq2_xxs", "iq3_s", "iq1_s"])
def test_no_entry_of_a_grid_is_nearer_than_the_nearest(name: Codebook) -> None:
    random = np.random.default_rng(6)
    grid = packed.codebook(name).astype(np.float32)
    vectors = random.standard_normal((grid_quantizers.PRODUCTS // len(grid) + 3, grid.shape[1]), dtype=np.float32)
    weights = random.uniform(0.1, 2, vectors.shape).astype(np.float32)
    scale = random.uniform(0.05, 0.5, len(vectors)).astype(np.float32)
    entries, squares = (found[:, 0] for found in grid_quantizers.nearest(Numbers(vectors, weights), scale, grid))

    def distance(entry: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        return (weights * (vectors.astype(np.float64) - scale[:, None] * entry) ** 2).sum(axis=-1)

    least = np.min([distance(entry) for entry in grid], axis=0)
    # fp32: w x^2, w x g and w g^2 are sums of at most 16 products, each rounding relative to the sum of magnitudes.
    size = (weights * vectors**2).sum(axis=1) + 2 * scale * (weights * np.abs(vectors) @ np.abs(grid).T).max(axis=1)
    size = size + scale**2 * (weights @ (grid**2).T).max(axis=1)
    rounding = 2 * 20 * np.finfo(np.float32).eps * size
    assert np.all(distance(grid[entries]) <= least + rounding)
    assert np.all(np.abs(squares - least) <= rounding)


@pytest.mark.parametrize("encoding", block_quantizers.ENCODINGS)
def test_a_block_of_zeros_is_exact_beside_others(encoding: str) -> None:
    """For the grids, which have no zero, by a scale of zero."""
    values = np.concatenate([np.zeros((1, 256), np.float32), GAUSSIAN[:1, :256]])
    found = gguf.quants.dequantize(quantize(values, encoding), Type[encoding])
    assert np.isfinite(found).all()
    assert not found[0].any()


@pytest.mark.parametrize("encoding", block_quantizers.ENCODINGS)
def test_errors_go_where_they_matter_less(encoding: str) -> None:
    importance = np.exp(3 * np.random.default_rng(7).standard_normal(GAUSSIAN.shape[1], dtype=np.float32))

    def loss(weights: npt.NDArray[np.float32] | None) -> float:
        found = gguf.quants.dequantize(quantize(GAUSSIAN, encoding, weights), Type[encoding])
        return float(np.mean(importance * (found - GAUSSIAN) ** 2))

    assert loss(importance) < loss(None)
