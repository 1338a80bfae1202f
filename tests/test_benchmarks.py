"""The models that benchmarks write can be run, and their tables say what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cpuinfer import LLM, SamplingParams, describe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import peers
import shapes

TINY = {
    "llama": shapes.Shape("llama", 8, 256, 4, 2, 512, 64, tied=True),
    "gptneox": shapes.Shape("gptneox", 2, 256, 4, 4, 512, 64),
}


@pytest.mark.parametrize("encoding", shapes.ENCODINGS)
@pytest.mark.parametrize("name", TINY)
def test_a_shape_is_a_model_that_runs(
    name: str, encoding: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "SHAPES", TINY)
    path = shapes.write(tmp_path / "model.gguf", name, encoding, tiny_model)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
    with LLM(path, threads=1) as llm:
        assert len(llm.generate("The", SamplingParams(max_tokens=3, ignore_eos=True)).token_ids) == 3
    found = {(row.kind, row.encoding): row.count for row in describe.describe(path).tensors}
    if encoding == "Q4_K_M" and name == "llama":  # of 8 layers: 0, 3, 6 and 7
        assert found["mlp.down_proj", "Q6_K"] == found["self_attn.v_proj", "Q6_K"] == 4
        assert found["mlp.down_proj", "Q4_K"] == 4


def test_a_shape_that_cannot_be_written_leaves_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "SHAPES", TINY)
    with pytest.raises(KeyError):
        shapes.write(tmp_path / "model.gguf", "llama", "no such encoding", tiny_model)
    assert list(tmp_path.iterdir()) == []


def test_a_table_compares_medians() -> None:
    ours, theirs = (peers.Runtime(name, [], {}) for name in ("cpuinfer", "other"))
    ours.prompts, ours.steps, ours.first, ours.peak = [1.0, 1.5, 1.25], [0.02, 0.01, 0.01], [0.5], [10**6]
    theirs.prompts, theirs.steps, theirs.first, theirs.peak = [2.5, 2.5], [0.02], [1.0], [2 * 10**6]
    assert peers.rows("m", 10**9, 500, [ours, theirs]) == [
        "| m | cpuinfer | 400 | 40% | 1.00 | 100.0 | 1.00 | 20.00 | 20.00 | 100.0 | 0.50 | 1 |",
        "| m | other | 200 | 0% | 2.00 | 50.0 | 2.00 | 20.00 | 20.00 | 50.0 | 1.00 | 2 |",
    ]
