"""Sampling parameters are checked when they are made, and turn into the native sampler's options."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from cpuinfer.errors import InvalidRequest
from cpuinfer.sampling import ORDERS, STAGES, SamplingParams

NUMBERS = ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, 1j], ids=repr)
def test_a_number_field_refuses_what_is_not_a_finite_number(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field} is .*, expected "):
        SamplingParams(**{field: value})


@pytest.mark.parametrize("field", ["top_k", "max_tokens", "seed", "logprobs"])
@pytest.mark.parametrize("value", [math.nan, 1.0, True, "1", -1], ids=repr)
def test_an_integer_field_refuses_what_is_not_an_integer_in_range(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field} is .*, expected "):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, expected 0 to 100"),
        ({"temperature": 100.5}, "temperature is 100.5, expected 0 to 100"),
        ({"top_k": None}, "top_k is None, expected an integer of at least 0"),
        ({"top_p": 0}, "top_p is 0, expected more than 0, at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01, expected more than 0, at most 1"),
        ({"min_p": 2}, "min_p is 2, expected 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, expected 0.001 to 1000"),
        ({"presence_penalty": 101}, "presence_penalty is 101, expected -100 to 100"),
        ({"max_tokens": 0}, "max_tokens is 0, expected None or an integer of at least 1"),
        ({"seed": 2**64}, f"seed is {2**64}, expected None or an integer from 0 to 2**64 - 1"),
        ({"logprobs": 1001}, "logprobs is 1001, expected None or an integer from 0 to 1000"),
        ({"ignore_eos": 1}, "ignore_eos is 1, expected True or False"),
        ({"stop": ""}, "stop is '', expected strings of at least one character"),
        ({"stop": ["a", 1]}, "stop is 1, expected strings of at least one character"),
        ({"stop": ["a"] * 1025}, "stop is '1025 strings', expected at most 1024"),
        ({"stop": None}, "stop is None, expected a string or strings"),
        ({"stop_token_ids": [-1]}, "stop_token_ids is -1, expected token ids from 0"),
        ({"stop_token_ids": 5}, "stop_token_ids is 5, expected a list of token ids"),
        ({"stop_token_ids": "12"}, "stop_token_ids is '12', expected a list of token ids"),
        ({"order": "mine"}, "order is 'mine', expected one of default, hf, vllm, or distinct stages of penalties"),
        ({"order": ["top_k", "top_k"]}, "order is ['top_k', 'top_k'], expected one of"),
        ({"order": ["heat"]}, "order is ['heat'], expected one of"),
        ({"order": [["top_k"]]}, "order is [['top_k']], expected one of"),
        ({"order": 3}, "order is 3, expected one of"),
        ({"logit_bias": [1]}, "logit_bias is [1], expected a mapping from token id to number"),
        ({"logit_bias": {-1: 0.0}}, "logit_bias is -1, expected token ids from 0"),
        ({"logit_bias": {"5": 0.0}}, "logit_bias is '5', expected token ids from 0"),
        ({"logit_bias": {5: math.inf}}, "logit_bias[5] is inf, expected a number from -1e+38 to 1e+38, or -inf"),
        ({"logit_bias": {5: math.nan}}, "logit_bias[5] is nan, expected a number"),
        ({"logit_bias": {5: True}}, "logit_bias[5] is True, expected a number"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_refusal_names_the_field_the_value_and_what_would_be_right(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**fields)
    assert message in str(caught.value)


def test_a_refusal_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="min_p"):
        SamplingParams(min_p=1.1)


def test_the_ends_of_the_ranges_and_other_kinds_of_numbers_are_accepted() -> None:
    SamplingParams(temperature=0, top_k=0, top_p=1, min_p=0, seed=0, logprobs=0, max_tokens=1, presence_penalty=-100)
    SamplingParams(temperature=100, top_p=5e-324, min_p=1, seed=2**64 - 1, logprobs=1000, frequency_penalty=100)
    SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3), top_p=Fraction(1, 2))
    SamplingParams(logit_bias={np.int32(3): -math.inf}, stop_token_ids=np.array([1, 2]), stop=("a",))


def test_orders_are_names_or_stages() -> None:
    assert SamplingParams().stages() == STAGES
    assert SamplingParams(order="hf").stages() == ORDERS["hf"]
    assert SamplingParams(order=["min_p", "temperature"]).stages() == ("min_p", "temperature")
    assert SamplingParams(order=()).stages() == ()


def test_stop_strings_are_a_tuple_however_they_were_given() -> None:
    assert SamplingParams().stop_strings() == ()
    assert SamplingParams(stop="END").stop_strings() == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop_strings() == ("a", "b")


def test_native_options_are_plain_numbers_with_the_seed_drawn() -> None:
    params = SamplingParams(temperature=1, top_k=np.int64(7), logit_bias={2: 1}, order="vllm", logprobs=None)
    assert params.native_options(seed=5) == {
        "temperature": 1.0,
        "top_k": 7,
        "top_p": 0.95,
        "min_p": 0.05,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": [(2, 1.0)],
        "seed": 5,
        "order": ["penalties", "temperature", "min_p", "top_k", "top_p"],
        "logprobs": -1,
    }
