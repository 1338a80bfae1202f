"""What a caller asks of decoding: the parameters of one request, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NoReturn, TypeGuard

from cpuinfer.errors import InvalidRequest

STAGES = ("penalties", "top_k", "top_p", "min_p", "temperature")
"""The stages of the sampler chain."""

ORDERS = {
    "default": STAGES,
    "hf": ("penalties", "temperature", "top_k", "top_p", "min_p"),
    "vllm": ("penalties", "temperature", "min_p", "top_k", "top_p"),
}
"""Named orders: temperature last (as llama.cpp), or first, as transformers and vLLM do."""

_SMALLEST = math.nextafter(0, 1)
_NUMBERS = {
    "temperature": (0, 100, "0 to 100"),
    "top_p": (_SMALLEST, 1, "more than 0, at most 1"),
    "min_p": (0, 1, "0 to 1"),
    "repetition_penalty": (0.001, 1000, "0.001 to 1000"),
    "presence_penalty": (-100, 100, "-100 to 100"),
    "frequency_penalty": (-100, 100, "-100 to 100"),
}
_INTEGERS = {
    "top_k": (0, 2**31 - 1, "an integer of at least 0"),
    "max_tokens": (1, 2**63 - 1, "None or an integer of at least 1"),
    "seed": (0, 2**64 - 1, "None or an integer from 0 to 2**64 - 1"),
    "logprobs": (0, 1000, "None or an integer from 0 to 1000"),
}
_OPTIONAL = ("max_tokens", "seed", "logprobs")
_MAX_TOKEN_ID = 2**31 - 1
_MAX_BIAS = 1e38
_MAX_STOPS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Parameters of one generation.

    min-p keeps the tokens with ``p >= min_p * p_max`` (Nguyen et al., arXiv 2407.01082, section 3).  With the default
    order the temperature comes last, so every truncation sees the model's own probabilities; with ``order="hf"`` it
    comes first.  ``min_p`` before a temperature T equals ``min_p ** (1 / T)`` after it.
    """

    temperature: float = 0.8
    """0 is greedy decoding, whatever the order: the highest logit after bias and penalties, the lowest id of equals."""
    top_k: int = 40
    """Keep the k highest; 0 keeps all."""
    top_p: float = 0.95
    """Keep the smallest set whose probability reaches top_p; 1 keeps all."""
    min_p: float = 0.05
    """Keep tokens with p >= min_p * p_max; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or answer (CTRL, arXiv 1909.05858)."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token already generated."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it was generated."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids before anything else; -inf forbids a token."""
    max_tokens: int | None = None
    """The most tokens to generate; None: until the model stops or the context is full."""
    stop: str | Sequence[str] = ()
    """Text that ends the answer; it is not part of the answer."""
    stop_token_ids: Sequence[int] = ()
    """Token ids that end the answer, besides the model's own end-of-sequence tokens."""
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence tokens."""
    seed: int | None = None
    """0 .. 2**64 - 1; None draws one, which the result reports."""
    logprobs: int | None = None
    """Report the log-probability of each generated token and of this many alternatives (of the raw logits)."""
    order: str | Sequence[str] = "default"
    """A name of ORDERS, or the stages by name; a stage left out does not run."""

    def __post_init__(self) -> None:
        """Refuse what is out of range: InvalidRequest naming the field, the value and what would be right."""
        for name, (low, high, expected) in _NUMBERS.items():
            value = getattr(self, name)
            if not (_is_real(value) and low <= value <= high):
                _refuse(name, value, expected)
        for name, (low, high, expected) in _INTEGERS.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL) and not (_is_integer(value) and low <= value <= high):
                _refuse(name, value, expected)
        if not isinstance(self.ignore_eos, bool):
            _refuse("ignore_eos", self.ignore_eos, "True or False")
        self._check_bias()
        self._check_stops()
        self._check_order()

    def _check_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            _refuse("logit_bias", self.logit_bias, "a mapping from token id to number")
        for token, bias in self.logit_bias.items():
            if not _is_token(token):
                _refuse("logit_bias", token, f"token ids from 0 to {_MAX_TOKEN_ID}")
            if not _is_real(bias) or not (bias == -math.inf or abs(bias) <= _MAX_BIAS):
                _refuse(f"logit_bias[{token}]", bias, f"a number from {-_MAX_BIAS:g} to {_MAX_BIAS:g}, or -inf")

    def _check_stops(self) -> None:
        stops = _items("stop", [self.stop] if isinstance(self.stop, str) else self.stop, "a string or strings")
        if len(stops) > _MAX_STOPS:
            _refuse("stop", f"{len(stops)} strings", f"at most {_MAX_STOPS}")
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                _refuse("stop", stop, "strings of at least one character")
        for token in _items("stop_token_ids", self.stop_token_ids, "a list of token ids"):
            if not _is_token(token):
                _refuse("stop_token_ids", token, f"token ids from 0 to {_MAX_TOKEN_ID}")

    def _check_order(self) -> None:
        known = f"one of {', '.join(ORDERS)}, or distinct stages of {', '.join(STAGES)}"
        if isinstance(self.order, str):
            if self.order not in ORDERS:
                _refuse("order", self.order, known)
            return
        stages = _items("order", self.order, known)
        if any(not isinstance(stage, str) or stage not in STAGES for stage in stages) or len(set(stages)) < len(stages):
            _refuse("order", self.order, known)

    def stages(self) -> tuple[str, ...]:
        """The stages to run, in their order."""
        return ORDERS[self.order] if isinstance(self.order, str) else tuple(self.order)

    def stop_strings(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def native_options(self, seed: int) -> dict[str, Any]:
        """The arguments of the native sampler, its vocabulary excepted; `seed` is the one drawn if none was given."""
        options: dict[str, Any] = {name: float(getattr(self, name)) for name in _NUMBERS}
        options["top_k"] = int(self.top_k)
        options["logit_bias"] = [(int(token), float(bias)) for token, bias in self.logit_bias.items()]
        options["seed"] = seed
        options["order"] = list(self.stages())
        options["logprobs"] = -1 if self.logprobs is None else int(self.logprobs)
        return options


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_token(value: object) -> bool:
    return _is_integer(value) and 0 <= value <= _MAX_TOKEN_ID


def _items(field_name: str, value: object, expected: str) -> Sequence[object]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable) or not isinstance(value, Sized):
        _refuse(field_name, value, expected)
    return list(value)


def _refuse(field_name: str, value: object, expected: str) -> NoReturn:
    raise InvalidRequest(f"{field_name} is {value!r}, expected {expected}")
