"""Small models are trained on text that is split without overlap, and both transformers and cpuinfer load them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import choice_items
import train_tiny
import training_text
from cpuinfer import LLM


def documents(count: int) -> list[str]:
    return [f"Document {i} says {'so ' * (i % 7 + 200)}.\n\nShared words.\n\nIt ends with {i}.\n" for i in range(count)]


def test_parts_share_no_paragraph() -> None:
    unique = list(training_text._without_repeats(documents(300)))
    corpus = training_text.split(unique, "made up")
    parts = [corpus.train, corpus.calibration, corpus.validation, corpus.heldout]
    assert sorted(text for part in parts for text in part) == sorted(unique)
    assert len(corpus.train) > len(corpus.calibration) > len(corpus.validation) > 0 < len(corpus.heldout)
    paragraphs = [paragraph for part in parts for text in part for paragraph in text.strip().split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs))


def test_a_question_is_answered_by_what_follows_in_the_text(tmp_path: Path) -> None:
    texts = [" ".join(f"d{i}w{j}" for j in range(60)) for i in range(12)]
    count = choice_items.write(tmp_path / "choice.jsonl", texts, seed=1)
    items = [json.loads(line) for line in (tmp_path / "choice.jsonl").read_text().splitlines()]
    assert count == len(items) == 12
    for item in items:
        assert any((item["context"] + item["choices"][item["answer"]]) in text for text in texts)
        others = [choice for i, choice in enumerate(item["choices"]) if i != item["answer"]]
        assert len(set(item["choices"])) == 4
        assert not any(item["context"] + choice in text for choice in others for text in texts)
    assert len({item["answer"] for item in items}) > 1
    choice_items.write(tmp_path / "again.jsonl", texts, seed=1)
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "choice.jsonl").read_text()


@pytest.mark.filterwarnings("ignore")
def test_two_steps_of_training_make_a_model_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    command = ["--steps", "2", "--size", "smallest", "--out", str(tmp_path), "--text-bytes", "150000"]
    train_tiny.main(command)
    folder = tmp_path / train_tiny.SIZES[0].name
    assert json.loads((folder / "training.json").read_text())["validation_loss"] < 12
    text = (tmp_path / "text" / "heldout.txt").read_text()[:300]
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    with LLM(folder, threads=1, quantize="none", deterministic=True) as llm:
        score = llm.score(text)
    assert score.token_ids == tokens
    assert tokens[0] == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([tokens]), labels=torch.tensor([tokens])).loss.item()
    assert -sum(score.logprobs[1:]) / (len(tokens) - 1) == pytest.approx(loss, abs=2e-3)
    capsys.readouterr()
    train_tiny.main(command)
    assert f"{folder.name}: is there" in capsys.readouterr().out
