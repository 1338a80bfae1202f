"""SmolLM2 against the oracle: greedy tokens wherever quantisation leaves them decided, logits within its noise."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cpuinfer import LLM, SamplingParams, _core, loader
from cpuinfer.reference import Reference, quantisation_step

Array = npt.NDArray[np.float64]
DRAWS = 4
SIGMAS = 6
"""Of a normal deviate, exceeded once in 5e8: with some 4e7 logits compared, once in ten runs of other prompts."""

QUESTIONS = [
    "Why is the sky blue?",
    "Write a Python function that reverses a list.",
    "Name three rivers in Europe.",
    "What is 17 + 25?",
    "Translate 'good morning' into French and Spanish.",
    "Tell me a short story about a lighthouse keeper.",
]
TEXTS = [
    "The capital of Norway is",
    "Once upon a time, there existed a little girl,",
    "def fibonacci(n):\n    ",
    "2, 3, 5, 7, 11, 13,",
]


@pytest.fixture(scope="module")
def llm(real_model: Path) -> Iterator[LLM]:
    with LLM(real_model) as model:
        yield model


@pytest.fixture(scope="module")
def weights(real_model: Path) -> Iterator[dict[str, Array]]:
    blueprint = loader.open_model(real_model)
    yield {name: blueprint.weight(name) for name in blueprint.graph.used}


@pytest.fixture(scope="module")
def answers(llm: LLM) -> list[tuple[int, list[int]]]:
    """(tokens of the prompt, tokens of prompt and answer) of ten greedy answers of 64 tokens."""
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    chats = [llm.chat([{"role": "user", "content": question}], params) for question in QUESTIONS]
    plain = llm.generate(TEXTS, params)
    return [(len(c.prompt_token_ids), c.prompt_token_ids + c.token_ids) for c in [*chats, *plain]]


def test_greedy_tokens_and_logits_are_the_oracles_within_the_noise_of_quantised_activations(
    llm: LLM, weights: dict[str, Array], answers: list[tuple[int, list[int]]]
) -> None:
    """An int8 activation is off by up to half a step, about uniformly.  The oracle, run with such noise on what every
    linear reads, gives the standard deviation of each logit, and of each lead of the likeliest token over another.
    A token is decided when every lead is over six deviations; every logit must be within six of the most varying one.
    """
    random = np.random.default_rng(0)

    def disturb(x: Array, _: str) -> Array:
        return x + (random.random(x.shape) - 0.5) * quantisation_step(x)

    exact_model = Reference(llm.graph, weights.__getitem__)
    single = {name: weight.astype(np.float32) for name, weight in weights.items()}  # a deviation needs few digits
    noisy_model = Reference(llm.graph, single.__getitem__, activation=disturb, dtype=np.float32)
    decided = positions = 0
    for prompt, ids in answers:
        exact = exact_model.logits(ids[:-1])
        noise = np.stack([noisy_model.logits(ids[:-1]) - exact for _ in range(DRAWS)])
        deviation = np.sqrt(np.mean(noise**2, axis=0)).max(axis=1, keepdims=True)
        assert np.all(np.abs(llm.logits(ids[:-1]) - exact) <= SIGMAS * deviation)
        for position in range(prompt - 1, len(ids) - 1):
            best = int(exact[position].argmax())
            leads = np.delete(exact[position, best] - exact[position], best)
            lead_noise = np.delete(noise[:, position, best, None] - noise[:, position], best, axis=1)
            positions += 1
            if np.all(leads > SIGMAS * np.sqrt(np.mean(lead_noise**2, axis=0))):
                decided += 1
                assert ids[position + 1] == best, f"position {position} of {ids}"
    assert positions == 640
    assert decided > positions / 5, f"only {decided} of {positions} tokens are decided: the test says little"


def test_the_logits_are_the_same_bits_on_every_instruction_set(real_model: Path, llm: LLM) -> None:
    ids = llm.tokenizer.encode("The quick brown fox")
    expected = llm.logits(ids)
    for entry in _core.kernel_sets():
        if entry["usable"]:
            with LLM(real_model, isa=entry["name"]) as other:
                np.testing.assert_array_equal(other.logits(ids), expected, err_msg=entry["name"])


def test_sixteen_prompts_get_in_a_batch_what_they_get_alone(llm: LLM) -> None:
    prompts = [*TEXTS, *QUESTIONS, *(text.upper() for text in [*TEXTS, *QUESTIONS][:6])]
    params = SamplingParams(temperature=0.9, max_tokens=16, seed=11, ignore_eos=True)
    batch = llm.generate(prompts, params)
    assert len(batch) == 16
    assert [c.token_ids for c in batch] == [llm.generate(prompt, params).token_ids for prompt in prompts]


def test_quantised_text_is_as_likely_as_under_the_oracle(llm: LLM, weights: dict[str, Array]) -> None:
    text = "The sun rose over the hills, and the village slowly came to life. Farmers led their cattle to the fields."
    score = llm.score(text)
    rows = Reference(llm.graph, functools.partial(dict.__getitem__, weights)).logits(score.token_ids)
    rows = (
        rows
        - np.log(np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
        - rows.max(axis=1, keepdims=True)
    )
    expected = rows[np.arange(len(rows) - 1), score.token_ids[1:]].mean()
    found = score.total / (len(rows) - 1)
    # llama.cpp's int8 activations cost 0.3 % of perplexity on a long text; a short one may be off by ten times that.
    assert found == pytest.approx(expected, abs=0.03)


MEMORY_PROBE = """
import sys
from pathlib import Path
from cpuinfer import LLM, SamplingParams
llm = LLM(sys.argv[1], context=2048, threads=2)
llm.generate([[5] * 512], SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
cache = -(-513 // 32) * llm._session.page_bytes
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - cache)
"""


def test_no_second_copy_of_the_weights_stays_in_memory(real_model: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, str(real_model)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) <= 1.2 * real_model.stat().st_size + 120e6
