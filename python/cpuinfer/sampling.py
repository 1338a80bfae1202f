"""What a caller asks of decoding: the parameters of one request, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

STAGES = ("penalties", "top_k", "top_p", "min_p", "temperature")
"""The stages of the sampler chain."""

ORDERS = {
    "default": STAGES,
    "hf": ("penalties", "temperature", "top_k", "top_p", "min_p"),
    "vllm": ("penalties", "temperature", "min_p", "top_k", "top_p"),
}
"""Named orders: temperature last (as llama.cpp), or first, as transformers and vLLM do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Parameters of one generation.

    min-p keeps the tokens with ``p >= min_p * p_max`` (Nguyen et al., arXiv 2407.01082, section 3).  With the default
    order the temperature comes last, so every truncation sees the model's own probabilities; with ``order="hf"`` it
    comes first.  ``min_p`` before a temperature T equals ``min_p ** (1 / T)`` after it.
    """

    temperature: float = 0.8
    """0 is greedy decoding: the highest logit, the lowest id among equals."""
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
