"""Evaluations of a small folder against transformers in float64: losses by windows, KL divergence, choices."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cpuinfer import LLM
from cpuinfer.evaluate import choices, divergence, perplexity
from tiny_folder import tensors_of, write_folder
from tiny_gguf import write_tiny_llama

torch = pytest.importorskip("torch", reason="needs the parity extra")
transformers = pytest.importorskip("transformers", reason="needs the parity extra")

TEXT = "The other word in the hall was there, or on a wall: the water, the winter, the tower.\n" * 5
WINDOW, STRIDE = 64, 24
NEAR = 2e-4
"""Keys and values in fp16, of 11 bits, are the largest rounding here: 2^-12 of a score or value, a few layers of
which move a mean of logits of order 1 by less."""

Array = npt.NDArray[np.float64]


@pytest.fixture(scope="module", params=[0, 1])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parity")
    gguf = write_tiny_llama(path / "f32.gguf", encoding="F32", embedding="F32", seed=request.param)
    return write_folder(path / f"model{request.param}", tensors_of(gguf))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    found = []
    for seed in (0, 1):
        path = tmp_path_factory.mktemp("pair")
        gguf = write_tiny_llama(path / "f32.gguf", encoding="F32", embedding="F32", seed=seed)
        found.append(write_folder(path / f"model{seed}", tensors_of(gguf)))
    return found


def theirs(folder: Path) -> tuple[Any, Any]:
    """(model in float64, tokenizer)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    return model, transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def strided(model: Any, ids: list[int]) -> Array:
    """Log-probabilities of all tokens in place of each but the first, by windows that move by STRIDE, each giving
    what the ones before did not, as transformers' guide to perplexity has it."""
    rows, done = [], 1
    for end in [*range(WINDOW + 1, len(ids), STRIDE), len(ids)]:
        begin = max(0, end - 1 - WINDOW)
        with torch.no_grad():
            logits = model(torch.tensor([ids[begin : end - 1]])).logits[0]
        rows.append(torch.log_softmax(logits, -1)[done - 1 - begin :].numpy())
        done = end
    return np.concatenate(rows)


def test_perplexity_is_that_of_transformers(folder: Path) -> None:
    model, tokenizer = theirs(folder)
    ids = tokenizer(TEXT)["input_ids"]
    rows = strided(model, ids)
    expected = -rows[np.arange(len(ids) - 1), ids[1:]].mean()
    with LLM(folder, quantize="none", deterministic=True, threads=1) as llm:
        found = perplexity(llm, TEXT, window=WINDOW, stride=STRIDE)
    assert found.tokens == len(rows)
    assert found.loss.value == pytest.approx(expected, abs=NEAR)


def test_divergence_is_that_of_transformers(pair: list[Path]) -> None:
    (first, tokenizer), (second, _) = map(theirs, pair)
    ids = tokenizer(TEXT)["input_ids"]
    p, q = strided(first, ids), strided(second, ids)
    expected = (np.exp(p) * (p - q)).sum(axis=1)
    reference, llm = (LLM(path, quantize="none", deterministic=True, threads=1) for path in pair)
    with reference, llm:
        found = divergence(llm, TEXT, reference, window=WINDOW, stride=STRIDE)
    assert found.divergence.value == pytest.approx(expected.mean(), abs=NEAR)
    assert found.median == pytest.approx(np.median(expected), abs=10 * NEAR)


def test_choices_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = theirs(folder)
    asked = [("The tower in", ["the hall", "a wall"]), ("On the water", ["there", "or", "in winter"])]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps({"context": c, "choices": t, "answer": 0}) for c, t in asked))
    with LLM(folder, quantize="none", deterministic=True, threads=1) as llm:
        found = choices(llm, path, letters=False)
    for (context, texts), item in zip(asked, found.items, strict=True):
        before = len(tokenizer(context)["input_ids"])
        for text, value in zip(texts, item.logprobs, strict=True):
            ids = tokenizer(f"{context} {text}")["input_ids"]
            with torch.no_grad():
                rows = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
            expected = math.fsum(float(rows[i - 1, ids[i]]) for i in range(before, len(ids)))
            assert value == pytest.approx(expected, abs=NEAR * (len(ids) - before) * 4)
