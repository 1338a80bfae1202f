"""The native sampler against NumPy written from the papers: every stage, every order, the draw and its generator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpuinfer import _core
from cpuinfer.errors import InvalidRequest, NumericalError
from cpuinfer.sampling import STAGES, SamplingParams


def sampler(vocabulary: int, *, seed: int = 0, **fields: object) -> _core.Sampler:
    return _core.Sampler(vocabulary=vocabulary, **SamplingParams(**fields).native_options(seed))


def draws(logits: Sequence[float], count: int, **fields: object) -> list[int]:
    row = np.array(logits, np.float32)
    chain = sampler(len(row), **fields)
    return [chain.sample(row)[0] for _ in range(count)]


ALL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


class Oracle:
    """The chain in float64, by definition: probabilities are computed, sorted and summed."""

    def __init__(self, params: SamplingParams, vocabulary: int, seed: int, prompt: Sequence[int] = ()) -> None:
        self.params, self.seed, self.prompt = params, seed, list(prompt)
        self.answer: list[int] = []
        self.vocabulary = vocabulary

    def sample(self, logits: np.ndarray) -> int:
        row = logits.astype(np.float64)
        for token, bias in self.params.logit_bias.items():
            row[token] += np.float64(np.float32(bias))
        for stage in self.params.stages():
            if self.params.temperature > 0 or stage == "penalties":
                row = getattr(self, stage)(row)
        token = int(np.argmax(row)) if self.params.temperature == 0 else self.draw(row)
        self.answer.append(token)
        return token

    @staticmethod
    def probabilities(row: np.ndarray) -> np.ndarray:
        weights = np.exp(row - row.max())
        return weights / weights.sum()

    def penalties(self, row: np.ndarray) -> np.ndarray:
        row, p = row.copy(), self.params
        for token in set(self.prompt) | set(self.answer):
            row[token] = row[token] / p.repetition_penalty if row[token] > 0 else row[token] * p.repetition_penalty
        for token in set(self.answer):
            row[token] -= p.presence_penalty + p.frequency_penalty * self.answer.count(token)
        return row

    def top_k(self, row: np.ndarray) -> np.ndarray:
        if self.params.top_k == 0:
            return row
        return self.only(row, np.argsort(-row, kind="stable")[: self.params.top_k])

    def top_p(self, row: np.ndarray) -> np.ndarray:
        p = self.probabilities(row)
        ranked = np.argsort(-p, kind="stable")
        enough = int(np.searchsorted(np.cumsum(p[ranked]), self.params.top_p)) + 1
        return row if self.params.top_p == 1 else self.only(row, ranked[:enough])

    def min_p(self, row: np.ndarray) -> np.ndarray:
        p = self.probabilities(row)
        return self.only(row, np.flatnonzero(p >= self.params.min_p * p.max()))

    def temperature(self, row: np.ndarray) -> np.ndarray:
        return row / self.params.temperature

    @staticmethod
    def only(row: np.ndarray, kept: np.ndarray) -> np.ndarray:
        out = np.full_like(row, -np.inf)
        out[kept] = row[kept]
        return out

    def draw(self, row: np.ndarray) -> int:
        # NumPy adds one to the counter before it makes the first block.
        generator = np.random.Philox(key=self.seed, counter=(len(self.answer) - 1) % 2**256)
        uniform = (int(generator.random_raw()) >> 11) * 2.0**-53
        weights = np.exp(row - row.max())
        cumulative = np.cumsum(weights)
        return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))


def agree(params: SamplingParams, *, vocabulary: int, seed: int, tokens: int, scale: float = 3.0) -> None:
    random = np.random.default_rng(seed)
    prompt = random.integers(0, vocabulary, 5).tolist()
    native = _core.Sampler(vocabulary=vocabulary, **params.native_options(seed))
    native.see_prompt(prompt)
    oracle = Oracle(params, vocabulary, seed, prompt)
    for step in range(tokens):
        row = (random.standard_normal(vocabulary) * scale).astype(np.float32)
        row[random.integers(0, vocabulary, 3)] = -np.inf
        assert native.sample(row)[0] == oracle.sample(row), f"token {step}"


@pytest.mark.parametrize("order", list(itertools.permutations(STAGES)), ids=",".join)
def test_every_order_of_the_stages_draws_what_numpy_draws(order: tuple[str, ...]) -> None:
    for seed in range(3):
        params = SamplingParams(
            temperature=1.7,
            top_k=20,
            top_p=0.9,
            min_p=0.02,
            repetition_penalty=1.3,
            presence_penalty=0.4,
            frequency_penalty=0.2,
            logit_bias={3: 2.5, 7: -math.inf},
            order=order,
        )
        agree(params, vocabulary=50, seed=seed, tokens=20)


@pytest.mark.parametrize(
    "fields",
    [
        {"order": ()},
        {"order": ("temperature",), "temperature": 2.5},
        {"order": ("top_k",), "top_k": 3},
        {"order": ("top_k",), "top_k": 1},
        {"order": ("top_k",), "top_k": 10_000},
        {"order": ("top_p",), "top_p": 0.5},
        {"order": ("top_p",), "top_p": 1e-9},
        {"order": ("top_p",), "top_p": 0.999999},
        {"order": ("min_p",), "min_p": 0.1},
        {"order": ("min_p",), "min_p": 1.0},
        {"order": ("penalties",), "repetition_penalty": 0.5},
        {"order": ("penalties",), "frequency_penalty": -3.0},
        {"temperature": 0.0, "repetition_penalty": 1.8, "frequency_penalty": 1.0},
        {},
    ],
    ids=str,
)
def test_each_stage_alone_draws_what_numpy_draws(fields: dict[str, object]) -> None:
    agree(SamplingParams(**fields), vocabulary=3000, seed=11, tokens=60)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 4.0]), min_size=1, max_size=12),
    st.integers(0, 13),
    st.permutations(STAGES),
    st.integers(0, 2**64 - 1),
)
def test_rows_full_of_ties_draw_what_numpy_draws(logits: list[float], top_k: int, order: list[str], seed: int) -> None:
    # top_p and min_p lie between the sums and ratios that these logits can make.
    params = SamplingParams(temperature=1.25, top_k=top_k, top_p=0.7311, min_p=0.0317, order=order)
    row = np.array(logits, np.float32)
    native = _core.Sampler(vocabulary=len(row), **params.native_options(seed))
    oracle = Oracle(params, len(row), seed)
    assert [native.sample(row)[0] for _ in range(4)] == [oracle.sample(row) for _ in range(4)]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0, 3.0])
def test_min_p_before_a_temperature_is_its_power_after_it(temperature: float) -> None:
    random = np.random.default_rng(5)
    after = sampler(500, seed=9, **ALL | {"min_p": 0.1, "temperature": temperature}, order=("temperature", "min_p"))
    before = sampler(
        500, seed=9, **ALL | {"min_p": 0.1**temperature, "temperature": temperature}, order=("min_p", "temperature")
    )
    for _ in range(300):
        row = (random.standard_normal(500) * 4).astype(np.float32)
        assert after.sample(row) == before.sample(row)


def test_draws_follow_the_probabilities() -> None:
    logits = np.array([0.0, 1.0, -1.0, 2.0, 0.5, -2.0, 1.5, -math.inf], np.float32)
    count = 200_000
    observed = np.bincount(draws(logits, count, **ALL, seed=2026), minlength=8)
    expected = Oracle.probabilities(logits.astype(np.float64)) * count
    assert observed[7] == 0
    statistic = float((((observed - expected) ** 2)[:7] / expected[:7]).sum())
    assert statistic < 22.458  # the 0.999 quantile of chi-squared with 6 degrees of freedom


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**256 - 2))
def test_philox_is_numpys(low: int, high: int, counter: int) -> None:
    words = [((counter + 1) >> 64 * n) % 2**64 for n in range(4)]
    expected = np.random.Philox(key=np.array([low, high], np.uint64), counter=counter).random_raw(4).tolist()
    assert list(_core.philox([low, high], words)) == expected


def test_the_same_seed_draws_the_same_tokens_whatever_others_draw() -> None:
    random = np.random.default_rng(1)
    rows = (random.standard_normal((30, 200)) * 2).astype(np.float32)
    alone = sampler(200, seed=77)
    expected = [alone.sample(row) for row in rows]
    again, other = sampler(200, seed=77), sampler(200, seed=78)
    interleaved = []
    for row in rows:
        other.sample(row)
        interleaved.append(again.sample(row))
    assert interleaved == expected
    assert [sampler(200, seed=78).sample(row) for row in rows] != expected


def test_top_k_keeps_the_lower_ids_of_equals() -> None:
    assert set(draws([0, 2, 1, 2, 2, 2], 300, **ALL | {"top_k": 3})) == {1, 3, 4}


def test_top_p_keeps_the_token_that_crosses_and_the_lower_ids_of_equals() -> None:
    four = [0.0] * 4  # a quarter each
    assert set(draws(four, 300, **ALL | {"top_p": 0.5})) == {0, 1}
    assert set(draws(four, 300, **ALL | {"top_p": 0.51})) == {0, 1, 2}


def test_top_p_sees_only_what_earlier_stages_left() -> None:
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    fields = ALL | {"top_k": 2, "top_p": 0.55}
    assert set(draws(logits, 300, **fields, order=("top_k", "top_p"))) == {0}  # 0.4 / 0.7 = 0.571
    assert set(draws(logits, 300, **fields, order=("top_p", "top_k"))) == {0, 1}


def test_top_p_reaches_into_a_long_tail_of_equals() -> None:
    tail = 1000  # together as likely as the first token, so 0.0005 each
    logits = [math.log(0.5)] + [math.log(0.5 / tail)] * tail
    kept = set(draws(logits, 10_000, **ALL | {"top_p": 0.55025}))  # 100.5 tokens of the tail
    assert kept == set(range(102))


def test_min_p_keeps_a_token_exactly_at_its_threshold() -> None:
    assert set(draws([0.0, 0.0, -5.0], 100, **ALL | {"min_p": 1.0})) == {0, 1}


def test_when_all_but_the_highest_fall_below_every_threshold_it_is_chosen() -> None:
    assert set(draws([1.0, 50.0, 2.0], 100, min_p=1.0, top_p=1e-12, top_k=1)) == {1}


def test_greedy_takes_the_lowest_id_of_equals_after_bias_and_penalties() -> None:
    assert draws([1, 3, 3, 2], 2, temperature=0) == [1, 1]
    assert draws([1, 3, 3, 2], 3, temperature=0, presence_penalty=0.5) == [1, 2, 1]
    assert draws([1, 3, 3, 2], 1, temperature=0, logit_bias={0: 2.5}) == [0]
    assert draws([1, 3, 3, 2], 1, temperature=0, logit_bias={1: -math.inf}) == [2]


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-30])
def test_a_temperature_next_to_zero_neither_overflows_nor_leaves_the_maximum(temperature: float) -> None:
    assert draws([-3e38, 3e38, 2.9e38], 5, **ALL | {"temperature": temperature}) == [1] * 5


def test_the_repetition_penalty_counts_the_prompt_and_the_others_do_not() -> None:
    row = np.array([2.0, 1.5, -1.0], np.float32)
    penalised = sampler(3, temperature=0, repetition_penalty=2.0)
    penalised.see_prompt([0])
    assert penalised.sample(row)[0] == 1
    present = sampler(3, temperature=0, presence_penalty=2.0, frequency_penalty=2.0)
    present.see_prompt(np.array([0, 0], np.int32))
    assert present.sample(row)[0] == 0


def test_minus_infinity_is_never_drawn_and_a_single_survivor_always() -> None:
    assert set(draws([-math.inf, 0, -math.inf, -1e30], 200, **ALL | {"temperature": 100.0})) == {1}
    assert draws([-math.inf, -math.inf, -3e38], 3) == [2, 2, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_refused_and_the_state_is_as_before(bad: float) -> None:
    row = np.linspace(0, 1, 40, dtype=np.float32)
    chain, twin = sampler(40, seed=3), sampler(40, seed=3)
    broken = row.copy()
    broken[17] = bad
    with pytest.raises(NumericalError, match=f"token 17 is {bad}, expected a finite number or -inf"):
        chain.sample(broken)
    assert [chain.sample(row) for _ in range(5)] == [twin.sample(row) for _ in range(5)]


def test_a_row_without_a_possible_token_is_refused() -> None:
    with pytest.raises(NumericalError, match="no token is possible"):
        draws([-math.inf] * 3, 1)
    with pytest.raises(NumericalError, match="no token is possible"):
        draws([1.0, 2.0], 1, logit_bias={0: -math.inf, 1: -math.inf})


def test_logprobs_are_those_of_the_raw_logits() -> None:
    random = np.random.default_rng(8)
    row = (random.standard_normal(1000) * 5).astype(np.float32)
    row[5] = -np.inf
    exact = row.astype(np.float64) - row.max()
    exact -= np.log(np.exp(exact).sum())
    chain = sampler(1000, logprobs=7, temperature=2.0, repetition_penalty=1.5, logit_bias={1: 5.0, 2: -math.inf})
    for _ in range(20):
        token, logprob, top = chain.sample(row)
        assert logprob == pytest.approx(exact[token], rel=1e-6)
        assert [t for t, _ in top] == np.argsort(-exact, kind="stable")[:7].tolist()
        assert [v for _, v in top] == pytest.approx(np.sort(exact)[::-1][:7].tolist(), rel=1e-6)


def test_logprobs_come_only_when_asked_for() -> None:
    row = np.zeros(4, np.float32)
    assert sampler(4).sample(row)[1:] == (None, None)
    _, logprob, top = sampler(4, logprobs=0).sample(row)
    assert (logprob, top) == (pytest.approx(math.log(0.25)), [])
    assert len(sampler(4, logprobs=9).sample(row)[2]) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocabulary": 0}, "vocabulary is 0, expected at least 1"),
        ({"temperature": -0.5}, "temperature is -0.5, expected 0 to 100"),
        ({"temperature": math.nan}, "temperature is nan, expected 0 to 100"),
        ({"top_k": -1}, "top_k is -1, expected at least 0"),
        ({"top_p": 0.0}, "top_p is 0, expected more than 0, at most 1"),
        ({"min_p": 1.5}, "min_p is 1.5, expected 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0, expected 0.001 to 1000"),
        ({"presence_penalty": math.inf}, "presence_penalty is inf, expected -100 to 100"),
        ({"frequency_penalty": -101.0}, "frequency_penalty is -101, expected -100 to 100"),
        ({"logit_bias": [(10, 1.0)]}, "logit_bias is 10, expected a token from 0 to 9"),
        ({"logit_bias": [(1, math.inf)]}, "logit_bias is inf, expected finite or -infinity"),
        ({"logprobs": 1001}, "logprobs is 1001, expected -1"),
        ({"order": ["top_k", "top_k"]}, "each stage at most once"),
        ({"order": ["heat"]}, "order: unknown stage 'heat', expected penalties, top_k"),
    ],
    ids=str,
)
def test_the_native_sampler_refuses_what_is_out_of_range(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _core.Sampler(**{"vocabulary": 10} | fields)
    assert message in str(caught.value)


def test_rows_and_prompts_of_the_wrong_shape_are_refused() -> None:
    chain = sampler(4)
    with pytest.raises(InvalidRequest, match="length of the logits is 3, expected the size of the vocabulary"):
        chain.sample(np.zeros(3, np.float32))
    with pytest.raises(InvalidRequest, match="2 dimensions, expected 1"):
        chain.sample(np.zeros((1, 4), np.float32))
    with pytest.raises(InvalidRequest, match="prompt token is 4, expected 0 to 3"):
        chain.see_prompt([1, 4])
